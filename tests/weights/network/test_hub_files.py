"""Single files of the Hub: digests, revisions, life without network, and what is said when they can't be had."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from huggingface_hub import constants, errors
from huggingface_hub.utils import _http

from tests.support.hub_server import Fault, HubServer
from zoo.errors import CorruptWeightsError, DownloadError, WeightsUnavailableError
from zoo.weights.network.hub import hub_file, split_id

REPO, BODY = "owner/model", bytes(range(256)) * 20


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "server") as server:
        server.patch(monkeypatch, tmp_path / "home")
        server.add_repo(REPO, {"model.safetensors": BODY, "config.json": b"{}"})
        yield server


def test_split_id() -> None:
    assert split_id("a/b") == ("a/b", None) and split_id("a/b@refs/pr/1") == ("a/b", "refs/pr/1")


def test_another_body_of_the_same_length_is_found(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault("cdn", method="GET", change=lambda body: body[::-1]))
    with pytest.raises(CorruptWeightsError, match="is not as the Hub announced it: its SHA-256 is"):
        hub_file(REPO)
    assert not any(path.read_bytes() == BODY[::-1] for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert hub_file(REPO).read_bytes() == BODY


def test_a_commit_needs_no_network_once_it_is_here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.repos[REPO].refs["main"]
    assert hub_file(REPO, revision=commit).read_bytes() == BODY
    asked = len(hub.seen)
    assert hub_file(REPO, revision=commit).read_bytes() == BODY and len(hub.seen) == asked
    assert hub_file(REPO).read_bytes() == BODY and len(hub.seen) > asked  # a branch may have moved on
    hub.add_files(REPO, {"model.safetensors": BODY + b"new"})
    assert hub_file(REPO).read_bytes() == BODY + b"new"
    hub.stop()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert hub_file(REPO).read_bytes() == BODY + b"new" and hub_file(REPO, revision=commit).read_bytes() == BODY
    with pytest.raises(WeightsUnavailableError, match="HF_HUB_OFFLINE is set and it is not in the Hub's cache"):
        hub_file(REPO, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DownloadError, match="127.0.0.1 can't be reached"):
        hub_file(REPO, "config.json")


@pytest.mark.parametrize("packed", [False, True])
def test_more_than_was_announced(hub: HubServer, tmp_path: Path, packed: bool) -> None:
    """A body without an end, or one that unpacks to anything: nothing is kept of it, and the next try works."""
    bomb = dict(change=lambda _: gzip.compress(bytes(10_000_000)), packed={"content-encoding": "gzip"})
    hub.faults = [Fault("cdn", method="GET", **(bomb if packed else dict(endless=True)))]
    with pytest.raises(WeightsUnavailableError, match="sends more than the 5120 bytes that it announced, so nothing"):
        hub_file(REPO)
    assert not any(path.stat().st_size > 1000 for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert hub_file(REPO).read_bytes() == BODY


def test_what_is_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("owner/gated", {"model.safetensors": BODY}, gated=True)
    hub.add_repo("owner/private", {"model.safetensors": BODY}, private=True)
    page, log_in = f"{hub.url}/owner", "log in with `hf auth login` or set HF_TOKEN"
    for place, options, token, message in (
        ("owner/gated", {}, None, f"it is gated: ask for access at {page}/gated, and {log_in}."),
        ("owner/gated", {}, hub.guest_token, f"your login has no access to it: ask for it at {page}/gated."),
        ("owner/private", {}, None, f"no repository {page}/private, or it is private: check its name, or {log_in}"),
        ("owner/private", {}, "hf_wrong", f"the Hub does not accept your token: {log_in}, with a valid one."),
        (REPO, dict(filename="w.bin"), None, "w.bin of owner/model can't be had from the Hub: there is no such file"),
        (REPO, dict(revision="v2"), None, "at v2 can't be had from the Hub: there is no such revision"),
        ("no name", {}, None, "model.safetensors of no name can't be had from the Hub: "),
    ):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(WeightsUnavailableError) as caught:
            hub_file(place, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))  # it tries for 23 s
    for status, message in ((429, "too many requests"), (503, r"the Hub is out of order \(HTTP 503\)")):
        hub.faults[:] = [Fault("resolve", times=None, status=status)]
        with pytest.raises(WeightsUnavailableError, match=message):
            hub_file(REPO, cache_dir=hub.folder / str(status))


def test_timm_names_the_page_of_a_gated_repository(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json is fetched by timm itself, so the words are huggingface_hub's."""
    hub.add_repo("owner/gated", {"config.json": b"{}"}, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.guest_token)
    with pytest.raises(errors.GatedRepoError, match=f"Visit {hub.url}/owner/gated to ask for access"):
        timm.create_model("hf-hub:owner/gated", pretrained=True)
