"""safetensors files: written whole or not at all, and never believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import assert_same, reference_state
from zoo.errors import CorruptWeightsError, StorageError
from zoo.weights import read_checkpoint, save_safetensors
from zoo.weights.disk import safetensors_format


def test_save_is_deterministic_and_atomic(tmp_path: Path) -> None:
    state = reference_state() | {"half": torch.ones(3, dtype=torch.bfloat16), "flag": torch.tensor(True)}
    state["tied"] = state["half"]
    save_safetensors(state, tmp_path / "a.safetensors", {f"key{i}": "v" for i in range(9)})
    backwards = dict(reversed(state.items()))
    save_safetensors(backwards, tmp_path / "b.safetensors", {f"key{i}": "v" for i in reversed(range(9))})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert_same(load_file(tmp_path / "a.safetensors"), state)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_safetensors(reference_state(), tmp_path / "a.safetensors", {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, '
        b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [0, 576460752303423488, 576460752303423488], "data_offsets": [0, 0]}, '
        b'"b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": [], "shape": [4], "data_offsets": [0, 16]}}',
    ],
)
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CorruptWeightsError):
        safetensors_format.header_digest(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + header)
    with pytest.raises(CorruptWeightsError):
        read_checkpoint(path)


def test_any_header_length(tmp_path: Path) -> None:
    """The first bytes of a safetensors file are a length: some look like the beginning of a pickle or a zip."""
    for size in range(0, 256, 8):
        path = tmp_path / "a.safetensors"
        save_safetensors({"a": torch.ones(1)}, path, {"note": "x" * size})
        assert torch.equal(read_checkpoint(path).tensors["a"], torch.ones(1))
