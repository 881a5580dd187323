"""Rendered pairs are reproducible, and their images, depths, flow and co-visibility agree with each other."""

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.errors import DataError, RecipeError
from zoo.scenes import GEOMETRY, SceneConfig, ScenePair, ScenePairs, render_pair, sample_scene
from zoo.scenes.photos import SKIMAGE, texture_files

CONFIG = SceneConfig()


@pytest.fixture(scope="module")
def pairs() -> list[ScenePair]:
    return [render_pair(CONFIG, 7, index) for index in range(50)]


def _digest(pair: ScenePair) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in vars(pair).values())).hexdigest()


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values of `image` (H, W, C) at `x`, `y` (N,), pixel centers at integer + 0.5."""
    height, width = image.shape[:2]
    x, y = np.clip(x - 0.5, 0, width - 1.001), np.clip(y - 0.5, 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    right, low = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - low) + lower * low


def _targets(pair: ScenePair) -> tuple[np.ndarray, np.ndarray]:
    """Where the points at the pixels of img1 lie in img2: x and y (H, W)."""
    height, width = pair.depth1.shape
    y, x = np.mgrid[:height, :width] + 0.5
    return x + pair.flow[..., 0], y + pair.flow[..., 1]


def test_shapes_and_types():
    pair = render_pair(replace(CONFIG, image_size=(24, 40)), 0, 0)
    shapes = {name: (array.shape, array.dtype) for name, array in vars(pair).items()}
    assert shapes == {
        "img1": ((24, 40, 3), np.uint8),
        "img2": ((24, 40, 3), np.uint8),
        "depth1": ((24, 40), np.float32),
        "depth2": ((24, 40), np.float32),
        "intrinsics": ((3, 3), np.float32),
        "pose": ((4, 4), np.float32),
        "flow": ((24, 40, 2), np.float32),
        "covisible": ((24, 40), np.bool_),
    }


def test_pure_function_of_seed_and_index(pairs):
    for index in (31, 4, 31):  # any order, again and again
        assert _digest(render_pair(CONFIG, 7, index)) == _digest(pairs[index])
    assert len({_digest(pair) for pair in [*pairs, render_pair(CONFIG, 8, 0)]}) == len(pairs) + 1


def test_same_in_another_process(pairs):
    code = (
        "from tests.scenes.test_scenes import CONFIG, _digest; from zoo.scenes import render_pair;"
        "print(_digest(render_pair(CONFIG, 7, 3)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _digest(pairs[3])


def test_scene_has_fixed_float32_arrays_independent_of_image_size():
    scenes = [sample_scene(replace(CONFIG, image_size=size), 0, index) for size, index in ((64, 0), (32, 0), (64, 1))]
    flat = [[s.cameras, s.light, s.lattice, *s.solids, *s.surfaces] for s in scenes]
    for a, b, c in zip(*flat, strict=True):
        assert np.array_equal(a, b) and a.shape == c.shape
        assert a.dtype in (np.float32, np.bool_, np.int32)


def test_everything_is_finite_and_in_front(pairs):
    for pair in pairs:
        assert np.isfinite(pair.flow).all()
        assert np.isfinite(pair.depth1).all() and np.isfinite(pair.depth2).all()
        assert pair.depth1.min() > 0 and pair.depth2.min() > 0
        rotation = pair.pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)


def test_flow_follows_from_depth_intrinsics_and_pose(pairs):
    for pair in pairs:
        y, x = np.mgrid[:64, :64] + 0.5
        pixels = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
        points = np.linalg.inv(pair.intrinsics.astype(np.float64)) @ pixels * pair.depth1.reshape(-1)
        moved = pair.pose[:3, :3].astype(np.float64) @ points + pair.pose[:3, 3:]
        projected = pair.intrinsics.astype(np.float64) @ moved
        flow = (projected[:2] / projected[2] - pixels[:2]).T.reshape(64, 64, 2)
        assert np.abs(flow - pair.flow)[pair.covisible].max() < 1e-3


def test_covisible_agrees_with_the_second_depth_map(pairs):
    """Away from edges, where pixels can't tell, the point is the one that view 2 sees there."""
    agree, hidden = [], []
    for pair in pairs:
        x, y = _targets(pair)
        inside = (x > 0) & (x < 64) & (y > 0) & (y < 64)
        assert not (pair.covisible & ~inside).any()
        v, u = np.mgrid[:64, :64] + 0.5
        pixels = np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
        points = np.linalg.inv(pair.intrinsics) @ pixels * pair.depth1.reshape(-1)
        depth = (pair.pose[:3, :3] @ points + pair.pose[:3, 3:])[2].reshape(64, 64)
        row, column = np.clip(y, 0, 63).astype(int), np.clip(x, 0, 63).astype(int)
        seen = pair.depth2[row, column]
        agree.append((np.abs(seen / depth - 1) < 0.1)[pair.covisible])
        hidden.append((seen < depth * 1.02)[inside & ~pair.covisible])
    assert np.concatenate(agree).mean() > 0.96
    assert np.concatenate(hidden).mean() > 0.9


def test_warped_second_view_is_the_first(pairs):
    warped, unwarped = [], []
    for pair in pairs:
        x, y = _targets(pair)
        mask = pair.covisible
        first = pair.img1[mask].astype(float)
        warped.append(np.abs(_sample(pair.img2.astype(float), x[mask], y[mask]) - first).mean())
        unwarped.append(np.abs(pair.img2[mask] - first).mean())
    assert np.mean(warped) < 10  # of 255; what is left is interpolation, mostly at edges
    assert np.mean(warped) < 0.4 * np.mean(unwarped)
    assert np.mean(np.less(warped, unwarped)) == 1


def test_overlap_is_usual(pairs):
    overlap = np.array([pair.covisible.mean() for pair in pairs])
    assert overlap.min() > 0.4
    assert 0.6 < np.median(overlap) < 0.95
    assert np.mean((overlap > 0.55) & (overlap < 0.98)) > 0.9


def test_displacement_follows_the_configuration():
    medians = []
    for low, high in ((0.02, 0.05), (0.06, 0.1), (0.12, 0.2)):
        config = replace(CONFIG, displacement=(low, high))
        pairs = (render_pair(config, 1, index) for index in range(20))
        moved = np.array([np.median(np.linalg.norm(p.flow[p.covisible], axis=-1)) for p in pairs]) / 64
        assert np.mean((moved > 0.75 * low) & (moved < 1.3 * high)) >= 0.9
        medians.append(np.median(moved))
    assert medians == sorted(medians)


def test_images_have_structure_within_a_patch(pairs):
    """A view that were flat at the scale of a patch couldn't be matched."""
    images = np.stack([pair.img1 for pair in pairs]).astype(float)
    patches = images.reshape(-1, 8, 8, 8, 8, 3)
    assert np.median(patches.std(axis=(2, 4))) > 8


def test_supersampling_smooths_the_image_and_keeps_the_geometry():
    plain, fine = (render_pair(replace(CONFIG, supersample=n), 0, 5) for n in (1, 2))
    for name in ("depth1", "depth2", "flow", "covisible", "pose", "intrinsics"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(fine, name))
    assert 0 < np.abs(plain.img1.astype(float) - fine.img1).mean() < 15


def test_large_images_are_the_same_scene(monkeypatch):
    """Rendering in bands changes nothing."""
    whole = render_pair(CONFIG, 0, 0)
    monkeypatch.setattr("zoo.scenes.render._BAND", 1000)
    banded = render_pair(CONFIG, 0, 0)
    np.testing.assert_allclose(whole.depth1, banded.depth1, rtol=1e-5)
    assert np.abs(whole.img2.astype(int) - banded.img2).max() <= 1


def test_user_textures(tmp_path):
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "b.png")
    config = replace(CONFIG, textures=str(tmp_path))
    pair, plain = render_pair(config, 0, 0), render_pair(CONFIG, 0, 0)
    np.testing.assert_array_equal(pair.flow, plain.flow)  # textures change no geometry
    red = (pair.img1[..., 0] > 60) & (pair.img1[..., 1:].max(-1) < 0.1 * pair.img1[..., 0])
    gray = np.ptp(pair.img1.astype(int), axis=-1) < 3
    changed = (pair.img1 != plain.img1).any(-1)
    assert 0.1 < changed.mean() < 0.9
    assert (red | gray)[changed].mean() > 0.95
    assert _digest(render_pair(config, 0, 0)) == _digest(pair)


def test_bad_texture_folders(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="Name a folder"):
            ScenePairs(replace(CONFIG, textures=str(folder)))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken.png"):
        render_pair(replace(CONFIG, textures=str(tmp_path / ".")), 0, 0)


def test_rectified_pairs_differ_along_x_by_their_disparity():
    config = replace(CONFIG, rectified=True, displacement=(0.1, 0.3))
    overlap, moved = [], []
    for index in range(20):
        pair = render_pair(config, 3, index)
        np.testing.assert_allclose(pair.pose[:3, :3], np.eye(3), atol=1e-6)
        np.testing.assert_allclose(pair.pose[1:3, 3], 0, atol=1e-5)
        assert pair.pose[0, 3] < 0, "camera 2 stands to the right"
        assert np.abs(pair.flow[..., 1]).max() < 1e-3
        np.testing.assert_allclose(pair.disparity, -pair.flow[..., 0], atol=1e-3)
        exact = -pair.pose[0, 3].astype(np.float64) * pair.intrinsics[0, 0] / pair.depth1
        np.testing.assert_allclose(pair.disparity, exact, rtol=1e-6)
        overlap.append(pair.covisible.mean())
        moved.append(np.median(pair.disparity[pair.covisible]) / 64)
    assert np.min(overlap) > 0.35 and np.median(overlap) > 0.6
    assert np.min(moved) > 0.03 and 0.1 < np.median(moved) < 0.3


def test_points_of_both_views_are_the_same_place(pairs):
    """View 2's points, seen from camera 2, have its depth and its pixels; co-visible ones are view 1's."""
    for pair in pairs[:10]:
        x, y = _targets(pair)
        ray = pair.points1 / pair.points1[..., 2:]
        np.testing.assert_allclose(pair.points1[..., 2], pair.depth1, rtol=1e-6)
        np.testing.assert_allclose(ray[..., 0] * pair.intrinsics[0, 0] + 32, np.mgrid[:64, :64][1] + 0.5, atol=1e-3)
        again = pair.points2 @ pair.pose[:3, :3].T + pair.pose[:3, 3]
        np.testing.assert_allclose(again[..., 2], pair.depth2, rtol=1e-4)
        mask = pair.covisible
        found = _sample(pair.points2, x[mask], y[mask])
        near = np.linalg.norm(found - pair.points1[mask], axis=-1) < 0.05 * pair.depth1[mask]
        assert near.mean() > 0.8  # the others are next to an edge


def test_truths_come_as_asked_for():
    config = replace(CONFIG, rectified=True)
    pair = render_pair(config, 7, 4)
    item = ScenePairs(config, seed=7, truths=("disparity", "points2")).changed(displacement=CONFIG.displacement)[4]
    assert list(item) == ["image1", "image2", "disparity", "points2"]
    np.testing.assert_array_equal(item["disparity"], pair.disparity)
    np.testing.assert_array_equal(item["points2"], pair.points2)
    with pytest.raises(RecipeError, match="set rectified"):
        ScenePairs(CONFIG, truths=("disparity",))
    with pytest.raises(RecipeError, match="don't come with colour"):
        ScenePairs(CONFIG, truths=("colour",))


def test_photos_of_scikit_image():
    pytest.importorskip("skimage")
    pair, plain = (render_pair(replace(CONFIG, textures=name), 0, 0) for name in (SKIMAGE, None))
    assert 0.1 < (pair.img1 != plain.img1).any(-1).mean() < 0.9
    assert not any("motorcycle" in path.name for path in texture_files(SKIMAGE)), "what models are measured on"


def test_dataset(pairs):
    dataset = ScenePairs(CONFIG, seed=7, length=10)
    assert len(dataset) == 10
    item = pickle.loads(pickle.dumps(dataset))[4]
    assert list(item) == ["image1", "image2"]
    np.testing.assert_array_equal(item["image1"], pairs[4].img1)
    item = ScenePairs(CONFIG, seed=7, length=10, truths=GEOMETRY)[4]
    assert list(item) == ["image1", "image2", "depth1", "depth2", "intrinsics", "pose", "flow", "covisible"]
    np.testing.assert_array_equal(item["flow"], pairs[4].flow)
    for index in (-1, 10):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("setting", [{"displacement": (0.2, 0.1)}, {"texture_scale": (0, 1)}, {"image_size": 0}])
def test_impossible_settings(setting):
    with pytest.raises(RecipeError):
        SceneConfig(**setting)
