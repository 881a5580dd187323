"""Weights from their authors' own repositories on the Hugging Face Hub, which the catalog names by what is known.

A revision or digest of the catalog is somebody's record that nobody here could check: the revision is asked for first
and a digest that differs is told. What came first is recorded in the cache, and demanded ever after.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors

from zoo.catalog import Source
from zoo.errors import CorruptWeightsError, DownloadError, WeightsUnavailableError
from zoo.weights.disk import files
from zoo.weights.network.hub import HUB_FILENAME, hub_file

_logger = logging.getLogger("zoo")

CONFIG_FILE = "config.json"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Arrived:
    """A repository's weights in huggingface_hub's cache, beside them its config.json if it has one."""

    path: Path
    sha256: str
    commit: str


def fetch_from_authors(source: Source, records: Path, progress: bool) -> Arrived:
    """The weights of a source of kind "hub". records: the folder that remembers what came first.

    Raises WeightsUnavailableError or DownloadError if the Hub has none, CorruptWeightsError for another file than the
    first time.
    """
    repo = source.location
    record = records / f"{repo.replace('/', '--')}.json"
    seen = files.read_json(record) or {}
    path = _first_known(repo, seen.get("commit"), source.revision)
    commit = path.parent.name  # huggingface_hub keeps a commit's files in a folder of its name
    config_beside(repo, commit)
    digest = files.sha256(path, progress)
    if seen and digest != seen.get("sha256"):
        raise CorruptWeightsError(
            f"{HUB_FILENAME} of {repo} on the Hub isn't the file that came first: its SHA-256 is {digest} instead of "
            f"{seen.get('sha256')}. Remove {record} if the change was intended."
        )
    if not seen:
        _compare_with_record(source, commit, digest)
        files.write_json(record, {"repo": repo, "commit": commit, "sha256": digest})
    return Arrived(path, digest, commit)


def config_beside(repo: str, revision: str | None, cache_dir: str | Path | None = None) -> None:
    """Get a repository's config.json to where its weights are, so that these can be compared with it."""
    try:
        hub_file(repo, CONFIG_FILE, revision, cache_dir)
    except (DownloadError, WeightsUnavailableError) as error:
        _logger.info("%s has no %s to compare its weights with (%s)", repo, CONFIG_FILE, error)


def _first_known(repo: str, *revisions: str | None) -> Path:
    """The weights at the first full revision that the Hub knows, or else at main."""
    for revision in revisions:
        if revision is None or not _COMMIT.fullmatch(revision):  # the Hub does not take the beginning of one
            continue
        try:
            return hub_file(repo, HUB_FILENAME, revision)
        except WeightsUnavailableError as error:
            if not isinstance(error.__cause__, errors.RevisionNotFoundError):
                raise
            _logger.warning("%s: the Hub knows no revision %s, so its main is taken", repo, revision)
    return hub_file(repo, HUB_FILENAME, "main")


def _compare_with_record(source: Source, commit: str, digest: str) -> None:
    """Say where a first download differs from what the catalog has heard of it."""
    for what, got, told in (("commit", commit, source.revision), ("SHA-256", digest, source.recorded_sha256)):
        if told and not got.startswith(told):
            _logger.warning(
                "%s: its %s is %s, where one record says %s%s; it is remembered as it is",
                *(source.location, what, got, told, "" if len(told) in (40, 64) else "..."),
            )
