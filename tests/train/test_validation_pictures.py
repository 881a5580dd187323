"""Pretraining can be validated, and every validation leaves a picture of what the model makes of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo.train import build, engine, run
from zoo.train.data.loading import EachOnce, make_loader, to_device
from zoo.train.objectives.objective import PICTURED
from zoo.train.recipe import load_recipe

SMALL = dict(embed_dim=24, depth=1, num_heads=3)
DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_num_heads=2)
HELD_OUT = {"validation": dict(samples=6)}

# recipe, other settings, rows and columns of the picture, the column of the truth and of what is predicted
PICTURES: list[tuple[str, dict[str, Any], tuple[int, int], int, int]] = [
    ("croco_nano", {"model_args": SMALL | DECODER}, (PICTURED, 4), 3, 2),
    ("mae_nano", {"model_args": SMALL | DECODER}, (PICTURED, 3), 2, 1),
    ("itpn_nano_ema", {}, (PICTURED, 3), 2, 1),
    ("croco_nano_stereo", {"model_args": SMALL | DECODER | dict(decoder_depth=4)}, (1, 4), 2, 3),
    ("croco_nano_flow", {"model_args": SMALL | DECODER | dict(decoder_depth=4)}, (1, 4), 2, 3),
    (
        "dust3r_nano",
        {"model_args": SMALL | DECODER, "data.render": "workers", "data.draw": "workers"},
        (PICTURED, 4),
        2,
        3,
    ),
]


@pytest.mark.parametrize(("name", "settings", "shape", "true", "predicted"), PICTURES, ids=[p[0] for p in PICTURES])
def test_picture(name: str, settings: dict[str, Any], shape: tuple[int, int], true: int, predicted: int) -> None:
    recipe = load_recipe(name, HELD_OUT | {"init": ""} | settings)
    source = build.make_source(recipe)
    objective: Any = build.make_objective(recipe, source, build.make_model(recipe)).eval()
    held_out = build.make_validation_source(recipe)
    build.check_validation(objective, source, held_out)
    size = getattr(objective, "validation_batch", 6)
    loader = make_loader(held_out, objective.validation_transform, EachOnce(6, size, 0, 1), 0, False)
    batch = to_device(next(iter(loader)), held_out, torch.device("cpu"))
    with torch.no_grad():
        sums, figure = objective.judge(batch), objective.picture(batch)
        assert torch.equal(sums, objective.judge(batch)) and len(sums) == len(objective.figures)
    axes = np.array([ax for ax in figure.axes if ax.images]).reshape(shape)
    drawn = [[np.asarray(ax.images[0].get_array()) for ax in row] for row in axes]
    for row in drawn:
        assert row[true].shape == row[predicted].shape and not np.allclose(row[true], row[predicted])
        assert row[true].std() > 0.01, "a picture of something"
    if "mask" in batch or "order" in batch:  # each sample hides its own patches
        masks = batch["mask"] if "mask" in batch else batch["order"]
        assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)


def test_validation_of_a_pretraining_run(tmp_path: Path) -> None:
    """Its loss in the log, its pictures in TensorBoard, and the average of the weights judged as the weights are."""
    settings = {
        "model_args": SMALL | DECODER,
        "batch_size": 4,
        "schedule": dict(unit="steps", warmup=0, length=4, validate_every=2),
        "optimizer.lr": 0.0,
        "ema": 0.5,
        "curriculum": {"objective.mask_ratio": [[0, 0.5], [4, 0.9]]},
    }
    recipe = load_recipe("croco_nano", HELD_OUT | settings)
    engine.train(recipe, tmp_path, workers=0, progress=False)
    rows = [row for row in run.read_log(tmp_path) if "validation_loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert len({row[key] for row in rows for key in ("validation_loss", "validation_ema_loss")}) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("validation")] == [2, 4]
    assert min(events.Images("validation")[0].width, events.Images("validation")[0].height) > 300
    assert (tmp_path / "best.safetensors").is_file()
