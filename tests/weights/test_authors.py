"""Repositories of models' authors on the Hub: by recorded revision or as they are, remembered ever after."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import hubconf
from tests.support.checkpoints import FileServer, torch_bytes, variant_of
from tests.support.hub_server import HubServer
from zoo import weights
from zoo.catalog import Source
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, WeightsUnavailableError
from zoo.weights import Checkpoint, save_safetensors
from zoo.weights.authors import fetch_from_authors
from zoo.weights.disk import records

REPO = "naver/DUSt3R_test"
NANO = "dust3r_nano_patch8_64"


def tensors_of(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((4,), value), "b": torch.ones(2, 3)}


def as_bytes(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_safetensors(tensors, folder / "x.safetensors", {"format": "pt"})
    return (folder / "x.safetensors").read_bytes()


def convert(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    return {f"zoo.{key}": value for key, value in checkpoint.tensors.items()}, {}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    with HubServer(tmp_path / "server") as server:
        server.patch(monkeypatch, tmp_path / "home")
        server.add_repo(REPO, {"model.safetensors": as_bytes(tensors_of(1), tmp_path), "config.json": b"{}"})
        yield server


def test_by_revision_and_converted(hub: HubServer, tmp_path: Path) -> None:
    first = hub.repos[REPO].refs["main"]
    hub.add_files(REPO, {"model.safetensors": as_bytes(tensors_of(2), tmp_path)})
    variant = variant_of(Source("hub", REPO, revision=first))
    path = weights.fetch(variant, convert)
    assert weights.read_checkpoint(path).tensors["zoo.a"].tolist() == [1, 1, 1, 1]
    record = records.read_record(path)
    assert record is not None
    assert record["source"] == {"kind": "hub", "location": f"{REPO}/model.safetensors@{first}"}
    asked = len(hub.seen)
    assert weights.fetch(variant, convert) == path and len(hub.seen) == asked
    assert [result.problem for result in weights.verify(variant)] == [None]


@pytest.mark.parametrize("revision", ["0" * 40, "2e8a5a2", ""])
def test_main_where_the_hub_knows_no_such_revision(
    revision: str, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "zoo"):
        path = weights.fetch(variant_of(Source("hub", REPO, revision=revision)), convert)
    commit = hub.repos[REPO].refs["main"]
    record = records.read_record(path)
    assert record is not None and record["source"]["location"].endswith("@" + commit)
    assert ("knows no revision" in caplog.text) == (len(revision) == 40)
    assert (f"its commit is {commit}, where one record says {revision}" in caplog.text) == bool(revision)


def test_a_digest_that_differs_from_the_record_is_told(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "zoo"):
        weights.fetch(variant_of(Source("hub", REPO, recorded_sha256="7c300a89534113436bde52732d315121")), convert)
    assert (
        "its SHA-256 is" in caplog.text and "where one record says 7c300a89534113436bde52732d315121..." in caplog.text
    )


def test_what_came_first_is_demanded(hub: HubServer, tmp_path: Path) -> None:
    source, records = Source("hub", REPO), tmp_path / "records"
    arrived = fetch_from_authors(source, records, progress=False)
    hub.add_files(REPO, {"model.safetensors": as_bytes(tensors_of(3), tmp_path)})
    assert fetch_from_authors(source, records, progress=False) == arrived  # by its commit, though main has moved on
    (record,) = records.iterdir()
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"commit": "1" * 40}))  # as if the repository had been made anew
    with pytest.raises(CorruptWeightsError, match="isn't the file that came first"):
        fetch_from_authors(source, records, progress=False)


def test_the_next_source_where_there_is_no_repository(hub: HubServer) -> None:
    content = torch_bytes({"args": Namespace(model="AsymmetricCroCo3DStereo()"), "model": tensors_of(5)})
    with FileServer({"/DUSt3R.pth": content}) as server:
        variant = variant_of(Source("hub", "naver/nowhere"), Source("url", server.url + "/DUSt3R.pth"))
        path = weights.fetch(variant, convert)
    assert weights.read_checkpoint(path).tensors["zoo.a"].tolist() == [5] * 4
    with pytest.raises(WeightsUnavailableError, match="there is no repository"):
        weights.fetch(variant_of(Source("hub", "naver/nowhere"), name="croco_lost"), convert)


@pytest.fixture
def nano(hub: HubServer, tmp_path: Path) -> Any:
    """A model, and its repository as its authors would have made it: the reference's names, Infinity in config.json."""
    torch.manual_seed(0)
    model = timm.create_model(NANO)
    config = json.dumps(model.constructor_settings() | dict(freeze="none", patch_embed_cls="PatchEmbedDust3R"))
    assert "Infinity" in config
    weights_file = as_bytes(model.reference_state(), tmp_path)
    hub.add_repo("naver/nano", {"model.safetensors": weights_file, "config.json": config.encode()})
    return model


def assert_same(model: Any, other: Any) -> None:
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_timm_by_hub_id(nano: Any, hub: HubServer) -> None:
    loaded = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id="naver/nano"))
    assert_same(loaded, nano)
    assert loaded.ancestor is not None and loaded.ancestor.name == "naver/nano"
    encoder = timm.create_model(
        "croco_nano_patch8_64", pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id="naver/nano")
    )
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, nano.encoder.blocks[0].attn.qkv.weight)


def test_torch_hub_by_hub_id(nano: Any, hub: HubServer) -> None:
    assert_same(getattr(hubconf, NANO)(weights="naver/nano"), nano)


def test_config_json_is_compared(nano: Any, hub: HubServer) -> None:
    settings = nano.constructor_settings() | dict(depth_mode=["square", -float("inf"), float("inf")])
    hub.add_files("naver/nano", {"config.json": json.dumps(settings).encode()})
    with pytest.raises(CheckpointMismatchError, match="depth_mode"):
        timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id="naver/nano"))


def test_a_repository_without_config_json_loads(nano: Any, hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("naver/bare", {"model.safetensors": as_bytes(nano.reference_state(), tmp_path)})
    loaded = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id="naver/bare"))
    assert_same(loaded, nano)
