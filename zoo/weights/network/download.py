"""Downloading one file over HTTP: resumed, retried, verified, and never half there under its final name.

A machine without a network hears so within two seconds per host instead of waiting for timeouts.
"""

from __future__ import annotations

import errno
import glob
import os
import queue
import random
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from zoo.errors import (
    CorruptWeightsError,
    DownloadError,
    StorageError,
    WeightsUnavailableError,
    ZooError,
    printable,
)
from zoo.weights.disk.files import read_json, sha256, write_json

if TYPE_CHECKING:  # imported where they are used: whoever has the weights already needs neither
    import requests
    import urllib3

# Seconds.
PROBE_TIMEOUT = 2.0
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
BACKOFF = 1.0  # before the second try, doubled before each further one
MAX_BACKOFF = 30.0
MAX_RETRY_AFTER = 60.0

# A timeout holds for each read alone: a byte a second would keep a transfer alive for years.
MIN_SPEED = 1024.0  # bytes a second
WINDOW = 30.0  # seconds over which it is measured
DRIVE_WINDOW = 120.0  # seconds in which something of a file on Google Drive must arrive

FIRST_TRIES = 2  # while the server has not sent anything
TRIES = 5  # in a row without progress, once it has

_BUSY = (408, 425, 429, 500, 502, 503, 504)  # what may pass
_CHUNK = 1 << 16
_HINT = "Check the network, or get the file elsewhere and put it into the folder that ZOO_WEIGHTS names."


LARGEST = 1 << 35
"""Bytes of a file of which nobody knows how large it may be; the largest of the catalog has some 10^10."""

SPARE = 1 << 28
"""Bytes that stay free on a disk while a server doesn't tell how much it sends."""

_LOOK = 1 << 24  # bytes between two looks at how much is free


class _Retry(Exception):
    """A try failed in a way that may pass; `after` is how long the server asked to wait, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Pace:
    """Keeps the time of a transfer; `add` what arrives. Raises SlowTransfer when that is less than MIN_SPEED."""

    def __init__(self) -> None:
        self.since, self.received = time.monotonic(), 0

    def add(self, size: int) -> None:
        self.received += size
        elapsed = time.monotonic() - self.since
        if elapsed < WINDOW:
            return
        if self.received < MIN_SPEED * elapsed:
            raise SlowTransfer(f"less than {MIN_SPEED / 1024:g} kB a second arrived")
        self.since, self.received = time.monotonic(), 0


class SlowTransfer(Exception):
    """A server that is as good as dead, though it sends a byte now and then."""


def download(
    url: str, path: Path, *, expected_sha256: str | None = None, at_most: int = LARGEST, progress: bool = True
) -> str:
    """Download `url` to `path` and return its SHA-256, in hexadecimal.

    An interrupted download leaves `<path>.part` and is resumed by the next call, unless the file has changed
    on the server. `progress` shows a bar when stderr is a terminal. One process at a time may download to a
    path. at_most: bytes that the file may have; of one that is larger, or never ends, nothing is kept.

    Raises DownloadError when the server can't be reached or doesn't have the file, when it sends a web page or too
    much, or when the file isn't the expected one; StorageError when the file can't be written.
    """
    check_reachable(url)
    part = _part_of(path)
    with _saving(url, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _transfer_with_retries(url, part, at_most, progress)
        return _accept(url, part, path, expected_sha256, progress)


def download_from_drive(
    file_id: str, path: Path, *, expected_sha256: str | None = None, at_most: int = LARGEST, progress: bool = True
) -> str:
    """`download` for a public file on Google Drive, through the package gdown.

    Google doesn't say whether a file is still the one that a part of it is here of. So the next call goes on with that
    part only if the whole's digest is known.

    Raises WeightsUnavailableError without gdown, and what `download` raises.
    """
    import requests

    link = f"https://drive.google.com/file/d/{file_id}"
    by_hand = "in a browser, save the file and convert it with `zoo convert`"
    try:
        import gdown
        from gdown.exceptions import DownloadCancelled, FileURLRetrievalError
        from gdown.exceptions import DownloadError as TransferError
    except ImportError as error:
        raise WeightsUnavailableError(
            "gdown 6.5 or later is not installed; get it with pip install 'pretext-zoo[drive]', or open "
            f"{link} {by_hand}."
        ) from error
    check_reachable(link)
    part = _part_of(path)
    received, stalled, over = 0, threading.Event(), threading.Event()

    def show(size: int, total: int | None) -> None:  # gdown calls it for every 512 kB
        nonlocal received
        received, bar.total = size, total
        bar.update(size - bar.n)
        if size > at_most:
            stalled.set()

    def watch() -> None:
        before = -1
        while not over.wait(DRIVE_WINDOW):
            if received == before:
                stalled.set()
            before = received

    with _saving(link, path), _bar(path.name, progress) as bar:
        path.parent.mkdir(parents=True, exist_ok=True)
        for kept in path.parent.glob(glob.escape(part.name) + "*.part"):  # gdown's own names
            if expected_sha256 is None:
                kept.unlink()
            else:
                _keep_if_plain(kept)
        threading.Thread(target=watch, daemon=True).start()
        try:
            gdown.download(
                id=file_id,
                output=str(part),
                quiet=True,
                resume=expected_sha256 is not None,
                progress=show,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                retries=TRIES,
                cancel=stalled,
            )
        except FileURLRetrievalError as error:
            raise DownloadError(
                f"Google Drive shows a page instead of the file, about a quota or a login: open {link} {by_hand}. "
                f"The page says: {printable(' '.join(str(error).split()), 500)}"
            ) from error
        except (TransferError, DownloadCancelled, requests.RequestException) as error:
            if received > at_most:
                _discard(part)
                for kept in path.parent.glob(glob.escape(part.name) + "*.part"):
                    kept.unlink()
                raise _too_large(link, at_most) from error
            reason = "too slow" if stalled.is_set() else printable(" ".join(str(error).split()), 500)
            raise DownloadError(f"{link} can't be downloaded ({reason}). {_HINT}") from error
        finally:
            over.set()
        return _accept(link, part, path, expected_sha256, progress)


def check_reachable(url: str) -> None:
    """Return at once if the URL's host accepts connections; with a proxy set, that is left to the proxy.

    Raises DownloadError after PROBE_TIMEOUT at the latest, even if name resolution hangs.
    """
    import requests

    if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)):
        return
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: connected, text: why not

    def connect(family: int, address: tuple) -> None:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(PROBE_TIMEOUT)
                probe.connect(address)
            answers.put(None)
        except OSError as error:
            answers.put(error.strerror or str(error))

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            answers.put(f"its name can't be resolved: {getattr(error, 'strerror', None) or error}")
            return
        # All addresses at once: one family that leads nowhere must not hide another that works.
        expected.append(len(found))
        for family, _, _, _, address in found:
            threading.Thread(target=connect, args=(family, address), daemon=True).start()

    expected: list[int] = []
    deadline = time.monotonic() + PROBE_TIMEOUT
    threading.Thread(target=resolve, daemon=True).start()
    reasons: list[str] = []
    while not reasons or (expected and len(reasons) < expected[0]):
        try:
            reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            reasons.append(f"no answer within {PROBE_TIMEOUT:g} s")
            break
        if reason is None:
            return
        reasons.append(reason)
    raise DownloadError(f"{host} can't be reached ({reasons[-1]}) for {url}. {_HINT}")


@contextmanager
def _saving(url: str, path: Path) -> Iterator[None]:
    """Tell the user about a disk that is full or can't be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise StorageError(
            f"{url} can't be saved to {path} ({error.strerror or error}). Free some space or set ZOO_CACHE to another "
            "folder."
        ) from error


def _part_of(path: Path) -> Path:
    """Where a download grows; what lies there and isn't a file of its own is removed."""
    part = path.with_name(path.name + ".part")
    _keep_if_plain(part)
    return part


def _accept(url: str, part: Path, path: Path, expected_sha256: str | None, progress: bool) -> str:
    """Give a complete download its final name if it is what was expected; returns its SHA-256."""
    _refuse_web_page(url, part)
    digest = sha256(part, progress)
    if expected_sha256 is not None and digest != expected_sha256:
        _discard(part)
        raise DownloadError(
            f"{url} isn't the file that was expected: its SHA-256 is {digest} instead of {expected_sha256}. Try again; "
            "if that keeps happening, the file was replaced on the server and shouldn't be used."
        )
    os.replace(part, path)
    _state_path(part).unlink(missing_ok=True)
    return digest


def _bar(name: str, progress: bool, total: int | None = None, initial: int = 0) -> tqdm:
    """A line of its own for each of several downloads; on a terminal only."""
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit="B",
        unit_scale=True,
        leave=None,
        disable=None if progress else True,
    )


def _transfer_with_retries(url: str, part: Path, at_most: int, progress: bool) -> None:
    best, _ = _resume_point(url, part)
    limit, failures = FIRST_TRIES, 0
    while True:
        start = time.monotonic()
        try:
            _transfer(url, part, at_most, progress)
            return
        except _Retry as error:
            size = part.stat().st_size if part.exists() else 0
            # Progress starts the count anew, measured by the largest size so far: a server that always starts
            # from the beginning and always breaks off makes none, nor does one that trickles.
            progressed = size - best > MIN_SPEED * (time.monotonic() - start)
            failures = 1 if progressed else failures + 1
            if progressed or error.after is not None:
                limit = TRIES
            best = max(best, size)
            if failures >= limit:
                raise DownloadError(f"{url} can't be downloaded ({error}, tried {failures} times). {_HINT}") from error
            time.sleep(delay(failures, error.after or 0.0))


def delay(failures: int, after: float) -> float:
    """Seconds to wait before the next try; `after` is what the server asked for."""
    own = min(BACKOFF * 2 ** (failures - 1), MAX_BACKOFF) * random.uniform(0.5, 1.0)
    return max(own, min(after, MAX_RETRY_AFTER))


def _transfer(url: str, part: Path, at_most: int, progress: bool) -> None:
    """One request: the file, or the rest of it, appended to `part`. Raises _Retry for what may pass."""
    import requests
    import urllib3

    offset, validator = _resume_point(url, part)
    headers = {"Accept-Encoding": "identity"}  # sizes are those of the file
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
            if response.status_code == 416:  # what is here is no beginning of what is there
                _discard(part)
                raise _Retry("the server could not resume")
            _check_response(url, response)
            offset, total = _extent(response, offset)
            if (total or 0) > at_most:
                _discard(part)
                raise _too_large(url, at_most)
            # A server may ignore If-Range: what it sends is the rest of this file only if it says so.
            spliced = offset > 0 and _validator(response) != validator
            if not spliced:
                size = _receive(url, part, response, offset, total, at_most, progress)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Retry(_reason(error)) from error
    except SlowTransfer as error:
        raise _Retry(str(error)) from error
    if spliced:
        _discard(part)
        _transfer(url, part, at_most, progress)
    elif total is not None and size != total:
        raise _Retry(f"{size} of {total} bytes arrived")


def _receive(
    url: str,
    part: Path,
    response: requests.Response,
    offset: int,
    total: int | None,
    at_most: int,
    progress: bool,
) -> int:
    """Write what arrives into `part`, from `offset` on; its size then."""
    if not offset:
        _discard(part)
    _check_free(part, 0 if total is None else total - offset)
    write_json(_state_path(part), {"url": url, "validator": _validator(response)})
    with _open_part(part) as file, _bar(part.stem, progress, total, offset) as bar:
        file.seek(offset)
        file.truncate()
        pace, looked = Pace(), offset
        try:
            # read1 gives what has arrived, where iter_content would wait for a whole chunk
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                pace.add(len(chunk))
                file.write(chunk)
                bar.update(len(chunk))
                if total is None and file.tell() > min(at_most, looked + _LOOK):
                    if file.tell() > at_most:
                        raise _too_large(url, at_most)
                    looked = file.tell()
                    _check_free(part, SPARE)
        except (DownloadError, StorageError, OSError):
            if total is None:  # nobody knows whether the rest would ever come
                _discard(part)
            raise
        finally:
            file.flush()
            os.fsync(file.fileno())
        return file.tell()


def _check_free(part: Path, needed: int) -> None:
    """Raise the OSError of a full disk, before it is full, unless `needed` bytes are free."""
    if shutil.disk_usage(part.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _too_large(url: str, at_most: int) -> DownloadError:
    return DownloadError(
        f"{url} can't be downloaded: its server sends more than the {at_most} bytes that the file can have, so nothing "
        f"of it was kept. {_HINT}"
    )


def _open_part(part: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "r+b")


def _keep_if_plain(part: Path) -> None:
    """Remove what lies there if it is no file, or one that has other names: it would be written to through this one."""
    with suppress(OSError):  # such as a folder, which is told when it can't be written
        found = part.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            part.unlink()


def _check_response(url: str, response: requests.Response) -> None:
    if response.status_code in _BUSY:
        wait = response.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {response.status_code}", after=float(_number(wait) or 0))
    if response.status_code not in (200, 206):
        gone = response.status_code in (404, 410)
        raise DownloadError(
            f"{url} can't be downloaded: HTTP {response.status_code} {printable(response.reason or '', 80)}. "
            + ("The file is no longer there; g" if gone else "G")
            + "et it elsewhere and put it into the folder that ZOO_WEIGHTS names."
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _web_page(url)
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise DownloadError(  # a few bytes could become any number, and the sizes are those of something else
            f"{url} can't be downloaded: its server sends it compressed, although it was asked not to. {_HINT}"
        )


def _extent(response: requests.Response, offset: int) -> tuple[int, int | None]:
    """Where the response's bytes start in the file, and the file's size if the server tells."""
    if response.status_code == 206:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if not found or int(found[1]) != offset:
            raise _Retry("the server sent another part than was asked for")
        return offset, None if found[2] == "*" else int(found[2])
    return 0, _number(response.headers.get("Content-Length", ""))


def _number(text: str) -> int | None:
    """What a server gives as a number, if it is one of any sense."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _validator(response: requests.Response) -> str | None:
    """What tells the server on resuming which file was meant. A weak ETag doesn't vouch for single bytes."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _resume_point(url: str, part: Path) -> tuple[int, str]:
    """Size of the part that is here and validator to resume it with; (0, "") to start from the beginning."""
    try:
        state = read_json(_state_path(part)) or {}
    except CorruptWeightsError:
        state = {}
    if not part.exists() or state.get("url") != url or not isinstance(state.get("validator"), str):
        return 0, ""
    return part.stat().st_size, state["validator"]


def _refuse_web_page(url: str, part: Path) -> None:
    with part.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        _discard(part)
        raise _web_page(url)


def _web_page(url: str) -> DownloadError:
    return DownloadError(
        f"{url} is a web page instead of a file, such as a login page or a network's portal. Open it in a "
        "browser to see what it asks for."
    )


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _reason(error: requests.RequestException | urllib3.exceptions.HTTPError) -> str:
    import requests
    import urllib3

    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "the server stopped answering"
    if isinstance(error, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
        return "its certificate isn't trusted here"
    if isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError)):
        return "the connection broke"
    return type(error).__name__
