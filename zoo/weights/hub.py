"""Files of the Hugging Face Hub: its own client and cache, checked digests, and errors that say what to do."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

from zoo.errors import CorruptWeightsError, DownloadError, WeightsUnavailableError
from zoo.weights import files
from zoo.weights.download import check_reachable

HUB_FILENAME = "model.safetensors"  # timm's name for it

_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def split_id(hub_id: str) -> tuple[str, str | None]:
    """ "OWNER/NAME@REVISION" -> the repository and the revision, None if there is none."""
    repo, _, revision = hub_id.partition("@")
    return repo, revision or None


def hub_file(
    repo: str, filename: str = HUB_FILENAME, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A file of a repository, in huggingface_hub's cache; its SHA-256 is checked when it arrives.

    A commit's files never change, so one that is here needs no network. Of a branch or tag the newest is asked
    for; without network what is here is taken, and huggingface_hub's retries are spared.

    Raises WeightsUnavailableError or DownloadError with what to do, CorruptWeightsError for a wrong digest.
    """
    try:
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
        path = Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir))
        if path != here:
            _check_arrived(path, repo)
        return path
    except (DownloadError, CorruptWeightsError):
        raise
    # The last two: what it raises for repositories' names and broken transfers.
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        place = f"{filename} of {repo}" + (f" at {revision}" if revision else "")
        raise WeightsUnavailableError(f"{place} can't be had from the Hub: {explain(error, repo)}.") from error


def _check_arrived(path: Path, repo: str) -> None:
    """Compare a large file with its name in the cache, which is the SHA-256 that the Hub announced."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and (digest := files.sha256(blob, progress=True)) != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise CorruptWeightsError(
            f"{path.name} of {repo} did not arrive as the Hub announced it: its SHA-256 is {digest} instead of "
            f"{blob.name}. Try again; if that keeps happening, something between here and the Hub changes files."
        )


def explain(error: Exception, repo: str) -> str:
    """What huggingface_hub's error means for the user, and what to do: one clause without a full stop."""
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, repo)
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
