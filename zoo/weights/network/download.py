"""Downloading one file over HTTP: resumed, retried, verified, and never half there under its final name."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import CorruptWeightsError, DownloadError, StorageError, printable
from zoo.weights.disk.files import read_json, write_json
from zoo.weights.network.parts import (
    accept,
    discard,
    open_part,
    part_of,
    progress_bar,
    saving,
    state_path,
    too_large_error,
    web_page_error,
)
from zoo.weights.network.reach import HINT, check_reachable

if TYPE_CHECKING:  # imported where they are used: whoever has the weights already needs neither
    import requests
    import urllib3

# Seconds.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
BACKOFF = 1.0  # before the second try, doubled before each further one
MAX_BACKOFF = 30.0
MAX_RETRY_AFTER = 60.0

# A timeout holds for each read alone: a byte a second would keep a transfer alive for years.
MIN_SPEED = 1024.0  # bytes a second
WINDOW = 30.0  # seconds over which it is measured

FIRST_TRIES = 2  # while the server has not sent anything
TRIES = 5  # in a row without progress, once it has

_BUSY = (408, 425, 429, 500, 502, 503, 504)  # what may pass
_CHUNK = 1 << 16


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
    part = part_of(path)
    with saving(url, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _transfer_with_retries(url, part, at_most, progress)
        return accept(url, part, path, expected_sha256, progress)


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
                raise DownloadError(f"{url} can't be downloaded ({error}, tried {failures} times). {HINT}") from error
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
                discard(part)
                raise _Retry("the server could not resume")
            _check_response(url, response)
            offset, total = _extent(response, offset)
            if (total or 0) > at_most:
                discard(part)
                raise too_large_error(url, at_most)
            # A server may ignore If-Range: what it sends is the rest of this file only if it says so.
            spliced = offset > 0 and _validator(response) != validator
            if not spliced:
                size = _receive(url, part, response, offset, total, at_most, progress)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Retry(_reason(error)) from error
    except SlowTransfer as error:
        raise _Retry(str(error)) from error
    if spliced:
        discard(part)
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
        discard(part)
    _check_free(part, 0 if total is None else total - offset)
    write_json(state_path(part), {"url": url, "validator": _validator(response)})
    with open_part(part) as file, progress_bar(part.stem, progress, total, offset) as bar:
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
                        raise too_large_error(url, at_most)
                    looked = file.tell()
                    _check_free(part, SPARE)
        except (DownloadError, StorageError, OSError):
            if total is None:  # nobody knows whether the rest would ever come
                discard(part)
            raise
        finally:
            file.flush()
            os.fsync(file.fileno())
        return file.tell()


def _check_free(part: Path, needed: int) -> None:
    """Raise the OSError of a full disk, before it is full, unless `needed` bytes are free."""
    if shutil.disk_usage(part.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
        raise web_page_error(url)
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise DownloadError(  # a few bytes could become any number, and the sizes are those of something else
            f"{url} can't be downloaded: its server sends it compressed, although it was asked not to. {HINT}"
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
        state = read_json(state_path(part)) or {}
    except CorruptWeightsError:
        state = {}
    if not part.exists() or state.get("url") != url or not isinstance(state.get("validator"), str):
        return 0, ""
    return part.stat().st_size, state["validator"]


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
