"""`zoo eval pretext`: what it measures on a run is what the run can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import Run
from tests.train.objectives.jigsaw.test_pirl import tiny
from zoo.errors import TrainingError
from zoo.evaluate import pretext
from zoo.train.engine import train


def test_pirl_run(zoo: Run, tmp_path: Path) -> None:
    """A bank in which one image's vector points where all embeddings point gets that image's share."""
    run = tmp_path / "run"
    train(tiny(**{"optimizer.lr": 0.01}), run, workers=0, progress=False)
    code, out, err = zoo("eval", "pretext", run, "--samples", 24)
    assert code == 0, err
    result = json.loads((run / "evaluation.json").read_text())
    assert result["samples"] == 24 and result["steps"] == 1 and result["seed"] == 0
    assert result["chance"] == pytest.approx(1 / 24) and result["bar"] == "above 0.5"
    assert f"{result['own_image_nearest']:.4g}" in out
    assert result["holds"] == (result["own_image_nearest"] > 0.5)

    _, source, objective = pretext.load_run(run)
    view = objective.model.embed_view(
        objective.to_input(objective.transform({"index": 0, **source[0]}, 0)["patches"][None])
    )
    checkpoint = run / "checkpoint.safetensors"
    state = load_file(checkpoint)
    bank = -torch.nn.functional.normalize(view.detach()).repeat(24, 1)
    bank[7] *= -1
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    save_file(state | {"objective.bank.vectors": bank}, checkpoint, metadata)
    assert pretext.evaluate(run, 24)["own_image_nearest"] == pytest.approx(1 / 24)


def test_other_runs(zoo: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training run"):
        pretext.evaluate(tmp_path, 10)
    code, out, err = zoo("eval", "pretext", tmp_path, "-o", tmp_path / "x.json")
    assert (code, out) == (2, "") and "zoo train" in err
    assert not (tmp_path / "x.json").exists()
