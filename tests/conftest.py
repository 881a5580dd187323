"""Shared by all tests: nothing here touches the network or the user's own cache, and two workers share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("ZOO_WEIGHTS", "ZOO_HUB_ORG"):
        monkeypatch.delenv(name, raising=False)
