"""The folder of a training run: its log, its checkpoint, and how it goes on from there."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from zoo.errors import DivergedError, TrainingError
from zoo.train.recipe import Recipe, parse_recipe
from zoo.train.schedule import Plan
from zoo.weights import save_safetensors
from zoo.weights.files import write_json


class Run:
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
            self.rows = [row for row in _read_rows(log) if row["step"] <= start]
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
            raise_diverged("The weights", step, self.plan)
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

    def keep_best(self, objective: Any) -> None:
        """Write the weights to best.safetensors if the validation just logged is the best so far."""
        name = f"validation_{getattr(objective, 'best', '')}"
        figures = [row[name] for row in self.rows if name in row]
        if figures and figures[-1] <= min(figures):
            model = objective.trained()
            about = {**self._about(model), "steps": str(self.rows[-1]["step"])}
            save_safetensors(model.state_dict(), self.folder / "best.safetensors", about)

    def _about(self, model: nn.Module) -> dict[str, str]:
        """What a weights file says of where it comes from."""
        about = dict(architecture=self.recipe.model, recipe=self.recipe.name, steps=str(self.plan.steps))
        about["model_args"] = json.dumps(self.recipe.model_args)
        if self.recipe.init:
            about["init"] = self.recipe.init
        return {**about, **_ancestry(model)}

    def finish(self, model: nn.Module, classes: tuple[str, ...]) -> None:
        """Write the trained model's weights, the loss curve, and the figures of the validation at the end."""
        save_safetensors(model.state_dict(), self.weights, self._about(model))
        self.board.close()
        if not self.rows:  # the log may be gone while the checkpoint is there
            return
        draw_loss(self.rows, self.folder / "loss.png", self.recipe.name)
        results = {key: value for key, value in self.rows[-1].items() if key.startswith("validation_")}
        if results:
            write_json(self.folder / "results.json", dict(step=self.plan.steps, **results, classes=classes))


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl: step, lr, images_per_second, seconds, means since the row before of the loss
    and of what else the objective reports, and after a validation its figures (validation_top1...)."""
    return _read_rows(Path(run) / "log.jsonl")


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


def _ancestry(model: nn.Module) -> dict[str, str]:
    """What weights that started from others say of those: `zoo push` keeps their license."""
    ancestor = getattr(model, "ancestor", None)
    return dict(base_model=ancestor.name, license=ancestor.license) if ancestor else {}


def _read_rows(log: Path) -> list[dict[str, Any]]:
    """Rows of a log, without a last one that a kill cut short. Raises TrainingError for what is no such row."""
    rows = []
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
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


def check_finite(losses: list[float], done: int, plan: Plan) -> None:
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise_diverged("The loss", done - len(losses) + i + 1, plan)


def raise_diverged(what: str, step: int, plan: Plan) -> NoReturn:
    raise DivergedError(
        f"{what} became NaN or infinite at step {step} of {plan.steps}, learning rate "
        f"{plan.learning_rate(step - 1):.3g}; try a lower learning rate, a longer warm-up, optimizer.clip_grad: 1.0, "
        "or precision: fp32, from the last checkpoint or anew."
    )
