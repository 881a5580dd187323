"""Golden cases of stereo and flow, and of whole training runs: losses, metrics, optimizer steps.

See `tests.golden_cases.compute`, which asks these.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tests.golden_cases import dense_model, load_weights, pair_args, part_of
from zoo.models.croco import PairModel
from zoo.train.build import make_optimizer
from zoo.train.objectives.cross_view import CrossViewCompletion
from zoo.train.objectives.dense.losses import LOSSES
from zoo.train.objectives.dense.metrics import SetMetrics, batch_metrics
from zoo.train.objectives.dense.stereo_flow import Flow, Stereo
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import Recipe, parse_recipe
from zoo.train.schedule import make_plan

_NORMAL = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def matching_losses(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every loss with its gradients, and the metrics of the batch and of the set."""
    given, confidence, truth = (tensors[f"input.{key}"] for key in ("prediction", "confidence", "ground_truth"))
    out: dict[str, Tensor] = {}
    for name, loss_cls in LOSSES.items():
        prediction, conf = given.clone().requires_grad_(), confidence.clone().requires_grad_()
        loss = loss_cls()(prediction, conf, truth)
        loss.backward()
        out[f"output.loss.{name}"] = loss.detach().reshape(1)
        for key, tensor in dict(prediction=prediction, confidence=conf).items():
            if tensor.grad is not None:
                out[f"output.grad.{name}.{key}"] = tensor.grad
    truth = tensors.get("input.ground_truth_metrics", truth)
    out |= {f"output.batch.{name}": value.reshape(1) for name, value in batch_metrics(given, truth).items()}
    metrics = SetMetrics(truth.shape[1])
    metrics.add(given, truth)
    figures = {name: value for name, value in metrics.compute().items() if name not in ("D1", "Fl")}  # KITTI's: no case
    return out | {f"output.dataset.{name}": torch.tensor([value]) for name, value in figures.items()}


def training(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A run of optimizer steps with the engine's own optimizer, schedule and objectives."""
    config, steps = case["config"], case["config"]["steps"]
    recipe = _recipe(case["about"], steps)
    model = dense_model(config) if "head" in config else PairModel(**pair_args(config))
    load_weights(model, part_of(tensors, "weights."))
    model.pretrained_cfg = dict(_NORMAL)
    images = [tensors[f"input.{key}"] for key in ("img1", "img2")]
    objective: Objective
    if "head" in config:
        objective = {"stereo": Stereo, "flow": Flow}[config["task"]](model, range(len(images[0])))
        truth = tensors["input.ground_truth"]
    else:
        objective = CrossViewCompletion(model, range(len(images[0])), mask_ratio=config["mask_ratio"])
    optimizer = make_optimizer(recipe, objective)
    plan = make_plan(recipe, samples=1)
    losses, rates = [], []
    for step in range(steps):
        rates.append(plan.learning_rate(step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1] * group["lr_scale"]
        place = step % len(images[0])
        img1, img2 = (image[place] for image in images)
        if isinstance(objective, CrossViewCompletion):
            loss = model.completion_loss(img1, img2, tensors["input.mask"][step].bool(), objective.hidden)
        else:
            loss, _ = objective.loss_of(img1, img2, truth[place])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    out = {"output.loss": torch.tensor(losses)}
    if "decayed" in config:
        out["output.learning_rate"] = torch.tensor(rates)
    (rules,) = [rules for name, rules in model.layouts.items() if name.endswith("reference")]
    after = rules.to_reference(model.state_dict())
    return out | {f"output.after.{name}": tensor.norm().reshape(1) for name, tensor in after.items()}


def _recipe(about: str, steps: int) -> Recipe:
    """The published optimizer with the rate, warm-up and length that the case's description names."""
    peak, warmup, length = (
        float(re.search(pattern + r" ([\d.e-]*\d)", about)[1])  # type: ignore[index]
        for pattern in ("peak lr", r"warm-up (?:from 0 )?over", "cosine over")
    )
    settings = dict(
        name="golden",
        model="croco_nano_patch8_64",
        objective=dict(name="stereo"),
        data={},
        batch_size=1,
        optimizer=dict(lr=peak),  # all else is the default: AdamW as published
        schedule=dict(unit="epochs", warmup=warmup, length=length, stop=steps),
    )
    return parse_recipe(settings, "golden")
