"""What pointmaps are for: depth, focal length, relative pose, matches and point clouds.

Points are (..., 3) tensors, x right, y down, z forward; pixel centers lie at integer + 0.5, and a pose (4, 4) takes
points of camera 1's frame to camera 2's. torch does the work, on the points' own device; OpenCV (PnP) and trimesh (GLB)
are used where they are installed.
"""

from zoo.geometry.cameras import depth_of, focal_length, move, pixel_grid, unproject
from zoo.geometry.clouds import point_cloud, write_glb, write_ply
from zoo.geometry.matches import match_pixels, reciprocal_matches
from zoo.geometry.pose import pose_angles, pose_by_pnp, pose_by_procrustes, relative_pose

__all__ = [
    "depth_of",
    "focal_length",
    "match_pixels",
    "move",
    "pixel_grid",
    "point_cloud",
    "pose_angles",
    "pose_by_pnp",
    "pose_by_procrustes",
    "reciprocal_matches",
    "relative_pose",
    "unproject",
    "write_glb",
    "write_ply",
]
