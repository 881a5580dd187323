"""Checkpoints on Google Drive: the real gdown, whose requests end at a server on the loopback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import RULES, FileServer, Reply, convert, reference_state, torch_bytes, variant_of
from zoo.catalog import Source
from zoo.errors import WeightsUnavailableError
from zoo.weights import cache_dir, cached_path, fetch, source_of, sources, verify
from zoo.weights.network import drive as drive_module

ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"
PATH = f"/uc?id={ID}"
STATE = reference_state(dim=64)
CONTENT = torch_bytes({"model": STATE})
VARIANT = variant_of(Source("gdrive", ID))
QUOTA = (
    b'<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-caption">'
    b"Sorry, you can't view or download this file at this time.</p>\n"
    b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>'
)
CONFIRM = (
    '<!DOCTYPE html><html><body><form id="download-form" action="https://drive.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{}"><input type="hidden" name="confirm" value="t"></form></body></html>'
)

Reads = Callable[[object], None]


@pytest.fixture(autouse=True)
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Google Drive, as far as gdown sees it."""
    pytest.importorskip("gdown")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    monkeypatch.setattr(drive_module, "check_reachable", lambda url: None)
    get = requests.Session.get
    with FileServer({PATH: CONTENT}) as server:
        server.headers = lambda content: {
            "ETag": '"v1"',
            "Content-Disposition": 'attachment; filename="../../evil.pth"',
            "Content-Type": "application/octet-stream",
        }

        def loopback(session: requests.Session, url: str, **options: Any) -> requests.Response:
            assert url.startswith("https://drive.google.com/")
            return get(session, url.replace("https://drive.google.com", server.url), **options)

        monkeypatch.setattr(requests.Session, "get", loopback)
        yield server


def arrived() -> None:
    tensors = load_file(fetch(VARIANT, convert))
    expected = RULES.to_zoo(STATE, name="v")
    assert set(tensors) == set(expected) and all(torch.equal(tensors[name], expected[name]) for name in expected)


def refused() -> WeightsUnavailableError:
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch(VARIANT, convert)
    assert not cached_path(VARIANT).exists()
    return caught.value


def test_download(drive: FileServer, tmp_path: Path) -> None:
    arrived()
    record = source_of(cached_path(VARIANT))
    assert record["source"] == {"kind": "gdrive", "location": ID}
    assert [report.problem for report in verify(VARIANT)] == [None, None]  # weights and checkpoint
    assert not list(tmp_path.rglob("evil*"))  # the server's name for the file counts for nothing
    fetch(variant_of(*VARIANT.sources, name="croco_other"), convert)
    assert drive.gets(PATH) == 1


def test_page_that_asks_for_a_confirmation(drive: FileServer) -> None:
    """Of files that are too large for Google's virus scan."""
    drive.files[f"/download?id={ID}&confirm=t"] = CONTENT
    headers, page = drive.headers, CONFIRM.format(ID).encode()
    drive.files[PATH] = page
    drive.headers = lambda content: {"Content-Type": "text/html"} if content is page else headers(content)
    arrived()


def test_without_gdown(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    reads(refused())


def test_quota_page(drive: FileServer, reads: Reads) -> None:
    drive.headers = lambda content: {"Content-Type": "text/html; charset=utf-8"}
    drive.files[PATH] = QUOTA
    reads(refused())
    assert not [path for path in (cache_dir() / "downloads").iterdir() if path.stat().st_size]


def test_connection_cut(drive: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # gdown's pauses
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 5_000)  # what a cut may lose
    drive.faults = [Reply(cut=20_000)]
    arrived()
    assert [headers.get("Range") for _, _, headers in drive.requests] == [None, "bytes=20000-"]


def test_slow_drip(drive: FileServer, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive_module, "DRIVE_WINDOW", 0.2)
    drive.faults = [Reply(drip=0.02)] * 9
    reads(refused())
    drive.faults = []
    arrived()


def test_wrong_digest(drive: FileServer, reads: Reads) -> None:
    arrived()
    cached_path(VARIANT).unlink()
    for path in (cache_dir() / "downloads").glob("*"):
        if path.suffix != ".json":
            path.unlink()
    drive.files[PATH] = torch_bytes({"model": reference_state(1, 64)})
    reads(refused())
