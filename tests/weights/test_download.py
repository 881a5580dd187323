"""Downloads: resumed, checked, and given up with a reason."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import FileServer, Reply
from zoo.errors import DownloadError
from zoo.weights import download as download_module
from zoo.weights.download import download

pytestmark = pytest.mark.usefixtures("clean_environment")


CONTENT = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Any:
    with FileServer({"/f.pth": CONTENT}) as server:
        yield server


def test_download(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.pth"
    assert download(server.url + "/f.pth", path, expected_sha256=SHA) == SHA
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["f.pth"]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_cut_transfers_are_resumed(server: FileServer, tmp_path: Path, validator: str) -> None:
    server.headers = lambda content: {validator: '"v1"' if validator == "ETag" else "Sat, 01 Jan 2022 00:00:00 GMT"}
    server.faults = [Reply(cut=70_000), Reply(cut=150_000), Reply(cut=0), Reply(cut=0)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    ranges = [headers.get("Range") for _, _, headers in server.requests]
    assert ranges == [None, "bytes=70000-", *["bytes=220000-"] * 3]  # every byte that arrived is kept


def test_resumed_by_the_next_call(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(cut=100_000)] + [Reply(cut=0)] * 4
    with pytest.raises(DownloadError, match="tried 5 times"):
        download(server.url + "/f.pth", tmp_path / "f.pth")
    assert not (tmp_path / "f.pth").exists()
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    assert server.requests[-1][2]["Range"] == "bytes=100000-"


def test_no_resumption_of_a_changed_file(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(cut=100_000)] + [Reply(cut=0)] * 4
    with pytest.raises(DownloadError):
        download(server.url + "/f.pth", tmp_path / "f.pth")
    server.files["/f.pth"] = changed = bytes(200_000)
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == hashlib.sha256(changed).hexdigest()


def test_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.faults = [Reply(cut=100_000)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    server.faults = [Reply(cut=100_000)] * 9
    with pytest.raises(DownloadError, match="tried 5 times"):
        download(server.url + "/f.pth", tmp_path / "g.pth")


def test_busy_server(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(503, {"Retry-After": "1"}), Reply(429)]
    start = time.monotonic()
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    assert 1.0 <= time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([Reply(404)], "no longer there"),
        ([Reply(403)], "HTTP 403"),
        ([Reply(headers={"Content-Type": "text/html; charset=utf-8"}, body=b"hello")], "web page"),
        ([Reply(body=b"\n <!DOCTYPE HTML><html>log in</html>")], "web page"),
        ([Reply(length=400_000)] * 9, "tried"),
        ([Reply(length=0, body=b"")], "isn't the file that was expected"),
        ([Reply(body=b"something else")], "isn't the file that was expected"),
    ],
)
def test_refused_downloads(server: FileServer, tmp_path: Path, faults: list[Reply], message: str) -> None:
    server.faults = faults
    server.ranges = False
    with pytest.raises(DownloadError, match=message) as caught:
        download(server.url + "/f.pth", tmp_path / "f.pth", expected_sha256=SHA)
    assert server.url + "/f.pth" in str(caught.value)
    assert not (tmp_path / "f.pth").exists()


def test_slow_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "READ_TIMEOUT", 0.2)
    server.faults = [Reply(pause=1.0)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    server.faults = [Reply(pause=1.0)] * 9
    start = time.monotonic()
    with pytest.raises(DownloadError):
        download(server.url + "/f.pth", tmp_path / "g.pth")
    assert time.monotonic() - start < 2.0
