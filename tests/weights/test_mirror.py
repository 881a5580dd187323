"""`zoo mirror`: a folder that serves `pretrained=True` without a network, stopped and continued at will."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import zoo
from tests.support.checkpoints import RULES, FileServer, Reply, convert, reference_state, torch_bytes, variant_of
from zoo import cli
from zoo.catalog import Source, Variant
from zoo.errors import StorageError
from zoo.weights import fetch, sources, verify
from zoo.weights.disk import files, records
from zoo.weights.mirror import Mirrored, mirror
from zoo.weights.network import download as download_module

ROOT = Path(__file__).parents[2]
STATES = {f"/{name}.pth": reference_state(seed, 32) for seed, name in enumerate("abc")}


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    monkeypatch.setattr(download_module, "BACKOFF", 0.01)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({path: torch_bytes({"model": state}) for path, state in STATES.items()}) as server:
        yield server


@pytest.fixture
def variants(server: FileServer) -> list[Variant]:
    """Two made from one checkpoint, one from another, one architecture without weights."""
    a, b = (Source("url", server.url + path) for path in ("/a.pth", "/b.pth"))
    bare = dataclasses.replace(variant_of(name="croco_bare"), tag="")
    return [variant_of(a, name="croco_one"), variant_of(b, name="croco_two"), variant_of(a, name="croco_three"), bare]


def fill(folder: Path, variants: list[Variant], **options: Any) -> dict[str, Mirrored]:
    known = {variant.name: variant for variant in variants}
    results = mirror(folder, variants, lambda name: fetch(known[name], convert), **options)
    return {result.variant.name: result for result in results}


def index(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["variant"]: entry for entry in json.loads((folder / "index.json").read_text())["weights"]}


def test_mirror(server: FileServer, variants: list[Variant], tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    results = fill(folder, variants)
    assert sorted(results) == ["croco_one.tag", "croco_three.tag", "croco_two.tag"]
    assert all(result.problem is None for result in results.values())
    assert server.gets("/a.pth") == server.gets("/b.pth") == 1
    for name, path in (("croco_one", "/a.pth"), ("croco_two", "/b.pth"), ("croco_three", "/a.pth")):
        entry = index(folder)[f"{name}.tag"]
        file = folder / entry["file"]
        assert entry["source"] == {"kind": "url", "location": server.url + path}
        assert (entry["sha256"], entry["size"]) == (files.sha256(file), file.stat().st_size)
        (report,) = verify(file)
        assert report.recorded and report.problem is None
        tensors, expected = load_file(file), RULES.to_zoo(STATES[path], name="v")
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert {entry["license"] for entry in index(folder).values()} == {""}

    fill(folder, variants)  # what is there stays
    assert server.gets("/a.pth") == server.gets("/b.pth") == 1


def test_continued_where_it_stopped(server: FileServer, variants: list[Variant], tmp_path: Path) -> None:
    folder, (one, two, three, _) = tmp_path / "mirror", variants
    server.faults = [Reply(404)]
    results = fill(folder, variants, workers=1)
    assert "HTTP 404" in str(results[one.name].problem) and server.url in str(results[one.name].problem)
    assert results[two.name].problem is None and results[three.name].problem is None
    assert set(index(folder)) == {two.name, three.name}

    path = folder / f"{two.name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # the cache's too, where they are one file
    sources.cached_path(two).unlink()
    records.record_path(folder / f"{three.name}.safetensors").write_text("{")
    assert {result.problem for result in fill(folder, variants).values()} == {None}
    assert set(index(folder)) == {one.name, two.name, three.name}
    assert [verify(entry)[0].problem for entry in folder.glob("*.safetensors")] == [None] * 3


def test_a_cached_file_that_has_changed_is_not_mirrored(variants: list[Variant], tmp_path: Path) -> None:
    path = fetch(variants[0], convert)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = fill(tmp_path / "mirror", variants[:1])[variants[0].name]
    assert "has changed since it was written" in str(result.problem) and not result.path.exists()


def test_files_of_others_are_left_alone(variants: list[Variant], tmp_path: Path) -> None:
    own = tmp_path / f"{variants[0].name}.safetensors"
    own.write_text("mine")
    result = fill(tmp_path, variants[:1])[variants[0].name]
    assert "isn't the mirror's to replace" in str(result.problem) and own.read_text() == "mine"


def test_folder_that_can_not_be_written(variants: list[Variant], tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        fill(tmp_path / "mirror", variants)


def test_another_disk(variants: list[Variant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copy = shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, target: target.write(source.read()[:-1] + b"x"))
    result = fill(tmp_path / "mirror", variants[:1])[variants[0].name]  # the copy is read again
    assert "has changed" in str(result.problem) and not result.path.exists()
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert {result.problem for result in fill(tmp_path / "mirror", variants).values()} == {None}
    assert [verify(entry)[0].problem for entry in (tmp_path / "mirror").glob("*.safetensors")] == [None] * 3


def test_workers_download_at_the_same_time(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(pause=1.0)] * 3
    chosen = [variant_of(Source("url", server.url + path), name=f"croco{path[1]}") for path in STATES]
    start = time.monotonic()
    fill(tmp_path / "mirror", chosen, workers=3)
    assert time.monotonic() - start < 2.5


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def nano(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The small pair and its encoder, as if their weights were one reference checkpoint on the server."""
    pair = timm.create_model("croco_nano_patch8_64_dec128d4").eval()
    server.files["/nano.pth"] = torch_bytes({"model": pair.reference_state()})  # type: ignore[operator]
    source = Source("url", server.url + "/nano.pth")
    published = {
        name: dataclasses.replace(zoo.find_variant(name), sources=(source,))
        for name in ("croco_nano_patch8_64_dec128d4", "croco_nano_patch8_64")
    }
    lost = variant_of(Source("url", server.url + "/lost.pth"), name="croco_lost")
    monkeypatch.setattr(cli.weights, "VARIANTS", (*published.values(), lost))
    known = {variant.name: variant for variant in published.values()} | {lost.name: lost} | published
    monkeypatch.setattr("zoo.models.making.build.find_variant", known.__getitem__)
    return pair


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", "mirror", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_command(
    nano: torch.nn.Module,
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "mirror"
    assert run(monkeypatch, folder, "--filter", "*nano*") == 0
    output = capfd.readouterr()
    assert f"2 of 2 variants are in {folder}; use them with ZOO_WEIGHTS={folder}" in output.out
    assert server.gets("/nano.pth") == 1

    # The other machine: nothing but the folder.
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "none"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pair = timm.create_model("croco_nano_patch8_64_dec128d4", pretrained=True).eval()
    encoder = timm.create_model("croco_nano_patch8_64", pretrained=True).eval()
    images = torch.randn(2, 1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(pair(*images), nano(*images))
        assert torch.equal(encoder.forward_features(images[0]), nano.encoder.forward_features(images[0]))  # type: ignore[operator, union-attr]
    assert not (tmp_path / "none").exists()


def test_command_says_what_is_missing(
    nano: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "mirror") == 2
    output = capfd.readouterr()
    (missing,) = [line for line in output.out.splitlines() if line.startswith("MISSING")]
    assert "croco_lost.tag" in missing and "HTTP 404" in missing
    assert "2 of 3 variants are in" in output.err
    assert run(monkeypatch, tmp_path, "--filter", "nothing*") == 2


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from tests.support.checkpoints import convert, variant_of
from zoo.catalog import Source
from zoo.weights import fetch
from zoo.weights.mirror import mirror
variant = variant_of(Source("url", sys.argv[1]))
print("started", flush=True)
for _ in mirror(sys.argv[2], [variant], lambda name: fetch(variant, convert)):
    pass
"""


def test_ctrl_c_ends_it_at_once(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(pause=60.0)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STOPPED, server.url + "/a.pth", str(tmp_path / "mirror")]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    while not server.gets("/a.pth"):
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert time.monotonic() - start < 10 and process.returncode != 0
    assert index(tmp_path / "mirror") == {}
