"""A model keeps its weights whatever happens to the file, and says it when they are no numbers."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import zoo
from zoo.weights import cache_dir, save_safetensors, sources
from zoo.weights.disk import records
from zoo.weights.mirror import mirror

NAME = "croco_nano_patch8_64"


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(NAME).state_dict()


def with_record(path: Path, state: dict[str, torch.Tensor], variant: str = NAME + ".scenes_far") -> Path:
    save_safetensors(state, path, {"format": "pt", "variant": variant})
    records.write_record(path, variant=variant, kind="file", location="x", source_sha256="")
    return path


def load(path: Path) -> torch.nn.Module:
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()


def in_safetensors(path: Path) -> Path:
    save_file(state_of(), path)
    return path


def in_torch(path: Path, **options: object) -> Path:
    torch.save({"model": state_of()}, path, **options)
    return path


def tied(path: Path) -> Path:
    """All norms' weights are one tensor."""
    state = state_of()
    one = next(value for key, value in state.items() if key.endswith("norm1.weight"))
    torch.save({key: one if key.endswith("norm1.weight") else value for key, value in state.items()}, path)
    return path


FILES = {
    "safetensors with a record": lambda path: with_record(path, state_of()),
    "safetensors": in_safetensors,
    "zip": in_torch,
    "legacy": lambda path: in_torch(path, _use_new_zipfile_serialization=False),
    "tied": tied,
}


def overwrite(path: Path) -> None:
    """In place: the file keeps its inode."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))
        file.truncate(size // 2)


@pytest.mark.parametrize("kind", FILES)
def test_file_written_over(tmp_path: Path, kind: str) -> None:
    path = FILES[kind](tmp_path / "own.safetensors")
    model = load(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    overwrite(path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_file_saved_over(tmp_path: Path) -> None:
    """What users do: safetensors writes in place."""
    path = with_record(tmp_path / "own.safetensors", state_of())
    model = load(path)
    before = model(torch.ones(1, 3, 64, 64))
    save_file({key: value + 1 for key, value in model.state_dict().items()}, path)
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), before)


def test_mirror_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in ZOO_WEIGHTS are the user's, with and without a record."""
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    name = timm.create_model(NAME, device="meta").pretrained_cfg["tag"]
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "none")
    path = with_record(tmp_path / f"{NAME}.{name}.safetensors", state_of(), f"{NAME}.{name}")
    model = timm.create_model(NAME, pretrained=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    overwrite(path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_mirror_shares_nothing_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights lie in the cache, and a mirror that somebody writes over."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (variant,) = [variant for variant in zoo.catalog.VARIANTS if variant.name == f"{NAME}.scenes_far"]
    path = with_record(cache_dir() / f"{variant.name}.safetensors", state_of(), variant.name)
    model = load(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    list(mirror(tmp_path / "mirror", [variant], lambda name: path))
    overwrite(tmp_path / "mirror" / path.name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_cached_files_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the package and the cache own is mapped; a link there leads to what they don't own."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    own = with_record(tmp_path / "own.safetensors", state_of())
    cached = with_record(cache_dir() / "x.safetensors", state_of())
    link = cache_dir() / "y.safetensors"
    link.symlink_to(own)
    records.record_path(link).write_text("{}")
    assert sources.is_ours(cached) and not sources.is_ours(own) and not sources.is_ours(link)
    monkeypatch.setenv("ZOO_WEIGHTS", str(cache_dir()))
    assert not sources.is_ours(cached)


@pytest.mark.parametrize("kind", FILES)
def test_parameters_share_no_memory(tmp_path: Path, kind: str) -> None:
    """Training writes to each of them."""
    model = load(FILES[kind](tmp_path / "own.safetensors"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key] + 1) for key, value in dict(model.named_parameters()).items())
    torch.save(model.state_dict(), tmp_path / "saved.pth")
    assert (tmp_path / "saved.pth").stat().st_size < 1.2 * sum(p.nbytes for p in model.parameters()) + 1e5


def test_optimizer_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save({"model": state_of(), "optimizer": torch.zeros(5_000_000)}, path)
    model = load(path)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(storages.values()) < 2 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float) -> None:
    state = state_of()
    state["norm.weight"][3] = value
    save_file(state, tmp_path / "own.safetensors")
    with caplog.at_level(logging.WARNING, "zoo"):
        load(tmp_path / "own.safetensors")
    assert "1 tensors of" in caplog.text and "hold NaN or infinity, such as norm.weight" in caplog.text


def test_large_numbers_are_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = state_of()
    state["norm.weight"][:] = 3e38
    save_file(state, tmp_path / "own.safetensors")
    load(tmp_path / "own.safetensors")
    assert "NaN" not in caplog.text
