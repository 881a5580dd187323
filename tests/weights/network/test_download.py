"""Downloads: resumed, checked, and given up with a reason."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.checkpoints import FileServer, Reply
from zoo.errors import DownloadError, StorageError
from zoo.weights.network import download as download_module
from zoo.weights.network.download import download

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


@pytest.mark.parametrize("reply", [Reply(endless=True), Reply(length=1_000_001), Reply(endless=True, status=206)])
def test_more_than_a_file_can_have(server: FileServer, tmp_path: Path, reply: Reply) -> None:
    """Whether the server says how much it sends, or says nothing and never ends: nothing is kept."""
    server.faults = [reply] if reply.status is None else [Reply(cut=100_000), *[Reply(cut=0)] * 4]
    if reply.status:
        with pytest.raises(DownloadError, match="tried"):
            download(server.url + "/f.pth", tmp_path / "f.pth")
        server.faults = [reply]
        reply.headers["Content-Range"] = "bytes 100000-999999/*"
    with pytest.raises(DownloadError, match="sends more than the 1000000 bytes that the file can have, so nothing of"):
        download(server.url + "/f.pth", tmp_path / "f.pth", at_most=1_000_000)
    assert not os.listdir(tmp_path)
    assert download(server.url + "/f.pth", tmp_path / "f.pth", at_most=1_000_000) == SHA


@pytest.mark.parametrize("reply", [Reply(endless=True), Reply()])
def test_free_disk_is_respected(
    server: FileServer, tmp_path: Path, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is full: at once where the size is known, else while something is left of it."""
    monkeypatch.setattr(download_module, "_LOOK", 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
        server.faults = [reply]
        with pytest.raises(StorageError, match=r"can't be saved .* \(No space left on device\). Free some space"):
            download(server.url + "/f.pth", tmp_path / "f.pth")
    assert not os.listdir(tmp_path)
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA


def test_slow_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "READ_TIMEOUT", 0.2)
    server.faults = [Reply(pause=1.0)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    server.faults = [Reply(pause=1.0)] * 9
    start = time.monotonic()
    with pytest.raises(DownloadError):
        download(server.url + "/f.pth", tmp_path / "g.pth")
    assert time.monotonic() - start < 2.0
