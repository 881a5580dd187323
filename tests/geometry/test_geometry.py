"""Geometry from pointmaps, where the truth is known: procedural scenes, with the errors and outliers of a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo import geometry
from zoo.errors import GeometryError
from zoo.scenes import GEOMETRY, SceneConfig, ScenePairs

NOISE, OUTLIERS = 0.02, 0.2  # share of a point's distance; share of the points


def scene(index: int, size: tuple[int, int] = (128, 160)) -> dict[str, Tensor]:
    """A rendered pair: intrinsics, pose, and each view's true points in its own frame (points1, points2) and view 2's
    in camera 1's (points21)."""
    pairs = ScenePairs(SceneConfig(image_size=size), seed=5, length=index + 1, truths=GEOMETRY)
    sample = {key: torch.as_tensor(value) for key, value in pairs[index].items()}
    sample["points1"], sample["points2"] = (
        geometry.unproject(sample[f"depth{i}"], sample["intrinsics"]) for i in (1, 2)
    )
    sample["points21"] = geometry.move(sample["points2"], torch.linalg.inv(sample["pose"]))
    return sample


def as_predicted(points: Tensor, seed: int) -> Tensor:
    """Points with noise, some of them anywhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE * points.norm(dim=-1, keepdim=True) * torch.randn(points.shape, generator=generator)
    anywhere = (torch.rand(points.shape, generator=generator) * 2 - 1) * 1.5 * points.abs().amax((0, 1))
    out = torch.rand(points.shape[:-1], generator=generator) < OUTLIERS
    return torch.where(out[..., None], anywhere, points + noise)


def assert_close_pose(pose: Tensor, sample: dict[str, Tensor]) -> None:
    """Within half a degree, and camera 2 within 1 % of how far it stands from camera 1."""
    truth = sample["pose"]
    rotation, direction = geometry.pose_angles(pose, truth)
    assert rotation < 0.5 and direction < 0.6
    assert (pose[:3, 3] - truth[:3, 3]).norm() < 0.01 * truth[:3, 3].norm()


def test_true_points_agree_with_the_renderers_flow() -> None:
    sample = scene(0)
    in_camera2 = geometry.move(sample["points1"], sample["pose"])
    focal, (height, width) = sample["intrinsics"][0, 0], in_camera2.shape[:2]
    where = in_camera2[..., :2] / in_camera2[..., 2:] * focal + torch.tensor([width / 2, height / 2])
    flow = where - geometry.pixel_grid(height, width)
    ahead = in_camera2[..., 2] > 1e-3
    torch.testing.assert_close(flow[ahead], sample["flow"][ahead], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(
        geometry.depth_of(sample["points21"], sample["pose"]), sample["depth2"], atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("index", range(3))
def test_focal_length(index: int) -> None:
    sample = scene(index)
    truth = sample["intrinsics"][0, 0].item()
    assert geometry.focal_length(sample["points1"]) == pytest.approx(truth, rel=1e-5)
    assert geometry.focal_length(as_predicted(sample["points1"], index)) == pytest.approx(truth, rel=0.015)
    weights = torch.zeros(128, 160)
    weights[40:90, 20:140] = 1
    broken = sample["points1"].clone()
    broken[weights == 0] = torch.nan
    assert geometry.focal_length(broken, weights) == pytest.approx(truth, rel=1e-5)


def test_focal_length_needs_points_before_the_camera() -> None:
    with pytest.raises(GeometryError, match="before the camera"):
        geometry.focal_length(-scene(0)["points1"])


@pytest.mark.parametrize("index", [1, 3, 7])  # whose cameras are apart by 26, 14 and 8 % of the scene's distance
def test_pose_with_noise_and_outliers(index: int) -> None:
    sample = scene(index, (288, 384))
    there, own = as_predicted(sample["points21"], index), as_predicted(sample["points2"], index + 100)
    assert_close_pose(geometry.pose_by_procrustes(there, 3.7 * own), sample)  # each pair has a scale of its own
    if importlib.util.find_spec("cv2"):
        focal = sample["intrinsics"][0, 0].item()
        assert_close_pose(geometry.pose_by_pnp(there, focal), sample)


def test_pose_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    sample = scene(1)
    focal = sample["intrinsics"][0, 0].item()
    pose = geometry.relative_pose(sample["points21"], focal, sample["points2"])
    assert geometry.pose_angles(pose, sample["pose"])[0] < 1e-3
    with pytest.raises(GeometryError, match="opencv"):
        geometry.relative_pose(sample["points21"], focal)


def test_a_pose_needs_points() -> None:
    points = torch.full((4, 4, 3), torch.nan)
    with pytest.raises(GeometryError, match="too few"):
        geometry.pose_by_procrustes(points, points)


def test_pose_angles() -> None:
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turn[:3, 3] = torch.tensor([1.0, 0, 0])
    other = torch.eye(4)
    other[:3, 3] = torch.tensor([0, 2.0, 0])
    assert geometry.pose_angles(turn, other) == pytest.approx((90, 90), abs=1e-4)
    assert geometry.pose_angles(turn, turn) == pytest.approx((0, 0), abs=1e-4)
    assert geometry.pose_angles(turn, torch.eye(4))[1] == 0


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("entries", [64, 1 << 24])  # many blocks, and one
def test_reciprocal_matches_are_those_of_the_whole_table(descriptors: bool, entries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(150, 8, generator=generator), torch.randn(190, 8, generator=generator)
    b[:100] = a[50:] + 0.1 * torch.randn(100, 8, generator=generator)
    if descriptors:
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    distance = -a @ b.T if descriptors else torch.cdist(a, b)
    forth, back = distance.argmin(1), distance.argmin(0)
    i = (back[forth] == torch.arange(150)).nonzero()[:, 0]
    got_i, got_j = geometry.reciprocal_matches(a, b, descriptors, entries)
    assert torch.equal(got_i, i) and torch.equal(got_j, forth[i])
    assert len(i) > 80


def test_matched_pixels_follow_the_flow() -> None:
    sample = scene(2, (48, 64))
    weights = sample["covisible"].float()
    pixels1, pixels2 = geometry.match_pixels(sample["points1"], sample["points21"], weights1=weights)
    assert len(pixels1) > 0.5 * weights.sum()
    x, y = pixels1.long().unbind(1)
    missed = (pixels1 + sample["flow"][y, x] - pixels2).norm(dim=1)
    assert missed.median() < 0.75  # a pixel's own middle is at most 0.71 away
    sparse, _ = geometry.match_pixels(sample["points1"], sample["points21"], stride=4)
    assert ((sparse - 2.5) % 4 == 0).all()


def test_clouds_can_be_read_back(tmp_path: Path) -> None:
    points = [torch.tensor([[[1.0, 2, 3], [torch.nan, 0, 0], [4, 5, 6]]]), torch.tensor([[[7.0, 8, 9]]])]
    images = [torch.arange(9, dtype=torch.uint8).view(1, 3, 3), torch.full((1, 1, 3), 200, dtype=torch.uint8)]
    confidences = [torch.tensor([[3.0, 3.0, 1.0]]), torch.tensor([[2.0]])]
    xyz, rgb = geometry.point_cloud(points, images, confidences, threshold=1.5)
    assert xyz.tolist() == [[1, 2, 3], [7, 8, 9]] and rgb.tolist() == [[0, 1, 2], [200, 200, 200]]
    path = geometry.write_ply(tmp_path / "cloud.ply", xyz, rgb)
    header, _, data = path.read_bytes().partition(b"end_header\n")
    assert b"element vertex 2\n" in header and len(data) == 2 * 15
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(path)
    assert np.allclose(loaded.vertices, xyz) and np.array_equal(loaded.colors[:, :3], rgb)
    (cloud,) = trimesh.load(geometry.write_glb(tmp_path / "cloud.glb", xyz, rgb)).geometry.values()
    assert np.allclose(cloud.vertices, xyz * torch.tensor([1, -1, -1]))  # glTF: y up, z towards the viewer
    assert np.array_equal(cloud.colors[:, :3], rgb)
    with pytest.raises(GeometryError, match="empty"):
        geometry.write_glb(tmp_path / "none.glb", xyz[:0], rgb[:0])
