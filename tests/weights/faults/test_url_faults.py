"""What goes wrong between a user and the weights of a URL: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py).
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

import zoo  # noqa: F401
from tests.support.checkpoints import FileServer, Reply, free_port, reference_state, torch_bytes, variant_of
from tests.support.fetching import CONTENT, Reads, arrived, refused
from zoo.catalog import Source, Variant
from zoo.errors import CorruptWeightsError
from zoo.weights import cache_dir, cached_path, sources
from zoo.weights.network import download as download_module
from zoo.weights.network import reach


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
    monkeypatch.setattr(reach, "PROBE_TIMEOUT", 0.2)
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


def test_endless_answer(server: FileServer, variant: Variant, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_most_bytes", lambda _: 10_000_000)
    server.faults = [Reply(endless=True)]
    reads(refused(variant))
    assert not list((cache_dir() / "downloads").iterdir())
    arrived(variant)


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
