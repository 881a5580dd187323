"""A recipe says everything that decides a training run: YAML files in zoo/train/recipes, or the user's own."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError
from zoo.train.plain_yaml import MAX_LENGTH, PlainYamlError, read_yaml

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `warmup_lr`, then a cosine to `min_lr` over `length`, cut off at `stop`; all in `unit`s.

    milestones: instead of the cosine, the rate is multiplied by `gamma` at each of these units. staircase: the
    learning rate changes between units only, not within them. validate_every: so many units, and at the end; None: at
    the end only.
    """

    unit: str  # "epochs" or "steps"
    warmup: float
    length: float
    stop: float | None = None  # the published CroCo runs stop half-way down the cosine
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    staircase: bool = False
    validate_every: float | None = None


@dataclass(frozen=True)
class Optimizer:
    """timm's optimizer `name`; biases, other 1-D parameters and what the model names have no weight decay.

    lr: for this batch size; or base_lr: for 256 samples, scaled with the batch size (MAE's rule).
    clip_grad: largest gradient norm, None for no limit. momentum: of SGD. decay_all: weight decay on all parameters.
    layer_decay: each layer's learning rate is this share of the next one's (fine-tuning; BEiT's rule).
    """

    name: str = "adamw"
    lr: float | None = None
    base_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip_grad: float | None = None
    momentum: float | None = None
    decay_all: bool = False
    layer_decay: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One training run. batch_size counts samples of a step over all processes.

    model, model_args: what timm.create_model makes, or `create_pair_model` and its arguments. objective: its name
    and settings. data: the source's name and settings. curriculum: settings of both that change with the step, see
    `Curriculum`; `objective` and `data` themselves say what evaluations are to take. validation: which of these differ
    for the images that the run is validated on; nothing: it isn't. init: what the model starts from, a weights file,
    the folder of another run or a variant; "" for random weights, or those of model_args. precision: "fp32" or "bf16"
    (autocast); float32_heads: what predicts is left out of it. tf32: float32 matrix products and convolutions may be
    rounded to TF32 on a GPU. channels_last: convolutions' memory format. grad_checkpointing: blocks are computed
    again in the backward pass, not kept: less memory, a third more arithmetic. sync_batchnorm: batch statistics over
    all processes. accumulate: parts that each process's share of a batch is computed in, to save memory. ema: decay
    of a moving average of the weights, which is validated too, None for none. export: which weights a finished run
    gives, the "last" ones, the "best" in validation, or the "ema". trackers: of accelerate, besides TensorBoard, such
    as [wandb]. source: where the settings come from.
    """

    name: str
    model: str
    objective: dict[str, Any]
    data: dict[str, Any]
    batch_size: int
    schedule: Schedule
    optimizer: Optimizer
    model_args: dict[str, Any] = field(default_factory=dict)
    curriculum: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    validation: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    float32_heads: bool = False
    tf32: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    sync_batchnorm: bool = False
    accumulate: int = 1
    ema: float | None = None
    export: str = "last"
    seed: int = 0
    checkpoint_steps: int = 1000
    log_steps: int = 20
    trackers: tuple[str, ...] = ()
    source: str = ""

    def learning_rate(self) -> float:
        """The peak learning rate."""
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        assert self.optimizer.base_lr is not None  # load_recipe has checked it
        return self.optimizer.base_lr * self.batch_size / 256

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_RANGES = {
    "batch_size": (1, 1 << 20),
    "checkpoint_steps": (1, 1 << 40),
    "log_steps": (1, 1 << 40),
    "accumulate": (1, 1 << 20),
    "seed": (0, (1 << 63) - 1),
}
"""Numbers of a recipe, and between what they make sense."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the zoo."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe by its name in the zoo or by its file; `overrides` replace settings, nested by dots.

    >>> load_recipe("croco_nano", {"batch_size": 32, "schedule.length": 100})

    Raises RecipeError (a ValueError) that names the setting.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name_or_path}.yaml"
    if not os.path.isfile(path):  # unlike Path's it asks no more of a folder than there is to see
        raise RecipeError(
            f"There is no recipe '{name_or_path}'; give a .yaml file or one of {', '.join(recipe_names())}."
        )
    try:
        with path.open(encoding="utf-8") as file:
            settings = read_yaml(file.read(MAX_LENGTH + 1))
    except (PlainYamlError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML ({error}); correct it there.") from error
    except OSError as error:
        raise RecipeError(f"{path} can't be read ({error.strerror}); check its permissions.") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} holds no settings; a recipe is a YAML mapping, see zoo/train/recipes.")
    for key, value in (overrides or {}).items():
        _set(settings, key, copy.deepcopy(value))  # a nested one may be changed by the next
    settings.setdefault("name", path.stem)
    return parse_recipe(settings, str(path))


def parse_recipe(settings: dict[str, Any], where: str) -> Recipe:
    """A recipe of `to_dict`'s or a file's settings; those that are not there have their defaults.

    where: what errors name. Raises RecipeError (a ValueError).
    """
    return _parse(Recipe, settings, where)


def _set(settings: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise RecipeError(f"The setting '{dotted}' can't be set, since '{parent}' is a single value.")
    settings[last] = value


def _parse(cls: Any, settings: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := set(settings) - set(fields):
        raise RecipeError(f"{where} has unknown settings {', '.join(sorted(unknown))}; known are {', '.join(fields)}.")
    required = {name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := required - set(settings):
        raise RecipeError(f"{where} lacks the settings {', '.join(sorted(missing))}; add them.")
    hints = typing.get_type_hints(cls)
    values = {key: _checked(key, value, hints[key], where) for key, value in settings.items()}
    if cls is Recipe:
        values["schedule"] = _parse(Schedule, values["schedule"], f"{where}, schedule,")
        values["optimizer"] = _parse(Optimizer, values["optimizer"], f"{where}, optimizer,")
        optimizer = values["optimizer"]
        if (optimizer.lr is None) == (optimizer.base_lr is None):
            raise RecipeError(f"{where} must give exactly one of optimizer.lr and optimizer.base_lr.")
        if values["schedule"].unit not in ("epochs", "steps"):
            raise RecipeError(f"{where} has schedule.unit '{values['schedule'].unit}'; choose epochs or steps.")
        if values.get("precision", "fp32") not in ("fp32", "bf16"):
            raise RecipeError(f"{where} has precision '{values['precision']}'; choose fp32 or bf16.")
        _check_export(values, where)
        for key, (low, high) in _RANGES.items():
            if not low <= values.get(key, low) <= high:
                wish = f"it must be at least {low}" if values[key] < low else f"the most is {high:,}"
                raise RecipeError(f"{where} has {key}: {values[key]}; {wish}.")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check_export(values: dict[str, Any], where: str) -> None:
    """Raise RecipeError unless the weights that are to be exported will be there."""
    export, ema = values.get("export", "last"), values.get("ema")
    if export not in ("last", "best", "ema"):
        raise RecipeError(f"{where} has export '{export}'; choose last, best or ema.")
    if export == "ema" and ema is None:
        raise RecipeError(f"{where} exports the moving average of its weights and has none; set ema, such as 0.9999.")
    if export == "best" and not values.get("validation"):
        raise RecipeError(f"{where} exports the weights that are best in validation and has none; add validation.")
    if ema is not None and not 0 < ema < 1:
        raise RecipeError(f"{where} has ema: {ema}; the average's decay is between 0 and 1, such as 0.9999.")


def _checked(key: str, value: Any, hint: Any, where: str) -> Any:
    """`value`, if it is of the kind that the field is declared as; YAML reads 1e-3 as text, so that is a number too."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if union else {hint}
    if kinds & {float, int} and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if float in kinds and math.isfinite(number):
            return number
        if int in kinds and number.is_integer():
            return int(number)
    if value is None and type(None) in kinds:
        return None
    if kinds & {tuple[float, ...], tuple[str, ...]} and isinstance(value, (list, tuple)):
        of = float if tuple[float, ...] in kinds else str
        return tuple(_checked(key, entry, of, where) for entry in value)
    plain: dict[Any, Any] = {str: str, bool: bool, tuple[float, float]: (list, tuple)}
    plain |= {tuple[float, ...]: (), tuple[str, ...]: ()}
    if any(isinstance(value, plain.get(kind, dict)) for kind in kinds - {float, int, type(None)}):
        return value
    raise RecipeError(
        f"{where} has {key}: {reprlib.repr(value)}, which is no {getattr(hint, '__name__', hint)}; correct it."
    )
