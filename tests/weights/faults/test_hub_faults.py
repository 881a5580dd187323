"""What goes wrong between a user and the Hugging Face Hub: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import zoo  # noqa: F401
from tests.support.checkpoints import variant_of
from tests.support.fetching import ON_HUB, REPO, Reads, arrived, refused
from tests.support.hub_server import Fault, HubServer
from zoo.errors import CorruptWeightsError, WeightsUnavailableError
from zoo.weights import cached_path, sources
from zoo.weights.network import download as download_module
from zoo.weights.network import hub as hub_module


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


def test_hub_endless_answer(hub: HubServer, reads: Reads) -> None:
    hub.faults = [Fault("cdn", endless=True)]
    reads(refused(variant_of()))
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
