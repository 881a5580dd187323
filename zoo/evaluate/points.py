"""How right a pointmap model's depth, cameras and focal length are, on pairs whose truth is known."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from zoo import geometry
from zoo.errors import GeometryError
from zoo.evaluate.pairs.sets import HELD_OUT_SEED
from zoo.evaluate.pairs.subject import Subject
from zoo.models.pointmaps import PointmapModel, Pointmaps
from zoo.pictures import color_depth, draw_images
from zoo.scenes import ScenePairs
from zoo.train.data.posed import PosedPairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HELD_OUT_SEED", "draw", "evaluate", "measure"]

THRESHOLDS = (5, 10, 20)  # degrees, of the areas under the curves of poses
RATIO = 1.25  # that a depth may be off by, to count as right
BAR = 2 / 3  # of the best constant depth's error, which a model is to stay under
_BATCH = 16
_PLANES = 129  # constant depths that are tried, quantiles of the true depth
_WORST = 180.0  # degrees, for a pair whose pose can't be found


def evaluate(subject: Subject, data: str | None = None, count: int = 200, seed: int = HELD_OUT_SEED) -> dict[str, Any]:
    """Measure a model of form "pointmaps" on `count` scenes of the sequence `seed`, or on a folder of posed pairs.

    data: a folder as `PosedPairs` reads it, of which the first `count` pairs are taken. The result is plain JSON; see
    `measure` for its figures. `verdict` says whether view 1's depth beats the best constant one by a third.

    Raises RecipeError or DataError (ValueErrors).
    """
    start = time.monotonic()
    source, settings = make_source(subject, data, count, seed)
    figures = measure(subject.model, source, count)
    depth = figures["depth1"]
    holds = depth["median_rel"] <= BAR * depth["plane_median_rel"]
    settings |= dict(
        torch=torch.__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 1),
    )
    about = dict(name=subject.name, weights=subject.weights.name, sha256=subject.sha256, step=subject.step)
    return dict(model=about, settings=settings, **figures, verdict=dict(beats_plane_by_a_third=bool(holds)))


def make_source(subject: Subject, data: str | None, count: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """What a model is measured on, items as those of `PosedPairs`, and the settings that say what it is."""
    if data is not None:
        pairs = PosedPairs(data, subject.model.encoder.img_size)
        return pairs, dict(data=data, pairs=min(count, len(pairs)))
    config = subject.scenes(seed)
    scenes = ScenePairs(config, seed, count, truths=("points1", "points2", "pose"))
    return scenes, dict(scene_seed=seed, pairs=count, scene_config=dataclasses.asdict(config))


@torch.inference_mode()
def measure(model: PointmapModel, source: Any, count: int | None = None) -> dict[str, Any]:
    """Figures of a model (in eval mode) on the first pairs of a source.

    depth1, depth2: of each view, the mean over the pairs of the median and of the mean relative error (`median_rel`,
    `abs_rel`), and the share of depths within a factor of 1.25 (`within_1.25`), once one factor a view has made both
    medians equal; `plane_median_rel` is that of the constant depth that is best for the view. View 2's depth is that
    from where the model says that camera 2 stands. points2: relative error of view 2's points in camera 1's frame, at
    view 1's scale. focal: median relative error. procrustes, and pnp if OpenCV is there: of the relative pose by either
    way, median errors of rotation and of the direction of translation, in degrees; the areas under the curves of both
    and of the larger one, up to 5, 10 and 20 degrees.
    """
    device = next(model.parameters()).device
    count = len(source) if count is None else min(count, len(source))
    rows: list[dict[str, float]] = []
    for start in range(0, count, _BATCH):
        samples = [source[i] for i in range(start, min(start + _BATCH, count))]
        img1, img2 = (to_input(model, [sample[f"image{i}"] for sample in samples]).to(device) for i in (1, 2))
        forth, back = (model(a, b) for a, b in ((img1, img2), (img2, img1)))
        for i, sample in enumerate(samples):
            pair, swapped = (
                Pointmaps(*(value[i].float().cpu() for value in result[:4]))  # the other fields are descriptors
                for result in (forth, back)
            )
            rows.append(_figures(pair, swapped, *(torch.as_tensor(sample[k]) for k in ("points1", "points2", "pose"))))
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    result: dict[str, Any] = {"pairs": count}
    for view in ("depth1", "depth2"):
        keys = ("median_rel", "abs_rel", "within_1.25", "plane_median_rel")
        result[view] = {key: float(table[f"{view}_{key}"].mean()) for key in keys}
    result["points2"] = dict(median_rel=float(table["points2"].mean()))
    result["focal"] = dict(median_rel=float(np.median(table["focal"])))
    for way in ("procrustes", "pnp"):
        if f"{way}_rotation" in table:
            rotation, translation = table[f"{way}_rotation"], table[f"{way}_translation"]
            errors = dict(rotation=rotation, translation=translation, both=np.maximum(rotation, translation))
            result[way] = {f"{name}_median": float(np.median(errors[name])) for name in ("rotation", "translation")}
            result[way] |= {f"{name}_auc_{t}": _area(error, t) for name, error in errors.items() for t in THRESHOLDS}
    return result


def to_input(model: PointmapModel, images: Iterable[np.ndarray]) -> Tensor:
    """uint8 images (H, W, 3) -> the model's input (B, 3, H, W)."""
    stacked = torch.from_numpy(np.stack(list(images))).movedim(-1, 1).float() / 255
    return normalize(stacked, list(model.pretrained_cfg["mean"]), list(model.pretrained_cfg["std"]))


def _area(errors: np.ndarray, threshold: float) -> float:
    """Area under the curve "share of errors below x", x from 0 to the threshold, as a share of the whole."""
    return float(np.clip(1 - errors / threshold, 0, None).mean())


def _figures(pair: Pointmaps, swapped: Pointmaps, true1: Tensor, true2: Tensor, true_pose: Tensor) -> dict[str, float]:
    """Figures of one pair: predictions without batch dimension of (1, 2) and (2, 1), true points (H, W, 3)."""
    poses = _poses(pair, swapped)
    row: dict[str, float] = {}
    for way, pose in poses.items():
        angles = (_WORST, _WORST) if pose is None else geometry.pose_angles(pose, true_pose)
        row[f"{way}_rotation"], row[f"{way}_translation"] = angles
    pose = poses["procrustes"]
    depth2 = geometry.depth_of(pair.points2, pose)
    for view, depth, truth in (
        ("depth1", geometry.depth_of(pair.points1), geometry.depth_of(true1)),
        ("depth2", depth2, geometry.depth_of(true2, true_pose)),
    ):
        row |= {f"{view}_{name}": value for name, value in _depth_errors(depth, truth).items()}
    valid = true2.isfinite().all(-1)
    scale = _median_ratio(pair.points1.norm(dim=-1), true1.norm(dim=-1))
    row["points2"] = ((pair.points2 * scale - true2).norm(dim=-1) / true2.norm(dim=-1))[valid].median().item()
    focal = geometry.focal_length(true1)
    try:
        row["focal"] = abs(geometry.focal_length(pair.points1, pair.confidence1) / focal - 1)
    except GeometryError:
        row["focal"] = 1.0
    return row


def _poses(pair: Pointmaps, swapped: Pointmaps) -> dict[str, Tensor | None]:
    """The pose by each way that there is; None where none can be found."""
    together = (pair.confidence2 * swapped.confidence1).sqrt()
    ways = {"procrustes": lambda: geometry.pose_by_procrustes(pair.points2, swapped.points1, together)}
    if importlib.util.find_spec("cv2"):
        ways["pnp"] = lambda: geometry.pose_by_pnp(
            pair.points2, geometry.focal_length(swapped.points1, swapped.confidence1), pair.confidence2
        )
    found: dict[str, Tensor | None] = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except GeometryError:
            found[name] = None
    return found


def _median_ratio(values: Tensor, truth: Tensor) -> Tensor:
    """The factor between the medians of what is known."""
    known = truth.isfinite()
    return truth[known].median() / values[known].median().clamp(min=1e-9)


def _depth_errors(depth: Tensor, truth: Tensor) -> dict[str, float]:
    known = truth.isfinite() & (truth > 0)
    depth, truth = depth[known], truth[known]
    depth = depth * _median_ratio(depth, truth)
    error = (depth - truth).abs() / truth
    ratio = torch.maximum(depth / truth, truth / depth.clamp(min=1e-9))
    planes = truth.quantile(torch.linspace(0, 1, _PLANES))
    plane = ((planes[:, None] - truth).abs() / truth).median(dim=1).values.min()
    return {
        "median_rel": error.median().item(),
        "abs_rel": error.mean().item(),
        "within_1.25": (ratio < RATIO).float().mean().item(),
        "plane_median_rel": plane.item(),
    }


@torch.inference_mode()
def draw(subject: Subject, data: str | None, seed: int, count: int = 4) -> Figure:
    """Some pairs with true and predicted distances of their points to camera 1."""
    source, _ = make_source(subject, data, count, seed)
    samples = [source[i] for i in range(min(count, len(source)))]
    img1, img2 = (to_input(subject.model, [sample[f"image{i}"] for sample in samples]) for i in (1, 2))
    result = subject.model(img1, img2)
    rows = [
        (
            sample["image1"] / 255,
            sample["image2"] / 255,
            *(
                color_depth(np.linalg.norm(points, axis=-1))
                for points in (
                    sample["points1"],
                    result.points1[i].numpy(),
                    sample["points2"],
                    result.points2[i].numpy(),
                )
            ),
        )
        for i, sample in enumerate(samples)
    ]
    names = ("image 1", "image 2", "truth, view 1", "predicted", "truth, view 2", "predicted")
    caption = (
        "Distance of what each pixel shows to camera 1: near in yellow, far in blue, each picture by its own range."
    )
    return draw_images(rows, names, subject.name, caption, panel=2.0)
