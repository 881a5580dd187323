"""The test Hub against the real huggingface_hub: what goes in comes out, and every fault that it injects arrives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub import errors as hub_errors

from tests.support.hub_server import Fault, HubServer

# huggingface_hub uploads files as httpx2's `data`
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")

BIG = bytes(range(256)) * 400  # 100 kB
CARD = b"---\nlicense: apache-2.0\nlibrary_name: timm\ntags: [zoo]\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "server", part_size=30_000, page_size=2) as server:
        server.patch(monkeypatch, tmp_path / "home", server.owner_token)
        yield server


def log_in(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)


def push(api: HfApi, repo: str, files: dict[str, bytes], **options: object) -> object:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="push", **options)


def test_up_and_down(hub: HubServer, tmp_path: Path) -> None:
    api = HfApi()
    assert api.whoami()["name"] == "owner"
    url = api.create_repo("owner/model", private=True)
    assert url.repo_id == "owner/model" and not api.repo_exists("owner/other")
    with pytest.raises(hub_errors.HfHubHTTPError, match="409"):
        api.create_repo("owner/model")
    api.create_repo("owner/model", exist_ok=True)

    files = {"README.md": CARD, "model.safetensors": BIG, "small.bin": b"x" * 100, "a/b/c.txt": b"text", "empty": b""}
    commit = push(api, "owner/model", files)
    assert hub.count("lfs_part") == 4 and hub.count("lfs_complete") == 1  # 100 kB in parts of 30 kB
    assert hub.count("lfs_upload") == 1 and hub.count("lfs_verify") == 2 and hub.count("commit") == 1
    assert sorted(api.list_repo_files("owner/model")) == sorted(files) == hub.listing("owner/model")
    info = api.model_info("owner/model", files_metadata=True)
    assert info.sha == commit.oid and info.private and info.card_data.license == "apache-2.0"
    assert {s.rfilename: s.size for s in info.siblings} == {name: len(content) for name, content in files.items()}
    tree = {entry.path: entry for entry in api.list_repo_tree("owner/model")}  # two entries a page
    assert set(tree) == {"README.md", "model.safetensors", "small.bin", "a", "empty"}
    assert tree["model.safetensors"].lfs.size == len(BIG)
    assert [entry.path for entry in api.get_paths_info("owner/model", ["a/b/c.txt", "absent"])] == ["a/b/c.txt"]
    assert api.file_exists("owner/model", "small.bin") and not api.file_exists("owner/model", "absent")

    folder = snapshot_download("owner/model", cache_dir=tmp_path / "cache")
    assert {name: (Path(folder) / name).read_bytes() for name in files} == files
    assert all("authorization" not in seen.headers for seen in hub.seen if seen.route == "cdn")
    hf_hub_download("owner/model", "model.safetensors", cache_dir=tmp_path / "cache")
    assert hub.count("cdn", "GET", "*") == 2  # kept, and known to be the same

    push(api, "owner/model", files)  # unchanged
    assert hub.count("lfs_part") == 4 and hub.count("commit") == 1
    api.delete_repo("owner/model")
    assert not api.repo_exists("owner/model")


def test_revisions_pull_requests_and_parents(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("owner/model", {"file": b"one"})
    api = HfApi()
    first = api.model_info("owner/model").sha
    api.create_branch("owner/model", branch="dev")
    api.create_tag("owner/model", tag="v1")
    push(api, "owner/model", {"file": b"two"}, revision="dev", parent_commit=first)
    with pytest.raises(hub_errors.HfHubHTTPError, match="412"):
        push(api, "owner/model", {"file": b"three"}, revision="dev", parent_commit=first)
    api.create_commit("owner/model", [CommitOperationDelete("file")], commit_message="gone", revision="dev")

    log_in(monkeypatch, hub.guest_token)
    with pytest.raises(hub_errors.HfHubHTTPError, match="403"):
        push(api, "owner/model", {"file": b"mine"})
    pull = push(api, "owner/model", {"file": b"please"}, create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    found = {
        revision: Path(hf_hub_download("owner/model", "file", revision=revision)).read_bytes()
        for revision in ("main", "v1", "refs/pr/1", first, first[:7])
    }
    assert found == {"main": b"one", "v1": b"one", "refs/pr/1": b"please", first: b"one", first[:7]: b"one"}
    assert [entry.path for entry in api.list_repo_tree("owner/model", revision="refs/pr/1")] == ["file"]
    with pytest.raises(hub_errors.RevisionNotFoundError):
        hf_hub_download("owner/model", "file", revision="v2")
    with pytest.raises(hub_errors.RemoteEntryNotFoundError):
        hf_hub_download("owner/model", "file", revision="dev")
    assert {ref.name for ref in api.list_repo_refs("owner/model").branches} == {"main", "dev"}


def test_who_may_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("zoo-org/private", {"file": b"1"}, private=True)
    hub.add_repo("zoo-org/gated", {"file": b"1", "README.md": CARD}, gated=True)
    for token, private, gated in (
        (None, hub_errors.RepositoryNotFoundError, "You must have access to it and be authenticated"),
        (hub.guest_token, hub_errors.RepositoryNotFoundError, r"not in the authorized list. Visit .*/zoo-org/gated"),
    ):
        log_in(monkeypatch, token)
        with pytest.raises(private):
            hf_hub_download("zoo-org/private", "file")
        with pytest.raises(hub_errors.GatedRepoError, match=gated):
            hf_hub_download("zoo-org/gated", "file")
        assert HfApi().model_info("zoo-org/gated").gated == "manual"
        hf_hub_download("zoo-org/gated", "README.md")
    hub.repos["zoo-org/gated"].allowed.add("guest")
    hf_hub_download("zoo-org/gated", "file")
    log_in(monkeypatch, hub.owner_token)
    hf_hub_download("zoo-org/private", "file")
    log_in(monkeypatch, "hf_wrong")
    with pytest.raises(hub_errors.HfHubHTTPError, match="401"):
        HfApi().model_info("zoo-org/private")


def test_bad_metadata_is_refused(hub: HubServer) -> None:
    hub.add_repo("owner/model")
    with pytest.raises(ValueError, match='"license" must be one of'):
        push(HfApi(), "owner/model", {"README.md": b"---\nlicense: mine\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(HfApi(), "owner/model", {"README.md": b"# Nothing\n"})


def test_many_at_once(hub: HubServer, tmp_path: Path) -> None:
    """Eight threads push to repositories of their own and one shared; four processes download it at once."""
    api = HfApi()

    def work(number: int) -> None:
        api.create_repo("owner/shared", exist_ok=True)
        push(api, "owner/shared", {f"{number}.bin": BIG + bytes([number])})
        api.create_repo(f"owner/own{number}")
        push(api, f"owner/own{number}", {"model.bin": BIG})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert hub.listing("owner/shared") == [f"{number}.bin" for number in range(8)]
    assert all(hub.read("owner/shared", f"{number}.bin") == BIG + bytes([number]) for number in range(8))

    code = "from huggingface_hub import hf_hub_download as get; print(get('owner/shared', '3.bin'))"
    environment = {**os.environ, **hub.environment(tmp_path / "other", hub.guest_token)}
    before = hub.count("cdn", "GET")
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == BIG + b"\3"
    assert hub.count("cdn", "GET") == before + 1


def test_ranges(hub: HubServer) -> None:
    hub.add_repo("owner/model", {"model.bin": BIG})
    url = f"{hub.url}/owner/model/resolve/main/model.bin"
    etag = requests.get(url, timeout=5).headers["etag"]
    part = requests.get(url, headers={"Range": "bytes=100-199", "If-Range": etag}, timeout=5)
    assert part.status_code == 206 and part.content == BIG[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(BIG)}"
    assert requests.get(url, headers={"Range": "bytes=100-", "If-Range": '"other"'}, timeout=5).content == BIG
    assert requests.get(url, headers={"Range": f"bytes={len(BIG)}-"}, timeout=5).status_code == 416


def test_faults_arrive(hub: HubServer) -> None:
    hub.add_repo("owner/model", {"model.bin": BIG})

    def get(*faults: Fault, timeout: float = 5.0) -> requests.Response:
        hub.faults[:] = faults
        return requests.get(f"{hub.url}/owner/model/resolve/main/model.bin", timeout=timeout)

    busy = get(Fault("resolve", status=429, headers={"Retry-After": "7"}))
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
    assert get(*hub.faults).content == BIG  # used up
    page = get(Fault("cdn", status=200, headers={"content-type": "text/html"}, body=b"<html>log in</html>"))
    assert page.text == "<html>log in</html>" and page.headers["content-type"] == "text/html"
    assert get(Fault("cdn", change=lambda body: body[::-1])).content == BIG[::-1]
    unseen = Fault("resolve", status=200, body=b"never seen", cut=0)
    for fault in (Fault("cdn", cut=1000), Fault("cdn", length=len(BIG) + 10), unseen):
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="Incomplete"):
            get(fault)
    assert get(Fault("cdn", length=50)).content == BIG[:50]
    with pytest.raises(requests.exceptions.ConnectionError, match="timed out"):
        get(Fault("cdn", drip=0.5), timeout=0.2)
    assert get(Fault("cdn", drip=0.01, piece=50_000)).content == BIG
    with pytest.raises(requests.exceptions.ReadTimeout):
        get(Fault("*", method="GET", path="*/resolve/*", delay=0.5), timeout=0.2)
    assert get(Fault("resolve", times=0), Fault("cdn", path="/other")).content == BIG
    hub.stop()
    with pytest.raises(requests.exceptions.ConnectionError, match="refused"):
        get()


def test_a_broken_download_goes_on_where_it_broke(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what a broken connection may lose; 10 MB
    hub.add_repo("owner/model", {"model.bin": BIG})
    hub.faults.append(Fault("cdn", method="GET", cut=60_000))
    assert Path(hf_hub_download("owner/model", "model.bin")).read_bytes() == BIG
    assert [seen.headers.get("range") for seen in hub.seen if seen.route == "cdn" and seen.method == "GET"] == [
        None,
        "bytes=60000-",
    ]
