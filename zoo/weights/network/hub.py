"""Files of the Hugging Face Hub: its own client and cache, checked digests, and errors that say what to do."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants, errors, get_session, get_token, hf_hub_download, try_to_load_from_cache

from zoo.errors import CorruptWeightsError, DownloadError, StorageError, WeightsUnavailableError, ZooError, printable
from zoo.weights.disk import files
from zoo.weights.network.download import FIRST_TRIES, LARGEST, TRIES, Pace, SlowTransfer, delay
from zoo.weights.network.reach import check_reachable

HUB_FILENAME = "model.safetensors"  # timm's name for it

_COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
_TOKEN = re.compile(r"\bhf_\w{4,}|(?<=[Bb]earer )[\w.~+/=-]{6,}")
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def split_id(hub_id: str) -> tuple[str, str | None]:
    """ "OWNER/NAME@REVISION" -> the repository and the revision, None if there is none."""
    repo, _, revision = hub_id.partition("@")
    return repo, revision or None


def hub_id_of(name: str) -> str | None:
    """OWNER/NAME[@REVISION] where `name` means a repository of the Hub, by its prefix "hf-hub:" or its form; else None.

    A folder of that name goes before.
    """
    for prefix in ("hf-hub:", "hf_hub:"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    is_one = name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not name.endswith("/")
    return name if is_one and not Path(name).exists() else None


def hub_file(
    repo: str, filename: str = HUB_FILENAME, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A file of a repository, in huggingface_hub's cache; its SHA-256 is checked when it arrives.

    A commit's files never change, so one that is here needs no network. Of a branch or tag the newest is asked
    for; without network what is here is taken, and huggingface_hub's retries are spared.

    Raises WeightsUnavailableError or DownloadError with what to do, CorruptWeightsError for a wrong digest,
    StorageError if huggingface_hub's cache can't be written.
    """
    if PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts or "\\" in filename:
        raise WeightsUnavailableError(f"{filename} would lie outside of the repository {repo}. Don't use it.")
    place = f"{filename} of {repo}" + (f" at {revision}" if revision else "")
    with explained(place, repo, cache_dir):
        known = try_to_load_from_cache(repo, filename, cache_dir, revision)
        here = Path(known) if isinstance(known, str) else None
        if here is not None and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision or "")):
            return here
        if not constants.HF_HUB_OFFLINE:
            try:
                check_reachable(constants.ENDPOINT)
            except DownloadError:
                if here is None:
                    raise
                return here
        path = Path(_patiently(lambda: hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir)))
        if path != here:
            blob = path.resolve()
            check_arrived(blob, repo, files.sha256(blob, progress=True))
        return path


@contextmanager
def explained(place: str, repo: str, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Turn huggingface_hub's errors into the zoo's. place: what is wanted of the repository."""
    try:
        yield
    # The last two: what it raises for repositories' names and broken transfers.
    except (*_FAILURES, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ZooError):
            raise
        if isinstance(error, EndlessTransfer):
            _forget(Path(cache_dir or constants.HF_HUB_CACHE), repo, error.etag)
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise StorageError(
                f"{place} can't be saved to {cache_dir or constants.HF_HUB_CACHE} ({error.strerror}). "
                "Free some space or set HF_HOME to another folder."
            ) from error
        raise WeightsUnavailableError(f"{place} can't be had from the Hub: {explain(error, repo)}.") from _cause(error)


class EndlessTransfer(Exception):
    """A server sends more than it announced; etag: of what it announced."""

    def __init__(self, size: int, etag: str) -> None:
        super().__init__(f"its server sends more than the {size} bytes that it announced, so nothing of it was kept")
        self.etag = etag


_FAILURES = (errors.HTTPError, errors.EntryNotFoundError, SlowTransfer, EndlessTransfer)


def _patiently(download: Callable[[], str]) -> str:
    """Try again after broken transfers, which huggingface_hub does before the first byte and for some errors only."""
    failures = 0
    while True:
        try:
            with _bounded():
                return download()
        except errors.HTTPError as error:
            response = getattr(error, "response", None)
            limit = FIRST_TRIES if response is None else TRIES if response.status_code >= 500 else 1
            failures += 1
            if failures >= limit:
                raise
            time.sleep(delay(failures, 0.0))


@contextmanager
def _bounded() -> Iterator[None]:
    """Give up on transfers of this thread that trickle, since huggingface_hub's timeout holds for each read alone, and
    on those that bring more than was announced, unpacked too: it compares sizes at the end, if that comes."""
    thread, announced, tag = threading.get_ident(), LARGEST, ""

    def watch(response: Any) -> None:
        nonlocal announced, tag
        if threading.get_ident() != thread:
            return
        if response.request.method == "HEAD":
            size = response.headers.get("x-linked-size") or response.headers.get("content-length") or ""
            if not response.is_redirect or "x-linked-size" in response.headers:
                announced = int(size) if re.fullmatch("[0-9]{1,15}", size) else LARGEST
                tag = response.headers.get("x-linked-etag") or response.headers.get("etag") or ""
            return
        iter_raw, iter_bytes, size = response.iter_raw, response.iter_bytes, announced

        def timed(chunk_size: int | None = None) -> Iterator[bytes]:
            pace = Pace()
            for chunk in iter_raw(chunk_size):
                pace.add(len(chunk))
                yield chunk

        def counted(chunk_size: int | None = None) -> Iterator[bytes]:
            received = 0
            for chunk in iter_bytes(chunk_size):
                received += len(chunk)
                if received > size and response.is_success:
                    raise EndlessTransfer(size, tag)
                yield chunk

        response.iter_raw, response.iter_bytes = timed, counted

    hooks = get_session().event_hooks["response"]
    hooks.append(watch)
    try:
        yield
    finally:
        hooks.remove(watch)


def _forget(cache: Path, repo: str, etag: str) -> None:
    """Remove what huggingface_hub keeps of a file that it couldn't finish."""
    name = re.sub(r'^W/|"', "", etag)
    with suppress(OSError):
        for part in (cache / f"models--{repo.replace('/', '--')}" / "blobs").iterdir():
            if part.suffix == ".incomplete" and name and part.name.startswith(name):
                part.unlink()


def check_arrived(blob: Path, repo: str, digest: str) -> None:
    """Compare a large file's SHA-256 with its name in the cache, which is what the Hub announced.

    Raises CorruptWeightsError if they differ; the file is removed then.
    """
    if SHA256.fullmatch(blob.name) and digest != blob.name:
        blob.unlink()
        raise CorruptWeightsError(
            f"A file of {repo} is not as the Hub announced it: its SHA-256 is {digest} instead of {blob.name}. "
            "It was removed; try again, and if that keeps happening, something between here and the Hub changes files."
        )


def explain(error: Exception, repo: str) -> str:
    """What huggingface_hub's error means for the user, and what to do: one clause without a full stop.

    What a server says may hold whatever was sent to it: tokens are taken out, and what a terminal would act on.
    """
    return printable(_without_secrets(_explain(error, repo)), 1000)


def _without_secrets(text: str) -> str:
    for secret in filter(None, (os.environ.get("HF_TOKEN"), get_token())):
        text = text.replace(secret, "(your token)")
    return _TOKEN.sub("(a token)", text)


def _cause(error: Exception) -> Exception | None:
    """What an error is raised from: not what would show a secret in its traceback."""
    text = str(error)
    return error if _without_secrets(text) == text else None


def _explain(error: Exception, repo: str) -> str:
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__, repo)
    if isinstance(error, errors.GatedRepoError):
        if error.response.status_code == 401:
            return f"it is gated: ask for access at {page}, and {_LOG_IN}"
        return f"it is gated and your login has no access to it: ask for it at {page}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {page}, or it is private: check its name, or {_LOG_IN} with access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision: see {page}/tree/main for those that there are"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"there is no such file: see {page}/tree/main for those that there are"
    if isinstance(error, errors.FileMetadataError):
        return f"the answer was not the Hub's: open {page} in a browser to see whether a login or portal is in between"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the Hub's cache: unset it, or fetch the file once before"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, page)
    if isinstance(error, errors.HTTPError):
        return f"{constants.ENDPOINT} can't be reached ({error}): check the network"
    return str(error).strip().partition("\n")[0].rstrip(".")


def _explain_status(error: errors.HfHubHTTPError, page: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not accept your token: {_LOG_IN}, with a valid one"
    if status == 403:
        return (
            f"your login may not do that with {page}: ask its owner, or take a token with more rights from "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    if status == 412:
        return "somebody has changed it meanwhile: try again"
    if status == 429:
        return "the Hub has had too many requests from here (HTTP 429): wait a while and try again"
    if status >= 500:
        return f"the Hub is out of order (HTTP {status}): try again later"
    return f"HTTP {status}, {error.server_message or error.response.reason_phrase}"
