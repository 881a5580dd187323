"""A Hugging Face Hub on loopback, for tests: the part of its protocol that huggingface_hub uses for models.

The real client talks to it (HF_ENDPOINT), from this process or others, any number at a time. Large files go the LFS
way, basic or in parts: a client needs HF_HUB_DISABLE_XET=1, as in `HubServer.environment`, since hf_xet speaks to
other servers. Downloads of large files are redirected to another host name ("localhost"), as the Hub redirects
to its storage, so that a token sent there would be seen.

    with HubServer(tmp_path) as hub:
        hub.add_repo("owner/model", {"config.json": b"{}"}, gated=True)
        hub.faults.append(Fault("cdn", cut=1000))  # the next download of a large file breaks off after 1000 bytes
        ...
        assert hub.count("cdn") == 2

State lives on the server's one thread and is read by tests between requests; `faults` may be changed at any time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.hub_clients import HubClients
from tests.support.hub_faults import Fault, Seen, Spoiled
from tests.support.hub_store import Blob, HubStore, Repo, User, git_oid, is_lfs, refuse

LICENSES = frozenset(("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other"))

Handler = Callable[[Request], Awaitable[Response]]


class HubServer(HubClients, HubStore):
    """The server; a context manager. folder: where it keeps files.

    part_size: size of the parts that larger LFS files are uploaded in. page_size: entries of a page of listings.
    """

    def __init__(self, folder: Path, *, part_size: int = 4 << 20, page_size: int = 100) -> None:
        super().__init__(folder)
        self.part_size, self.page_size = part_size, page_size
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        app = Starlette(
            routes=[
                Route(path, self._guarded(name, handler), methods=[method], name=name)
                for name, method, path, handler in self.routes()
            ],
            exception_handlers={HTTPException: _answer_error},
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn_url = f"http://localhost:{self.port}/cdn"
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.should_exit = True
        self._thread.join()

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        """Names (for `count` and `Fault`), methods, paths and handlers. GET routes answer HEAD too."""
        repo = "/api/models/{namespace}/{name}"
        return (
            ("whoami", "GET", "/api/whoami-v2", self._whoami),
            ("create_repo", "POST", "/api/repos/create", self._create_repo),
            ("delete_repo", "DELETE", "/api/repos/delete", self._delete_repo),
            ("validate", "POST", "/api/validate-yaml", self._validate),
            ("settings", "PUT", repo + "/settings", self._settings),
            ("info", "GET", "/api/models/{name}", self._info),  # there are none without an owner here
            ("info", "GET", repo, self._info),
            ("info", "GET", repo + "/revision/{revision:path}", self._info),
            ("tree", "GET", repo + "/tree/{rest:path}", self._tree),
            ("paths", "POST", repo + "/paths-info/{revision:path}", self._paths),
            ("refs", "GET", repo + "/refs", self._refs),
            ("branch", "POST", repo + "/branch/{branch:path}", self._branch),
            ("tag", "POST", repo + "/tag/{revision:path}", self._tag),
            ("preupload", "POST", repo + "/preupload/{revision:path}", self._preupload),
            ("commit", "POST", repo + "/commit/{revision:path}", self._commit),
            ("lfs_batch", "POST", "/{namespace}/{name}.git/info/lfs/objects/batch", self._lfs_batch),
            ("lfs_verify", "POST", "/{namespace}/{name}.git/info/lfs/verify", self._lfs_verify),
            ("lfs_upload", "PUT", "/cdn/upload/{oid}", self._lfs_upload),
            ("lfs_part", "PUT", "/cdn/upload/{oid}/{part:int}", self._lfs_upload),
            ("lfs_complete", "POST", "/cdn/complete/{oid}", self._lfs_complete),
            ("cdn", "GET", "/cdn/{oid}", self._cdn),
            ("resolve", "GET", "/{namespace}/{name}/resolve/{rest:path}", self._resolve),
        )

    # ------------------------------------------------------------------------------------ for tests

    def count(self, route: str = "*", method: str = "*", path: str = "*") -> int:
        """Number of requests that came in; arguments may have * and ?."""
        probe = Fault(route, method=method, path=path)
        return sum(probe.applies(seen) for seen in self.seen)

    # ---------------------------------------------------------------------------- faults, identities

    def _guarded(self, name: str, handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            seen = Seen(name, request.method, request.url.path, dict(request.headers))
            self.seen.append(seen)
            fault = next((fault for fault in self.faults if fault.applies(seen)), None)
            if fault is None:
                return await answer(request)
            if fault.times is not None:
                fault.times -= 1
            await asyncio.sleep(fault.delay)
            if fault.status is not None:
                return Spoiled(Response(fault.body, fault.status, dict(fault.headers)), fault)
            return Spoiled(await answer(request), fault)

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except HTTPException:
                raise
            except Exception:
                traceback.print_exc()  # uvicorn's log is off, because broken connections are meant to be
                raise

        return endpoint

    def _user(self, request: Request) -> User | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.users:
            refuse(401, message="Invalid credentials in Authorization header")
        return self.users[token]

    def _readable(self, request: Request, file: str = "README.md") -> Repo:
        """The repository of a request, if whoever asks may read this file of it."""
        repo_id = "/".join(request.path_params[key] for key in ("namespace", "name") if key in request.path_params)
        repo, user = self.repos.get(repo_id), self._user(request)
        if repo is None or (repo.private and not _owns(user, repo.namespace)):
            if user is None:
                refuse(401, "RepoNotFound", "Invalid username or password.")
            refuse(404, "RepoNotFound", "Repository not found")
        open_to_all = file in ("README.md", ".gitattributes")
        if repo.gated and not open_to_all and not _owns(user, repo.namespace):
            restricted = f"Access to model {repo_id} is restricted"
            if user is None:
                refuse(401, "GatedRepo", f"{restricted}. You must have access to it and be authenticated to access it.")
            if user.name not in repo.allowed:
                visit = f"Visit {self.url}/{repo_id} to ask for access."
                refuse(403, "GatedRepo", f"{restricted} and you are not in the authorized list. {visit}")
        return repo

    def _writable(self, request: Request) -> Repo:
        """The repository of a request, if whoever asks may write to it, or open a pull request as was asked."""
        repo, user = self._readable(request), self._user(request)
        if user is None:
            refuse(401, message="Invalid username or password.")
        if not _owns(user, repo.namespace) and request.query_params.get("create_pr") != "1":
            refuse(403, message="Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    # ------------------------------------------------------------------------------------- accounts

    async def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            refuse(401, message="Invalid username or password.")
        return JSONResponse({"type": "user", "name": user.name, "orgs": [{"name": org} for org in user.orgs]})

    # --------------------------------------------------------------------------------- repositories

    async def _create_repo(self, request: Request) -> Response:
        user, asked = self._user(request), await request.json()
        if user is None:
            refuse(401, message="Invalid username or password.")
        namespace = asked.get("organization") or user.name
        repo_id = f"{namespace}/{asked['name']}"
        if not _owns(user, namespace):
            refuse(403, message=f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        answer = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            return JSONResponse({**answer, "error": "You already created this model repo"}, 409)
        self.add_repo(repo_id, private=asked.get("visibility") == "private")
        return JSONResponse(answer)

    async def _delete_repo(self, request: Request) -> Response:
        asked = await request.json()
        request.path_params.update(namespace=asked["organization"], name=asked["name"])
        del self.repos[self._writable(request).id]
        return JSONResponse({})

    async def _settings(self, request: Request) -> Response:
        repo, asked = self._writable(request), await request.json()
        repo.gated = bool(asked.get("gated", repo.gated))
        repo.private = asked.get("visibility", "private" if repo.private else "public") == "private"
        return JSONResponse({})

    async def _info(self, request: Request) -> Response:
        repo = self._readable(request)
        commit = self._find_commit(repo, request.path_params.get("revision", "main"))
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
        if "blobs" in request.query_params:
            for sibling in siblings:
                blob = commit.files[sibling["rfilename"]]
                sibling.update(size=blob.size, blobId=blob.oid)
                if blob.sha256:
                    sibling["lfs"] = {"size": blob.size, "sha256": blob.sha256, "pointerSize": 134}
        card = self._card_data(commit)
        about = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        return JSONResponse(
            {
                "id": repo.id,
                "author": repo.namespace,
                "sha": commit.id,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "lastModified": commit.date,
                "tags": card.get("tags", []),
                "cardData": card,
                "siblings": siblings,
                **about,
            }
        )

    async def _tree(self, request: Request) -> Response:
        revision, folder = _split(request.path_params["rest"])
        commit = self._find_commit(self._readable(request), revision)
        inside = [path for path in sorted(commit.files) if not folder or path.startswith(folder + "/")]
        if folder and not inside:
            refuse(404, "EntryNotFound", f"{folder} does not exist on this revision")
        entries = [_entry(path, commit.files[path]) for path in inside]
        if request.query_params.get("recursive", "false").lower() != "true":
            depth = len(PurePosixPath(folder).parts) + 1
            direct = [entry for entry in entries if len(PurePosixPath(entry["path"]).parts) == depth]
            below = {"/".join(PurePosixPath(path).parts[:depth]) for path in inside}
            entries = direct + [
                {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
                for path in sorted(below - {entry["path"] for entry in direct})
            ]
        start = int(request.query_params.get("cursor", "0"))
        end = start + self.page_size
        headers = {}
        if end < len(entries):
            url = f"{self.url}{request.url.path}?{request.url.query}".split("&cursor=")[0]
            headers["link"] = f'<{url}&cursor={end}>; rel="next"'
        return JSONResponse(entries[start:end], headers=headers)

    async def _paths(self, request: Request) -> Response:
        commit = self._find_commit(self._readable(request), request.path_params["revision"])
        paths = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([_entry(path, commit.files[path]) for path in paths if path in commit.files])

    async def _refs(self, request: Request) -> Response:
        repo = self._readable(request)

        def listed(refs: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in refs.items()]

        branches = {name: commit for name, commit in repo.refs.items() if not name.startswith("refs/pr/")}
        pulls = {name: commit for name, commit in repo.refs.items() if name.startswith("refs/pr/")}
        return JSONResponse(
            {
                "branches": listed(branches, "refs/heads/"),
                "tags": listed(repo.tags, "refs/tags/"),
                "pullRequests": listed(pulls, ""),
                "converts": [],
            }
        )

    async def _branch(self, request: Request) -> Response:
        repo, asked, branch = self._writable(request), await request.json(), request.path_params["branch"]
        if branch in repo.refs:
            refuse(409, message=f"Reference already exists: refs/heads/{branch}")
        repo.refs[branch] = self._find_commit(repo, asked.get("startingPoint", "main")).id
        return JSONResponse({})

    async def _tag(self, request: Request) -> Response:
        repo, asked = self._writable(request), await request.json()
        if asked["tag"] in repo.tags:
            refuse(409, message=f"Reference already exists: refs/tags/{asked['tag']}")
        repo.tags[asked["tag"]] = self._find_commit(repo, request.path_params["revision"]).id
        return JSONResponse({})

    # ------------------------------------------------------------------------------------ uploading

    async def _validate(self, request: Request) -> Response:
        """The checks of a card's metadata that matter here."""
        text = (await request.json())["content"]
        errors, warnings = [], []
        try:
            data = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
        except (yaml.YAMLError, IndexError) as error:
            data = None
            errors.append(f"YAML error: {error}")
        if data is None:
            warnings.append("empty or missing yaml metadata in repo card")
        else:
            if data.get("license", "other") not in LICENSES:
                errors.append(f'"license" must be one of {sorted(LICENSES)}')
            for key in ("tags", "datasets"):
                if not all(isinstance(entry, str) for entry in data.get(key, [])):
                    errors.append(f'"{key}" must be an array of strings')
            for model in data.get("model-index", []):
                for result in model["results"]:
                    if not {"type"} <= set(result["task"]) or not {"type", "name"} <= set(result["dataset"]):
                        errors.append('"model-index" lacks a type or name')
                    if not all({"type", "value"} <= set(metric) for metric in result["metrics"]):
                        errors.append('"model-index" lacks a metric\'s type or value')
        content = {
            key: [{"message": text} for text in texts] for key, texts in zip(("errors", "warnings"), (errors, warnings))
        }
        return JSONResponse(content, 400 if errors else 200)

    async def _preupload(self, request: Request) -> Response:
        repo = self._writable(request)
        revision = request.path_params["revision"]
        present = self._find_commit(repo, revision).files
        answers = []
        for file in (await request.json())["files"]:
            path, known = file["path"], present.get(file["path"])
            lfs = is_lfs(path, base64.b64decode(file["sample"]), file["size"])
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if known is not None:
                answer["oid"] = known.sha256 or known.oid
            answers.append(answer)
        return JSONResponse({"files": answers})

    async def _lfs_batch(self, request: Request) -> Response:
        repo, user, asked = self._readable(request), self._user(request), await request.json()
        if user is None or (asked.get("ref") and not _owns(user, repo.namespace)):
            refuse(403, message="You have no rights to push to this repository")
        answers = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if not self._lfs_path(oid).exists():
                verify = f"{self.url}/{repo.id}.git/info/lfs/verify"
                upload: dict[str, Any] = {"href": f"{self.cdn_url}/upload/{oid}"}
                if size > self.part_size:
                    parts = range(1, -(-size // self.part_size) + 1)
                    upload["href"] = f"{self.cdn_url}/complete/{oid}"
                    upload["header"] = {"chunk_size": str(self.part_size)} | {
                        f"{part:05}": f"{self.cdn_url}/upload/{oid}/{part}" for part in parts
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": verify}}
            answers.append(answer)
        return JSONResponse({"transfer": "basic", "objects": answers})

    async def _lfs_upload(self, request: Request) -> Response:
        """A file, or a part of one: checked when it is complete."""
        oid, part = request.path_params["oid"], request.path_params.get("part", 1)
        content = await request.body()
        self._part_path(oid, part).write_bytes(content)
        if request.path_params.get("part") is None:
            self._assemble(oid, 1)
        return Response(headers={"etag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def _lfs_complete(self, request: Request) -> Response:
        parts = (await request.json())["parts"]
        for part in parts:
            content = self._part_path(request.path_params["oid"], part["partNumber"]).read_bytes()
            if part["etag"].strip('"') != hashlib.md5(content).hexdigest():
                refuse(400, message="a part's etag is wrong")
        self._assemble(request.path_params["oid"], len(parts))
        return JSONResponse({"success": True})

    async def _lfs_verify(self, request: Request) -> Response:
        asked = await request.json()
        path = self._lfs_path(asked["oid"])
        if not path.exists() or path.stat().st_size != asked["size"]:
            refuse(404, message="LFS object not found")
        return JSONResponse({})

    async def _commit(self, request: Request) -> Response:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        # nothing is awaited from here on: of two commits at once the second builds on the first
        repo, revision = self._writable(request), request.path_params["revision"]
        parent = self._find_commit(repo, revision)
        files = dict(parent.files)
        header = lines[0]["value"]
        if header.get("parentCommit", parent.id) != parent.id:
            refuse(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            path = value["path"]
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                refuse(400, message=f"{path} is no valid path")
            if kind == "file":
                files[path] = self._store(base64.b64decode(value["content"]), lfs=False)
            elif kind == "lfsFile":
                if not self._lfs_path(value["oid"]).exists():
                    refuse(400, message=f"LFS object {value['oid']} of {path} was not uploaded")
                files[path] = self._lfs_blob(value["oid"])
            elif kind in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if name == path or (kind == "deletedFolder" and name.startswith(path))]
                if not gone:
                    refuse(404, "EntryNotFound", "A file with this name doesn't exist")
                for name in gone:
                    del files[name]
            else:
                refuse(400, message=f"{kind} is no operation")
        answer: dict[str, Any] = {"success": True}
        if request.query_params.get("create_pr") == "1":
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            revision = f"refs/pr/{number}"
            repo.refs[revision] = parent.id
            answer["pullRequestUrl"] = f"{self.url}/{repo.id}/discussions/{number}"
        commit = self._add_commit(repo, revision, header["summary"], files)
        return JSONResponse({**answer, "commitOid": commit, "commitUrl": f"{self.url}/{repo.id}/commit/{commit}"})

    # ---------------------------------------------------------------------------------- downloading

    async def _resolve(self, request: Request) -> Response:
        revision, path = _split(request.path_params["rest"])
        commit = self._find_commit(self._readable(request, path), revision)
        headers = {"x-repo-commit": commit.id}
        if path not in commit.files:
            refuse(404, "EntryNotFound", "Entry not found", headers)
        blob = commit.files[path]
        if blob.sha256 is None:
            return FileResponse(blob.path, headers={**headers, "etag": f'"{blob.oid}"'}, media_type="text/plain")
        headers |= {"x-linked-size": str(blob.size), "x-linked-etag": f'"{blob.sha256}"'}
        return RedirectResponse(f"{self.cdn_url}/{blob.sha256}", 302, headers)

    async def _cdn(self, request: Request) -> Response:
        oid = request.path_params["oid"]
        return FileResponse(self._lfs_path(oid), headers={"etag": f'"{oid}"'}, media_type="application/octet-stream")


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _split(rest: str) -> tuple[str, str]:
    """The revision and the path in "main/some/file" or "refs/pr/1/some/file"."""
    parts = rest.strip("/").split("/")
    length = 3 if rest.startswith("refs/pr/") else 1
    return "/".join(parts[:length]), "/".join(parts[length:])


def _owns(user: User | None, namespace: str) -> bool:
    return user is not None and namespace in (user.name, *user.orgs)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.sha256 else {}
    return {"type": "file", "path": path, "oid": blob.oid, "size": blob.size, **lfs}
