"""The containers that checkpoints come in: what is read out of them, and what is none."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.checkpoints import (
    assert_same,
    foreign_object,
    reference_state,
    save_foreign,
    save_training,
    torch_bytes,
)
from zoo.errors import CorruptWeightsError, WeightsUnavailableError
from zoo.weights import read_checkpoint, save_safetensors
from zoo.weights.reading.pickles import Placeholder

LEGACY = {"_use_new_zipfile_serialization": False}
CONTAINERS = pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])


@CONTAINERS
def test_training_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    state = reference_state()
    save_training(tmp_path / "c.pth", state, **options)
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert_same(checkpoint.tensors, state)
    args = checkpoint.extra["args"]
    assert isinstance(args, Placeholder) and not isinstance(args, argparse.Namespace)
    assert args.placeholder_of == "argparse.Namespace"
    assert vars(args)["model"] == "CroCoNet(enc_depth=12, dec_depth=8)" and vars(args)["lr"] is None
    assert checkpoint.extra["epoch"] == 3 and checkpoint.extra["scaler"]["_growth_tracker"] == 7
    assert checkpoint.extra["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert checkpoint.extra["optimizer"]["state"][0]["exp_avg"].shape == (1, 1, 8)


@CONTAINERS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"model": OrderedDict(state), "croco_kwargs": {"enc_depth": 12}},
        lambda state: {"state_dict": state, "epoch": 1},
        lambda state: {"module": state},
        lambda state: {"model_state_dict": state},
    ],
)
def test_state_dict_is_found(tmp_path: Path, options: dict[str, Any], wrap: Any) -> None:
    state = reference_state()
    torch.save(wrap(state), tmp_path / "c.pth", **options)
    assert_same(read_checkpoint(tmp_path / "c.pth").tensors, state)


@CONTAINERS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_vissl_checkpoint_with_absent_classes(tmp_path: Path, options: dict[str, Any], protocol: int) -> None:
    trunk = {"_feature_blocks.conv1.weight": torch.randn(4, 3, 7, 7)}
    heads = {"0.clf.0.weight": torch.randn(2, 4)}
    content = {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": trunk, "heads": heads}},
            "losses": [0.5, 0.25],
        },
        "config": foreign_object(steps=[1, 2], best=np.float64(0.75), seen={1, 2}, raw=b"\xff\x00", rng=np.arange(3)),
        "phase_idx": 199,
    }
    save_foreign(tmp_path / "m.torch", content, pickle_protocol=protocol, **options)
    checkpoint = read_checkpoint(tmp_path / "m.torch")
    expected = {f"trunk.{key}": value for key, value in trunk.items()}
    assert_same(checkpoint.tensors, expected | {f"heads.{key}": value for key, value in heads.items()})
    config = checkpoint.extra["config"]
    assert config.placeholder_of == "zoo_tests_absent_module.Meter"
    assert vars(config)["steps"] == [1, 2] and vars(config)["seen"] == {1, 2} and vars(config)["raw"] == b"\xff\x00"
    assert vars(config)["best"] == 0.75 and isinstance(vars(config)["rng"], Placeholder)
    assert checkpoint.extra["phase_idx"] == 199
    assert "zoo_tests_absent_module" not in sys.modules


@CONTAINERS
def test_views_ties_and_types(tmp_path: Path, options: dict[str, Any]) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "offset": base[1:, ::2, 1:4],
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "expanded": torch.arange(3.0)[:, None].expand(3, 9),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            str(dtype): torch.arange(-3, 4).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int16, torch.int32)
            + (torch.uint8, torch.bool, torch.complex64)
        },
    }
    if not options:  # types without a storage class are newer than the legacy format
        state |= {"u16": torch.arange(4).to(torch.uint16), "f8": torch.ones(3).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "c.pth", **options)
    tensors = read_checkpoint(tmp_path / "c.pth").tensors
    f8, tensors_f8 = state.pop("f8", torch.zeros(1)), tensors.pop("f8", torch.zeros(1))
    assert torch.equal(f8.view(torch.uint8), tensors_f8.view(torch.uint8))  # torch.equal knows no float8
    assert_same(tensors, state)
    assert tensors["offset"].stride() == state["offset"].stride()
    assert tensors["base"].data_ptr() == tensors["transposed"].data_ptr()


def test_zip_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4_000_000, dtype=torch.uint8)}, tmp_path / "c.pth")
    tensors = read_checkpoint(tmp_path / "c.pth").tensors
    tensors["w"].add_(1)  # private to this process
    assert read_checkpoint(tmp_path / "c.pth").tensors["w"].sum() == 0


def test_safetensors(tmp_path: Path) -> None:
    state = reference_state()
    save_safetensors(state, tmp_path / "a.safetensors", {"variant": "x"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert_same(checkpoint.tensors, state)
    assert checkpoint.extra == {"variant": "x"}


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(reference_state(), tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(tmp_path / "c.pth").tensors, reference_state())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs", "neither"),
        (pickle.dumps({"a": 1}), "not a torch checkpoint"),
        (torch_bytes({"epoch": 3, "best": 0.5}), "its top-level entries are epoch, best"),
        (torch_bytes([1, 2]), "not a dictionary"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=message):
        read_checkpoint(tmp_path / "c.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
