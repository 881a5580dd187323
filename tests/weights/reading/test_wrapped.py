"""Checkpoints as wrappers of models write them: prefixes, moving averages, files of other names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.utils import ModelEmaV3

import zoo  # noqa: F401  (registers the models)
from zoo.errors import CheckpointMismatchError

NANO = "croco_nano_patch8_64"
ARGS: dict[str, Any] = dict(depth=1)


def load(path: Path, **more: Any) -> Any:
    return timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **ARGS, **more)


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(value, right.state_dict()[key]) for key, value in left.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"model.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"model.module.{key}",
        lambda key: key.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda key: key.replace("blocks.0.", "blocks.0.module."),
        lambda key: f"model.{key}".replace("blocks.", "blocks.module._orig_mod."),
    ],
)
def test_prefixes(wrap: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model(NANO, **ARGS)
    path = tmp_path / "wrapped.pth"
    torch.save({wrap(key): value for key, value in model.state_dict().items()}, path)
    with caplog.at_level(logging.INFO, "zoo"):
        assert same(load(path), model)
    assert " off the names of its tensors" in caplog.text


def test_a_prefix_of_some_names_is_none(tmp_path: Path) -> None:
    state = timm.create_model(NANO, **ARGS).state_dict()
    path = tmp_path / "half.pth"
    torch.save({f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointMismatchError):
        load(path)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_moving_averages_are_taken_as_timm_does(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, average = timm.create_model(NANO, **ARGS), ModelEmaV3(timm.create_model(NANO, **ARGS))
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": model.state_dict(), key: average.module.state_dict(), "epoch": 3}, path)
    with caplog.at_level(logging.INFO, "zoo"):
        assert same(load(path), average.module)
    assert key in caplog.text and "moving average" in caplog.text
    by_timm = timm.create_model(NANO, checkpoint_path=str(path), **ARGS)
    assert same(by_timm, average.module)


def test_folders_that_timm_writes_without_safetensors(tmp_path: Path) -> None:
    model = timm.create_model(NANO, **ARGS)
    save_for_hf(model, tmp_path, model_args=ARGS, safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").is_file() and not (tmp_path / "model.safetensors").exists()
    assert same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)
