"""How good a small flow model is: on held-out scenes of its training's kind and on a real photo, beside no flow and
each pair's own best shift, which knows of a pair whatever one vector can tell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.demo import stereo_pair
from zoo.evaluate.pairs import HELD_OUT_SEED
from zoo.matching import draw_flow
from zoo.scenes import ScenePairs
from zoo.train.data.sources import make_source
from zoo.train.objectives.dense.losses import known_pixels
from zoo.train.objectives.dense.metrics import SetMetrics, pixel_errors
from zoo.train.recipe import load_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 20

Figures = dict[str, float | None]


def held_out_scenes(recipe: str, count: int) -> ScenePairs:
    """Scenes of the recipe's kind that no training saw, with their flow and which pixels image 2 shows, too."""
    data = load_recipe(recipe).data | dict(samples=count, draw="workers", render="workers")
    scenes = make_source(data, HELD_OUT_SEED, "flow")
    return ScenePairs(scenes.config, scenes.seed, scenes.length, ("flow", "covisible"))


def evaluate(net: Any, scenes: ScenePairs) -> dict[str, dict[str, Figures]]:
    """Figures (`SetMetrics`) of the model, of no flow and of each pair's best shift.

    "scenes": over all known pixels of `scenes`, each of the size that the model was trained with. "matched": over those
    of their pixels that image 2 shows, too, as Sintel's benchmark calls them. "photo": of the demo's stereo photos,
    whose flow is their disparity.
    """
    truths, found, seen = [], [], []
    for first in range(0, len(scenes), BATCH):
        samples = [scenes[i] for i in range(first, min(first + BATCH, len(scenes)))]
        truths.append(_flows([sample["flow"] for sample in samples]))
        seen.append(torch.from_numpy(np.stack([sample["covisible"] for sample in samples])))
        found.append(predict_scenes(net, samples))
    flows, truth = torch.cat(found), torch.cat(truths)
    photo = stereo_pair()
    disparity = np.where(np.isfinite(photo.disparity), photo.disparity, np.inf)
    photo_truth = _flows([np.stack([-disparity, np.where(np.isfinite(disparity), 0, np.inf)], -1)])
    return dict(
        scenes=compare(flows, truth),
        matched=compare(flows, truth.masked_fill(~torch.cat(seen)[:, None], math.inf)),
        photo=compare(_flows([net.predict(photo.left, photo.right, tile_batch=4).flow]), photo_truth),
    )


def compare(found: Tensor, truth: Tensor) -> dict[str, Figures]:
    """Figures of flows (B, 2, H, W), over all known pixels, and of what knows less; None for what no pixel tells."""
    shifts = torch.stack([best_shift(one) for one in truth])[..., None, None].expand_as(truth)
    figures: dict[str, Figures] = {}
    for name, flows in (("model", found), ("no_flow", torch.zeros_like(truth)), ("best_shift", shifts)):
        metrics = SetMetrics(2)
        metrics.add(flows, truth)
        figures[name] = {key: None if math.isnan(value) else value for key, value in metrics.compute().items()}
    return figures


def best_shift(truth: Tensor) -> Tensor:
    """The one vector (2,) with the smallest mean end-point error for a flow (2, H, W): its geometric median, by
    Weiszfeld's reweighting."""
    known = truth[:, known_pixels(truth[None])[0]].double()
    if not known.numel():
        return truth.new_zeros(2)
    shift = known.median(dim=1).values
    for _ in range(50):
        weights = 1 / (known - shift[:, None]).norm(dim=0).clamp(min=1e-3)
        shift = (known * weights).sum(1) / weights.sum()
    return shift.to(truth.dtype)


@torch.inference_mode()
def predict_scenes(net: Any, samples: list[dict[str, Any]]) -> Tensor:
    """Flows (B, 2, H, W) of samples of one size, each at once, without tiles."""
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    device = next(net.parameters()).device
    images = [
        (torch.from_numpy(np.stack([sample[name] for sample in samples])).permute(0, 3, 1, 2) / 255 - mean) / std
        for name in ("image1", "image2")
    ]
    return net(*(image.to(device) for image in images))[:, :2].float().cpu()


def draw_median(net: Any, scenes: ScenePairs, title: str) -> Figure:
    """Of the first scenes the one of the middle end-point error, neither the best nor the worst: flow, truth, error."""
    samples = [scenes[i] for i in range(min(len(scenes), 2 * BATCH + 1))]
    flows = predict_scenes(net, samples)
    errors = pixel_errors(flows, _flows([sample["flow"] for sample in samples])).flatten(1).nanmean(1)
    middle = int(errors.argsort()[len(samples) // 2])
    sample = samples[middle]
    flow = flows[middle].permute(1, 2, 0).numpy()
    caption = (
        f"Held-out scene {middle}, whose error is the middle one of {len(samples)}. Colors are directions, by the "
        "wheel; the stronger, the longer."
    )
    return draw_flow(sample["image1"], flow, sample["flow"], title=title, caption=caption)


def _flows(flows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(flows)).movedim(-1, 1).float()
