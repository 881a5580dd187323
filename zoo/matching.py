"""Predicted disparity and flow as pictures with their legends, as metric depth and as colored points.

matplotlib is imported only where something is drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.colors import confidence_colors, disparity_colors, error_colors, finite_range, flow_colors, flow_wheel
from zoo.errors import ImageError
from zoo.geometry.cameras import unproject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST_ERROR = 5.0
"""Pixels from which on an error map is as bright as it gets."""


def focal_of(fov: float, width: int) -> float:
    """The focal length in pixels of a camera that sees `fov` degrees across `width` pixels. Raises ImageError."""
    if not 0 < fov < 180:
        raise ImageError(f"A field of view of {fov:g} degrees is impossible; give one between 0 and 180.")
    return 0.5 * width / math.tan(math.radians(fov) / 2)


def depth_of(disparity: np.ndarray, focal: float, baseline: float, offset: float = 0.0) -> np.ndarray:
    """Disparity (H, W) in pixels -> z-depth in the baseline's unit, inf where nothing is seen to move.

    focal: in pixels. baseline: distance of the cameras. offset: by how many pixels the right principal point lies
    farther right than the left one.

    Raises ImageError (a ValueError) for a focal length or baseline that isn't positive.
    """
    for name, value in (("focal length", focal), ("baseline", baseline)):
        if not 0 < value < math.inf:
            raise ImageError(f"A {name} of {value:g} gives no depth; give a positive one.")
    moved = disparity + offset
    return np.where(moved > 0, focal * baseline / np.where(moved > 0, moved, 1), np.inf).astype(np.float32)


def colored_points(
    depth: np.ndarray, image: np.ndarray, focal: float, farthest: float, center: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """z-depth (H, W) and its image, uint8 (H, W, 3) -> points (N, 3) of the left camera, x right, y down, z forward,
    and their colors (N, 3); what is farther than `farthest` is left out. center: the principal point, x and y in
    pixels, by default the middle."""
    height, width = depth.shape
    x, y = center or (width / 2, height / 2)
    camera = torch.tensor([[focal, 0, x], [0, focal, y], [0, 0, 1]], dtype=torch.float32)
    near = torch.from_numpy(np.isfinite(depth) & (depth <= farthest))
    points = unproject(torch.from_numpy(np.where(np.isfinite(depth), depth, 0).astype(np.float32)), camera)
    return points[near], torch.from_numpy(np.ascontiguousarray(image))[near]


def look_from(
    points: Tensor, colors: Tensor, focal: float, size: tuple[int, int], turn: float, center: float
) -> np.ndarray:
    """The points seen by a camera that has gone `turn` degrees around the vertical axis at depth `center`, as an image
    (H, W, 3) in 0..1; white where no point is. Each point is a small square, nearer ones hide farther ones."""
    height, width = size
    angle = math.radians(turn)
    x, y, z = points.double().unbind(1)
    z = z - center
    x, z = math.cos(angle) * x + math.sin(angle) * z, -math.sin(angle) * x + math.cos(angle) * z
    z = z + center
    order = torch.argsort(z, descending=True)  # the nearest is painted last
    column = (focal * x / z + width / 2)[order]
    row = (focal * y / z + height / 2)[order]
    shade = (colors.double() / 255)[order].numpy()
    canvas = np.ones((height, width, 3))
    ahead = (z[order] > 1e-6).numpy()
    for right in (0, 1):
        for down in (0, 1):
            at_x, at_y = (column.floor().long() + right).numpy(), (row.floor().long() + down).numpy()
            inside = ahead & (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
            canvas[at_y[inside], at_x[inside]] = shade[inside]
    return canvas


_UNKNOWN = (
    f"Errors from 0 (dark) to {WORST_ERROR:.0f} pixels and more (bright). Where the truth is not known, it is black "
    "and its error gray."
)


def draw_stereo(
    image: np.ndarray,
    disparity: np.ndarray,
    truth: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """The left image, uint8 (H, W, 3), its disparity (H, W) with a legend, and what else is given: the truth and the
    error, and the confidence."""
    caption = caption or ("" if truth is None else _UNKNOWN)
    limits = finite_range(disparity if truth is None else truth)
    panels: list[tuple[np.ndarray, str, Any]] = [
        (image / 255, "left image", None),
        (disparity_colors(disparity, limits), "disparity (pixels)", ("turbo", limits)),
    ]
    if truth is not None:
        errors = np.where(np.isfinite(truth), np.abs(disparity - truth), np.nan)
        panels += [
            (disparity_colors(truth, limits), "true disparity (pixels)", ("turbo", limits)),
            (error_colors(errors, WORST_ERROR), _error_title(errors), ("inferno", (0.0, WORST_ERROR))),
        ]
    return _draw(panels + _confidence_panel(confidence), title, caption)


def draw_flow(
    image: np.ndarray,
    flow: np.ndarray,
    truth: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Image 1, uint8 (H, W, 3), its flow (H, W, 2) with the wheel of its colors, and what else is given; see
    `draw_stereo`."""
    caption = caption or ("" if truth is None else _UNKNOWN)
    lengths = np.hypot(*np.moveaxis(flow if truth is None else truth, -1, 0))
    longest = finite_range(lengths)[1]
    panels: list[tuple[np.ndarray, str, Any]] = [
        (image / 255, "image 1", None),
        (flow_colors(flow, longest), "flow (pixels)", longest),
    ]
    if truth is not None:
        errors = np.full(lengths.shape, np.nan)
        known = np.isfinite(truth).all(-1)
        errors[known] = np.hypot(*(flow - truth)[known].T)
        panels += [
            (flow_colors(truth, longest), "true flow (pixels)", longest),
            (error_colors(errors, WORST_ERROR), _error_title(errors), ("inferno", (0.0, WORST_ERROR))),
        ]
    return _draw(panels + _confidence_panel(confidence), title, caption)


def _confidence_panel(confidence: np.ndarray | None) -> list[tuple[np.ndarray, str, Any]]:
    return [] if confidence is None else [(confidence_colors(confidence), "confidence: white is sure", None)]


def _error_title(errors: np.ndarray) -> str:
    known = errors[np.isfinite(errors)]
    return f"error: {known.mean():.2f} pixels" if known.size else "error: nothing is known"


def _draw(panels: list[tuple[np.ndarray, str, Any]], title: str, caption: str) -> Figure:
    """Images in rows of two or three, each with its legend: None, a color map and its limits, or the longest flow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    height, width = panels[0][0].shape[:2]
    panel = 4.4
    figure = Figure((columns * (panel + 0.5), rows * (panel * height / width + 0.4) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for ax in (axes := figure.subplots(rows, columns, squeeze=False)).flat:
        ax.set_axis_off()
    for ax, (image, name, legend) in zip(axes.flat, panels):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(name, fontsize=11)
        if isinstance(legend, tuple):
            _add_bar(figure, ax, *legend)
        elif legend is not None:
            _add_wheel(ax, legend)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    if caption:
        figure.supxlabel(caption, fontsize=9, color="0.3")
    return figure


def _add_bar(figure: Figure, ax: Any, name: str, limits: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure.colorbar(ScalarMappable(Normalize(*limits), name), ax=ax, fraction=0.04, pad=0.02)


def _add_wheel(ax: Any, longest: float) -> None:
    inset = ax.inset_axes((1.02, 0.0, 0.22, 0.22))
    inset.imshow(flow_wheel(), interpolation="bilinear")
    inset.set_axis_off()
    inset.set_title(f"{longest:.1f}+ px", fontsize=8, pad=2)
