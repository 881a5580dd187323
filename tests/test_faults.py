"""What goes wrong between a user and the weights: one test for each row of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see conftest.py).
"""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save

import zoo  # noqa: F401
from tests.conftest import fault_rows
from tests.support.checkpoints import (
    RULES,
    FileServer,
    Reply,
    convert,
    reference_state,
    save_pickle_in_zip,
    torch_bytes,
    variant_of,
)
from tests.support.eight_processes import digest
from tests.support.hub_server import Fault, HubServer
from zoo.catalog import Source, Variant
from zoo.errors import (
    CheckpointMismatchError,
    CorruptWeightsError,
    StorageError,
    UnsafeCheckpointError,
    WeightsUnavailableError,
    ZooError,
)
from zoo.weights import cache_dir, cached_path, fetch, files, read_checkpoint, save_safetensors, sources, verify
from zoo.weights import download as download_module
from zoo.weights import hub as hub_module

TESTS = Path(__file__).parent
STATE = reference_state(dim=64)  # 120 kB
CONTENT = torch_bytes({"model": STATE})
ENCODER = "croco_nano_patch8_64"
NOBODY = 65534

Reads = Callable[[object], None]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the test's own, no proxies, short waits."""
    for name in ("ZOO_WEIGHTS", "ZOO_HUB_ORG", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    monkeypatch.setattr(download_module, "BACKOFF", 0.01)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept through, without sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_every_row_has_its_test() -> None:
    rows = fault_rows()
    assert len(rows) > 50
    named = [row[3] for row in rows]
    assert len(set(named)) == len(named)
    for _, _, read, test in rows:
        file, _, function = test.partition("::")
        (path,) = TESTS.rglob(file)
        found = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        assert found, f"{test} is in docs/faults.md and doesn't exist"
        arguments = [argument.arg for argument in found[0].args.args]
        assert ("reads" in arguments) == (read not in ("", "nothing")), f"{test} doesn't check what is read"


# ------------------------------------------------------------------------------------------ from a URL


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/CroCo.pth": CONTENT}) as server:
        yield server


@pytest.fixture
def variant(server: FileServer) -> Variant:
    return variant_of(Source("url", server.url + "/CroCo.pth"))


def refused(variant: Variant, kind: type[ZooError] = WeightsUnavailableError) -> ZooError:
    """The error of a fetch that fails, and leaves nothing that could be taken for weights."""
    with pytest.raises(kind) as caught:
        fetch(variant, convert)
    assert not cached_path(variant).exists() and not list(cache_dir().rglob(".*.tmp"))
    return caught.value


def arrived(variant: Variant) -> None:
    """A fetch that works, and brings the right weights."""
    tensors = load_file(fetch(variant, convert))
    expected = RULES.to_zoo(STATE, name="v")
    assert set(tensors) == set(expected) and all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert [report.problem for report in verify(variant) if report.problem] == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_connection_refused(reads: Reads) -> None:
    start = time.monotonic()
    reads(refused(variant_of(Source("url", f"http://127.0.0.1:{free_port()}/CroCo.pth"))))
    assert time.monotonic() - start < 2


def test_name_not_resolved(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    reads(refused(variant_of(Source("url", "https://weights.invalid/CroCo.pth"))))


def test_name_resolution_hangs(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(9) and [])
    monkeypatch.setattr(download_module, "PROBE_TIMEOUT", 0.2)
    reads(refused(variant_of(Source("url", "https://weights.invalid/CroCo.pth"))))
    over.set()


def test_status_401(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(401)]
    reads(refused(variant))


def test_status_403(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(403)]
    reads(refused(variant))


def test_status_404(server: FileServer, reads: Reads) -> None:
    reads(refused(variant_of(Source("url", server.url + "/gone.pth"))))


def test_status_429(server: FileServer, variant: Variant, waits: list[float]) -> None:
    server.faults = [Reply(429, {"Retry-After": "7"}), Reply(429, {"Retry-After": "100000"})]
    arrived(variant)
    assert 7.0 in waits and max(waits) == download_module.MAX_RETRY_AFTER


def test_status_500(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(500)] * 9
    reads(refused(variant))


def test_status_503_for_a_while(server: FileServer, variant: Variant) -> None:
    server.faults = [Reply(503)] * (download_module.TRIES - 1)
    arrived(variant)


def test_connection_cut(server: FileServer, variant: Variant) -> None:
    server.faults = [Reply(cut=20_000), Reply(cut=30_000)]
    arrived(variant)
    assert [headers.get("Range") for _, _, headers in server.requests] == [None, "bytes=20000-", "bytes=50000-"]


def test_connection_cut_again_and_again(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(cut=20_000), *[Reply(cut=0)] * 9]
    reads(refused(variant))
    server.faults = []
    arrived(variant)
    assert server.requests[-1][2]["Range"] == "bytes=20000-"


def test_slow_drip(server: FileServer, variant: Variant, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "WINDOW", 0.3)
    monkeypatch.setattr(download_module, "MIN_SPEED", 100_000.0)
    server.faults = [Reply(drip=0.02)] * 9  # 5 kB a second, no pause longer than READ_TIMEOUT
    start = time.monotonic()
    reads(refused(variant))
    assert time.monotonic() - start < 5
    server.faults = []
    arrived(variant)  # resumed


def test_silence(server: FileServer, variant: Variant, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "READ_TIMEOUT", 0.2)
    server.faults = [Reply(pause=1.0)] * 9
    reads(refused(variant))


def test_content_length_too_large(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(length=len(CONTENT) + 1000)] * 9
    server.ranges = False
    reads(refused(variant))


def test_content_length_too_small(server: FileServer, variant: Variant, reads: Reads) -> None:
    server.faults = [Reply(length=len(CONTENT) - 1000)]
    reads(refused(variant, CorruptWeightsError))
    arrived(variant)


def test_wrong_digest(server: FileServer, variant: Variant, reads: Reads) -> None:
    arrived(variant)
    for path in (cached_path(variant), *(cache_dir() / "downloads").glob("*.pth")):
        path.unlink()
    server.files = {"/CroCo.pth": torch_bytes({"model": reference_state(1, 64)})}
    reads(refused(variant))


def test_web_page(server: FileServer, variant: Variant, reads: Reads) -> None:
    for page in (
        Reply(headers={"Content-Type": "text/html; charset=utf-8"}, body=b"Please log in"),
        Reply(body=b"\n <!DOCTYPE HTML><html>Welcome to our hotel</html>"),
    ):
        server.faults = [page]
        reads(refused(variant))
    arrived(variant)


# ----------------------------------------------------------------------------------------- from the Hub

REPO = "zoo-org/croco_test.tag"
WEIGHTS = RULES.to_zoo(STATE, name="v")
ON_HUB = save(WEIGHTS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the weights of `variant_of()`, which the user has named."""
    with HubServer(tmp_path / "server") as server:
        server.patch(monkeypatch, tmp_path / "home")
        server.add_repo(REPO, {"model.safetensors": ON_HUB})
        monkeypatch.setenv("ZOO_HUB_ORG", "zoo-org")
        yield server


def nothing_kept(hub: HubServer) -> None:
    """Neither weights nor parts of them are left in huggingface_hub's cache."""
    kept = [path for path in (hub.folder.parent / "home").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert kept == []


def test_hub_refuses_connections(hub: HubServer, reads: Reads) -> None:
    hub.stop()
    start = time.monotonic()
    reads(refused(variant_of()))
    assert time.monotonic() - start < 2


def test_hub_offline(hub: HubServer, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reads(refused(variant_of()))
    assert hub.count() == 0


def test_hub_token_is_wrong(hub: HubServer, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = refused(variant_of())
    assert "hf_wrong" not in str(error)
    reads(error)


def test_hub_gated_without_login(hub: HubServer, reads: Reads) -> None:
    hub.repos[REPO].gated = True
    reads(refused(variant_of()))


def test_hub_gated_without_access(hub: HubServer, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].gated = True
    monkeypatch.setenv("HF_TOKEN", hub.guest_token)
    reads(refused(variant_of()))
    hub.repos[REPO].allowed.add("guest")
    arrived(variant_of())


def test_hub_without_the_repository(hub: HubServer, reads: Reads) -> None:
    reads(refused(variant_of(name="other")))


def test_hub_without_the_file(hub: HubServer, reads: Reads) -> None:
    hub.add_repo("zoo-org/other.tag", {"README.md": b"soon"})
    reads(refused(variant_of(name="other")))


def test_hub_status_429(hub: HubServer, waits: list[float]) -> None:
    hub.faults = [
        Fault("resolve", times=2, status=429, headers={"Retry-After": "7"}),
        Fault("cdn", status=429, headers={"Retry-After": "9"}),
    ]
    arrived(variant_of())
    assert [wait for wait in waits if wait > 5] == [8.0, 10.0]  # huggingface_hub adds one


def test_hub_status_500(hub: HubServer, reads: Reads, waits: list[float]) -> None:
    hub.faults = [Fault("*", times=None, status=500)]
    reads(refused(variant_of()))
    assert sum(waits) < 60


def test_hub_status_503_for_a_while(hub: HubServer, waits: list[float]) -> None:
    hub.faults = [Fault("resolve", times=2, status=503), Fault("cdn", times=2, status=503)]
    arrived(variant_of())


def test_hub_connection_cut(hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what a cut may lose
    hub.faults = [Fault("cdn", cut=20_000)]
    arrived(variant_of())
    assert [seen.headers.get("range") for seen in hub.seen if seen.route == "cdn"] == [None, "bytes=20000-"]


def test_hub_slow_drip(hub: HubServer, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "WINDOW", 0.3)
    monkeypatch.setattr(download_module, "MIN_SPEED", 100_000.0)
    hub.faults = [Fault("cdn", times=None, drip=0.02, piece=100)]
    start = time.monotonic()
    reads(refused(variant_of()))
    assert time.monotonic() - start < 5
    nothing_kept(hub)


def test_hub_content_length_wrong(hub: HubServer, reads: Reads, waits: list[float]) -> None:
    hub.faults = [Fault("cdn", times=None, length=len(ON_HUB) - 1000)]
    reads(refused(variant_of()))
    nothing_kept(hub)


def test_hub_wrong_digest(hub: HubServer, reads: Reads) -> None:
    hub.faults = [Fault("cdn", change=lambda body: body[:-1] + bytes([body[-1] ^ 1]))]
    reads(refused(variant_of(), CorruptWeightsError))
    nothing_kept(hub)
    arrived(variant_of())


def test_hub_cache_damaged(hub: HubServer, reads: Reads) -> None:
    """Before the zoo has seen the file: a digest that it has recorded would be demanded."""
    from huggingface_hub import hf_hub_download

    blob = Path(hf_hub_download(REPO, "model.safetensors")).resolve()
    blob.write_bytes(ON_HUB[:-1] + bytes([ON_HUB[-1] ^ 1]))
    reads(refused(variant_of(), CorruptWeightsError))
    arrived(variant_of())


def test_hub_file_replaced(hub: HubServer, reads: Reads) -> None:
    arrived(variant_of())
    cached_path(variant_of()).unlink()
    hub.add_files(REPO, {"model.safetensors": save({"other": torch.ones(2)})})
    reads(refused(variant_of(), CorruptWeightsError))


def test_hub_pin_broken(hub: HubServer, reads: Reads) -> None:
    pin = {"repo": REPO, "revision": hub.repos[REPO].refs["main"], "filename": "model.safetensors", "sha256": "0" * 64}
    sources.LOCK_FILE.write_text(json.dumps({"croco_test.tag": pin}))
    reads(refused(variant_of(), CorruptWeightsError))


def test_hub_behind_a_portal(hub: HubServer, reads: Reads) -> None:
    page = dict(status=200, headers={"content-type": "text/html"}, body=b"<html>Welcome to our hotel</html>")
    hub.faults = [Fault("*", times=None, **page)]
    reads(refused(variant_of()))
    nothing_kept(hub)


def test_hub_names_outside_the_repository(hub: HubServer, reads: Reads, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    target = tmp_path / "home" / "evil.safetensors"
    hub.add_files(REPO, {"../../../../evil.safetensors": ON_HUB, str(target): ON_HUB})
    for name in HfApi().list_repo_files(REPO):
        if name != "model.safetensors":
            with pytest.raises(WeightsUnavailableError) as caught:
                hub_module.hub_file(REPO, name)
            reads(caught.value)
    assert not list(tmp_path.rglob("evil.safetensors")) and hub.count("resolve") == hub.count("cdn") == 0


# ------------------------------------------------------------------------------------------- the files


def nano_state() -> dict[str, torch.Tensor]:
    return dict(timm.create_model(ENCODER).state_dict())


def create(path: Path) -> torch.nn.Module:
    return timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def not_created(path: Path, kind: type[ZooError]) -> ZooError:
    with pytest.raises(kind) as caught:
        create(path)
    return caught.value


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def write_huge_header(path: Path) -> None:
    """A header that says 2 GB, and is as long: a file with a hole, that takes no space."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 << 30) + b'{"a": ')
        file.truncate((2 << 30) + 100)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(ON_HUB[:-1000]),
    "lying": lambda path: path.write_bytes(with_header({"a": entry([1000], 0, 8)}, bytes(8))),
    "huge": write_huge_header,
    "overlapping": lambda path: path.write_bytes(
        with_header({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}, bytes(16))
    ),
}


def damaged(tmp_path: Path, damage: str) -> Path:
    path = tmp_path / "own.safetensors"
    DAMAGES[damage](path)
    return path


def test_file_truncated(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "truncated"), CorruptWeightsError))


def test_file_with_a_lying_header(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "lying"), CorruptWeightsError))


def test_file_with_a_huge_header(tmp_path: Path, reads: Reads) -> None:
    start = time.monotonic()
    reads(not_created(damaged(tmp_path, "huge"), CorruptWeightsError))
    assert time.monotonic() - start < 1


def test_file_with_overlapping_tensors(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "overlapping"), CorruptWeightsError))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["bundled", "mirror", "cache", "hub", "url", "own"])
def test_no_place_is_trusted(
    place: str,
    damage: str,
    server: FileServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A damaged safetensors file is found wherever it lies, and replaced where it is the zoo's to replace."""
    path, variant = damaged(tmp_path, damage), variant_of()
    if place == "own":
        not_created(path, CorruptWeightsError)
        return
    if place == "bundled":
        variant = variant_of(Source("package", "nano.safetensors", layout="zoo"))
        sources.BUNDLED.mkdir()
        path.rename(sources.BUNDLED / "nano.safetensors")
        files.write_json(sources.BUNDLED / "nano.safetensors.json", {"size": 1})
    elif place == "mirror":
        monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "mirror"))
        (tmp_path / "mirror").mkdir()
        path.rename(tmp_path / "mirror" / "croco_test.tag.safetensors")
    elif place == "cache":
        variant = variant_of(Source("url", server.url + "/CroCo.pth"))
        fetch(variant, convert)
        path.rename(cached_path(variant))
        arrived(variant)
        return
    else:
        with path.open("rb") as file:
            content = file.read(1 << 20)  # the hole needs no sending
        if place == "url":
            server.files["/w.safetensors"] = content
            variant = variant_of(Source("url", server.url + "/w.safetensors", layout="zoo"))
        else:
            request.getfixturevalue("hub").add_files(REPO, {"model.safetensors": content})
    refused(variant, CorruptWeightsError)


def test_file_of_another_variant(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants may have the same keys and shapes, and nothing but the record tells them apart."""
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    save_safetensors(WEIGHTS, tmp_path / "croco_test.tag.safetensors", {"variant": "croco_other.tag"})
    reads(refused(variant_of(), CheckpointMismatchError))


def test_file_of_another_size(tmp_path: Path, reads: Reads) -> None:
    large = {
        name: tensor if name.startswith("patch_embed") else torch.zeros([2 * size for size in tensor.shape])
        for name, tensor in nano_state().items()
    }
    save_safetensors(large, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_of_integers(tmp_path: Path, reads: Reads) -> None:
    save_safetensors({k: v.to(torch.int8) for k, v in nano_state().items()}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_of_other_floats(tmp_path: Path) -> None:
    state = nano_state()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        save_safetensors({key: value.to(dtype) for key, value in state.items()}, tmp_path / "own.safetensors", {})
        for key, value in create(tmp_path / "own.safetensors").state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, state[key].to(dtype).float())


def test_file_with_missing_tensors(tmp_path: Path, reads: Reads) -> None:
    state = {name: tensor for name, tensor in nano_state().items() if not name.startswith("norm.")}
    save_safetensors(state, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_with_extra_tensors(tmp_path: Path, reads: Reads) -> None:
    save_safetensors(nano_state() | {"backdoor": torch.ones(1)}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_with_a_reshaped_tensor(tmp_path: Path, reads: Reads) -> None:
    state = nano_state()
    save_safetensors(state | {"norm.weight": state["norm.weight"][None]}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


class _Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_pickle_with_code(server: FileServer, variant: Variant, reads: Reads, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    server.files["/CroCo.pth"] = torch_bytes({"model": STATE, "args": _Command(f"touch {canary}")})
    reads(refused(variant, UnsafeCheckpointError))
    assert not canary.exists()


def test_zip_bomb(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "own.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    reads(not_created(path, CorruptWeightsError))


def test_pickle_bomb(tmp_path: Path, reads: Reads) -> None:
    """A small pickle whose calls would make a hundred thousand copies of its largest text."""
    text, copies = b"x" * 200_000, 100_000
    pickled = b"\x80\x02ctorch\ndevice\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01]"
    pickled += b"h\x00h\x01K\x00\x86Ra" * copies + b"."  # append(torch.device(text, 0))
    save_pickle_in_zip(tmp_path / "own.pth", pickled)
    reads(not_created(tmp_path / "own.pth", UnsafeCheckpointError))


# -------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder whose parents everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("ZOO_CACHE", folder)
        monkeypatch.setattr(sources, "LOCK_FILE", Path(folder) / "weights.lock.json")
        yield Path(folder)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Root may write everywhere, so that nothing is read-only for it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


def test_cache_read_only(variant: Variant, reads: Reads, shared: Path, as_nobody: None) -> None:
    if os.geteuid() != NOBODY:
        shared.chmod(0o555)
    reads(refused(variant, StorageError))


def test_cache_read_only_with_the_weights(
    variant: Variant, shared: Path, request: pytest.FixtureRequest, server: FileServer
) -> None:
    path = fetch(variant, convert)
    for made in (shared, *shared.rglob("*")):
        made.chmod(made.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    request.getfixturevalue("as_nobody")
    assert fetch(variant, convert) == path and server.gets("/CroCo.pth") == 1


def test_cache_is_a_file(variant: Variant, reads: Reads, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError) as caught:
        fetch(variant, convert)
    reads(caught.value)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes the cache a disk of some kilobytes: a tmpfs, or where mounting isn't allowed, a count at each fsync."""
    folder = tmp_path / "disk"
    mounted = []

    def make(kilobytes: int) -> Path:
        folder.mkdir()
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            mounted.append(folder)
        except (OSError, subprocess.CalledProcessError):
            fsync = os.fsync

            def full(descriptor: int) -> None:
                if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > kilobytes * 1024:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            monkeypatch.setattr(os, "fsync", full)
        return folder

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_disk_full_while_downloading(
    variant: Variant, reads: Reads, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_disk(80)
    reads(refused(variant, StorageError))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "larger"))
    arrived(variant)


def test_disk_full_while_converting(
    variant: Variant, reads: Reads, small_disk: Callable[[int], Path], server: FileServer
) -> None:
    folder = small_disk(180)
    reads(refused(variant, StorageError))
    assert len(list(folder.rglob("*.pth"))) == 1  # kept: it needs no second download when there is space
    with pytest.raises(StorageError):
        fetch(variant, convert)
    assert server.gets("/CroCo.pth") == 1


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # huggingface_hub says so before it tries
def test_disk_full_in_the_hub_cache(
    hub: HubServer, reads: Reads, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    folder = small_disk(80)
    if os.path.ismount(folder):
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        reads(refused(variant_of(), StorageError))
    else:  # huggingface_hub syncs nothing, so that the stand-in sees nothing
        pytest.skip("mounting isn't allowed here")


def test_cache_in_use(
    variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "NOTICE", 0.1)
    path = cache_dir() / "locks" / f"{variant.name}.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as file, caplog.at_level(logging.INFO, "zoo"):
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        arrived(variant)
        timer.join()
    reads(next(record.getMessage() for record in caplog.records if "another process" in record.getMessage()))


def run_script(name: str, *arguments: object) -> str:
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "support" / name), *map(str, arguments)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_eight_processes(server: FileServer) -> None:
    pair = timm.create_model("croco_nano_patch8_64_dec128d4")
    server.files["/nano.pth"] = torch_bytes({"model": pair.reference_state()})
    server.faults = [Reply(pause=0.5)]
    answers = run_script("eight_processes.py", server.url + "/nano.pth").split()
    assert answers == [digest(pair)] * 8
    assert server.gets("/nano.pth") == 1


def test_killed_fifty_times(server: FileServer) -> None:
    phases = run_script("fifty_kills.py", server.url + "/CroCo.pth").split()
    assert len(phases) == 50
    for phase in ("downloading", "converting", "writing"):
        assert phases.count(phase) >= 10, phases


def test_cached_file_with_a_changed_bit(variant: Variant, reads: Reads) -> None:
    path = fetch(variant, convert)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fetch(variant, convert) == path  # size and header are what is checked at each use
    reads(next(report.problem for report in verify(variant) if report.path == path))


def test_cached_file_cut_short(variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(variant, convert)
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "zoo"):
        arrived(variant)
    reads(caplog.messages[0])


def test_downloaded_checkpoint_changed(
    variant: Variant, reads: Reads, caplog: pytest.LogCaptureFixture, server: FileServer
) -> None:
    fetch(variant, convert).unlink()
    (downloaded,) = (cache_dir() / "downloads").glob("*.pth")
    downloaded.write_bytes(CONTENT[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "zoo"):
        arrived(variant)
    reads(caplog.messages[0])
    assert server.gets("/CroCo.pth") == 2


def test_user_file_missing(tmp_path: Path, reads: Reads) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        read_checkpoint(tmp_path / "none.pth")
    reads(caught.value)
