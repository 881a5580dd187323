"""A server that lies about what it sends the rest of, and what lies where a download is kept meanwhile."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import requests
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status

from tests.support.checkpoints import FileServer, Reply
from zoo.errors import DownloadError, StorageError
from zoo.weights.network.download import download
from zoo.weights.network.hub import explain

OLD, NEW = b"a" * 50_000, b"b" * 50_000


@pytest.fixture(autouse=True)
def own_folders(clean_environment: None) -> None:
    pass


def cut(server: FileServer, path: Path, name: str = "/f") -> None:
    """The first half arrives."""
    server.faults = [Reply(cut=25_000), *[Reply(status=503)] * 9]
    with pytest.raises(DownloadError):
        download(server.url + name, path)
    server.faults = []
    assert path.with_name(path.name + ".part").stat().st_size == 25_000


def rest(content: bytes, **headers: str) -> Reply:
    return Reply(206, {"Content-Range": f"bytes 25000-49999/{len(content)}", **headers}, body=content[25_000:])


TAGS = {
    "of another file": lambda etag: {"ETag": '"other"'},
    "none": lambda etag: {"ETag": ""},
    "weak": lambda etag: {"ETag": "W/" + etag},
    "a date": lambda etag: {"ETag": "", "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
}


@pytest.mark.parametrize("tag", TAGS)
def test_if_range_ignored(tmp_path: Path, tag: str) -> None:
    """The file has changed, and the server sends the rest of the new one all the same."""
    with FileServer({"/f": OLD}) as server:
        etag = server.headers(OLD)["ETag"]
        cut(server, tmp_path / "f")
        server.files["/f"] = NEW
        server.faults = [rest(NEW, **TAGS[tag](etag))]
        download(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW


def test_date_that_differs(tmp_path: Path) -> None:
    with FileServer({"/f": OLD}) as server:
        server.headers = lambda content: {"Last-Modified": f"Wed, 21 Oct 2015 07:28:0{content[0] - 97} GMT"}
        cut(server, tmp_path / "f")
        server.files["/f"] = NEW
        server.faults = [rest(NEW, **server.headers(NEW))]
        download(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW


def test_the_same_file_is_gone_on_with(tmp_path: Path) -> None:
    with FileServer({"/f": OLD}) as server:
        cut(server, tmp_path / "f")
        asked = len(server.requests)
        download(server.url + "/f", tmp_path / "f")
        assert [headers.get("Range") for _, _, headers in server.requests[asked:]] == ["bytes=25000-"]
    assert (tmp_path / "f").read_bytes() == OLD


@pytest.mark.parametrize("kind", ["symbolic", "hard", "pipe"])
def test_part_that_is_a_link(tmp_path: Path, kind: str) -> None:
    """What it leads to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 10)
    part = tmp_path / "f.part"
    if kind == "symbolic":
        part.symlink_to(precious)
    elif kind == "hard":
        os.link(precious, part)
    else:
        os.mkfifo(part)
    with FileServer({"/f": OLD}) as server:
        download(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OLD and precious.read_bytes() == b"x" * 10
    assert not (tmp_path / "f").is_symlink() and (tmp_path / "f").stat().st_nlink == 1


def test_folder_in_place_of_the_part(tmp_path: Path) -> None:
    (tmp_path / "f.part").mkdir()
    with FileServer({"/f": OLD}) as server, pytest.raises(StorageError, match="can't be saved"):
        download(server.url + "/f", tmp_path / "f")


def test_status_line_for_the_terminal(tmp_path: Path) -> None:
    with FileServer({"/f": OLD}) as server, pytest.raises(DownloadError) as caught:
        server.faults = [Reply(status=499, headers={"X": "y"})]
        original = requests.get

        def get(*args: object, **kwargs: object) -> object:
            response = original(*args, **kwargs)  # type: ignore[arg-type]
            response.reason = "\x1b[2J\x07" + "x" * 10_000
            return response

        requests.get = get  # type: ignore[assignment]
        try:
            download(server.url + "/f", tmp_path / "f")
        finally:
            requests.get = original
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_compressed_answer(tmp_path: Path) -> None:
    """A hundred kilobytes that would become a hundred megabytes."""
    with FileServer({"/f": OLD}) as server, pytest.raises(DownloadError, match="sends it compressed"):
        server.faults = [Reply(headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(100_000_000)))]
        download(server.url + "/f", tmp_path / "f")
    assert not list(tmp_path.glob("f*"))


@pytest.mark.parametrize("number", ["\xb2", "9" * 5000, "-1", "x"])
def test_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    with FileServer({"/f": OLD}) as server:
        server.faults = [Reply(status=503, headers={"Retry-After": number})]
        download(server.url + "/f", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == OLD
        cut(server, tmp_path / "g")
        server.faults = [Reply(206, {"Content-Range": f"bytes {number}-{number}/{number}"}, body=OLD[25_000:])]
        download(server.url + "/f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == OLD


@pytest.mark.parametrize("token", ["hf_abcdefghijklmnop", "an-odd-token"])
def test_server_echoes_the_token(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = f"not you, {token}!\x1b[2J" + "x" * 5000
    with FileServer({"/f": OLD}) as server:
        server.faults = [Reply(status=418, headers={"X-Error-Message": message.replace("\x1b", "\x9b")})]
        with pytest.raises(HfHubHTTPError) as caught:
            hf_raise_for_status(get_session().get(server.url + "/f"))
    assert token in str(caught.value)
    text = explain(caught.value, "me/it")
    assert token not in text and text.isprintable() and len(text) <= 1000 and "not you" in text
    assert token not in explain(ValueError(f"Bearer {token} is wrong"), "me/it")
