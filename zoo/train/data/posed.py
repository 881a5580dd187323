"""Pairs of photos whose depth and cameras are known, in a plain folder.

    FOLDER/pairs.txt      a pair a line: the names of two views, "room/0001 room/0007"
    FOLDER/NAME.jpg       each view's photo (or .png, .jpeg, .webp)
    FOLDER/NAME.npz       its `depth` (H, W): z-depth, 0 or not finite where it is unknown; `intrinsics` (3, 3) in
                          pixels of the photo, pixel centers at integer + 0.5; `camera_to_world` (4, 4), x right, y
                          down, z forward, in the units of the depth

docs/pointmaps.md says how to write such a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import DataError
from zoo.photos import read_image
from zoo.settings import Side
from zoo.train.data.lists import read_lines, split_fields

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_RIGID = 1e-2  # that a rotation's columns may be off unit vectors at right angles
_ARRAYS = {"depth": None, "intrinsics": (3, 3), "camera_to_world": (4, 4)}


class PosedPairs:
    """Map-style dataset of the pairs of a folder of the format above, every view at `image_size` (height, width).

    Photos are resized so that they cover it, and cropped around their principal point. Items: "image1", "image2", uint8
    (H, W, 3); "points1", "points2", float32 (H, W, 3), what the pixels show in camera 1's frame, NaN where that is not
    known; "pose", float32 (4, 4), from camera 1 to camera 2.

    Raises DataError (a ValueError), for what is wrong with a view when it is read.
    """

    def __init__(self, path: str | Path, image_size: Side | tuple[Side, Side] = 224) -> None:
        self.folder = Path(path)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = int(height), int(width)
        listing = self.folder / "pairs.txt"
        if not listing.is_file():
            raise DataError(f"{self.folder} has no pairs.txt; write one there, the names of two views a line.")
        lines = [(number, split_fields(line, (2,))) for number, line in read_lines(listing)]
        if bad := next(((number, len(names)) for number, names in lines if len(names) != 2), None):
            raise DataError(f"Line {bad[0]} of {listing} names {bad[1]} views; write two a line.")
        if not lines:
            raise DataError(f"{listing} is empty; write a pair a line.")
        # not Paths: millions of them would fill each process's memory
        self.pairs = np.array([names for _, names in lines])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (image1, points1, to_world1), (image2, points2, to_world2) = (self._view(str(n)) for n in self.pairs[index])
        to_camera1 = np.linalg.inv(to_world1)
        from_camera2 = to_camera1 @ to_world2
        return dict(
            image1=image1,
            image2=image2,
            points1=points1.astype(np.float32),
            points2=(points2 @ from_camera2[:3, :3].T + from_camera2[:3, 3]).astype(np.float32),
            pose=np.linalg.inv(from_camera2).astype(np.float32),
        )

    def _view(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A view's photo and points (H, W, 3) in its own camera's frame, and the camera's pose in the world."""
        photo = next((p for suffix in _SUFFIXES if (p := self.folder / (name + suffix)).is_file()), None)
        if photo is None:
            raise DataError(f"{self.folder} has no photo of the view {name}; put {name}.jpg or .png there.")
        image = read_image(photo)
        depth, intrinsics, to_world = _read_arrays(self.folder / f"{name}.npz")
        if depth.shape != image.shape[:2]:
            raise DataError(
                f"The depth of {name} is {depth.shape[0]}x{depth.shape[1]} and its photo {image.shape[0]}x"
                f"{image.shape[1]}; write both at one size."
            )
        (height, width), (rows, columns) = self.image_size, depth.shape
        scale = max(height / rows, width / columns)
        whole = max(height, round(rows * scale)), max(width, round(columns * scale))
        scales = np.array([whole[1] / columns, whole[0] / rows])  # x, y
        middle = intrinsics[:2, 2] * scales
        left = int(np.clip(round(middle[0] - width / 2), 0, whole[1] - width))
        top = int(np.clip(round(middle[1] - height / 2), 0, whole[0] - height))
        small = Image.fromarray(image).resize((whole[1], whole[0]), Image.Resampling.LANCZOS)
        x, y = (np.arange(width) + left + 0.5) / scales[0], (np.arange(height) + top + 0.5) / scales[1]  # in the photo
        z = depth[y.astype(int)[:, None], x.astype(int)].astype(np.float64)
        z[~(np.isfinite(z) & (z > 0))] = np.nan
        slope_x = (x - intrinsics[0, 2]) / intrinsics[0, 0]
        slope_y = (y - intrinsics[1, 2]) / intrinsics[1, 1]
        points = np.stack(np.broadcast_arrays(slope_x, slope_y[:, None], 1.0), axis=-1) * z[..., None]
        return np.asarray(small)[top : top + height, left : left + width], points, to_world


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """depth, intrinsics and camera_to_world of a view. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in _ARRAYS}
    except FileNotFoundError as error:
        raise DataError(f"There is no {path} with the view's depth and camera; write it.") from error
    except KeyError as error:
        raise DataError(f"{path} lacks an array ({error.args[0]}); it needs {', '.join(_ARRAYS)}.") from error
    except Exception as error:  # of a damaged file zipfile, zlib and numpy raise whatever they stumble over
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} can't be read ({reason}); write it with numpy.savez.") from error
    for name, shape in _ARRAYS.items():
        array = found[name]
        numeric = np.issubdtype(array.dtype, np.number)
        if not numeric or (array.ndim != 2 if shape is None else array.shape != shape or not np.isfinite(array).all()):
            wanted = "height x width" if shape is None else f"{shape[0]}x{shape[1]}, finite"
            raise DataError(f"{name} in {path} is {array.dtype} {array.shape}; it should be numbers, {wanted}.")
    intrinsics, to_world = (found[name].astype(np.float64) for name in ("intrinsics", "camera_to_world"))
    if not (intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
        raise DataError(f"intrinsics in {path} has no focal lengths on its diagonal; write them in pixels.")
    turn = to_world[:3, :3]
    if not np.allclose(turn.T @ turn, np.eye(3), atol=_RIGID) or not np.allclose(to_world[3], (0, 0, 0, 1)):
        raise DataError(f"camera_to_world in {path} is no rotation and shift; write the camera's pose in the world.")
    return found["depth"], intrinsics, to_world
