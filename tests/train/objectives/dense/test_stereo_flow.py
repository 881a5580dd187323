"""Fine-tuning for stereo is validated on several data sets at once, the average of its weights beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm

from tests.support.matching_sets import write_stereo
from zoo.evaluate.matching import evaluate, parse_wish
from zoo.train.engine import train
from zoo.train.recipe import load_recipe
from zoo.train.run import read_log

TRANSFORMER = dict(embed_dim=24, depth=1, num_heads=3, decoder_dim=32, decoder_num_heads=2)
HEAD = dict(layer_dims=[8, 8, 8, 8], feature_dim=8, last_dim=8)
ARGS: dict[str, Any] = TRANSFORMER | HEAD | dict(img_size=[16, 32], tile_size=[16, 32], photo_scale=1.0)
SETS = "eth3d:subval", "middlebury_2014:subval"


def test_validation_of_several_sets_and_of_the_average(tmp_path: Path) -> None:
    write_stereo(tmp_path / "sets")
    matching = dict(source="matching", path=str(tmp_path / "sets"))
    settings = {
        "init": "",
        "model_args": ARGS,
        "objective": dict(name="stereo", overlap=0.5),  # crops of the size that the model is made for
        "data": matching | dict(mix="crestereo:train + 3 * eth3d:train"),
        "validation": matching | dict(mix=" + ".join(SETS)),
        "batch_size": 4,
        "schedule": dict(unit="steps", warmup=0, length=4, validate_every=2),
        "optimizer.lr": 0.001,
        "precision": "fp32",
        "ema": 0.8,
        "export": "ema",
    }
    output = tmp_path / "run"
    train(load_recipe("croco_nano_stereo", settings), output, workers=0, progress=False)
    rows = [row for row in read_log(output) if "validation_avgerr" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        for prefix in ("validation_", "validation_ema_"):
            each = [row[f"{prefix}{name}/avgerr"] for name in SETS]
            assert row[f"{prefix}avgerr"] == pytest.approx(sum(each) / 2) and each[0] != each[1]
    # two updates set the average to the weights (timm's rule), the others differ
    assert rows[-1]["validation_avgerr"] != rows[-1]["validation_ema_avgerr"]

    # what the log says of the average, the exported weights do
    model = timm.create_model("croco_nano_patch8_dec128d4_stereo", **ARGS).eval()
    model.load_state_dict(safetensors.torch.load_file(output / "model.safetensors"))
    wishes = [parse_wish(f"{name}={tmp_path / 'sets'}") for name in SETS]
    found = evaluate(model, "the average", "stereo", wishes, tmp_path / "out", overlap=0.5)["sets"]
    for name in SETS:
        assert found[name]["pair_means"]["avgerr"] == pytest.approx(rows[-1][f"validation_ema_{name}/avgerr"], rel=1e-4)
