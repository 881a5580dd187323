"""Processes killed half-way, records that don't fit, files of another variant, pipes and folders in a file's place."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Run
from tests.support.checkpoints import FileServer, convert, reference_state, torch_bytes, variant_of
from zoo.catalog import Source
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, StorageError, WeightsUnavailableError, ZooError
from zoo.weights import cached_path, fetch, read_checkpoint, save_safetensors, sources, verify
from zoo.weights.disk import records, safetensors_format
from zoo.weights.sources import cache_dir

NANO = "croco_nano_patch8_64.scenes_far"


@pytest.fixture(autouse=True)
def own_folders(clean_environment: None) -> None:
    pass


def recorded(path: Path, seed: int = 0, variant: str = "croco_test.tag") -> Path:
    save_safetensors(reference_state(seed), path, {"variant": variant})
    records.write_record(path, variant=variant, kind="file", location="x", source_sha256="")
    return path


# ------------------------------------------------------------------------------------- records and weights


def test_other_weights_under_an_old_record(tmp_path: Path) -> None:
    """Of the same names and shapes: their headers were the same."""
    path = recorded(tmp_path / "w.safetensors")
    records.check_quick(path)
    save_safetensors(reference_state(1), path, {"variant": "croco_test.tag"})
    with pytest.raises(CorruptWeightsError, match="isn't the file that its record describes"):
        records.check_quick(path)


def test_conversion_killed_before_the_record(tmp_path: Path, zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("croco_nano_patch8_64").state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save({key: value + 1 for key, value in state.items()}, tmp_path / "b.pth")
    output = tmp_path / "w.safetensors"
    assert zoo("convert", tmp_path / "a.pth", "--variant", NANO, "-o", output)[0] == 0
    monkeypatch.setattr(records, "write_record", lambda *args, **kwargs: sys.exit(9))
    assert zoo("convert", tmp_path / "b.pth", "--variant", NANO, "-o", output)[0] == 9
    with pytest.raises(CorruptWeightsError):
        records.check_quick(output)


def test_content_of_a_file_without_a_record(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(reference_state(), path, {})
    assert verify(path)[0].problem is None
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert "aren't those that its header was written for" in str(verify(path)[0].problem)


def test_the_digest_is_no_metadata(tmp_path: Path) -> None:
    save_safetensors(reference_state(), tmp_path / "w.safetensors", {"variant": "x"})
    assert safetensors_format.read_metadata(tmp_path / "w.safetensors") == {"variant": "x"}
    assert read_checkpoint(tmp_path / "w.safetensors").extra == {"variant": "x"}


# ------------------------------------------------------------------------------------------- other variants


@pytest.mark.parametrize("record", ["its own", "this variant's"])
def test_cache_holds_another_variant(record: str) -> None:
    variant = variant_of(Source("url", "http://127.0.0.1:9/a.pth"))
    path = recorded(cached_path(variant), variant="croco_other.tag")
    if record != "its own":
        records.write_record(path, variant=variant.name, kind="file", location="x", source_sha256="")
    with pytest.raises(CheckpointMismatchError, match=r"holds the weights of croco_other\.tag, not of croco_test\.tag"):
        fetch(variant, convert)
    assert path.exists()
    assert "croco_other.tag" in str(verify(variant)[0].problem)


def test_mirror_holds_another_variant_under_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "own"))
    variant = variant_of()
    path = recorded(tmp_path / "own" / f"{variant.name}.safetensors", variant="croco_other.tag")
    records.write_record(path, variant=variant.name, kind="file", location="x", source_sha256="")
    with pytest.raises(CheckpointMismatchError, match="holds the weights of"):
        fetch(variant, convert)


def test_download_of_another_source() -> None:
    one, two = torch_bytes({"model": reference_state(0)}), torch_bytes({"model": reference_state(1)})
    with FileServer({"/one.pth": one, "/two.pth": two}) as server:
        variants = [variant_of(Source("url", server.url + f"/{name}.pth"), name=name) for name in ("one", "two")]
        paths = [fetch(variant, convert) for variant in variants]
        downloads = [sources._download_path(variant.sources[0]) for variant in variants]
        os.replace(downloads[0], downloads[1])  # with its record, as a file manager does
        os.replace(records.record_path(downloads[0]), records.record_path(downloads[1]))
        paths[1].unlink()
        again = read_checkpoint(fetch(variants[1], convert)).tensors
        assert torch.equal(again["mask_token"], reference_state(1)["mask_token"])


# ------------------------------------------------------------------------------------------------ killed

KILLED = """
import os, sys
from pathlib import Path
from zoo.weights.disk.files import atomic_writer
with atomic_writer(Path(sys.argv[1])) as file:
    file.write(bytes(1_000_000))
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_leftovers_of_killed_writers(tmp_path: Path) -> None:
    """Those of the living stay."""
    path = tmp_path / "w[1].safetensors"  # no pattern, though it looks like one
    writers = [
        subprocess.Popen([sys.executable, "-c", KILLED, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"writing\n"
    writers[0].kill()
    writers[0].wait()
    assert len(list(tmp_path.iterdir())) == 2
    save_safetensors(reference_state(), path, {})
    assert len(list(tmp_path.iterdir())) == 2  # the file and what the living one writes
    writers[1].communicate(b"")
    save_safetensors(reference_state(), path, {})
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


# ------------------------------------------------------------------------------ not the files they should be


def in_time(action: object) -> BaseException | None:
    """What a call raises, if it ends at all."""
    raised: list[BaseException | None] = []

    def call() -> None:
        try:
            action()  # type: ignore[operator]
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert raised, "it waits for ever"
    return raised[0]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "broken link"])
def test_no_file_as_a_checkpoint(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    make(path, what)
    for read in (read_checkpoint, safetensors_format.header_digest, safetensors_format.read_metadata):
        assert isinstance(in_time(lambda read=read: read(path)), ZooError)
    assert in_time(lambda: verify(path)) is None and verify(path)[0].problem
    model = timm.create_model("croco_nano_patch8_64", device="meta")
    assert isinstance(in_time(lambda: model.load_pretrained(path)), ZooError)


def make(path: Path, what: str) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "broken link":
        path.symlink_to(path.with_name("nowhere"))
    else:
        path.write_text(what)


ODD = [
    "[]",
    "{}",
    "1",
    "",
    '{"source": 1}',
    '{"source": {"kind": "\\u001b[2J"}}',
    "[" * 100_000,
    "\0" * 100,
    "pipe",
    "folder",
]


@pytest.mark.parametrize("what", ODD, ids=[what[:12] or "nothing" for what in ODD])
def test_odd_record(tmp_path: Path, what: str, zoo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    path = recorded(tmp_path / f"{NANO}.safetensors", variant=NANO)
    records.record_path(path).unlink()
    make(records.record_path(path), what)
    for call in (records.check_quick, records.check_full, sources.source_of):
        assert isinstance(in_time(lambda call=call: call(path)), CorruptWeightsError)
    assert verify(path)[0].problem
    code, out, err = zoo("info", NANO)
    assert code == 0 and not err and str(path) in out and "\x1b" not in out
    with pytest.raises(CorruptWeightsError):
        fetch(replace(variant_of(name=NANO.partition(".")[0]), tag="scenes_far"), convert)


@pytest.mark.parametrize("what", ["folder", "pipe", "[]"])
def test_odd_record_in_the_cache(what: str) -> None:
    """It is the cache's to replace, as far as it can be."""
    with FileServer({"/a.pth": torch_bytes({"model": reference_state()})}) as server:
        variant = variant_of(Source("url", server.url + "/a.pth"))
        path = fetch(variant, convert)
        records.record_path(path).unlink()
        make(records.record_path(path), what)
        if what == "folder":
            with pytest.raises(StorageError, match="can't be removed"):
                fetch(variant, convert)
        else:
            records.check_quick(fetch(variant, convert))


def test_folder_in_place_of_the_weights() -> None:
    with FileServer({"/a.pth": torch_bytes({"model": reference_state()})}) as server:
        variant = variant_of(Source("url", server.url + "/a.pth"))
        cached_path(variant).mkdir(parents=True)
        with pytest.raises(StorageError, match="can't be written"):
            fetch(variant, convert)


def test_record_longer_than_any(tmp_path: Path) -> None:
    path = recorded(tmp_path / "w.safetensors")
    with records.record_path(path).open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(CorruptWeightsError, match="10000000000 bytes"):
        records.check_quick(path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError):
        read_checkpoint(tmp_path / "none")
    assert not (cache_dir() / "none").exists()


def test_nan_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By whoever writes the record; without one, or under another's, at each load."""
    looked: list[int] = []
    monkeypatch.setattr(records, "is_finite", lambda value, own=records.is_finite: looked.append(1) or own(value))
    state = timm.create_model("croco_nano_patch8_64").state_dict()
    state["norm.weight"][0] = math.nan
    path = tmp_path / f"{NANO}.safetensors"
    save_safetensors(state, path, {"variant": NANO})
    records.write_record(path, variant=NANO, kind="file", location="x", source_sha256="")
    assert looked and records.read_record(path)["not_finite"] == ["norm.weight"]  # type: ignore[index]
    looked.clear()
    model = timm.create_model("croco_nano_patch8_64", device="meta")
    model.load_pretrained(path)
    assert not looked and "1 tensors of" in caplog.text and "norm.weight" in caplog.text
    content = json.loads(records.record_path(path).read_text())
    for spoiled in ({**content, "not_finite": [1]}, {**content, "size": 1}, None):
        records.record_path(path).unlink()
        if spoiled is not None:
            records.record_path(path).write_text(json.dumps(spoiled))
        looked.clear()
        model.load_pretrained(path)
        assert looked
    path_of_others = tmp_path / "others.safetensors"
    save_file(load_file(path), path_of_others)  # whose header names no content
    records.write_record(path_of_others, variant=NANO, kind="file", location="x", source_sha256="")
    looked.clear()
    model.load_pretrained(path_of_others)
    assert looked
