"""Augmentations of stereo and flow: what they keep true, what they draw, and colors as torchvision has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from zoo.errors import DataError
from zoo.train.data.matching.augment import (
    FLOW_COLORS,
    STEREO_COLORS,
    MatchingTransform,
    augment_flow,
    augment_stereo,
    change_colors,
    draw_tilt,
    resize_flow,
    tilt,
)

RNG = np.random.default_rng(0)


def ramp(height: int, width: int, slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair whose gray is its place along x, the right one moved by a disparity of `slope` times the place."""
    x = np.arange(width) + 0.5
    left = np.repeat((x / width * 250)[None, :, None], height, 0).repeat(3, 2)
    disparity = np.repeat((slope * x)[None], height, 0).astype(np.float32)
    return left.astype(np.uint8), left.astype(np.uint8), disparity


def test_stereo_stretch_keeps_places_true() -> None:
    """Gray tells the place in the original image, so it tells how disparity must have been scaled."""
    left, right, disparity = ramp(40, 200, 0.1)
    factors = set()
    for seed in range(40):
        one, two, found = augment_stereo(left, right, disparity, (32, 96), np.random.default_rng(seed))
        assert one.shape == two.shape == (32, 96, 3) and found.shape == (32, 96) and one.dtype == np.uint8
        places = one[0, :, 0] / 250 * 200
        factor = np.median(found[0] / (0.1 * places))
        factors.add(round(float(factor), 2))
        assert 0.99 <= factor <= 2.01
        np.testing.assert_allclose(found[0], factor * 0.1 * places, atol=0.35)
        np.testing.assert_array_equal(one, two)
    assert 1.0 in factors and len(factors) > 10


def test_stereo_fits_narrow_images_and_refuses_low_ones() -> None:
    image, disparity = np.zeros((40, 60, 3), np.uint8), np.full((40, 60), 2, np.float32)
    sizes = {augment_stereo(image, image, disparity, (32, 96), np.random.default_rng(i))[0].shape for i in range(9)}
    assert sizes == {(32, 96, 3)}
    with pytest.raises(DataError, match="lower than the crop"):
        augment_stereo(image, image, disparity, (48, 48), np.random.default_rng(0))


def test_flow_follows_flips_and_scales() -> None:
    """The flow that leads every pixel to the middle still does after any augmentation."""
    height, width = 60, 80
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    middle = np.zeros((height, width, 3), np.uint8)
    places = np.stack((x / width * 250, y / height * 250, middle[..., 0]), -1).astype(np.uint8)
    flow = np.stack((width / 2 - x, height / 2 - y), -1)
    signs = set()
    for seed in range(60):
        one, _, found = augment_flow(places, places, flow, (48, 64), np.random.default_rng(seed))
        assert one.shape == (48, 64, 3) and found.shape == (48, 64, 2)
        sides = ((0, width), (1, height))
        slope = [np.polyfit(one[..., c].ravel() / 250 * side, found[..., c].ravel(), 1)[0] for c, side in sides]
        signs.add((bool(slope[0] > 0), bool(slope[1] > 0)))
        for c, side in sides:
            at_middle = np.abs(one[..., c] / 250 * side - side / 2) < 1
            assert np.abs(found[..., c][at_middle]).max() < 4
    assert {(False, False), (True, False), (False, True)} <= signs


def test_sparse_flow_is_scattered() -> None:
    flow = np.full((10, 10, 2), np.inf, np.float32)
    flow[4, 6] = (3, -2)
    found = resize_flow(flow, (20, 30))
    assert np.isfinite(found).sum() == 2
    np.testing.assert_allclose(found[13, 13], (6, -6))
    dense = np.ones((10, 10, 2), np.float32)
    dense[0, 0] = np.inf
    found = resize_flow(dense, (20, 20))
    known = np.isfinite(found[..., 0])
    assert not known[0, 0] and known.mean() > 0.95
    np.testing.assert_allclose(found[known], 2)


@pytest.mark.parametrize("task", ["stereo", "flow"])
def test_samples_depend_on_their_seed_alone(task: str) -> None:
    image = RNG.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    truth = RNG.random((64, 96) if task == "stereo" else (64, 96, 2)).astype(np.float32)
    sample = {"image1": image, "image2": image, "disparity" if task == "stereo" else "flow": truth, "index": 3}
    transform = MatchingTransform(task, (48, 64))
    first, again, other = (transform(sample, seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first) and "index" not in first
    assert not torch.equal(first["colors"], other["colors"])
    assert {"tilt", "colors"} - first.keys() == (set() if task == "stereo" else {"tilt"})


@pytest.mark.parametrize(("task", "colors"), [("stereo", STEREO_COLORS), ("flow", FLOW_COLORS)])
def test_colors_drawn_in_workers_and_on_the_device(task: str, colors: tuple[tuple[float, float], ...]) -> None:
    transform = MatchingTransform(task, None)
    host = torch.stack([transform({"index": 0}, seed)["colors"] for seed in range(2000)])
    device = transform.on_device(torch.arange(2000))["colors"]
    for drawn in (host, device):
        kinds, factors = drawn.unbind(-1)
        for kind, (low, high) in enumerate(colors):
            of = factors[:, 0][kinds[:, 0] == kind]
            if task == "flow" and kind == 1:  # gamma
                assert not len(of)
                continue
            assert low <= of.min() and of.max() <= high and abs(of.mean() - (low + high) / 2) < 0.1 * (high - low)
        alike = (drawn[:, 0] == drawn[:, 1]).flatten(1).all(1).float().mean()
        if task == "flow":
            assert 0.75 < alike < 0.85
            assert ((kinds >= 0).sum(-1) == 4).all()
        else:
            assert 0.45 < alike < 0.75  # a half, and where no kind was done
            assert 1.4 < (kinds >= 0).sum(-1).float().mean() < 1.6  # (1 + 5) / 2 tried, half of them done


def test_color_changes_are_torchvisions() -> None:
    images = torch.randint(0, 256, (6, 3, 20, 30), generator=torch.Generator().manual_seed(0))
    factors = (1.15, 0.8, 1.6, 0.07, 0.85)
    steps = torch.full((6, 5, 2), -1.0)
    for kind, factor in enumerate(factors):
        steps[kind, 2] = torch.tensor([kind, factor])
    found = change_colors(images, steps) / 255
    x = images / 255
    done = (
        reference.adjust_contrast(x[0], factors[0]),
        reference.adjust_gamma(x[1], factors[1]),
        reference.adjust_brightness(x[2], factors[2]),
        reference.adjust_hue(x[3], factors[3]),
        reference.adjust_saturation(x[4], factors[4]),
        x[5],
    )
    for ours, theirs in zip(found, done):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_tilt() -> None:
    y = (torch.arange(40) + 0.5)[None, None, :, None].expand(1, 3, 40, 60)
    x = (torch.arange(60) + 0.5)[None, None, None].expand(1, 3, 40, 60)
    still = tilt(y, torch.zeros(1, 4))
    torch.testing.assert_close(still, y.float(), atol=1e-4, rtol=0)
    moved = tilt(y, torch.tensor([[0.0, 0.5, 0.5, 1.5]]))  # a vertical shift alone
    torch.testing.assert_close(moved[..., 5:30, :], y[..., 5:30, :] + 1.5, atol=1e-4, rtol=0)
    angle = 0.02
    turned_y, turned_x = (tilt(of, torch.tensor([[angle, 0.25, 0.5, 0.0]])) for of in (y, x))
    inside = (..., slice(8, 32), slice(8, 52))
    cx, cy = 15.0, 20.0
    torch.testing.assert_close(
        turned_x[inside], (cx + np.cos(angle) * (x - cx) - np.sin(angle) * (y - cy))[inside], atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        turned_y[inside], (cy + np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy))[inside], atol=2e-3, rtol=0
    )
    drawn = torch.stack([draw_tilt(np.random.default_rng(i)) for i in range(500)])
    assert 0.4 < (drawn[:, 3] == 0).float().mean() < 0.6 and drawn[:, 3].abs().max() <= 2
    assert drawn[:, 0].abs().max() <= np.radians(0.1)
