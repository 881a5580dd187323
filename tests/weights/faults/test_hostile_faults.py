"""Rows of docs/faults.md about files and servers that mean harm, or that changed at the wrong moment."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support.checkpoints import FileServer, Reply, convert, torch_bytes, variant_of
from tests.support.fetching import Reads
from tests.support.payloads import PAYLOADS
from tests.weights.faults.test_file_faults import create, nano_state, not_created
from zoo.catalog import Source
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, DownloadError, UnsafeCheckpointError
from zoo.weights import cached_path, fetch, save_safetensors, sources
from zoo.weights.disk import records
from zoo.weights.network.download import download


def test_file_that_asks_for_too_much(tmp_path: Path, reads: Reads) -> None:
    """One of tests/support/payloads.py; tests/weights/reading/test_bar.py measures all of them."""
    PAYLOADS["tensors thrown away"](tmp_path / "own.pth")
    reads(not_created(tmp_path / "own.pth", UnsafeCheckpointError))


def test_file_whose_entries_overlap(tmp_path: Path, reads: Reads) -> None:
    PAYLOADS["zip: entries over the same bytes"](tmp_path / "own.pth")
    reads(not_created(tmp_path / "own.pth", CorruptWeightsError))


def test_file_with_an_object_of_any_depth(tmp_path: Path, reads: Reads) -> None:
    PAYLOADS["deep as name of a subclass's function"](tmp_path / "own.pth")
    reads(not_created(tmp_path / "own.pth", CorruptWeightsError))


def test_file_of_quantized_tensors(tmp_path: Path, reads: Reads) -> None:
    PAYLOADS["sparse"](tmp_path / "own.pth")
    reads(not_created(tmp_path / "own.pth", CorruptWeightsError))


def test_file_with_nan(tmp_path: Path, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    state = nano_state()
    state["norm.weight"][0] = float("nan")
    save_file(state, tmp_path / "own.safetensors")
    with caplog.at_level(logging.WARNING, "zoo"):
        create(tmp_path / "own.safetensors")
    reads(next(record.getMessage() for record in caplog.records))


def test_pipe_in_place_of_a_file(tmp_path: Path, reads: Reads) -> None:
    os.mkfifo(tmp_path / "own.pth")
    reads(not_created(tmp_path / "own.pth", CorruptWeightsError))


def test_file_written_over_under_a_model(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file(nano_state(), path)
    model = create(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_under_the_record_of_others(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "own.safetensors"
    save_safetensors(nano_state(), path, {})
    records.write_record(path, variant="x", kind="file", location="x", source_sha256="")
    save_safetensors({key: value + 1 for key, value in nano_state().items()}, path, {})
    with pytest.raises(CorruptWeightsError) as caught:
        records.check_quick(path)
    reads(caught.value)


def test_record_that_is_none(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "own.safetensors"
    save_safetensors(nano_state(), path, {})
    records.record_path(path).write_text('{"size": 1}')
    with pytest.raises(CorruptWeightsError) as caught:
        records.check_quick(path)
    reads(caught.value)


def test_cache_with_another_variant(reads: Reads) -> None:
    variant = variant_of(Source("url", "http://127.0.0.1:9/a.pth"))
    path = cached_path(variant)
    save_safetensors(nano_state(), path, {})
    records.write_record(path, variant="croco_other.tag", kind="file", location="x", source_sha256="")
    with pytest.raises(CheckpointMismatchError) as caught:
        fetch(variant, convert)
    reads(caught.value)


def test_server_that_ignores_if_range(tmp_path: Path) -> None:
    old, new = b"a" * 50_000, b"b" * 50_000
    with FileServer({"/f": old}) as server:
        server.faults = [Reply(cut=25_000), *[Reply(status=503)] * 9]
        with pytest.raises(DownloadError):
            download(server.url + "/f", tmp_path / "f")
        server.files["/f"] = new
        rest = {"Content-Range": "bytes 25000-49999/50000", "ETag": '"another"'}
        server.faults = [Reply(206, rest, body=new[25_000:])]
        download(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == new


def test_part_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "f.part").symlink_to(tmp_path / "precious")
    with FileServer({"/f": b"a" * 100}) as server:
        download(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "precious").read_bytes() == b"x" and (tmp_path / "f").read_bytes() == b"a" * 100


def test_leftovers_of_killed_processes(tmp_path: Path) -> None:
    content = torch_bytes({"model": {key: value for key, value in nano_state().items()}})
    (tmp_path / ".w.safetensors.0123456789ab.tmp").write_bytes(content)
    save_safetensors(nano_state(), tmp_path / "w.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_mirror_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "none")
    path = tmp_path / "croco_nano_patch8_64.scenes_far.safetensors"
    save_safetensors(nano_state(), path, {"variant": "croco_nano_patch8_64.scenes_far"})
    model = timm.create_model("croco_nano_patch8_64.scenes_far", pretrained=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    os.truncate(path, 100)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
