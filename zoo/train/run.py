"""The folder of a training run: its log, its checkpoint, its weights, and how it goes on from there."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from zoo.errors import CorruptWeightsError, DivergedError, StorageError, TrainingError, ZooError
from zoo.train import optimizer_state
from zoo.train.machines.sharding import all_finite, whole
from zoo.train.plain_yaml import check_plain
from zoo.train.recipe import Recipe, parse_recipe
from zoo.train.schedule import Plan
from zoo.weights import save_safetensors
from zoo.weights.disk import files, safetensors_format
from zoo.weights.disk.files import write_json

if TYPE_CHECKING:
    from zoo.train.build import Parts

_logger = logging.getLogger("zoo")

LOGGING = ("name", "source", "log_steps", "checkpoint_steps", "trackers")
"""Settings that a run may go on with changed: they decide nothing of what it trains."""


class Run:
    """The files of one training run; the main process writes them."""

    def __init__(self, folder: str | Path, recipe: Recipe, plan: Plan, accelerator: Accelerator) -> None:
        self.folder, self.recipe, self.plan = Path(folder), recipe, plan
        self.accelerator, self.main = accelerator, accelerator.is_main_process
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.weights = self.folder / "model.safetensors"
        self.best_weights = self.folder / "best.safetensors"
        self.best: dict[str, Any] | None = None  # step, figure and value of the best validation
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.opened = self.logged = time.monotonic()

    @contextlib.contextmanager
    def held(self, parts: Parts) -> Iterator[int]:
        """Hold the folder as long as this lasts, go on from its checkpoint, if there is one, and open it; gives the
        number of steps done.

        Raises TrainingError if another process holds it, StorageError if it can't be written.
        """
        with self._lock() if self.main else contextlib.nullcontext():
            yield self._start(parts)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.folder / "run.lock"
        lock = FileLock(path)
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():  # what it leads to would be emptied
                path.unlink()
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise TrainingError(
                    f"Another process is training into {self.folder}; wait until it ends, or choose another --output."
                ) from None
            except NotImplementedError:
                _logger.warning("%s can't be locked on this file system; start no second run into it.", self.folder)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What can't be written raises StorageError with what to do."""
        try:
            yield
        except OSError as error:
            if isinstance(error, ZooError):
                raise
            raise StorageError(
                f"The run's folder {self.folder} can't be written ({error.strerror or error}); free some space, or "
                "choose another --output."
            ) from error

    def _start(self, parts: Parts) -> int:
        done = self._resume(parts) if os.path.lexists(self.checkpoint) else 0
        if self.main:
            with self._writing():
                self._open(done)
        config = {"recipe": json.dumps(self.recipe.to_dict())}
        self.accelerator.init_trackers("pretext-zoo", config, {"wandb": {"name": self.recipe.name}})
        return done

    def _resume(self, parts: Parts) -> int:
        try:
            state, tensors = read_checkpoint(self.checkpoint)
        except CorruptWeightsError as error:
            raise TrainingError(f"{error} Remove it to start the run anew, or choose another --output.") from error
        saved_recipe = parse_recipe(state["recipe"], str(self.checkpoint))  # an older version's lacks newer settings
        self._check_same(saved_recipe, state["step"])
        if state["step"] > self.plan.steps:
            raise TrainingError(
                f"{self.checkpoint} is of step {state['step']}, beyond the recipe's {self.plan.steps}; it is not of "
                "this run, so choose another --output."
            )
        try:
            parts.objective.load_state_dict(_part(tensors, "objective."))
            if parts.average is not None:
                parts.average.module.load_state_dict(_part(tensors, "average."))
            optimizer_state.give(parts.optimizer, _part(tensors, "optimizer."), state.get("optimizer", {}))
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{self.checkpoint} doesn't fit its own recipe ({reason}); remove it to start the run anew, or choose "
                "another --output."
            ) from error
        self.seconds_before, self.best = state["seconds"], state.get("best")
        return state["step"]

    def _check_same(self, saved: Recipe, step: int) -> None:
        """Raise TrainingError unless the checkpoint's run was one of this recipe."""
        ours, theirs = (json.loads(json.dumps(recipe.to_dict())) for recipe in (self.recipe, saved))
        changed = sorted(key for key in ours if ours[key] != theirs[key] and key not in LOGGING)
        if not changed:
            return
        if changed == ["schedule"] and self.weights.exists():
            raise TrainingError(
                f"The run in {self.folder} is finished after {step} steps; train further from its weights with --init "
                f"{self.folder} and another --output."
            )
        raise TrainingError(
            f"{self.folder} holds a run with other settings ({', '.join(changed)}); `zoo train {self.folder}` goes on "
            "with its own, and another --output starts anew."
        )

    def _open(self, done: int) -> None:
        """Write the recipe, cut the log back to what the checkpoint knows, and remove what a killed save has left."""
        log = self.folder / "log.jsonl"
        for path in (self.checkpoint, self.weights, self.best_weights, log):
            files.remove_leftovers(path)
        _write_text(self.folder / "recipe.yaml", yaml.safe_dump(json.loads(json.dumps(self.recipe.to_dict()))))
        if done and log.exists():
            self.rows = [row for row in _read_rows(log) if row["step"] <= done]
        _write_text(log, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=done + 1)  # the first step that is anew
        self.opened = self.logged = time.monotonic()

    def progress_bar(self, done: int, wanted: bool) -> tqdm:
        """A bar over the run's steps, on the main process."""
        return tqdm(
            total=self.plan.steps, initial=done, desc=self.recipe.name, unit="step", disable=not (wanted and self.main)
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What takes place here doesn't count for images_per_second, which are of the training."""
        before = time.monotonic()
        yield
        self.logged += time.monotonic() - before

    def log(self, step: int, values: dict[str, list[float]], lr: float, figures: dict[str, float]) -> dict[str, str]:
        """Write a row of log.jsonl, TensorBoard and the trackers; returns what the progress bar shows.

        values: what the objective reported in each step since the row before. figures: of a validation.
        """
        now = time.monotonic()
        means = {name: sum(of) / len(of) for name, of in values.items()}
        means |= {f"validation_{name}": value for name, value in figures.items()}
        row = dict(
            step=step,
            **means,
            lr=lr,
            images_per_second=len(values["loss"]) * self.recipe.batch_size / (now - self.logged),
            seconds=self.seconds_before + now - self.opened,
        )
        self.logged = now
        self.accelerator.log({key: value for key, value in row.items() if key != "step"}, step)
        if self.main:
            self.rows.append(row)
            with self._writing():
                with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                for key in (*means, "lr", "images_per_second"):
                    self.board.add_scalar(key, row[key], step)
        shown = {name: f"{mean:.4f}" for name, mean in means.items()}
        return dict(**shown, images_s=f"{row['images_per_second']:.0f}")

    def show(self, step: int, picture: Figure | None) -> None:
        """Put a validation's picture into TensorBoard."""
        if picture is not None and self.main:
            with self._writing():
                self.board.add_figure("validation", picture, step)

    def save(self, step: int, parts: Parts) -> None:
        """Write everything needed to go on, in one file that appears whole or not at all.

        Raises DivergedError for weights that are not finite: a run could never go on from those.
        """
        if not all_finite(parts.objective.parameters(), self.accelerator):
            self._raise_diverged("The weights", step)
        tensors = {f"objective.{key}": value for key, value in parts.objective.state_dict().items()}
        if parts.average is not None:
            tensors |= {f"average.{key}": value for key, value in parts.average.module.state_dict().items()}
        of_optimizer, numbers = optimizer_state.take(parts.optimizer)
        tensors |= {f"optimizer.{key}": value for key, value in of_optimizer.items()}
        tensors = whole(tensors, keep=self.main)
        if not self.main:
            return
        state = dict(
            step=step,
            seconds=self.seconds_before + time.monotonic() - self.opened,
            recipe=self.recipe.to_dict(),
            ancestry=_ancestry(parts.objective.model),
            best=self.best,
            optimizer=numbers,
        )
        save_safetensors(tensors, self.checkpoint, {"run": json.dumps(state)})

    def keep_best(self, step: int, parts: Parts, figures: dict[str, float]) -> None:
        """Write the weights, or their average, into best.safetensors if no validation before was better."""
        figure, more_is_better = parts.objective.ranked_by
        figure = f"ema_{figure}" if parts.average is not None else figure
        if figure not in figures:  # nothing of what was held out could be judged
            return
        value = figures[figure]
        if self.best is not None and (self.best["value"] >= value if more_is_better else self.best["value"] <= value):
            return
        self.best = dict(step=step, figure=figure, value=value)
        if self.main:
            best = parts.objective if parts.average is None else parts.average.module
            self._write_weights(best.trained().state_dict(), self.best_weights, parts, step)

    def finish(self, parts: Parts) -> None:
        """Write the weights that the recipe exports, the loss curve, and the figures of the validation at the end."""
        for tracker in self.accelerator.trackers:  # end_training would end the processes' group too
            tracker.finish()
        trained = parts.average.module if self.recipe.export == "ema" and parts.average else parts.objective
        state, step = whole(trained.trained().state_dict(), keep=self.main), self.plan.steps
        if not self.main:
            return
        if self.recipe.export == "best":
            assert self.best is not None  # a run ends with a validation
            state, step = load_file(self.best_weights), self.best["step"]
        self._write_weights(state, self.weights, parts, step)
        with self._writing():
            self.board.close()
            if not self.rows:  # the log may be gone while the checkpoint is there
                return
            draw_loss(self.rows, self.folder / "loss.png", self.recipe.name)
        results = {key: value for key, value in self.rows[-1].items() if key.startswith("validation_")}
        if results:
            best = {} if self.best is None else dict(best=self.best)
            classes = getattr(parts.source, "classes", ()) if parts.objective.labeled else ()
            write_json(self.folder / "results.json", dict(step=self.plan.steps, **results, **best, classes=classes))

    def _write_weights(self, state: dict[str, Tensor], path: Path, parts: Parts, step: int) -> None:
        about = dict(architecture=self.recipe.model, recipe=self.recipe.name, steps=str(step))
        about["model_args"] = json.dumps(self.recipe.model_args)
        if self.recipe.init:
            about["init"] = self.recipe.init
        save_safetensors(state, path, {**about, **_ancestry(parts.objective.model)})

    def check_finite(self, losses: list[float], done: int) -> None:
        """Raise DivergedError if one of the losses of the steps up to `done` is not finite."""
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._raise_diverged("The loss", done - len(losses) + i + 1)

    def _raise_diverged(self, what: str, step: int) -> NoReturn:
        raise DivergedError(
            f"{what} became NaN or infinite at step {step} of {self.plan.steps}, learning rate "
            f"{self.plan.learning_rate(step - 1):.3g}; try a lower learning rate, a longer warm-up, "
            "optimizer.clip_grad: 1.0, or precision: fp32, from the last checkpoint or anew."
        )


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a run's checkpoint.safetensors says of the run (step, seconds, recipe, ancestry, best), and its tensors.

    Raises CorruptWeightsError (an OSError) for a damaged file, and one that is no run's checkpoint.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        safetensors_format.header_digest(path)
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        if not (type(state["step"]) is int and state["step"] >= 0):
            raise ValueError("its step is no number of steps")
        if not (type(state["seconds"]) in (int, float) and isinstance(state["recipe"], dict)):
            raise ValueError("it names no recipe")
        check_plain(state)
        if not isinstance(state.get("best"), (dict, type(None))):
            raise ValueError("its best validation is none")
        numbers = state.get("optimizer", {})  # older checkpoints have none
        if not isinstance(numbers, dict) or any(type(value) not in (bool, int, float) for value in numbers.values()):
            raise ValueError("what it says of the optimizer is no number")
    except KeyError as error:
        raise CorruptWeightsError(f"{path} is no checkpoint of a run (it has no {error}).") from error
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].removeprefix(f"{path} ").partition(". ")[0]
        raise CorruptWeightsError(f"{path} is no checkpoint of a run ({reason or 'nested too deep'}).") from error
    return state, tensors


def _write_text(path: Path, text: str) -> None:
    with files.atomic_writer(path) as file:
        file.write(text.encode())


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl: step, lr, images_per_second, seconds, means since the row before of the loss
    and of what else the objective reports, and after a validation its figures (validation_top1...)."""
    return _read_rows(Path(run) / "log.jsonl")


def draw_loss(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """A picture of the loss over the steps, with a running mean and the last value."""
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    width = max(1, len(rows) // 40)
    smooth = [sum(losses[max(0, i - width) : i + 1]) / len(losses[max(0, i - width) : i + 1]) for i in range(len(rows))]
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's, whose backend is the user's
    axes = figure.subplots()
    few = "o" if len(rows) < 3 else None  # a line of one point shows nothing
    axes.plot(steps, losses, color="0.75", linewidth=0.8, marker=few, label="logged")
    axes.plot(steps, smooth, color="tab:blue", linewidth=1.6, marker=few, label="running mean")
    axes.annotate(f"{smooth[-1]:.3f}", (steps[-1], smooth[-1]), textcoords="offset points", xytext=(-4, 8), ha="right")
    axes.set(title=f"{title}: training loss", xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with files.atomic_writer(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _ancestry(model: nn.Module) -> dict[str, str]:
    """What weights that started from others say of those: `zoo push` keeps their license."""
    ancestor = getattr(model, "ancestor", None)
    return dict(base_model=ancestor.name, license=ancestor.license) if ancestor else {}


def _read_rows(log: Path) -> list[dict[str, Any]]:
    """Rows of a log, without a last one that a kill cut short. Raises TrainingError for what is no such row."""
    rows = []
    try:
        with files.open_regular(log) as file:
            lines = file.read().decode().splitlines(keepends=True)
        for line in lines if not lines or lines[-1].endswith("\n") else lines[:-1]:
            row = json.loads(line)
            if type(row["step"]) is not int or type(row["loss"]) not in (int, float):
                raise ValueError("step or loss is no number")
            rows.append(row)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrainingError(
            f"{log} can't be read in row {len(rows) + 1} ({type(error).__name__}); remove that row, or the file."
        ) from error
    return rows
