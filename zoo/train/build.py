"""A recipe's parts: source, model, objective, curriculum and optimizer, from what it says of them."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from zoo.errors import ArgumentsError, RecipeError, ZooError
from zoo.lookup import find_variant
from zoo.models import fetch
from zoo.models.croco import create_pair_model
from zoo.models.making.arguments import check_arguments
from zoo.scenes import SceneConfig
from zoo.settings import check_settings, declared
from zoo.train import optimizer_state
from zoo.train.curriculum import Curriculum
from zoo.train.data import sources
from zoo.train.data.loading import ENDLESS
from zoo.train.extensions import UNFIT, fitting, is_extension, load_class
from zoo.train.machines.speed import set_up
from zoo.train.objectives.cross_view import CrossViewCompletion
from zoo.train.objectives.dense.pointmaps import Pointmaps
from zoo.train.objectives.dense.stereo_flow import Flow, Stereo
from zoo.train.objectives.jigsaw.clustering import JigsawClustering
from zoo.train.objectives.jigsaw.jigsaw import Jigsaw
from zoo.train.objectives.jigsaw.pirl import Pirl
from zoo.train.objectives.labels.classify import Classification, LinearProbe
from zoo.train.objectives.labels.linear_heads import LinearHeads
from zoo.train.objectives.masked import MaskedFeatureModeling, MaskedImageModeling, MaskedTokenModeling
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import Recipe
from zoo.train.schedule import Plan, make_plan

OBJECTIVES: dict[str, type[Objective]] = {
    "cross_view_completion": CrossViewCompletion,
    "masked_image_modeling": MaskedImageModeling,
    "masked_feature_modeling": MaskedFeatureModeling,
    "masked_token_modeling": MaskedTokenModeling,
    "jigsaw": Jigsaw,
    "jigsaw_clustering": JigsawClustering,
    "pirl": Pirl,
    "classification": Classification,
    "linear_probe": LinearProbe,
    "linear_heads": LinearHeads,
    "pointmaps": Pointmaps,
    "stereo": Stereo,
    "flow": Flow,
}
"""Objectives by the name that recipes use."""


VALIDATION_SEED = 2**32 - 1
"""Of procedural validation images: not a training run's, and the same for all of them."""


@dataclass
class Parts:
    """What a recipe's training run is made of.

    held_out: what it is validated on, or None. average: the moving average of the objective's weights, or None.
    """

    source: Any
    held_out: Any
    plan: Plan
    objective: Objective
    curriculum: Curriculum
    optimizer: torch.optim.Optimizer
    average: ModelEmaV3 | None

    def source_at(self, step: int) -> Any:
        """The source with a step's settings, which scenes that are rendered on the device are rendered with."""
        changes = self.curriculum.data(step * self.curriculum.batch_size)
        return self.source.changed(**changes) if changes else self.source

    def update_average(self, step: int) -> None:
        """Take the weights after a step into their average, if the recipe has one."""
        if self.average is not None:
            self.average.update(self.objective, step)

    def to(self, device: torch.device) -> None:
        """Move what isn't part of the objective to where accelerate has moved that."""
        if self.average is not None:
            self.average.to(device)


def make_parts(
    recipe: Recipe, source: Any = None, processes: int = 1, device: str = "cpu", compiled: bool = False
) -> Parts:
    """Everything that a run needs, on the CPU, as it is at the first step.

    source: the samples, in place of those that the recipe's `data` names. device: the kind that it will be moved to.
    compiled: let torch compile the model's blocks.

    Raises RecipeError, DataError (ValueErrors).
    """
    if source is None:
        source = make_source(recipe)
    objective = make_objective(recipe, source)
    curriculum = make_curriculum(recipe, source, objective)
    held_out = make_validation_source(recipe)
    if held_out is not None:
        check_validation(objective, source, held_out)
    if recipe.sync_batchnorm and processes > 1:
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    set_up(recipe, objective, compiled)
    return Parts(
        source,
        held_out,
        make_plan(recipe, len(source)),
        objective,
        curriculum,
        make_optimizer(recipe, objective, fused=device == "cuda"),
        ModelEmaV3(objective, recipe.ema) if recipe.ema is not None else None,
    )


def objective_class(recipe: Recipe) -> type[Objective]:
    """The objective's class: one of the zoo's, or one's own as "package.module:Class"."""
    name = recipe.objective.get("name")
    if is_extension(name):
        return load_class(str(name), "objective", Objective)
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise RecipeError(
            f"The objective {reprlib.repr(name)} is unknown; choose {', '.join(OBJECTIVES)}, or your own as "
            "package.module:Class."
        )
    return OBJECTIVES[name]


def make_source(recipe: Recipe) -> Any:
    """The map-style dataset of a recipe's `data`, giving what its objective takes."""
    return sources.make_source(recipe.data, recipe.seed, objective_class(recipe).sample)


def make_validation_source(recipe: Recipe) -> Any:
    """What a recipe is validated on, or None."""
    if not recipe.validation:
        return None
    sample, path = objective_class(recipe).sample, recipe.data.get("path")
    if (
        sample in sources.TASKS
        and path is not None
        and Path(path).is_file()
        and recipe.validation.get("path", path) == path
    ):
        raise RecipeError(
            f"The list {path} holds nothing out, and the run would be validated on what it trains on; name another "
            "list with --set validation.path=..., or validate on nothing: --set validation={} --set export=last."
        )
    return sources.make_source(recipe.data | recipe.validation, VALIDATION_SEED, sample)


def check_validation(objective: Any, source: Any, held_out: Any) -> None:
    """Raise RecipeError (a ValueError) unless an objective that trains on `source` can be judged on `held_out`."""
    if not hasattr(objective, "judge"):
        raise RecipeError(f"{type(objective).__name__} has nothing to validate; leave out the recipe's validation.")
    if len(held_out) >= ENDLESS:
        raise RecipeError("Endless data can't be validated on; set validation.samples.")
    objective.check_held_out(source, held_out)


def make_model(recipe: Recipe) -> nn.Module:
    """The recipe's model, from what it starts from, or freshly drawn with the recipe's seed."""
    if recipe.model != "create_pair_model" and not timm.is_model(recipe.model):
        find_variant(recipe.model)  # names the nearest ones
    args = check_model_args(recipe)
    if recipe.init:
        find_variant(recipe.model)  # timm's own models load less strictly
        args |= dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(_init_file(recipe.init)), partial=True))
    torch.manual_seed(recipe.seed)
    try:
        if recipe.model == "create_pair_model":
            return create_pair_model(**args)
        return timm.create_model(recipe.model, **args)
    except ZooError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"The recipe's model_args don't fit {recipe.model} ({error}); correct them.") from error


def check_model_args(recipe: Recipe) -> dict[str, Any]:
    """The recipe's model_args, with `pretrained` if they have it. Raises RecipeError for what a recipe may not say.

    A recipe may come from somebody else: what a model starts from is said by `init` and nowhere else.
    """
    args = dict(recipe.model_args)
    if (pretrained := args.pop("pretrained", False)) not in (True, False):
        raise RecipeError(f"The recipe's model_args have pretrained: {pretrained!r}; write true or false.")
    try:
        check_arguments(recipe.model, args, f"The recipe {recipe.name}")
    except ArgumentsError as error:
        advice = " Say what the model starts from with init." if set(args) & _WEIGHTS_ARGUMENTS else ""
        raise RecipeError(f"{error}{advice}") from error
    return args | dict(pretrained=True) if pretrained else args


_WEIGHTS_ARGUMENTS = frozenset(("checkpoint_path", "file", "pretrained_cfg", "pretrained_cfg_overlay"))
"""Arguments of timm's that choose weights."""


def _init_file(init: str) -> Path:
    path = Path(init)
    if os.path.isdir(path):  # unlike Path's it takes names of any length
        path /= "model.safetensors"
        if not os.path.isfile(path):
            raise RecipeError(f"The run {init} has no model.safetensors; finish it, or start from another.")
    if os.path.isfile(path):
        return path
    if len(path.parts) > 1 or path.suffix in (".safetensors", ".pth", ".pt"):
        raise RecipeError(f"There are no weights {init} to start from; give a file, a run's folder or a variant.")
    return fetch(init)


def make_objective(recipe: Recipe, source: Any, model: nn.Module | None = None) -> Objective:
    """The recipe's model, or another one, under its objective, as they are at the first step."""
    objective_cls = objective_class(recipe)
    settings = dict(recipe.objective)
    name = settings.pop("name")
    settings = check_settings(settings, declared(objective_cls), f"The recipe {recipe.name}", "objective.")
    if model is None:
        model = make_model(recipe)
    with fitting(f"settings of the objective '{name}'"):
        return objective_cls(model, source, **settings)


def make_curriculum(recipe: Recipe, source: Any, objective: Objective) -> Curriculum:
    """The settings that change with the step, once source and objective have taken the values of all points; the
    objective is left with those of step 0."""
    curriculum = Curriculum(recipe.curriculum, recipe.batch_size)
    kinds = {"objective": declared(type(objective)), "data": declared(SceneConfig)}
    for part, kind in kinds.items():
        for name, value in curriculum.values(part):
            check_settings({name: value}, kind, f"The recipe {recipe.name}'s curriculum", f"{part}.")
    sizes = [value for name, value in curriculum.values("data") if name == "image_size"]
    for step in reversed(curriculum.steps()):
        if changes := curriculum.data(step * recipe.batch_size):
            if not hasattr(source, "changed"):
                raise RecipeError(f"Only scenes can change their {', '.join(changes)}; leave it out of the curriculum.")
            source.changed(**changes)
        with fitting("curriculum"):
            objective.configure(**curriculum.objective(step))
        if sizes:  # of each with the settings of each step
            objective.take_sizes([(size, size) if isinstance(size, int) else size for size in sizes])
    return curriculum


def make_optimizer(recipe: Recipe, objective: Objective, fused: bool = False) -> torch.optim.Optimizer:
    """timm's optimizer; each of its groups has `lr_scale`, its share of the learning rate.

    fused: AdamW as one kernel over all parameters, which is for GPUs: quicker, and it never waits for the device.
    """
    settings = recipe.optimizer
    options: dict[str, Any] = dict(betas=settings.betas) if "adam" in settings.name else {}
    if fused and settings.name == "adamw":
        options["fused"] = True
    if settings.momentum is not None:
        options["momentum"] = settings.momentum
    if settings.name == "lars":
        options["always_adapt"] = True  # timm's leaves parameters without weight decay alone, and a probe has no other
    trained: nn.Module = objective
    if settings.layer_decay is not None:
        trained = objective.model  # which says what its layers are
        outside = [name for name, p in objective.named_parameters() if p.requires_grad and name[:6] != "model."]
        if outside:
            raise RecipeError(
                f"The objective trains parameters outside of the model ({', '.join(outside[:3])}), which layer-wise "
                "decay doesn't know; leave out optimizer.layer_decay."
            )
    try:
        optimizer_state.trial(
            lambda parameters: create_optimizer_v2(
                parameters, opt=settings.name, lr=recipe.learning_rate(), weight_decay=settings.weight_decay, **options
            )
        )
        optimizer = create_optimizer_v2(
            trained,
            opt=settings.name,
            lr=recipe.learning_rate(),
            weight_decay=settings.weight_decay,
            filter_bias_and_bn=not settings.decay_all,
            layer_decay=settings.layer_decay,
            **options,
        )
    except UNFIT as error:  # a name that timm does not know, odd numbers, or a kind that this loop can't drive
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:200]
        raise RecipeError(
            f"The optimizer {reprlib.repr(settings.name)} can't be used ({reason}); choose another of timm.optim, such "
            "as adamw."
        ) from error
    for group in optimizer.param_groups:
        group.setdefault("lr_scale", 1.0)
    return optimizer
