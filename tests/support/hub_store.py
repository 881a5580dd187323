"""What the Hub for tests keeps: users, repositories, commits, and the content of files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import yaml
from starlette.exceptions import HTTPException

LFS_SUFFIXES = frozenset((".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".zip"))
LFS_SIZE = 10 << 20


@dataclass(frozen=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blob:
    """A file's content on disk. oid: git's SHA-1. sha256: of a file in LFS, else None."""

    path: Path
    size: int
    oid: str
    sha256: str | None


@dataclass(frozen=True)
class Commit:
    id: str
    title: str
    files: Mapping[str, Blob]
    date: str


@dataclass
class Repo:
    """refs: branches by name, "refs/pr/N" for pull requests. gated: only `allowed` users may read its files."""

    id: str
    commits: dict[str, Commit]
    refs: dict[str, str]
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]


class HubStore:
    """Repositories, with their files in `folder`, read and written without a request."""

    owner = User("owner", ("zoo-org",))
    guest = User("guest")
    owner_token = "hf_OwnerTokenForTests"
    guest_token = "hf_GuestTokenForTests"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users = {self.owner_token: self.owner, self.guest_token: self.guest}
        self.repos: dict[str, Repo] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add_repo(self, repo_id: str, files: Mapping[str, bytes] | None = None, **attributes: Any) -> Repo:
        """A new repository with these files, without a request. attributes: see `Repo`."""
        first = Commit(_commit_id(repo_id), "initial commit", {}, _now())
        repo = self.repos[repo_id] = Repo(repo_id, {first.id: first}, {"main": first.id}, **attributes)
        if files:
            self.add_files(repo_id, files)
        return repo

    def add_files(self, repo_id: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit files, without a request; returns the commit."""
        repo = self.repos[repo_id]
        blobs = {path: self._store(content, is_lfs(path, content, len(content))) for path, content in files.items()}
        return self._add_commit(repo, revision, "by the test", {**self._files(repo, revision), **blobs})

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """A file's content, without a request."""
        return self._files(self.repos[repo_id], revision)[path].path.read_bytes()

    def listing(self, repo_id: str, revision: str = "main") -> list[str]:
        """Names of a repository's files, without a request."""
        return sorted(self._files(self.repos[repo_id], revision))

    def _find_commit(self, repo: Repo, revision: str) -> Commit:
        for refs in (repo.refs, repo.tags):
            if revision in refs:
                return repo.commits[refs[revision]]
        found = [commit for commit in repo.commits if len(revision) >= 7 and commit.startswith(revision)]
        if len(found) != 1:
            refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo.commits[found[0]]

    def _files(self, repo: Repo, revision: str) -> Mapping[str, Blob]:
        return self._find_commit(repo, revision).files

    def _add_commit(self, repo: Repo, revision: str, title: str, files: Mapping[str, Blob]) -> str:
        if revision not in repo.refs:
            refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        tree = "\n".join(f"{path} {blob.oid}" for path, blob in sorted(files.items()))
        commit = Commit(_commit_id(repo.refs[revision], title, tree), title, dict(sorted(files.items())), _now())
        repo.commits[commit.id] = commit
        repo.refs[revision] = commit.id
        return commit.id

    def _card_data(self, commit: Commit) -> dict[str, Any]:
        text = commit.files["README.md"].path.read_text("utf-8") if "README.md" in commit.files else ""
        return (yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None) or {}

    def _store(self, content: bytes, lfs: bool) -> Blob:
        if lfs:
            oid = hashlib.sha256(content).hexdigest()
            self._lfs_path(oid).write_bytes(content)
            return self._lfs_blob(oid)
        oid = git_oid(content)
        path = self.folder / oid
        path.write_bytes(content)
        return Blob(path, len(content), oid, None)

    def _lfs_blob(self, oid: str) -> Blob:
        path = self._lfs_path(oid)
        size = path.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
        return Blob(path, size, git_oid(pointer.encode()), oid)

    def _lfs_path(self, oid: str) -> Path:
        return self.folder / f"lfs-{oid}"

    def _part_path(self, oid: str, part: int) -> Path:
        return self.folder / f"part-{oid}-{part}"

    def _assemble(self, oid: str, parts: int) -> None:
        content = b"".join(self._part_path(oid, part).read_bytes() for part in range(1, parts + 1))
        if hashlib.sha256(content).hexdigest() != oid:
            refuse(400, message="the content doesn't have the SHA-256 that was announced")
        self._lfs_path(oid).write_bytes(content)


def refuse(
    status: int, code: str | None = None, message: str = "", headers: Mapping[str, str] | None = None
) -> NoReturn:
    about = {"x-error-message": message} | ({"x-error-code": code} if code else {})
    raise HTTPException(status, message, {**(headers or {}), **about})


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    return PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_SIZE or b"\0" in sample[:512]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit_id(*parts: str) -> str:
    return hashlib.sha1("\0".join((*parts, str(time.time_ns()))).encode()).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
