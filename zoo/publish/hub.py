"""A folder goes to the Hub in one commit, over nothing that somebody else has written there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors

from zoo.errors import PublishError
from zoo.publish.checks import check_repository
from zoo.publish.folder import FILES, SUMS, listing
from zoo.version import __version__
from zoo.weights.disk import files
from zoo.weights.network.hub import explain


def upload(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    message: str = "Publish with pretext-zoo",
) -> CommitInfo:
    """Send a folder to the Hub in one commit, which also removes what an earlier one of ours left; see `push_to_hub`.

    Raises PublishError.
    """
    check_repository(repo)
    folder = Path(folder)
    ours = {name: folder / name for name in listing(folder)}
    api = HfApi(library_name="pretext-zoo", library_version=__version__)
    with _in_plain_words(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.model_info(repo, revision=revision, files_metadata=True)
        if private and not info.private:
            raise PublishError(
                f"{repo} is there and public; make it private at {constants.ENDPOINT}/{repo}/settings, or leave out "
                "private."
            )
        theirs = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        with tempfile.TemporaryDirectory() as temporary:
            remote = _Remote(api, repo, info.sha, theirs, Path(temporary))
            published = remote.published()
            lost = [
                name
                for name in ours
                if name in theirs
                and name != SUMS
                and remote.digest(name) not in (published.get(name), files.sha256(ours[name]))
            ]
            if SUMS in theirs and not published:
                lost.append(SUMS)
            if lost and not force:
                raise PublishError(
                    f"{repo} has {', '.join(lost)} with contents that `zoo push` did not write, which would be lost; "
                    "choose another repository, or overwrite them with --force (force=True)."
                )
            stale = [
                name
                for name in FILES
                if name not in ours and name in theirs and remote.digest(name) == published.get(name)
            ]
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in ours.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(
            repo,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else info.sha,  # nobody's change in between is overwritten
        )


class _Remote:
    """What a repository holds at a commit."""

    def __init__(self, api: HfApi, repo: str, commit: str | None, siblings: dict[str, Any], folder: Path) -> None:
        self.api, self.repo, self.commit, self.siblings, self.folder = api, repo, commit, siblings, folder

    def published(self) -> dict[str, str]:
        """Names and SHA-256 that an earlier upload of ours has written down; empty if there was none."""
        if SUMS not in self.siblings:
            return {}
        lines = [line.split("  ") for line in self._read(SUMS).decode("utf-8", "replace").splitlines()]
        if not all(len(line) == 2 and len(line[0]) == 64 for line in lines):
            return {}
        return {name: digest for digest, name in lines if name in FILES}

    def digest(self, name: str) -> str:
        """SHA-256 of a file: large files have it in the listing, others are small."""
        lfs = self.siblings[name].lfs
        return lfs.sha256 if lfs else files.sha256(self._fetch(name))

    def _read(self, name: str) -> bytes:
        return self._fetch(name).read_bytes()

    def _fetch(self, name: str) -> Path:
        return Path(self.api.hf_hub_download(self.repo, name, revision=self.commit, cache_dir=self.folder))


@contextmanager
def _in_plain_words(repo: str) -> Iterator[None]:
    """huggingface_hub's errors as a PublishError that says what to do."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PublishError(
            f"{repo} can't be published without a login; run `hf auth login` or set HF_TOKEN."
        ) from error
    except (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.OfflineModeIsEnabled,
    ) as error:
        raise PublishError(f"{repo} can't be published: {explain(error, repo)}.") from error
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, PublishError):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, errors.HTTPError) else error
        raise PublishError(f"{repo} can't be published: {explain(cause, repo)}.") from error
