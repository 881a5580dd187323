"""A server, a Hub and folders of the test's own, for all rows of docs/faults.md about weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo  # noqa: F401
from tests.support.checkpoints import FileServer, variant_of
from tests.support.fetching import CONTENT, ON_HUB, REPO
from tests.support.hub_server import HubServer
from zoo.catalog import Source, Variant
from zoo.weights import sources


@pytest.fixture(autouse=True)
def own_lock(clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept through, without sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/CroCo.pth": CONTENT}) as server:
        yield server


@pytest.fixture
def variant(server: FileServer) -> Variant:
    return variant_of(Source("url", server.url + "/CroCo.pth"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the weights of `variant_of()`, which the user has named."""
    with HubServer(tmp_path / "server") as server:
        server.patch(monkeypatch, tmp_path / "home")
        server.add_repo(REPO, {"model.safetensors": ON_HUB})
        monkeypatch.setenv("ZOO_HUB_ORG", "zoo-org")
        yield server
