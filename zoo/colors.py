"""Disparity, flow and errors as colors: arrays in, RGB arrays in 0..1 out. Unknown values are black."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_WHEEL = (15, 6, 4, 11, 13, 6)  # hues from red to yellow, green, cyan, blue, magenta, red (Baker et al., IJCV 2011)


def finite_range(values: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of the known values, wide enough to be divided by; 0 and 1 if none is known."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(x) for x in np.percentile(known, (1, 99)))
    return low, max(high, low + 1e-3)


def disparity_colors(disparity: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Disparity (H, W) -> (H, W, 3): blue is far, red is near, between `limits` (by default its own)."""
    return _mapped(disparity, limits or finite_range(disparity), "turbo")


def error_colors(errors: np.ndarray, highest: float) -> np.ndarray:
    """Errors (H, W) -> (H, W, 3) from dark (0) to bright (`highest` and more); unknown is middle gray."""
    found = _mapped(errors, (0.0, highest), "inferno")
    found[~np.isfinite(errors)] = 0.5
    return found


def confidence_colors(confidence: np.ndarray) -> np.ndarray:
    """A raw confidence channel (H, W), which grows with the expected error -> gray: white is sure."""
    low, high = finite_range(confidence)
    share = 1 - np.clip((confidence - low) / (high - low), 0, 1)
    return np.repeat(share[..., None], 3, axis=-1)


def _mapped(values: np.ndarray, limits: tuple[float, float], name: str) -> np.ndarray:
    from matplotlib import colormaps

    low, high = limits
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-6), 0, 1)
    return np.where(known[..., None], colormaps[name](share)[..., :3], 0.0)


def longest_of(flow: np.ndarray) -> float:
    """The 99th percentile of the known lengths of flow (H, W, 2), above 0; 1 if none is known."""
    known = np.isfinite(flow).all(-1)
    return max(float(np.percentile(np.hypot(*flow[known].T), 99)), 1e-3) if known.any() else 1.0


def flow_colors(flow: np.ndarray, longest: float | None = None) -> np.ndarray:
    """Flow (H, W, 2) -> (H, W, 3): the hue is its direction, the saturation its length up to `longest` pixels (by
    default its own) and more, on the wheel of Baker et al. (IJCV 2011), who darken what is longer: that is easily taken
    for an object."""
    known = np.isfinite(flow).all(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0.0), -1, 0)
    length = np.hypot(x, y)
    longest = longest_of(flow) if longest is None else longest
    wheel = _wheel()
    place = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    lower = np.floor(place).astype(int)
    share = (place - lower)[..., None]
    color = (1 - share) * wheel[lower] + share * wheel[(lower + 1) % len(wheel)]
    saturation = np.clip(length / longest, 0, 1)[..., None]
    return np.where(known[..., None], 1 - saturation * (1 - color), 0.0)


def flow_wheel(side: int = 151) -> np.ndarray:
    """The legend of `flow_colors`: a disk (side, side, 3) whose colors are those of the flow that leads there."""
    at = np.linspace(-1, 1, side)
    flow = np.stack(np.meshgrid(at, at), axis=-1)
    inside = np.hypot(*np.moveaxis(flow, -1, 0)) <= 1
    return np.where(inside[..., None], flow_colors(flow, longest=1.0), 1.0)


def _wheel() -> np.ndarray:
    """(55, 3): pure hues, between each two of which one channel rises or falls."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], dtype=float)
    parts = []
    for count, (start, end) in zip(_WHEEL, pairwise(corners)):
        share = np.arange(count)[:, None] / count
        parts.append((1 - share) * start + share * end)
    return np.concatenate(parts)
