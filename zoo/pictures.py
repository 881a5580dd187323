"""Photos in, pictures out: what `zoo complete`, the demo and notebooks share.

matplotlib is imported only where something is drawn: reading and preparing photos does not need it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.photos import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN_COLOR = (0.88, 0.88, 0.90)
CORRECT_COLOR, WRONG_COLOR = "#00d68f", "#ff3b30"
FRAME_COLORS = ("#ff3b30", "#00c2ff", "#ffcc00", "#34c759", "#ff5fd2", "#ff9500", "#5e5ce6", "#ffffff")


def to_input(image: str | Path | np.ndarray, model: nn.Module, size: tuple[int, int] | None = None) -> Tensor:
    """A photo as the input of `model`, (1, 3, H, W): resized, center-cropped and normalized as timm evaluates.

    image: a file, or uint8 (h, w, 3). size: height and width, by default those of the model's weights.
    Raises ImageError (a ValueError) for a file that can't be read and for a size that patches don't fill.
    """
    config = input_config(model, size)
    array = image if isinstance(image, np.ndarray) else read_image(image)
    return create_transform(**config)(Image.fromarray(array)).unsqueeze(0)


def input_config(model: nn.Module, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """How photos become the input of `model`, as timm's `create_transform` takes it. size: as in `to_input`.

    Raises ImageError (a ValueError) for a size that patches don't fill.
    """
    config = resolve_data_config(model=model)
    if size is not None:
        check_size(model, size)
        config["input_size"] = (3, *size)
    return config


def check_size(model: Any, size: tuple[int, int]) -> None:
    """Raise ImageError unless the model's patches fill images of `size` (height, width)."""
    patch = model.feature_info[-1]["reduction"]
    if min(size) < patch or size[0] % patch or size[1] % patch:
        raise ImageError(
            f"{type(model).__name__} can't take images of {size[0]}x{size[1]} pixels; choose a height and a width "
            f"that are multiples of {patch}."
        )


def to_pixels(images: Tensor, model: Any) -> np.ndarray:
    """Normalized images (B, 3, H, W) -> what can be shown: float in 0..1, (B, H, W, 3)."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def hide(pixels: np.ndarray, mask: Tensor, patch_size: int) -> np.ndarray:
    """The images (B, H, W, 3) with the patches hidden by `mask` (B, N) in flat gray."""
    height, width = pixels.shape[1:3]
    grid = mask.cpu().numpy().reshape(-1, height // patch_size, width // patch_size)
    hidden = grid.repeat(patch_size, axis=1).repeat(patch_size, axis=2)[..., None]
    return np.where(hidden, np.array(HIDDEN_COLOR, dtype=pixels.dtype), pixels)


def color_depth(depth: np.ndarray) -> np.ndarray:
    """Depths (H, W) as colors (H, W, 3) in 0..1: near is yellow, far is blue, what isn't finite is gray."""
    from matplotlib import colormaps

    known = np.isfinite(depth)
    if not known.any():
        return np.full((*depth.shape, 3), HIDDEN_COLOR)
    low, high = np.quantile(depth[known], (0.02, 0.98))
    share = np.clip((np.where(known, depth, low) - low) / max(high - low, 1e-12), 0, 1)
    return np.where(known[..., None], colormaps["viridis"](1 - share)[..., :3], HIDDEN_COLOR)


def pca_rgb(features: Tensor) -> Tensor:
    """Features (N, D) of any number of images -> colors (N, 3) in 0..1: three principal components, as RGB.

    Each channel spans the 2nd to 98th percentile of its component. Signs are fixed, so equal features have
    equal colors from run to run.
    """
    centered = features.double() - features.double().mean(dim=0)
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)  # largest first
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    components = centered @ (axes * largest.sign())
    low, high = (components.quantile(q, dim=0) for q in (0.02, 0.98))
    return ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()


class CompletionPicture(NamedTuple):
    """One row of `draw_completions`: images (H, W, 3) in 0..1 and what stands before them."""

    label: str
    reference: np.ndarray
    hidden: np.ndarray
    completion: np.ndarray
    truth: np.ndarray


def picture_completion(
    model: Any, img1: Tensor, img2: Tensor, label: str = "", mask_ratio: float = 0.9, seed: int = 0
) -> CompletionPicture:
    """Complete `img1` with the help of `img2`, both (1, 3, H, W) normalized, under the mask of `seed`."""
    result = model.complete(img1, img2, mask_ratio, generator=torch.Generator().manual_seed(seed))
    truth = to_pixels(img1, model)
    hidden = hide(truth, result.mask, model.patch_size)
    return CompletionPicture(label, to_pixels(img2, model)[0], hidden[0], to_pixels(result.image, model)[0], truth[0])


def completion_caption(model: Any) -> str:
    """What a reader must know of a model's completions: whether the hidden patches' statistics were given away."""
    if not model.norm_target:
        return "Hidden patches are shown as the model predicts them."
    return "The true mean and deviation (brightness, contrast) of each hidden patch were used; the rest is predicted."


def draw_completions(rows: Sequence[CompletionPicture], caption: str, title: str = "") -> Figure:
    """A row for each completion: reference view, hidden input, completion, truth.

    caption: see `completion_caption`.
    """
    names = ("reference view", "input", "completion", "truth")
    return draw_images([row[1:] for row in rows], names, title, caption, [row.label for row in rows], panel=2.4)


def draw_images(
    images: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    title: str,
    caption: str,
    labels: Sequence[str] = (),
    panel: float = 4.2,
) -> Figure:
    """Rows of images (H, W, 3) under column names, with `labels` before the rows, all `panel` inches wide."""
    titles = [names, *[[""] * len(names)] * (len(images) - 1)]
    rows = [[Panel(*pair) for pair in zip(*row, strict=True)] for row in zip(images, titles)]
    return draw_panels(rows, title, caption, labels, panel)


class Frame(NamedTuple):
    """A rectangle on an image, in pixels; `text` stands in its upper left corner."""

    left: float
    upper: float
    width: float
    height: float
    color: str
    text: str = ""


class Lines(NamedTuple):
    """Lines between points of an image, x and y in pixels (n, 2), green if `correct` (n,) and red if not."""

    start: np.ndarray
    end: np.ndarray
    correct: np.ndarray


class Panel(NamedTuple):
    """An image (H, W, 3) in 0..1, what stands above it, and frames and lines to be drawn on it."""

    image: np.ndarray
    title: str = ""
    frames: Sequence[Frame] = ()
    lines: Lines | None = None


def match_panel(
    view1: np.ndarray, view2: np.ndarray, points1: Tensor, points2: Tensor, correct: Tensor, title: str
) -> Panel:
    """Two views side by side, both (H, W, 3), with lines between matching points, x and y in pixels (n, 2)."""
    gap = view1.shape[1] // 16
    canvas = np.ones((view1.shape[0], view1.shape[1] + gap + view2.shape[1], 3))
    canvas[:, : view1.shape[1]] = 0.3 + 0.7 * view1  # pale, so that the lines stand out
    canvas[:, view1.shape[1] + gap :] = 0.3 + 0.7 * view2
    moved = points2.numpy() + (view1.shape[1] + gap, 0)
    return Panel(canvas, title, lines=Lines(points1.numpy(), moved, correct.numpy()))


def draw_panels(
    rows: Sequence[Sequence[Panel]], title: str, caption: str, labels: Sequence[str] = (), panel: float = 2.4
) -> Figure:
    """Rows of equally many panels, all `panel` inches wide, with `labels` before the rows."""
    heights = [panel * max(p.image.shape[0] / p.image.shape[1] for p in row) for row in rows]
    size = (max(4.5, len(rows[0]) * panel), sum(heights) + 0.25 * sum(any(p.title for p in row) for row in rows) + 0.65)
    figure, axes = _figure(len(rows), len(rows[0]), size, heights)
    for row, line in zip(rows, axes, strict=True):
        for part, ax in zip(row, line, strict=True):
            ax.imshow(part.image, interpolation="nearest")
            ax.set_title(part.title, fontsize=11)
            for frame in part.frames:
                _draw_frame(ax, frame)
            if part.lines is not None:
                _draw_lines(ax, part.lines)
    for label, ax in zip(labels, axes[:, 0]):
        ax.set_ylabel(label, fontsize=10)
    return _finish(figure, title, caption)


def _draw_frame(ax: Any, frame: Frame) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    line, inset = 2.5, 0.5  # points; imshow's first pixel is centered at 0
    outline = [withStroke(linewidth=line + 1.5, foreground="black")]  # visible on any image
    corner = (frame.left - inset, frame.upper - inset)
    ax.add_patch(
        Rectangle(corner, frame.width, frame.height, fill=False, lw=line, edgecolor=frame.color, path_effects=outline)
    )
    ax.annotate(
        frame.text,
        corner,
        (5, -5),
        textcoords="offset points",
        va="top",
        color=frame.color,
        fontsize=11,
        fontweight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )


def draw_matches(
    view1: np.ndarray,
    view2: np.ndarray,
    points1: np.ndarray,
    points2: np.ndarray,
    correct: np.ndarray,
    title: str = "",
    caption: str = "",
    shown: int = 150,
) -> Figure:
    """Image 1 above image 2, both (H, W, 3), with lines between matching points, green if `correct` and red if not.

    points1, points2: x and y in pixels (n, 2). correct: (n,) bool. Of more than `shown` matches a random choice is
    drawn. One above the other, because the lines of a stereo pair would hide each other side by side.
    """
    gap = view1.shape[0] // 40
    height, width = view1.shape[0] + gap + view2.shape[0], max(view1.shape[1], view2.shape[1])
    canvas = np.ones((height, width, 3))
    canvas[: view1.shape[0], : view1.shape[1]] = 0.3 + 0.7 * view1  # pale, so that the lines stand out
    canvas[view1.shape[0] + gap :, : view2.shape[1]] = 0.3 + 0.7 * view2
    inches = 7.5
    figure, axes = _figure(1, 1, (inches, inches * height / width + 1.0))
    ax = axes[0, 0]
    ax.imshow(canvas)
    chosen = np.random.default_rng(0).permutation(len(correct))[:shown]
    _draw_lines(ax, Lines(points1[chosen], points2[chosen] + (0, view1.shape[0] + gap), correct[chosen]))
    return _finish(figure, title, caption)


def _draw_lines(ax: Any, lines: Lines) -> None:
    from matplotlib.collections import LineCollection

    order = np.argsort(~lines.correct, kind="stable")  # wrong ones last, on top: none may hide
    start, end, correct = (array[order] for array in lines)
    colors = np.where(correct, CORRECT_COLOR, WRONG_COLOR)
    ax.add_collection(LineCollection(list(np.stack((start, end), axis=1)), colors=colors, linewidths=1.0, alpha=0.8))
    for points in (start, end):
        ax.scatter(*points.T, s=10, c=colors, linewidths=0, zorder=3)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, JPEG, PDF or SVG by the path's ending, PNG without one; returns where it is. Raises
    ImageError (a ValueError)."""
    path = Path(path)
    try:
        if not path.suffix:  # as matplotlib does
            path = path.with_name(f"{path.name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, facecolor="white")
    except (OSError, ValueError) as error:
        raise ImageError(f"The picture can't be written to {path} ({error}); choose another path.") from error
    return path


def _figure(
    rows: int, columns: int, size: tuple[float, float], heights: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    # without pyplot there is no global state: nothing to close, no display needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.06, wspace=0.0, hspace=0.0))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _finish(figure: Figure, title: str, caption: str) -> Figure:
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    width = round(14 * figure.get_size_inches()[0])  # characters
    caption = "\n".join(textwrap.fill(line, width) for line in caption.splitlines())
    figure.supxlabel(caption, fontsize=9, color="0.3", linespacing=1.4)
    return figure
