"""The one training loop: any objective, on one CPU or GPU or many (accelerate underneath).

A step is a pure function of (recipe, step, state): samples come from the step's number, randomness is seeded
by it. So a run killed at any moment and started again with the same command ends with the same weights, bit
for bit on a CPU.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from zoo.errors import DivergedError, RecipeError, TrainingError, ZooError
from zoo.lookup import find_variant
from zoo.models import fetch
from zoo.models.croco import create_pair_model
from zoo.train.curriculum import Curriculum
from zoo.train.data import loading as data
from zoo.train.data.loading import ENDLESS, StepSampler, make_loader, to_device
from zoo.train.objectives.classify import Classification, LinearProbe
from zoo.train.objectives.cross_view import CrossViewCompletion
from zoo.train.objectives.jigsaw import Jigsaw
from zoo.train.objectives.jigsaw_clustering import JigsawClustering
from zoo.train.objectives.masked import MaskedFeatureModeling, MaskedImageModeling, MaskedTokenModeling
from zoo.train.objectives.objective import Objective
from zoo.train.objectives.pirl import Pirl
from zoo.train.recipe import Recipe, Schedule, parse_recipe
from zoo.train.validate import check_validation, validate
from zoo.weights import save_safetensors
from zoo.weights.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
}
"""Objectives by the name that recipes use."""

VALIDATION_SEED = 2**32 - 1
"""Of procedural validation images: not a training run's, and the same for all of them."""


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on a given source: whole numbers of steps.

    unit: steps of one of the schedule's units. validate_every: so many steps.
    """

    steps: int
    unit: int
    warmup: float
    length: float
    lr: float
    schedule: Schedule
    validate_every: int

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from zero, then a cosine to min_lr over `length` steps, of which `steps` are run."""
        if self.schedule.staircase:
            step -= step % self.unit
        if step < self.warmup:
            return self.lr * step / self.warmup
        progress = (step - self.warmup) / max(1.0, self.length - self.warmup)
        low = self.schedule.min_lr
        return low + (self.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_plan(recipe: Recipe, samples: int) -> Plan:
    """Steps and learning rates of a recipe on a source of `samples` samples."""
    schedule = recipe.schedule
    unit = 1
    if schedule.unit == "epochs":
        if samples >= ENDLESS:
            raise RecipeError("Procedural data has no epochs; give the recipe's schedule in steps.")
        unit = samples // recipe.batch_size
        if unit == 0:
            raise RecipeError(
                f"{samples} samples don't fill one batch of {recipe.batch_size}; lower batch_size or give more data."
            )
    stop = schedule.length if schedule.stop is None else schedule.stop
    steps = int(stop * unit)
    return Plan(
        steps,
        unit,
        schedule.warmup * unit,
        schedule.length * unit,
        recipe.learning_rate(),
        schedule,
        validate_every=steps if schedule.validate_every is None else max(1, int(schedule.validate_every * unit)),
    )


def _objective_class(recipe: Recipe) -> type[Objective]:
    name = recipe.objective.get("name")
    if name not in OBJECTIVES:
        raise RecipeError(f"The objective '{name}' is unknown; choose {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def make_source(recipe: Recipe) -> Any:
    """The map-style dataset of a recipe's `data`, giving what its objective takes."""
    return data.make_source(recipe.data, recipe.seed, _objective_class(recipe).sample)


def make_validation_source(recipe: Recipe) -> Any:
    """What a recipe is validated on, or None."""
    if not recipe.validation:
        return None
    return data.make_source(recipe.data | recipe.validation, VALIDATION_SEED, _objective_class(recipe).sample)


def make_model(recipe: Recipe) -> nn.Module:
    """The recipe's model, from what it starts from, or freshly drawn with the recipe's seed."""
    if recipe.model != "create_pair_model" and not timm.is_model(recipe.model):
        find_variant(recipe.model)  # names the nearest ones
    args = dict(recipe.model_args)
    if recipe.init:
        find_variant(recipe.model)  # timm's own models load less strictly
        args |= dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(_init_file(recipe.init))))
    torch.manual_seed(recipe.seed)
    try:
        if recipe.model == "create_pair_model":
            return create_pair_model(**recipe.model_args)
        return timm.create_model(recipe.model, **args)
    except ZooError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"The recipe's model_args don't fit {recipe.model} ({error}); correct them.") from error


def _init_file(init: str) -> Path:
    path = Path(init)
    if path.is_dir():
        path /= "model.safetensors"
        if not path.is_file():
            raise RecipeError(f"The run {init} has no model.safetensors; finish it, or start from another.")
    if path.is_file():
        return path
    if len(path.parts) > 1 or path.suffix in (".safetensors", ".pth", ".pt"):
        raise RecipeError(f"There are no weights {init} to start from; give a file, a run's folder or a variant.")
    return fetch(init)


def make_objective(recipe: Recipe, source: Any, model: nn.Module | None = None) -> Objective:
    """The recipe's model, or another one, under its objective, as they are at the first step."""
    objective_cls = _objective_class(recipe)
    settings = dict(recipe.objective)
    name = settings.pop("name")
    if model is None:
        model = make_model(recipe)
    try:
        return objective_cls(model, source, **settings)
    except TypeError as error:
        raise RecipeError(f"The settings of the objective '{name}' don't fit ({error}).") from error


def make_curriculum(recipe: Recipe, source: Any, objective: Objective) -> Curriculum:
    """The settings that change with the step, once source and objective have taken the values of all points; the
    objective is left with those of step 0."""
    curriculum = Curriculum(recipe.curriculum, recipe.batch_size)
    for step in reversed(curriculum.steps()):
        if changes := curriculum.data(step * recipe.batch_size):
            if not hasattr(source, "changed"):
                raise RecipeError(f"Only scenes can change their {', '.join(changes)}; leave it out of the curriculum.")
            source.changed(**changes)
        objective.configure(**curriculum.objective(step))
    return curriculum


def make_optimizer(recipe: Recipe, objective: Objective) -> torch.optim.Optimizer:
    """timm's optimizer; each of its groups has `lr_scale`, its share of the learning rate."""
    settings = recipe.optimizer
    options: dict[str, Any] = dict(betas=settings.betas) if "adam" in settings.name else {}
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
        optimizer = create_optimizer_v2(
            trained,
            opt=settings.name,
            lr=recipe.learning_rate(),
            weight_decay=settings.weight_decay,
            filter_bias_and_bn=not settings.decay_all,
            layer_decay=settings.layer_decay,
            **options,
        )
    except ValueError as error:  # a name that timm does not know
        raise RecipeError(f"The optimizer '{settings.name}' can't be made ({error}); see timm.optim.") from error
    for group in optimizer.param_groups:
        group.setdefault("lr_scale", 1.0)
    return optimizer


def _make_accelerator(recipe: Recipe, accumulate: int) -> Accelerator:
    AcceleratorState._reset_state()  # it keeps the precision of the first run of a process for all later ones
    return Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no", gradient_accumulation_steps=accumulate
    )


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    workers: int = 2,
    accumulate: int = 1,
    progress: bool = True,
) -> Path:
    """Run a recipe into the folder `output`, or go on with the run that is there; returns the weights' path.

    output gets recipe.yaml, log.jsonl, tensorboard/, checkpoint.safetensors (everything needed to go on,
    replaced atomically), and at the end model.safetensors, loss.png and, if
    it is validated, results.json.
    accumulate: parts that each process's share of a batch is computed in.

    Raises RecipeError, DataError (ValueErrors), TrainingError (RuntimeError), DivergedError (ArithmeticError).
    """
    output = Path(output)
    accelerator = _make_accelerator(recipe, accumulate)
    rank, world = accelerator.process_index, accelerator.num_processes
    source = make_source(recipe)
    plan = make_plan(recipe, len(source))
    objective = make_objective(recipe, source)
    curriculum = make_curriculum(recipe, source, objective)
    held_out = make_validation_source(recipe)
    if held_out is not None:
        check_validation(objective, source, held_out)
    if recipe.sync_batchnorm and world > 1:
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    optimizer = make_optimizer(recipe, objective)

    run = _Run(output, recipe, plan)
    start = run.resume(objective, optimizer) if run.checkpoint.exists() else 0
    if accelerator.is_main_process:
        run.open(start)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    sampler = StepSampler(
        len(source),
        recipe.batch_size,
        recipe.seed,
        start,
        plan.steps,
        accumulate,
        rank,
        world,
        getattr(source, "order", None),
    )
    loader = make_loader(source, objective.transform, sampler, workers, accelerator.device.type == "cuda", curriculum)
    batches = iter(loader)

    bar = tqdm(
        total=plan.steps,
        initial=start,
        desc=recipe.name,
        unit="step",
        disable=not (progress and accelerator.is_main_process),
    )
    names: list[str] = []  # of what the objective reports: the loss first
    reports: list[Tensor] = []  # on the device: reading each step's would make the device wait
    wrapped.train()
    with _StopSignal() as stop:
        for step in range(start, plan.steps):
            objective.configure(**curriculum.objective(step))
            lr = plan.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            parts: list[Tensor] = []
            for part in range(accumulate):
                batch = to_device(_next(batches), source, accelerator.device)
                torch.manual_seed(_seed(recipe.seed, step, part, rank))
                with accelerator.accumulate(wrapped):
                    outcome = wrapped(batch)
                    accelerator.backward(outcome["loss"])
                    if accelerator.sync_gradients and recipe.optimizer.clip_grad is not None:
                        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.optimizer.clip_grad)
                    optimizer.step()
                    optimizer.zero_grad()
                names = names or ["loss", *sorted(outcome.keys() - {"loss"})]
                parts.append(torch.stack([outcome[name].detach().float() for name in names]))
            done = step + 1
            objective.after_step(done / plan.steps)
            reports.append(torch.stack(parts).mean(dim=0))
            bar.update()

            validating = held_out is not None and (done % plan.validate_every == 0 or done == plan.steps)
            saving = done % recipe.checkpoint_steps == 0 or done == plan.steps or (stop.wished and world == 1)
            if done % recipe.log_steps == 0 or saving or validating:
                # the wish to stop travels with the reports, so that several processes stop at the same step
                wish = torch.full((1, len(names)), float(stop.wished), device=accelerator.device)
                *rows, wished = accelerator.reduce(torch.cat((torch.stack(reports), wish)), "mean").tolist()
                _check_finite([row[0] for row in rows], done, plan)
                stopping = wished[0] > 0
                saving = saving or stopping
                figures: dict[str, float] = {}
                if validating:
                    share = recipe.batch_size // (accumulate * world)
                    before = time.monotonic()
                    figures = validate(objective, held_out, accelerator, share, workers)
                    run.logged += time.monotonic() - before  # images_per_second is of the training
                if accelerator.is_main_process:
                    bar.set_postfix(run.log(done, names, rows, lr, figures))
                reports.clear()
                if saving and accelerator.is_main_process:
                    run.save(done, objective, optimizer)
                if stopping and done < plan.steps:
                    bar.close()
                    raise TrainingError(
                        f"Stopped after step {done} of {plan.steps} with everything saved; start the same command "
                        "again to go on."
                    )
    bar.close()
    if accelerator.is_main_process:
        run.finish(objective.trained(), getattr(source, "classes", ()))
    accelerator.wait_for_everyone()
    return run.weights


def dry_run(recipe: Recipe, *, workers: int = 0, accumulate: int = 1, steps: int = 3) -> dict[str, Any]:
    """Take a few real steps and say what the whole run comes to: steps, samples, seconds and bytes.

    Keys: steps, samples, epochs (None for procedural data), parameters, seconds_per_step, hours,
    memory_bytes (peak of this process on a CPU, of the allocator on a GPU), device.
    """
    import resource  # not on Windows, where all but this works

    accelerator = _make_accelerator(recipe, accumulate=1)
    source = make_source(recipe)
    plan = make_plan(recipe, len(source))
    objective = make_objective(recipe, source)
    curriculum = make_curriculum(recipe, source, objective)
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    wrapped, optimizer = accelerator.prepare(objective, make_optimizer(recipe, objective))
    micro = recipe.batch_size // (accumulate * accelerator.num_processes)
    sampler = StepSampler(len(source), micro, recipe.seed, 0, steps + 1, 1, 0, 1, getattr(source, "order", None))
    loader = make_loader(source, objective.transform, sampler, workers, accelerator.device.type == "cuda", curriculum)
    seconds = []
    start = time.monotonic()
    for batch in loader:
        loss = wrapped(to_device(batch, source, accelerator.device))["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0.0)
        _check_finite([loss.item()], 1, plan)
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
    per_step = sum(seconds[1:]) / len(seconds[1:]) * accumulate  # the first one warms up
    cuda = accelerator.device.type == "cuda"
    samples = plan.steps * recipe.batch_size
    return dict(
        steps=plan.steps,
        samples=samples,
        epochs=None if len(source) >= ENDLESS else samples / len(source),
        parameters=parameters,
        seconds_per_step=per_step,
        hours=per_step * plan.steps / 3600,
        memory_bytes=torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device=str(accelerator.device),
    )


def show_batch(recipe: Recipe, samples: int = 4) -> Figure:
    """A picture of what the network sees of the first `samples` samples of a recipe's run."""
    source = make_source(recipe)
    with torch.device("meta"):  # nothing is computed with it
        model = make_model(replace(recipe, init=""))
    objective = make_objective(recipe, source, model)
    curriculum = make_curriculum(recipe, source, objective)
    sampler = StepSampler(len(source), samples, recipe.seed, 0, 1, 1, 0, 1)
    ((*keys,),) = sampler
    loader = make_loader(source, objective.transform, sampler, workers=0, pin_memory=False, curriculum=curriculum)
    batch = _next(iter(loader))
    batch = to_device(batch, source, torch.device("cpu"))
    torch.manual_seed(_seed(recipe.seed, 0, 0, 0))
    figure = objective.show([source[index] for index, _ in keys], batch)
    figure.suptitle(f"{recipe.name}: what the network sees", fontsize=13, fontweight="bold")
    return figure


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl: step, lr, images_per_second, seconds, means since the row before of the loss
    and of what else the objective reports, and after a validation its figures (validation_top1...)."""
    lines = (Path(run) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class _Run:
    """The files of one training run."""

    def __init__(self, folder: Path, recipe: Recipe, plan: Plan) -> None:
        self.folder, self.recipe, self.plan = folder, recipe, plan
        self.checkpoint = folder / "checkpoint.safetensors"
        self.weights = folder / "model.safetensors"
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.opened = self.logged = time.monotonic()

    def resume(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint into both; returns the number of steps done."""
        with safe_open(self.checkpoint, "pt") as file:
            state = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        saved_recipe = parse_recipe(state["recipe"], str(self.checkpoint))  # an older version's lacks newer settings
        ours, theirs = (json.loads(json.dumps(recipe.to_dict())) for recipe in (self.recipe, saved_recipe))
        if changed := sorted(key for key in ours if ours[key] != theirs[key]):
            raise TrainingError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)}); choose another --output, or "
                "start it again with the settings in its recipe.yaml."
            )
        objective.load_state_dict({k[10:]: v for k, v in tensors.items() if k.startswith("objective.")})
        saved: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                saved.setdefault(int(index), {})[name] = value.clone()
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        self.seconds_before = state["seconds"]
        return state["step"]

    def open(self, start: int) -> None:
        """Make the folder, and cut the log back to what the checkpoint knows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(self.recipe.to_dict()))), "utf-8")
        log = self.folder / "log.jsonl"
        if start and log.exists():
            self.rows = [row for row in map(json.loads, _whole_lines(log)) if row["step"] <= start]
        log.write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=start)
        self.opened = self.logged = time.monotonic()

    def log(
        self, step: int, names: list[str], reports: list[list[float]], lr: float, figures: dict[str, float]
    ) -> dict[str, str]:
        """Write a row of log.jsonl and TensorBoard; returns what the progress bar shows.

        names: of what the objective reports. reports: its values in each step since the row before.
        figures: of a validation.
        """
        now = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in zip(names, zip(*reports))}
        means |= {f"validation_{name}": value for name, value in figures.items()}
        row = dict(
            step=step,
            **means,
            lr=lr,
            images_per_second=len(reports) * self.recipe.batch_size / (now - self.logged),
            seconds=self.seconds_before + now - self.opened,
        )
        self.logged = now
        self.rows.append(row)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for key in (*means, "lr", "images_per_second"):
            self.board.add_scalar(key, row[key], step)
        shown = {name: f"{mean:.4f}" for name, mean in means.items()}
        return dict(**shown, images_s=f"{row['images_per_second']:.0f}")

    def save(self, step: int, objective: Any, optimizer: Any) -> None:
        """Write everything needed to go on, in one file that appears whole or not at all.

        Raises DivergedError for weights that are not finite: a run could never go on from those.
        """
        if not all(parameter.isfinite().all() for parameter in objective.parameters()):
            _raise_diverged("The weights", step, self.plan)
        tensors = {f"objective.{key}": value for key, value in objective.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": value for name, value in values.items()})
        state = dict(
            step=step,
            seconds=self.seconds_before + time.monotonic() - self.opened,
            recipe=self.recipe.to_dict(),
            ancestry=_ancestry(objective.model),
        )
        save_safetensors(tensors, self.checkpoint, {"run": json.dumps(state)})

    def finish(self, model: nn.Module, classes: tuple[str, ...]) -> None:
        """Write the trained model's weights, the loss curve, and the figures of the validation at the end."""
        about = dict(architecture=self.recipe.model, recipe=self.recipe.name, steps=str(self.plan.steps))
        about["model_args"] = json.dumps(self.recipe.model_args)
        if self.recipe.init:
            about["init"] = self.recipe.init
        save_safetensors(model.state_dict(), self.weights, {**about, **_ancestry(model)})
        self.board.close()
        if not self.rows:  # the log may be gone while the checkpoint is there
            return
        draw_loss(self.rows, self.folder / "loss.png", self.recipe.name)
        results = {key: value for key, value in self.rows[-1].items() if key.startswith("validation_")}
        if results:
            write_json(self.folder / "results.json", dict(step=self.plan.steps, **results, classes=classes))


def _ancestry(model: nn.Module) -> dict[str, str]:
    """What weights that started from others say of those: `zoo push` keeps their license."""
    ancestor = getattr(model, "ancestor", None)
    return dict(base_model=ancestor.name, license=ancestor.license) if ancestor else {}


def draw_loss(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """A picture of the loss over the steps, with a running mean and the last value."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    width = max(1, len(rows) // 40)
    smooth = [sum(losses[max(0, i - width) : i + 1]) / len(losses[max(0, i - width) : i + 1]) for i in range(len(rows))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="logged")
    axes.plot(steps, smooth, color="tab:blue", linewidth=1.6, label="running mean")
    axes.annotate(f"{smooth[-1]:.3f}", (steps[-1], smooth[-1]), textcoords="offset points", xytext=(-4, 8), ha="right")
    axes.set(title=f"{title}: training loss", xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


class _StopSignal:
    """Ctrl-C or a scheduler's SIGTERM: finish the step (several processes: up to the next logged one), save, stop.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.wished = False

    def __enter__(self) -> _StopSignal:
        main = threading.current_thread() is threading.main_thread()  # only there can signals be handled
        self._before = {s: signal.signal(s, self._wish) for s in (signal.SIGINT, signal.SIGTERM) if main}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: object) -> None:
        if self.wished and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wished = True


def _next(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The next batch; what a data worker raises comes as its sentence, without the worker's traceback."""
    try:
        return next(batches)
    except ZooError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _whole_lines(path: Path) -> list[str]:
    """Lines of a log, without a last one that a kill cut short."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _check_finite(losses: list[float], done: int, plan: Plan) -> None:
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            _raise_diverged("The loss", done - len(losses) + i + 1, plan)


def _raise_diverged(what: str, step: int, plan: Plan) -> NoReturn:
    raise DivergedError(
        f"{what} became NaN or infinite at step {step} of {plan.steps}, learning rate "
        f"{plan.learning_rate(step - 1):.3g}; try a lower learning rate, a longer warm-up, optimizer.clip_grad: 1.0, "
        "or precision: fp32, from the last checkpoint or anew."
    )
