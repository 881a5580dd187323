"""Folders of posed pairs: points of the pixels that are left after resizing and cropping; what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.errors import DataError
from zoo.scenes import SceneConfig, ScenePairs
from zoo.train.data.posed import PosedPairs

TRUTHS = ("points1", "points2", "depth1", "depth2", "intrinsics", "pose")


def write(folder: Path, size: tuple[int, int] = (48, 64), world: np.ndarray | None = None) -> dict[str, Any]:
    """A scene as a folder of the format, with camera 1 anywhere in the world; returns the scene's own sample."""
    sample = ScenePairs(SceneConfig(image_size=size), seed=2, length=1, truths=TRUTHS)[0]
    to_world1 = np.eye(4) if world is None else world
    folder.mkdir(exist_ok=True)
    for i, to_world in ((1, to_world1), (2, to_world1 @ np.linalg.inv(sample["pose"]))):
        Image.fromarray(sample[f"image{i}"]).save(folder / f"view{i}.png")
        np.savez(
            folder / f"view{i}.npz",
            depth=sample[f"depth{i}"],
            intrinsics=sample["intrinsics"],
            camera_to_world=to_world,
        )
    (folder / "pairs.txt").write_text("view1 view2\n\nview2 view1\n")
    return sample


def test_a_scene_comes_back(tmp_path: Path) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = turn * np.sign(np.linalg.det(turn)), (3, -2, 5)
    sample = write(tmp_path, world=world)
    pairs = PosedPairs(tmp_path, (48, 64))
    assert len(pairs) == 2
    found = pairs[0]
    for i in (1, 2):
        assert np.array_equal(found[f"image{i}"], sample[f"image{i}"])
        np.testing.assert_allclose(found[f"points{i}"], sample[f"points{i}"], atol=2e-4)
        assert found[f"points{i}"].dtype == np.float32
    np.testing.assert_allclose(found["pose"], sample["pose"], atol=1e-5)
    back = pairs[1]
    np.testing.assert_allclose(back["pose"], np.linalg.inv(sample["pose"]), atol=1e-5)
    np.testing.assert_allclose(back["points1"][..., 2], sample["depth2"], atol=1e-4)


@pytest.mark.parametrize("size", [(24, 32), (32, 32), (48, 32), (96, 128)])
def test_points_are_those_of_the_pixels_that_are_left(size: tuple[int, int], tmp_path: Path) -> None:
    sample = write(tmp_path, (96, 128))
    found = PosedPairs(tmp_path, size)[0]
    assert found["image1"].shape == (*size, 3) and found["points1"].shape == (*size, 3)
    scale = max(size[0] / 96, size[1] / 128)
    whole = round(128 * scale), round(96 * scale)  # before the crop, to whole pixels
    focals = [sample["intrinsics"][0, 0] * whole[axis] / (128, 96)[axis] for axis in (0, 1)]
    x, y = (found["points1"][..., axis] / found["points1"][..., 2] * focals[axis] for axis in (0, 1))
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    np.testing.assert_allclose(x, columns - size[1] / 2, atol=0.51)
    np.testing.assert_allclose(y, rows - size[0] / 2, atol=0.51)


def test_unknown_depth_is_nan(tmp_path: Path) -> None:
    sample = write(tmp_path)
    depth = sample["depth1"].copy()
    depth[:10], depth[10:20], depth[20:30] = 0, np.nan, -1
    np.savez(tmp_path / "view1.npz", depth=depth, intrinsics=sample["intrinsics"], camera_to_world=np.eye(4))
    found = PosedPairs(tmp_path, (48, 64))[0]["points1"]
    assert np.isnan(found[:30]).all() and np.isfinite(found[30:]).all()


@pytest.mark.parametrize(
    "fault, message",
    [
        ("no list", "has no pairs.txt"),
        ("empty list", "is empty"),
        ("three views", "names 3 views"),
        ("no photo", "no photo of the view"),
        ("no arrays", "with the view's depth"),
        ("lacking array", "lacks an array"),
        ("other size", "write both at one size"),
        ("shape", "it should be numbers, 3x3"),
        ("infinite pose", "it should be numbers, 4x4, finite"),
        ("objects", "can't be read"),
        ("text", "can't be read"),
    ],
)
def test_what_is_wrong_is_said(fault: str, message: str, tmp_path: Path) -> None:
    sample = write(tmp_path)
    arrays: dict[str, Any] = dict(depth=sample["depth1"], intrinsics=sample["intrinsics"], camera_to_world=np.eye(4))
    path = tmp_path / "view1.npz"
    match fault:
        case "no list":
            (tmp_path / "pairs.txt").unlink()
        case "empty list":
            (tmp_path / "pairs.txt").write_text("\n")
        case "three views":
            (tmp_path / "pairs.txt").write_text("a b c\n")
        case "no photo":
            (tmp_path / "view1.png").unlink()
        case "no arrays":
            path.unlink()
        case "lacking array":
            np.savez(path, depth=arrays["depth"])
        case "other size":
            np.savez(path, **arrays | dict(depth=np.ones((4, 4))))
        case "shape":
            np.savez(path, **arrays | dict(intrinsics=np.eye(4)))
        case "infinite pose":
            np.savez(path, **arrays | dict(camera_to_world=np.full((4, 4), np.inf)))
        case "objects":
            np.savez(path, **arrays | dict(depth=np.array([[{"a": 1}]], dtype=object)))
        case "text":
            path.write_text("no arrays")
    with pytest.raises(DataError, match=message):
        PosedPairs(tmp_path, (48, 64))[0]
