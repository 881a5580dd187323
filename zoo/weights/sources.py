"""The one way from a variant to a verified local .safetensors file.

In this order: a file inside the package, the user's mirror folder (ZOO_WEIGHTS), the cache, the Hugging Face
Hub, the reference's own checkpoint, converted. A variant that is pinned to the Hub comes from nowhere else, unless
ZOO_UPSTREAM is set. Whatever comes over the network ends up in the cache with a record of where it came from, and a
digest that was seen once is demanded ever after.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import constants
from torch import Tensor

from zoo.catalog import VARIANTS, Source, Variant
from zoo.errors import (
    CheckpointMismatchError,
    CorruptWeightsError,
    DownloadError,
    StorageError,
    UnsafeCheckpointError,
    WeightsUnavailableError,
    printable,
)
from zoo.weights.authors import fetch_from_authors
from zoo.weights.disk import files, records, safetensors_format
from zoo.weights.network.download import download
from zoo.weights.network.drive import download_from_drive
from zoo.weights.network.hub import HUB_FILENAME, check_arrived, hub_file
from zoo.weights.reading.unpickle import Checkpoint, read_checkpoint

_logger = logging.getLogger("zoo")

BUNDLED = Path(__file__).parent / "bundled"
LOCK_FILE = Path(__file__).parent.parent / "weights.lock.json"
NOTICE = 1.0  # seconds of waiting for another process before the user hears of it


class Converted(NamedTuple):
    """What a reference checkpoint becomes: the zoo's tensors, and what their file says besides (see `ZooModel`)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


_Convert = Callable[[Checkpoint], Converted]


def cache_dir() -> Path:
    """The cache folder: ZOO_CACHE, or pretext-zoo in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("ZOO_CACHE")
    try:
        if own:
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pretext-zoo"
    except RuntimeError as error:  # no HOME, and a user whom the system doesn't know
        raise StorageError("There is no home folder to keep the cache in. Set ZOO_CACHE to a folder.") from error


def cached_path(variant: Variant) -> Path:
    """Where the cache keeps the weights of a variant, whether or not they are there."""
    return cache_dir() / f"{variant.name}.safetensors"


def fetch(variant: Variant, convert: _Convert, *, progress: bool = True) -> Path:
    """A local .safetensors file with the weights of `variant`, downloaded and converted if need be.

    convert: makes the zoo's tensors from a reference checkpoint. progress: show bars on a terminal.
    Several processes may call this at once: one of them downloads. Weights that are here need no network.

    Raises WeightsUnavailableError when no source has them (with the reason for each), CorruptWeightsError for
    files that are damaged or not those seen before, and what reading or converting a checkpoint raises.
    """
    provided = _find_provided(variant)
    if provided is not None:
        return provided
    path = cached_path(variant)
    sources = _remote_sources(variant)
    if not sources and not path.is_file():
        raise WeightsUnavailableError(
            f"{variant.name} has no published weights. Use pretrained=False and train it with `zoo train`."
        )
    # Weights that another process is about to record look damaged: only the lock's holder may judge.
    with suppress(CorruptWeightsError):
        if _is_cached(variant, path):
            return path
    with _lock(variant.name):
        try:
            if _is_cached(variant, path):  # made by another process while this one waited
                return path
        except CorruptWeightsError as error:
            _logger.warning("%s. It is removed, and the weights are fetched again.", first_sentence(error))
            _remove(path)
        files.remove_leftovers(path)
        tried: list[str] = []
        for source in sources:
            try:
                _fetch_from(source, variant, convert, path, progress)
            except (DownloadError, WeightsUnavailableError) as error:
                reason, place = first_sentence(error), str(source).split()[-1]
                tried.append(reason if place in reason else f"{source}: {reason}")
            else:
                _logger.info("%s: weights from %s, now in %s", variant.name, source, path)
                return path
    elsewhere = "set ZOO_UPSTREAM=1 to have the authors' own checkpoint converted, " if _binding_pin(variant) else ""
    raise WeightsUnavailableError(
        f"The weights of {variant.name} could not be had from any source ({'; '.join(tried) or 'it has none'}). "
        f"Connect to the network, name a folder with {variant.name}.safetensors in ZOO_WEIGHTS, {elsewhere}convert a "
        "checkpoint that you have with `zoo convert`, or use pretrained=False."
    )


def is_ours(path: str | Path) -> bool:
    """Whether a weights file belongs to the package or the cache: those are only ever replaced, never written over.

    Whatever else there is, the user's own files and those in ZOO_WEIGHTS too, may be.
    """
    path = Path(path).resolve()
    folder = os.environ.get("ZOO_WEIGHTS")
    if folder and path.parent == Path(folder).expanduser().resolve():
        return False
    if path.parent == BUNDLED.resolve():
        return True
    return path.parent == cache_dir().resolve() and records.record_path(path).is_file()


def source_of(path: str | Path) -> dict[str, Any]:
    """Where a weights file came from: its record (see `zoo.weights.disk.records.write_record`).

    A file without a record gives {"source": {"kind": "file", "location": its path}}. Raises CorruptWeightsError for a
    record that isn't one of the zoo's.
    """
    path = Path(path)
    record = records.read_record(path)
    if record is None:
        return {"source": {"kind": "file", "location": str(path)}}
    records.check_record(path, record)
    return record


@dataclass(frozen=True)
class Verification:
    """Outcome of checking one file fully.

    problem: what is wrong with it; None if nothing is. sha256: None for a file with a problem.
    recorded: whether there was a record to compare it with.
    """

    path: Path
    sha256: str | None
    recorded: bool
    problem: str | None = None


def verify(variant_or_path: Variant | str | Path, *, progress: bool = True) -> list[Verification]:
    """Check files fully: one by its path, or all of a variant (bundled, mirrored, cached, downloaded).

    An empty list means that nothing of the variant is here. Problems are reported, not raised.
    """
    if not isinstance(variant_or_path, Variant):
        return [_verify_file(Path(variant_or_path), progress)]
    variant = variant_or_path
    candidates = [_bundled_path(source) for source in variant.sources if source.kind == "package"]
    mirrored = _mirror_path(variant)
    if mirrored is not None:
        candidates.append(mirrored)
    candidates.append(cached_path(variant))
    candidates += [_download_path(source) for source in variant.sources if source.kind in ("url", "gdrive")]
    return [_verify_file(path, progress, variant) for path in candidates if path.is_file()]


def _verify_file(path: Path, progress: bool, variant: Variant | None = None) -> Verification:
    try:
        record = records.read_record(path)
        if record is None:
            digest = records.check_content(path, progress)
        elif "header_sha256" in record:
            digest = records.check_full(path, progress)["sha256"]
            if variant is not None:
                _check_variants(path, record, variant)
        else:  # a reference checkpoint as downloaded
            digest = _check_download(path, progress)
    except (OSError, CheckpointMismatchError) as error:
        return Verification(path, None, records.record_path(path).exists(), str(error))
    return Verification(path, digest, record is not None)


# -------------------------------------------------------------------------------------- local sources


def _find_provided(variant: Variant) -> Path | None:
    """Weights from the package or the user; damage is an error, since neither is the cache's to replace."""
    for source in variant.sources:
        if source.kind == "package" and _bundled_path(source).is_file():
            path = _bundled_path(source)
            records.check_quick(path)
            _logger.info("%s: weights from the package, %s", variant.name, path)
            return path
    mirrored = _mirror_path(variant)
    if mirrored is None or not mirrored.is_file():
        return None
    record = records.check_quick(mirrored) if records.record_path(mirrored).exists() else {}
    _check_variants(mirrored, record, variant)
    _logger.info("%s: weights from ZOO_WEIGHTS, %s", variant.name, mirrored)
    return mirrored


def _is_cached(variant: Variant, path: Path) -> bool:
    if not path.is_file():
        return False
    record = records.check_quick(path)
    _check_variants(path, record, variant)
    pin = _binding_pin(variant)
    if pin is not None and record.get("sha256") != pin["sha256"]:
        _logger.info("%s: %s isn't the file that the zoo is pinned to now", variant.name, path)
        return False
    _logger.info("%s: weights from the cache, %s", variant.name, path)
    return True


def _check_variants(path: Path, record: dict[str, Any], variant: Variant) -> None:
    """The same by what the file's record and its header say."""
    for named in (record.get("variant"), safetensors_format.read_metadata(path).get("variant")):
        _check_variant(named, variant, path)


def _check_variant(named: str | None, variant: Variant, path: Path) -> None:
    """Refuse a file that says that it is of another variant, unless both are made from the same checkpoint."""
    if named in (None, variant.name):
        return
    if any(other.name == named and set(other.sources) & set(variant.sources) for other in VARIANTS):
        return
    raise CheckpointMismatchError(
        f"{path} holds the weights of {printable(named)}, not of {variant.name}. Put the right file in its place."
    )


def _bundled_path(source: Source) -> Path:
    return BUNDLED / source.location


def _mirror_path(variant: Variant) -> Path | None:
    folder = os.environ.get("ZOO_WEIGHTS")
    return Path(folder).expanduser() / f"{variant.name}.safetensors" if folder else None


# ------------------------------------------------------------------------------------- remote sources


@dataclass(frozen=True)
class _HubFile:
    """A file on the Hugging Face Hub; revision and sha256 are None in a repository that the user named."""

    repo: str
    filename: str = HUB_FILENAME
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"Hugging Face Hub {self.repo}"


@dataclass(frozen=True)
class _CatalogSource:
    source: Source

    def __str__(self) -> str:
        return _KINDS[self.source.kind] + self.source.location


_KINDS = {"package": "package file ", "hub": "Hugging Face Hub ", "url": "", "gdrive": "Google Drive "}


def _pin(variant: Variant) -> dict[str, str] | None:
    return (files.read_json(LOCK_FILE) or {}).get(variant.name)


def _binding_pin(variant: Variant) -> dict[str, str] | None:
    """The pinned repository, if weights may come from nowhere else; None if they may."""
    return _pin(variant) if os.environ.get("ZOO_UPSTREAM", "") in ("", "0") else None


def _remote_sources(variant: Variant) -> list[_HubFile | _CatalogSource]:
    hub: list[_HubFile | _CatalogSource] = []
    organization = os.environ.get("ZOO_HUB_ORG")
    pin = _pin(variant)
    if pin is not None:
        hub.append(_HubFile(**pin))
    elif organization:
        hub.append(_HubFile(f"{organization}/{variant.name}"))
    if _binding_pin(variant) is not None:
        return hub
    return hub + [_CatalogSource(source) for source in variant.sources]


def _fetch_from(
    origin: _HubFile | _CatalogSource, variant: Variant, convert: _Convert, path: Path, progress: bool
) -> None:
    """Put the weights into the cache; DownloadError or WeightsUnavailableError if this source has none."""
    if isinstance(origin, _HubFile):
        _fetch_from_hub(origin, variant, path, progress)
        return
    source = origin.source
    if source.kind == "package":
        raise WeightsUnavailableError("not in this installation. Install the package again.")
    if source.kind == "hub":
        arrived = fetch_from_authors(source, cache_dir() / "hub", progress)
        location = f"{source.location}/{HUB_FILENAME}@{arrived.commit}"
        _make(path, arrived.path, variant, replace(source, location=location), arrived.sha256, convert)
        return
    downloaded, digest = _downloaded(source, progress)
    _make(path, downloaded, variant, source, digest, convert)


def _make(path: Path, downloaded: Path, variant: Variant, source: Source, digest: str, convert: _Convert) -> None:
    """Put a downloaded file into the cache, converted unless it is in the zoo's own layout, and record it."""
    records.remove_record(path)
    try:
        if source.layout == "zoo":
            safetensors_format.header_digest(downloaded)
            link(downloaded, path)
        else:
            tensors, metadata = convert(read_checkpoint(downloaded, mapped=True))
            safetensors_format.save_safetensors(tensors, path, {"format": "pt", "variant": variant.name, **metadata})
    except (CorruptWeightsError, UnsafeCheckpointError):
        _remove(downloaded)  # the next try shall not find the same file again
        raise
    records.write_record(path, variant=variant.name, kind=source.kind, location=source.location, source_sha256=digest)


def _downloaded(source: Source, progress: bool) -> tuple[Path, str]:
    """A source's file, shared by the variants made from it, and its SHA-256, which may never change."""
    path = _download_path(source)
    with _lock(path.name):
        record = files.read_json(records.record_path(path))
        if record is not None and record.get(source.kind) != source.location:
            _logger.warning("%s is of another source. It is downloaded again.", path)
            record = None
        if record is not None and path.is_file():
            try:
                return path, _check_download(path, progress)
            except CorruptWeightsError as error:
                _logger.warning("%s. It is downloaded again.", first_sentence(error))
        expected = record.get("sha256") if record else None
        get = download if source.kind == "url" else download_from_drive
        digest = get(source.location, path, expected_sha256=expected, at_most=_most_bytes(source), progress=progress)
        _compare_with_record(source, digest)
        files.write_json(
            records.record_path(path), {source.kind: source.location, "sha256": digest, "size": path.stat().st_size}
        )
        return path, digest


def _most_bytes(source: Source) -> int:
    """How large a checkpoint may be, generously: numbers of 4 bytes, a moving average and an optimizer's state of all,
    of more networks than the variant is; and what isn't a parameter, such as a memory bank of 1.3 million images."""
    largest = max((variant.parameters for variant in VARIANTS if source in variant.sources), default=0)
    return 64 * largest + 2_000_000_000


def _compare_with_record(source: Source, digest: str) -> None:
    """Say whether a first download is the file that the catalog has heard of."""
    known = source.recorded_sha256
    if known and digest.startswith(known):
        _logger.info("%s: it has the SHA-256 that is recorded of it, %s", source.location, known)
    elif known:
        _logger.warning(
            "%s: its SHA-256 is %s, where one record says %s; it is remembered as it is", source.location, digest, known
        )


def _download_path(source: Source) -> Path:
    prefix = hashlib.sha256(source.location.encode()).hexdigest()[:12]
    name = PurePosixPath(unquote(urlsplit(source.location).path)).name or "download"
    return cache_dir() / "downloads" / f"{prefix}-{name}"


def _check_download(path: Path, progress: bool) -> str:
    record = records.read_record(path) or {}
    digest = files.sha256(path, progress)
    if digest != record.get("sha256"):
        raise CorruptWeightsError(
            f"{path} has changed since it was downloaded: its SHA-256 isn't the recorded one. "
            "Remove it to have it downloaded again."
        )
    return digest


def _fetch_from_hub(hub: _HubFile, variant: Variant, path: Path, progress: bool) -> None:
    found = hub_file(hub.repo, hub.filename, hub.revision).resolve()
    digest = files.sha256(found, progress)
    check_arrived(found, hub.repo, digest)
    seen_path = cache_dir() / "hub" / f"{variant.name}.json"
    seen = files.read_json(seen_path) or {}
    expected = hub.sha256 or (seen.get("sha256") if seen.get("repo") == hub.repo else None)
    if expected is not None and digest != expected:
        advice = "Don't use it." if hub.sha256 else f"Remove {seen_path} if the change was intended."
        raise CorruptWeightsError(
            f"{hub.filename} of {hub.repo} on the Hub isn't the expected file: its SHA-256 is {digest} "
            f"instead of {expected}. {advice}"
        )
    _check_variant(safetensors_format.read_metadata(found).get("variant"), variant, found)
    if hub.sha256 is None:
        files.write_json(seen_path, {"repo": hub.repo, "filename": hub.filename, "sha256": digest})
    records.remove_record(path)
    link(found, path)
    location = f"{hub.repo}/{hub.filename}" + (f"@{hub.revision}" if hub.revision else "")
    records.write_record(path, variant=variant.name, kind="hub", location=location, source_sha256=digest)


# ------------------------------------------------------------------------------------------- plumbing


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Keep other processes from making the same file at the same time."""
    path = cache_dir() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=NOTICE)
        except Timeout:
            _logger.info("%s is being made by another process, which is waited for", name)
            lock.acquire()
    except OSError as error:
        raise StorageError(
            f"The cache folder {cache_dir()} can't be written ({error.strerror or error}). Set ZOO_CACHE to another."
        ) from error
    try:
        yield
    finally:
        lock.release()


def link(source: Path, path: Path) -> None:
    """Give a file a second name, so that it takes no more space; a copy where file systems can't do that.

    Raises StorageError if it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        copy(source, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def copy(source: Path, path: Path) -> None:
    """Copy a file to where its owner may write over it. Raises StorageError if it can't be written."""
    with files.atomic_writer(path) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target)


def _remove(path: Path) -> None:
    try:
        if path.is_symlink() and path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
            path.resolve().unlink(missing_ok=True)  # huggingface_hub keeps files under other names
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} can't be removed ({files.reason_of(error)}). Remove it yourself.") from error
    records.remove_record(path)


def first_sentence(error: Exception) -> str:
    """What is wrong, without what to do."""
    return str(error).partition(". ")[0].removesuffix(".")
