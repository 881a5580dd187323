"""From a variant to a verified local file, by way of each kind of source."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants as hub_constants
from safetensors.torch import load_file

from tests.support.checkpoints import (
    RULES,
    FileServer,
    assert_same,
    convert,
    free_port,
    reference_state,
    torch_bytes,
    variant_of,
)
from zoo.catalog import Source
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, WeightsUnavailableError
from zoo.weights import cache_dir, cached_path, fetch, save_safetensors, source_of, sources, verify
from zoo.weights.disk import records

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def checkpoint_server() -> Any:
    with FileServer({"/CroCo.pth": torch_bytes({"model": reference_state()})}) as server:
        yield server


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_fetch_downloads_converts_records(
    checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    with caplog.at_level(logging.INFO, "zoo"):
        path = fetch(variant, convert)
    assert checkpoint_server.url in caplog.text
    assert path == cached_path(variant) and path.parent == cache_dir()
    assert_same(load_file(path), RULES.to_zoo(reference_state(), name="v"))
    record = source_of(path)
    content = checkpoint_server.files["/CroCo.pth"]
    assert record["source"] == {"kind": "url", "location": checkpoint_server.url + "/CroCo.pth"}
    assert record["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["size"] == path.stat().st_size and record["variant"] == "croco_test.tag"
    assert record["created"].endswith("+00:00") and record["zoo_version"]
    # The other form of the same checkpoint costs no second download.
    fetch(variant_of(*variant.sources, name="croco_other"), convert)
    assert checkpoint_server.gets("/CroCo.pth") == 1


def test_cached_weights_need_no_network(checkpoint_server: FileServer, request: pytest.FixtureRequest) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    path = fetch(variant, convert)
    asked = len(checkpoint_server.requests)
    request.getfixturevalue("no_network")
    assert fetch(variant, convert) == path
    assert len(checkpoint_server.requests) == asked


def test_damaged_cache_is_found(checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    path = fetch(variant, convert)
    good = path.read_bytes()
    assert [report.problem for report in verify(variant)] == [None, None]  # weights and download

    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit of a tensor
    assert fetch(variant, convert) == path
    assert "has changed since it was written" in str(verify(path)[0].problem)

    path.write_bytes(good[:-10])
    with caplog.at_level(logging.WARNING, "zoo"):
        assert fetch(variant, convert) == path
    assert "fetched again" in caplog.text and path.read_bytes() == good

    records.record_path(path).unlink()  # as if killed between the two
    assert fetch(variant, convert) == path and verify(path)[0].recorded
    assert checkpoint_server.gets("/CroCo.pth") == 1


def test_changed_download_is_refused(checkpoint_server: FileServer) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    fetch(variant, convert)
    (downloaded,) = (path for path in (cache_dir() / "downloads").iterdir() if path.suffix == ".pth")
    checkpoint_server.files["/CroCo.pth"] = torch_bytes({"model": reference_state(seed=1)})
    downloaded.write_bytes(b"damaged")
    cached_path(variant).unlink()
    with pytest.raises(WeightsUnavailableError, match="isn't the file that was expected"):
        fetch(variant, convert)
    assert not cached_path(variant).exists()


def test_content_that_does_not_fit_is_an_error(checkpoint_server: FileServer) -> None:
    checkpoint_server.files["/CroCo.pth"] = torch_bytes({"model": {"layer1.weight": torch.ones(1)}})
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    with pytest.raises(CheckpointMismatchError):
        fetch(variant, convert)
    assert not cached_path(variant).exists()


def test_next_source_is_tried(checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    url = checkpoint_server.url
    variant = variant_of(Source("url", url + "/gone.pth"), Source("gdrive", "1abc"), Source("url", url + "/CroCo.pth"))
    assert source_of(fetch(variant, convert))["source"]["location"] == url + "/CroCo.pth"


def test_no_network_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB_ORG", "someone")
    use_hub(monkeypatch, f"http://127.0.0.1:{free_port()}")
    variant = variant_of(Source("url", f"http://127.0.0.1:{free_port()}/CroCo.pth"), Source("gdrive", "1abc"))
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch(variant, convert)
    assert time.monotonic() - start < 1.0
    for part in (
        "croco_test.tag",
        "Hub someone/croco_test.tag",
        "refused",
        "drive.google.com",
        "ZOO_WEIGHTS",
    ):
        assert part in str(caught.value)


def test_variant_without_weights(no_network: None) -> None:
    with pytest.raises(WeightsUnavailableError, match="no published weights. Use pretrained=False"):
        fetch(variant_of(), convert)
    assert not cache_dir().exists()


def test_package_and_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    variant = variant_of(Source("package", "nano.safetensors", layout="zoo"))
    with pytest.raises(WeightsUnavailableError, match="not in this installation"):
        fetch(variant, convert)
    mirror = tmp_path / "mirror"
    mirrored = mirror / "croco_test.tag.safetensors"
    monkeypatch.setenv("ZOO_WEIGHTS", str(mirror))
    save_safetensors(reference_state(), mirrored, {})
    assert fetch(variant, convert) == mirrored
    assert [(report.problem, report.recorded) for report in verify(variant)] == [(None, False)]
    mirrored.write_bytes(mirrored.read_bytes()[:-1])
    with pytest.raises(CorruptWeightsError, match="damaged"):
        fetch(variant, convert)

    bundled = sources.BUNDLED / "nano.safetensors"
    save_safetensors(reference_state(), bundled, {})
    with pytest.raises(CorruptWeightsError, match="no record"):
        fetch(variant, convert)
    records.write_record(bundled, variant=variant.name, kind="package", location=bundled.name, source_sha256="")
    assert fetch(variant, convert) == bundled
    assert source_of(bundled)["source"]["kind"] == "package"


def hub_server(content: bytes) -> FileServer:
    server = FileServer({"/someone/croco_test.tag/resolve/main/model.safetensors": content})
    server.headers = lambda body: {
        "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
        "X-Repo-Commit": hashlib.sha1(body).hexdigest(),
    }
    return server


def test_hub_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(reference_state(), tmp_path / "a", {})
    save_safetensors(reference_state(seed=1), tmp_path / "b", {})
    variant = variant_of()
    monkeypatch.setenv("ZOO_HUB_ORG", "someone")
    with hub_server((tmp_path / "a").read_bytes()) as server:
        use_hub(monkeypatch, server.url)
        path = fetch(variant, convert)
        assert_same(load_file(path), reference_state())
        assert source_of(path)["source"]["location"] == "someone/croco_test.tag/model.safetensors"
        assert path.stat().st_nlink == 2  # shared with the Hub's own cache
        asked = len(server.requests)
        assert fetch(variant, convert) == path and len(server.requests) == asked
        # The digest that was seen first is demanded from then on.
        path.unlink()
        server.files = {name: (tmp_path / "b").read_bytes() for name in server.files}
        with pytest.raises(CorruptWeightsError, match="isn't the expected file"):
            fetch(variant, convert)
        # Nothing there: in the message, not as huggingface_hub's own error.
        with pytest.raises(WeightsUnavailableError, match="someone/other.tag can't be had from the Hub"):
            fetch(variant_of(name="other"), convert)


def test_pinned_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(reference_state(), tmp_path / "a", {})
    content = (tmp_path / "a").read_bytes()
    revision = hashlib.sha1(content).hexdigest()
    pin = {"repo": "we/them", "revision": revision, "filename": "w.safetensors", "sha256": "0" * 64}
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    with hub_server(content) as server:
        server.files = {f"/we/them/resolve/{revision}/w.safetensors": content}
        use_hub(monkeypatch, server.url)
        sources.LOCK_FILE.write_text(json.dumps({"croco_test.tag": pin}))
        with pytest.raises(CorruptWeightsError, match="isn't the expected file.*Don't use it"):
            fetch(variant_of(), convert)
        pin["sha256"] = hashlib.sha256(content).hexdigest()
        sources.LOCK_FILE.write_text(json.dumps({"croco_test.tag": pin}))
        path = fetch(variant_of(), convert)
        assert source_of(path)["source"]["location"] == f"we/them/w.safetensors@{revision}"
        assert sum(method == "GET" for method, _, _ in server.requests) == 1
