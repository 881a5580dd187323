"""A recipe says all that decides a training run: YAML files, a folder a family in zoo/train/recipes, or one's own."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import os
import re
import reprlib
import textwrap
import typing
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from zoo.errors import RecipeError
from zoo.settings import Rate, Steps, Units, Within, checked, described
from zoo.train.plain_yaml import MAX_LENGTH, PlainYamlError, read_yaml

RECIPES = Path(__file__).parent / "recipes"

_Decay = Annotated[float, Within(0, 1, below=True)]
"""Of a moving average: how much of it each step keeps."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: a linear warm-up, then a cosine or steps."""

    unit: Literal["epochs", "steps"]
    """What the others are counted in: "epochs" or "steps"."""
    warmup: Units
    """Units of linear warm-up, from `warmup_lr` to the peak."""
    length: Annotated[float, Within(0, 1e9, above=True)]
    """Units to the end of the cosine."""
    stop: Annotated[float, Within(0, 1e9, above=True)] | None = None
    """Unit at which the run ends before that, as the published CroCo runs half-way down the cosine."""
    min_lr: Rate = 0.0
    """Learning rate at the cosine's end."""
    warmup_lr: Rate = 0.0
    """Learning rate at the first step."""
    milestones: tuple[Units, ...] = ()
    """Units at which the rate is multiplied by `gamma`, instead of the cosine."""
    gamma: Annotated[float, Within(0, 1)] = 0.1
    """Factor at each milestone."""
    staircase: bool = False
    """Whether the rate changes between units only, not within them."""
    validate_every: Annotated[float, Within(0, 1e9, above=True)] | None = None
    """Units between two validations; there is one at the end in any case."""


@dataclass(frozen=True)
class Optimizer:
    """timm's optimizer; biases, other 1-D parameters and what the model names have no weight decay."""

    name: str = "adamw"
    """Its name in timm.optim."""
    lr: Rate | None = None
    """Peak learning rate at this batch size; or:"""
    base_lr: Rate | None = None
    """Peak learning rate for 256 samples, scaled with the batch size (MAE's rule)."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    """Of Adam's kinds."""
    weight_decay: Annotated[float, Within(0, 1000)] = 0.05
    """Decoupled for Adam's kinds."""
    clip_grad: Annotated[float, Within(0, 1e9, above=True)] | None = None
    """Largest norm of the gradient."""
    momentum: _Decay | None = None
    """Of SGD's kinds."""
    decay_all: bool = False
    """Whether all parameters have weight decay."""
    layer_decay: Annotated[float, Within(0, 1, above=True)] | None = None
    """Each layer's learning rate is this share of the next one's (fine-tuning; BEiT's rule)."""


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str
    """Of the run; a file's is its own."""
    model: str
    """What timm.create_model makes, or create_pair_model."""
    objective: dict[str, Any]
    """Its name, one of the zoo's or package.module:Class, and its settings."""
    data: dict[str, Any]
    """The source's name, one of the zoo's or package.module:Class, and its settings; evaluations take these, too."""
    batch_size: Annotated[int, Within(1, 1 << 20)]
    """Samples of a step, over all processes."""
    schedule: Schedule
    """See below."""
    optimizer: Optimizer
    """See below."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor."""
    curriculum: dict[str, Any] = field(default_factory=dict)
    """Settings of objective and data that change with the step: "data.displacement": [[0, 0.1], [1000, 0.2]]."""
    init: str = ""
    """What the model starts from: a weights file, the folder of another run or a variant; else random weights."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Which settings of data differ for what the run is validated on; without any it isn't."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16 (autocast)."""
    float32_heads: bool = False
    """Whether what predicts is left out of bf16."""
    tf32: bool = False
    """Whether float32 matrix products and convolutions may be rounded to TF32 on a GPU."""
    channels_last: bool = False
    """Whether convolutions take that memory format."""
    grad_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass, not kept: less memory, a third more arithmetic."""
    shard: bool = False
    """Whether weights, gradients and optimizer state are dealt out among the processes (FSDP2)."""
    sync_batchnorm: bool = False
    """Whether batch statistics are those of all processes."""
    accumulate: Annotated[int, Within(1, 1 << 20)] = 1
    """Parts that each process's share of a batch is computed in, to save memory."""
    ema: Annotated[float, Within(0, 1, above=True, below=True)] | None = None
    """Decay of a moving average of the weights, such as 0.9999, which is validated besides them."""
    export: Literal["last", "best", "ema"] = "last"
    """Which weights a finished run gives: the "last", the "best" in validation, or the "ema"."""
    seed: Annotated[int, Within(0, (1 << 63) - 1)] = 0
    """Of all randomness."""
    checkpoint_steps: Steps = 1000
    """Steps between two checkpoints."""
    log_steps: Steps = 20
    """Steps between two rows of the log."""
    trackers: tuple[str, ...] = ()
    """Of accelerate, besides TensorBoard, such as [wandb]."""
    source: str = ""
    """Where the settings come from, in words."""

    def learning_rate(self) -> float:
        """The peak learning rate."""
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        assert self.optimizer.base_lr is not None  # load_recipe has checked it
        return self.optimizer.base_lr * self.batch_size / 256

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Setting(NamedTuple):
    """A setting of recipes: its name, dotted; its kind in words; its default as it is written; and what it means."""

    name: str
    type: str
    default: str
    meaning: str


def describe_settings(cls: type = Recipe, prefix: str = "") -> list[Setting]:
    """Every setting of a recipe, in the order of the classes above, of whose source defaults and meanings are read."""
    hints = typing.get_type_hints(cls, include_extras=True)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found: list[Setting] = []
    for statement, doc in pairwise(body.body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(doc, ast.Expr)):
            continue
        assert isinstance(statement.target, ast.Name) and isinstance(doc.value, ast.Constant)
        name, default = statement.target.id, statement.value
        if name in ("schedule", "optimizer"):
            found += describe_settings(Schedule if name == "schedule" else Optimizer, f"{name}.")
            continue
        written = "" if default is None else ast.unparse(default).replace("field(default_factory=dict)", "{}")
        found.append(Setting(prefix + name, described(hints[name]), written, str(doc.value.value)))
    return found


def recipe_names() -> list[str]:
    """Names of the recipes that come with the zoo."""
    return sorted(path.stem for path in RECIPES.rglob("*.yaml"))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe: the zoo's of that name, one's own, or a run's; it need not be there."""
    path = Path(name_or_path)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        return path
    ours = (file for file in RECIPES.rglob("*.yaml") if file.stem == str(name_or_path))
    return next(ours, RECIPES / f"{name_or_path}.yaml")


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe by its name in the zoo, by its file or by the folder of a run; `overrides` replace settings, nested
    by dots.

    >>> load_recipe("croco_nano", {"batch_size": 32, "schedule.length": 100})

    Raises RecipeError (a ValueError) that names the setting.
    """
    path = recipe_path(name_or_path)
    if not os.path.isfile(path):  # unlike Path's it asks no more of a folder than there is to see
        near = get_close_matches(str(name_or_path), recipe_names())
        hint = f"did you mean {' or '.join(near)}?" if near else "`zoo recipes` prints all of them."
        raise RecipeError(f"There is no recipe '{name_or_path}'; {hint} A .yaml file is one, too.")
    try:
        with path.open(encoding="utf-8") as file:
            settings = read_yaml(file.read(MAX_LENGTH + 1))
    except (PlainYamlError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML ({error}); correct it there.") from error
    except OSError as error:
        raise RecipeError(f"{path} can't be read ({error.strerror}); check its permissions.") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} holds no settings; a recipe is a YAML mapping, see zoo/train/recipes.")
    _override(settings, overrides or {})
    settings.setdefault("name", path.stem)
    return parse_recipe(settings, str(path))


def parse_recipe(settings: dict[str, Any], where: str) -> Recipe:
    """A recipe of `to_dict`'s or a file's settings; those that are not there have their defaults.

    where: what errors name. Raises RecipeError (a ValueError).
    """
    return _parse(Recipe, settings, where)


def _override(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Replace settings. Another source has other settings: those of the one that was there, and of what it was
    validated on, go with it."""
    data, whole = settings.get("data"), overrides.get("data")
    new = overrides.get("data.source", whole.get("source") if isinstance(whole, dict) else None)
    if new is not None and isinstance(data, dict) and new != data.get("source"):
        settings["data"], settings["validation"] = {"source": new}, {}
    for key, value in overrides.items():
        _set(settings, key, copy.deepcopy(value))  # a nested one may be changed by the next


def _set(settings: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise RecipeError(f"The setting '{dotted}' can't be set, since '{parent}' is a single value.")
    settings[last] = value


def _parse(cls: Any, settings: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(str(name) for name in settings if name not in fields):
        raise RecipeError(f"{where} has unknown settings {', '.join(unknown)}; known are {', '.join(fields)}.")
    required = {name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := required - set(settings):
        raise RecipeError(f"{where} lacks the settings {', '.join(sorted(missing))}; add them.")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {key: checked(key, value, hints[key], where) for key, value in settings.items()}
    if cls is Recipe:
        values["schedule"] = _parse(Schedule, values["schedule"], f"{where}, schedule,")
        values["optimizer"] = _parse(Optimizer, values["optimizer"], f"{where}, optimizer,")
        optimizer = values["optimizer"]
        if (optimizer.lr is None) == (optimizer.base_lr is None):
            raise RecipeError(f"{where} must give exactly one of optimizer.lr and optimizer.base_lr.")
        _check_export(values, where)
        if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", values["name"]) or values["name"] in (".", ".."):
            raise RecipeError(
                f"{where} has the name {reprlib.repr(values['name'])}, which no folder can have; change it."
            )
    return cls(**values)


def _check_export(values: dict[str, Any], where: str) -> None:
    """Raise RecipeError unless the weights that are to be exported will be there."""
    export, ema = values.get("export", "last"), values.get("ema")
    if export == "ema" and ema is None:
        raise RecipeError(f"{where} exports the moving average of its weights and has none; set ema, such as 0.9999.")
    if export == "best" and not values.get("validation"):
        raise RecipeError(f"{where} exports the weights that are best in validation and has none; add validation.")
