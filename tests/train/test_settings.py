"""Settings of a run: schedules, the weights' average, the best weights, accumulation, trackers; own parts by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import Dataset

from tests.train.objectives.labels.test_classify import tiny as tiny_classifier
from tests.train.objectives.labels.test_classify import train_until_saved
from tests.train.test_training import assert_identical, tiny, weights_of
from zoo.errors import RecipeError, TrainingError
from zoo.train.engine import train
from zoo.train.objectives.cross_view import CrossViewCompletion
from zoo.train.recipe import load_recipe
from zoo.train.run import read_log
from zoo.train.schedule import Plan, make_plan


def plan_of(samples: int = 10_000, **schedule: Any) -> Plan:
    recipe = tiny(schedule=dict(unit="epochs", warmup=0, length=100) | schedule, batch_size=100)
    return make_plan(replace(recipe, optimizer=replace(recipe.optimizer, lr=0.1)), samples)


def test_milestones_of_a_published_recipe() -> None:
    """VISSL's Jigsaw: 0.025 to 0.1 in five epochs, a tenth of it from epochs 30, 60, 90 and 100 on."""
    plan = plan_of(warmup=5, length=105, warmup_lr=0.025, milestones=[30, 60, 90, 100])
    assert plan.steps == 10_500
    rates = {0: 0.025, 250: 0.0625, 500: 0.1, 2999: 0.1, 3000: 0.01, 5999: 0.01, 6000: 1e-3, 9000: 1e-4, 10_000: 1e-5}
    for step, rate in rates.items():
        assert math.isclose(plan.learning_rate(step), rate, rel_tol=1e-9), step


def test_warm_up_from_a_rate() -> None:
    plan = plan_of(warmup=20, length=100, warmup_lr=1e-3, min_lr=1e-2)
    assert plan.learning_rate(0) == 1e-3 and math.isclose(plan.learning_rate(1000), 0.0505)
    assert math.isclose(plan.learning_rate(2000), 0.1) and math.isclose(plan.learning_rate(10_000), 1e-2)


def test_average_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its definition, validated beside the weights, exported on request, and the same after a kill."""
    recipe = tiny_classifier(ema=0.5, export="ema")
    seen: list[Tensor] = []

    def head_of(run: Path) -> Tensor:
        return load_file(run / "model.safetensors")["head.weight"]

    from zoo.train.build import Parts

    update = Parts.update_average

    def recording(parts: Parts, step: int) -> None:
        update(parts, step)
        seen.append(parts.objective.model.head.weight.detach().clone())

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "update_average", recording)
        train(recipe, tmp_path / "whole", workers=0, progress=False)
    expected = seen[1]  # timm's average begins behind the second step
    for weights in seen[2:]:
        expected = 0.5 * expected + 0.5 * weights
    torch.testing.assert_close(head_of(tmp_path / "whole"), expected)
    last = read_log(tmp_path / "whole")[-1]
    assert {"validation_top1", "validation_ema_top1"} <= last.keys()
    assert last["validation_loss"] != last["validation_ema_loss"]
    train_until_saved(recipe, tmp_path / "killed", monkeypatch)
    train(recipe, tmp_path / "killed", workers=0, progress=False)
    assert_identical(tmp_path / "whole", tmp_path / "killed")


def test_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the best validation are kept beside the last ones, told, exported on request, and kept over a kill."""
    schedule = dict(unit="steps", warmup=0, length=8, validate_every=2)
    recipe = tiny_classifier(schedule=schedule, export="best", checkpoint_steps=4)
    train(recipe, tmp_path / "whole", workers=0, progress=False)
    validated = {
        row["step"]: row["validation_top1"] for row in read_log(tmp_path / "whole") if "validation_top1" in row
    }
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    best = min(step for step, top1 in validated.items() if top1 == max(validated.values()))
    assert results["best"] == dict(step=best, figure="top1", value=validated[best])
    kept = load_file(tmp_path / "whole" / "best.safetensors")
    exported = weights_of(tmp_path / "whole")
    assert kept.keys() == exported.keys() and all(torch.equal(kept[key], exported[key]) for key in kept)
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert file.metadata()["steps"] == str(best)
    shorter = dict(schedule, stop=best)
    train(tiny_classifier(schedule=shorter), tmp_path / "stopped", workers=0, progress=False)
    assert_identical(tmp_path / "whole", tmp_path / "stopped")  # the weights as they were then
    train_until_saved(recipe, tmp_path / "killed", monkeypatch)
    train(recipe, tmp_path / "killed", workers=0, progress=False)
    assert_identical(tmp_path / "whole", tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "results.json").read_text())["best"] == results["best"]


@pytest.mark.parametrize(
    "changes, problem",
    [
        (dict(export="ema"), "has none; set ema"),
        (dict(export="best", validation={}), "add validation"),
        (dict(export="first"), "it must be last or best or ema"),
        (dict(ema=1.0), "above 0 and below 1"),
        (dict(accumulate=0), "from 1 to"),
        ({"schedule.milestones": "soon"}, "milestones"),
        ({"schedule.milestones": [1, "soon"]}, "milestones"),
        (dict(trackers="wandb"), "trackers"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        tiny(**changes)


def test_accumulation_is_a_setting(tmp_path: Path) -> None:
    train(tiny(accumulate=4), tmp_path / "setting", workers=0, progress=False)
    train(tiny(), tmp_path / "argument", workers=0, progress=False, accumulate=4)
    assert_identical(tmp_path / "setting", tmp_path / "argument")


def test_logging_settings_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And TensorBoard has every step once, also that of the restart."""
    train(tiny(), tmp_path / "whole", workers=0, progress=False)
    train_until_saved(tiny(), tmp_path / "killed", monkeypatch)
    train(tiny(log_steps=1, checkpoint_steps=8), tmp_path / "killed", workers=0, progress=False)
    assert_identical(tmp_path / "whole", tmp_path / "killed")
    assert [row["step"] for row in read_log(tmp_path / "killed")] == [2, 3, 4, 5, 6, 7, 8]
    board = EventAccumulator(str(tmp_path / "killed" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [2, 3, 4, 5, 6, 7, 8]


def test_finished_run_is_not_lengthened(tmp_path: Path) -> None:
    train(tiny(), tmp_path, workers=0, progress=False)
    with pytest.raises(TrainingError, match=r"is finished after 8 steps; .* with --init"):
        train(tiny(**{"schedule.length": 16}), tmp_path, workers=0, progress=False)
    with pytest.raises(TrainingError, match=r"other settings \(seed\); `zoo train .*` goes on"):
        train(tiny(seed=1), tmp_path, workers=0, progress=False)


def test_training_leaves_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.rcParams._get_backend_or_none()  # type: ignore[attr-defined]
    train(tiny(**{"schedule.length": 2}), tmp_path, workers=0, progress=False)
    assert matplotlib.rcParams._get_backend_or_none() == before  # type: ignore[attr-defined]


class Halves(CrossViewCompletion):
    """An objective of one's own: half of the loss, whose factor is a setting."""

    def __init__(self, model: Any, source: Any, factor: float = 0.5, **settings: Any) -> None:
        super().__init__(model, source, **settings)
        self.factor = factor

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(loss=self.factor * super().forward(batch)["loss"])


class Noise(Dataset):
    """A data source of one's own: pairs of noise."""

    def __init__(self, size: int = 64, seed: int = 0) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, index])
        image1, image2 = generator.integers(0, 256, (2, self.size, self.size, 3), dtype=np.uint8)
        return dict(image1=image1, image2=image2)


OWN = f"{__name__}:Noise"


def test_own_objective_and_source(tmp_path: Path) -> None:
    """By their names in a recipe, and the source as an object, too."""
    objective = {"objective.name": f"{__name__}:Halves", "objective.factor": 0.25}
    recipe = tiny(data=dict(source=OWN, size=64), **objective)
    train(recipe, tmp_path / "named", workers=0, progress=False)
    train(tiny(**objective), tmp_path / "given", source=Noise(64, recipe.seed), workers=0, progress=False)
    assert_identical(tmp_path / "named", tmp_path / "given")
    train(tiny(data=dict(source=OWN)), tmp_path / "plain", workers=0, progress=False)
    first, whole = (read_log(tmp_path / name)[0]["loss"] for name in ("named", "plain"))
    assert 0.2 * whole < first < 0.3 * whole


@pytest.mark.parametrize(
    "changes, problem",
    [
        (dict(data=dict(source="no_such_package:Noise")), "can't be imported"),
        (dict(data=dict(source=f"{__name__}:Nois")), "has no class 'Nois'.*Noise"),
        (dict(data=dict(source=OWN, sise=64)), "don't fit"),
        (dict(data=dict(source="builtins:int")), "no subclass of torch.utils.data.*Dataset"),
        (dict(data=dict(source="subprocess:Popen", args="touch x", shell=True)), "no subclass of"),
        ({"objective.name": OWN}, "no subclass of zoo.train.Objective"),
    ],
)
def test_own_parts_that_are_none(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=problem):
        train(tiny(**changes), tmp_path, workers=0, progress=False)


def test_public_names() -> None:
    import zoo.train

    assert zoo.train.train is train and zoo.train.load_recipe is load_recipe
    assert {"Objective", "load_recipe", "train"} <= set(dir(zoo.train))
    assert {"create_pair_model", "fetch", "find_variant", "push_to_hub"} <= set(dir(zoo))
