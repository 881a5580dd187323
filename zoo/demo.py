"""`zoo demo`: what a two-image model has learned, on one real stereo pair, in pictures.

The photos are Middlebury's motorcycle (Scharstein et al., GCPR 2014), which scikit-image ships in its wheel
with the measured disparity, so the demo needs no network and its matches can be checked.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import pictures
from zoo.catalog import DEFAULT_PAIR
from zoo.colors import disparity_colors, error_colors, finite_range
from zoo.errors import DataError, UnknownVariantError
from zoo.geometry.clouds import write_ply
from zoo.layers.patchify import patchify
from zoo.lookup import find_variant
from zoo.matching import WORST_ERROR, colored_points, depth_of, look_from
from zoo.sgbm import semi_global_matching
from zoo.weights import source_of

MASK_RATIO = 0.9  # CroCo, section 3.1
VIEW_SIZE = (384, 512)  # of the pictures of features and matches: many patches, and still seconds on a CPU
STEREO = "croco_nano_patch8_dec128d4_stereo"
TOLERANCE = 3.0  # patch widths that a match may be off the truth

_WINDOWS = ((20, 120, 448, 1), (130, 420, 320, 1), (10, 330, 260, 1), (20, 120, 448, 2))
"""Squares of the left photo to complete: top, left, side in pixels, and how many times the model's own size."""


_CALIBRATION = (994.978, 0.193001, 31.086, (311.193, 254.877))
"""Of the photos, by scikit-image's documentation: focal length in pixels, baseline in meters, by how many pixels the
right principal point lies farther right, and the left principal point."""


class StereoPair(NamedTuple):
    """Two photos, uint8 (H, W, 3), and the disparity of the left one, (H, W) in pixels, inf where unknown.

    What is at (x, y) in the left photo is at (x - disparity, y) in the right one.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray

    def crop(self, top: int, left: int, height: int, width: int) -> StereoPair:
        """The same window of both photos."""
        window = (slice(top, top + height), slice(left, left + width))
        return StereoPair(*(np.ascontiguousarray(array[window]) for array in self))


class Matches(NamedTuple):
    """Mutual nearest neighbors between two views: patch numbers (n,) of each, and whether the truth agrees (n,).

    Patches of the left view whose disparity is unknown are left out.
    """

    first: np.ndarray
    second: np.ndarray
    correct: np.ndarray

    @property
    def share(self) -> float:
        """How many of the matches are correct, in 0..1; 0 without matches."""
        return float(self.correct.mean()) if len(self.correct) else 0.0


def run_demo(folder: str | Path = "demo", model: str = DEFAULT_PAIR, weights: str | Path | None = None) -> list[Path]:
    """`show_pair`, and what the small stereo model makes of the same photos: a map of disparity, a colored point cloud
    and views of that. Writes five PNG files and a PLY into `folder` and returns them.
    """
    return [*show_pair(folder, model, weights), *_show_stereo(stereo_pair(), Path(folder))]


def show_pair(folder: str | Path, model: str = DEFAULT_PAIR, weights: str | Path | None = None) -> list[Path]:
    """Complete, show features of, and match a stereo pair; write three PNG files into `folder` and return them.

    model: any binocular variant of the zoo. weights: a file to use in place of the published ones.
    Prints shapes, seconds and the weights' source. Raises UnknownVariantError for a model of another form,
    DataError without scikit-image's photos, and what fetching and loading weights raises.
    """
    variant = find_variant(model)
    if variant.form != "binocular":
        raise UnknownVariantError(
            f"The demo completes one photo from another, and {variant.name} ({variant.form}) can't; choose one of "
            "`zoo list --form binocular`."
        )
    pair = stereo_pair()
    overlay = dict(file=str(weights)) if weights is not None else None
    net: Any = timm.create_model(variant.name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    source = source_of(net.pretrained_cfg["file"])["source"]
    print(f"{variant.name}: {variant.parameters / 1e6:.1f} M parameters, from {source['kind']} {source['location']}")
    paths = [Path(folder) / name for name in ("completion.png", "features.png", "matches.png")]
    with torch.inference_mode():
        _show_completions(net, pair, paths[0])
        views, disparity = _large_views(net, pair)
        encoded = _show_features(net, views, paths[1])
        _show_matches(net, views, encoded, disparity, paths[2])
    return paths


@torch.inference_mode()
def _show_stereo(pair: StereoPair, folder: Path) -> list[Path]:
    """The small stereo model's disparity beside semi-global matching's, and its points, from a turned view."""
    start = time.perf_counter()
    paths = [folder / name for name in ("disparity.png", "points.ply", "points.png")]
    net: Any = timm.create_model(STEREO, pretrained=True).eval()
    disparity = net.predict(pair.left, pair.right, tile_batch=6).disparity
    maps = {STEREO: disparity}
    with contextlib.suppress(DataError):  # without OpenCV
        maps["OpenCV's SGBM"] = semi_global_matching(pair.left, pair.right)
    low, high = finite_range(pair.disparity)
    top = [pictures.Panel(pair.left / 255, "left photo")]
    bottom = [pictures.Panel(disparity_colors(pair.disparity, (low, high)), "true disparity")]
    offs = {}
    for name, found in maps.items():
        errors = np.where(np.isfinite(pair.disparity), np.abs(found - pair.disparity), np.nan)
        known = errors[np.isfinite(errors)]
        shares = " / ".join(f"{100 * float(np.mean(known > t)):.0f}" for t in (1, 2, 3))
        off = offs[name] = f"off by {float(known.mean()):.2f} pixels; {shares} % by more than 1 / 2 / 3"
        top.append(pictures.Panel(disparity_colors(found, (low, high)), name))
        bottom.append(pictures.Panel(error_colors(errors, WORST_ERROR), off))
    caption = (
        f"Disparity from {low:.0f} (blue, far) to {high:.0f} pixels (red, near); errors from 0 (dark) to "
        f"{WORST_ERROR:.0f} pixels and more (bright). Where the truth is not known, it is black and its error gray."
    )
    pictures.save_figure(pictures.draw_panels([top, bottom], "Stereo matching", caption, panel=4.6), paths[0])

    focal, baseline, offset, center = _CALIBRATION
    depth = depth_of(disparity, focal, baseline, offset)
    points, colors = colored_points(depth, pair.left, focal, float(np.percentile(depth, 97)), center)
    write_ply(paths[1], points, colors)
    middle = float(points[:, 2].median())
    size = pair.left.shape[:2]
    views = [
        pictures.Panel(look_from(points, colors, 0.8 * focal, size, turn, middle), f"turned by {turn:.0f} degrees")
        for turn in (-20.0, 20.0)
    ]
    caption = f"{len(points):,} points of points.ply, in meters; white is what the left photo doesn't show."
    pictures.save_figure(pictures.draw_panels([views], "The motorcycle in space", caption, panel=5.0), paths[2])
    print(f"{paths[0]}: {offs[STEREO]}; its points: {paths[1]}, {paths[2]}, {time.perf_counter() - start:.1f} s")
    return paths


def stereo_pair() -> StereoPair:
    """The motorcycle pair, (500, 741), from scikit-image's own files. Raises DataError (a ValueError)."""
    try:
        from skimage import data

        return StereoPair(*data.stereo_motorcycle())
    except (ImportError, OSError) as error:  # not installed; not in this version's wheel, and no network
        raise DataError(
            f"The stereo pair's photos, which come with scikit-image, can't be had ({error}); install them with "
            "pip install 'pretext-zoo[demo]'."
        ) from error


def mutual_matches(features1: Tensor, features2: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and (M, D) -> numbers (n,), (n,) of those that are each other's nearest by cosine."""
    similarity = F.normalize(features1, dim=1) @ F.normalize(features2, dim=1).T
    there, back = similarity.argmax(dim=1), similarity.argmax(dim=0)
    first = (back[there] == torch.arange(len(there), device=there.device)).nonzero().squeeze(1)
    return first, there[first]


def check_matches(features1: Tensor, features2: Tensor, disparity: np.ndarray) -> Matches:
    """Match two views' features (N, D) and compare with the left view's disparity, in patch widths (h, w)."""
    first, second = (index.numpy() for index in mutual_matches(features1, features2))
    columns, shift = disparity.shape[1], disparity.ravel()[first]
    error = np.hypot(first % columns - shift - second % columns, first // columns - second // columns)
    known = np.isfinite(shift)
    return Matches(first[known], second[known], error[known] <= TOLERANCE)


def _show_completions(net: Any, pair: StereoPair, path: Path) -> None:
    height, width = net.pretrained_cfg["input_size"][1:]
    start, rows = time.perf_counter(), []
    for seed, (top, left, side, scale) in enumerate(_WINDOWS):
        crop = pair.crop(top, left, side, side)
        size = (height * scale, width * scale)
        img1, img2 = (pictures.to_input(photo, net, size) for photo in (crop.left, crop.right))
        label = f"{size[0]} x {size[1]}" + (", larger than in training" if scale > 1 else " pixels")
        rows.append(pictures.picture_completion(net, img1, img2, label, MASK_RATIO, seed))
    seconds = time.perf_counter() - start
    title = f"{MASK_RATIO:.0%} of a photo hidden, rebuilt with the help of another view"
    pictures.save_figure(pictures.draw_completions(rows, pictures.completion_caption(net), title), path)
    print(f"{path}: {len(rows)} pairs completed, {net.patch_size}x{net.patch_size} patches, {seconds:.1f} s")


def _large_views(net: Any, pair: StereoPair) -> tuple[Tensor, np.ndarray]:
    """Both photos at about VIEW_SIZE as one batch (2, 3, H, W), and the disparity of their patches, in patch widths."""
    rows, columns = (side // net.patch_size for side in VIEW_SIZE)
    height = len(pair.left)
    width = round(height * columns / rows)  # a window of the views' shape, so that only the scale changes
    window = pair.crop(0, (pair.left.shape[1] - width) // 2, height, width)
    size = (rows * net.patch_size, columns * net.patch_size)
    views = torch.cat([pictures.to_input(photo, net, size) for photo in (window.left, window.right)])
    ys = ((np.arange(rows) + 0.5) * height / rows).astype(int)  # the patches' centers in the window
    xs = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    return views, window.disparity[np.ix_(ys, xs)] * columns / width


def _show_features(net: Any, views: Tensor, path: Path) -> Tensor:
    """Draw both views' features; returns the encoder's (2, N, D)."""
    grid = (views.shape[2] // net.patch_size, views.shape[3] // net.patch_size)
    start = time.perf_counter()
    encoded, _ = net.encoder.forward_tokens(views)  # 2, N, D
    decoded, _ = net.decoder(encoded, encoded.flip(0), grid, grid)  # 2, N, E: each view with the other as memory
    seconds = time.perf_counter() - start
    photos = pictures.to_pixels(views, net)
    colors = [pictures.pca_rgb(x.flatten(0, 1)).unflatten(0, (2, *grid)).numpy() for x in (encoded, decoded)]
    figure = pictures.draw_images(
        list(zip(photos, *colors, strict=True)),
        ("photo", "encoder: each view alone", "decoder: each in the light of the other"),
        "What the patches look like to the model",
        f"Three principal components of the patch features as red, green and blue, in one basis for both views; "
        f"{grid[0]} x {grid[1]} patches of {net.patch_size} x {net.patch_size} pixels.",
    )
    pictures.save_figure(figure, path)
    shapes = f"encoder {tuple(encoded.shape)}, decoder {tuple(decoded.shape)}"
    print(f"{path}: views of {views.shape[2]}x{views.shape[3]}, {shapes}, {seconds:.1f} s")
    return encoded


def _show_matches(net: Any, views: Tensor, encoded: Tensor, disparity: np.ndarray, path: Path) -> None:
    start = time.perf_counter()
    matches = check_matches(encoded[0], encoded[1], disparity)
    seconds = time.perf_counter() - start
    raw = patchify(views, net.patch_size)
    by_pixels = check_matches(raw[0], raw[1], disparity)
    rows, columns = disparity.shape
    centers = (np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.5) * net.patch_size  # x, y
    points1, points2 = (centers.reshape(-1, 2)[index] for index in (matches.first, matches.second))
    photo1, photo2 = pictures.to_pixels(views, net)
    figure = pictures.draw_matches(
        photo1,
        photo2,
        points1,
        points2,
        matches.correct,
        f"{matches.share:.0%} of {len(matches.correct)} matches within {TOLERANCE:g} patch widths of the truth",
        "Some of the patches that are each other's nearest by the encoder's features; red: not at the measured place.\n"
        f"For comparison, raw pixels find {len(by_pixels.correct)} matches, {by_pixels.share:.0%} of them right.",
    )
    pictures.save_figure(figure, path)
    found = f"{len(matches.correct)} of {disparity.size} patches matched, {matches.share:.1%} of them correctly"
    print(f"{path}: {found} (raw pixels: {len(by_pixels.correct)}, {by_pixels.share:.1%}), {seconds:.1f} s")
