"""What a repository's or a folder's config.json may not do: name other files, or describe a model without measure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import hubconf
from tests.support.hub_server import HubServer
from tests.support.publishing import ENCODER, REPO, same, tiny
from zoo import publish
from zoo.cli._models import load_named
from zoo.errors import ArgumentsError, PublishError
from zoo.weights import save_safetensors

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")


@pytest.fixture
def published(hub: HubServer, tmp_path: Path, no_pictures: None) -> Any:
    """A model on the Hub; `change` its config.json there."""
    model = tiny()
    folder = publish.export_model(model, tmp_path / "published", REPO)
    files = {name: (folder / name).read_bytes() for name in publish.listing(folder)}
    hub.add_repo(REPO, files)

    def change(place: str, key: str, value: Any) -> None:
        config = json.loads(files["config.json"])
        for name in {"input_size": ("img_size", "in_chans")}.get(key, ()):  # which timm takes before it
            config["model_args"].pop(name)
        if place == "pretrained_cfg" and key == "num_classes":
            config.pop(key)
        (config if place == "" else config[place])[key] = value
        hub.add_files(REPO, {"config.json": json.dumps(config).encode()})
        (folder / "config.json").write_text(json.dumps(config))

    return model, change, folder


@pytest.mark.parametrize("key", ["file", "url", "state_dict", "hf_hub_id", "fifo"])
@pytest.mark.parametrize("way", ["timm", "torch.hub", "folder"])
def test_a_repository_names_nothing_outside(
    published: Any, tmp_path: Path, key: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, change, folder = published
    other = tmp_path / "private.safetensors"
    torch.manual_seed(1)
    save_safetensors({name: torch.randn_like(value) for name, value in model.state_dict().items()}, other, {})
    os.mkfifo(tmp_path / "fifo")
    value = {"file": str(other), "url": other.as_uri(), "state_dict": {"a": 1}, "hf_hub_id": "other/model"}
    change("pretrained_cfg", "file" if key == "fifo" else key, value.get(key, str(tmp_path / "fifo")))
    if way == "torch.hub":
        loaded = getattr(hubconf, ENCODER)(weights=REPO)
    else:
        loaded = timm.create_model(f"hf-hub:{REPO}" if way == "timm" else f"local-dir:{folder}", pretrained=True)
    assert same(model, loaded)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("model_args", "depth", 10**9),
        ("model_args", "num_classes", 3_000_000),
        ("", "num_classes", 3_000_000),
        ("pretrained_cfg", "num_classes", 3_000_000),
        ("pretrained_cfg", "input_size", [3, 1 << 20, 1 << 20]),
        ("pretrained_cfg", "input_size", ["a", 16, 16]),
        ("pretrained_cfg", "mean", [float("nan")] * 3),
        ("pretrained_cfg", "std", [0, 0, 0]),
        ("pretrained_cfg", "license", [["a"]]),
        ("pretrained_cfg", "hf_hub_filename", 7),
        ("model_args", "checkpoint_path", "/other/private.pth"),
        ("model_args", "pretrained_filter_fn", "os.system"),
        ("model_args", "feature_cls", "fx"),
        ("model_args", "embed_dim", 10**7),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_config_describes_a_model_in_measure(
    published: Any, place: str, key: str, value: Any, pretrained: bool
) -> None:
    _, change, folder = published
    change(place, key, value)
    with pytest.raises(ArgumentsError, match=f"^The config.json of {REPO} .*{key}"):
        timm.create_model(f"hf-hub:{REPO}", pretrained=pretrained)
    if pretrained:
        with pytest.raises(PublishError, match="would not load back"):
            publish.check_folder(folder)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("", "model_args", [["depth", 1]]),
        ("", "model_args", "depth"),
        ("", "pretrained_cfg", [1]),
        ("", "pretrained_cfg", None),
        ("", "num_classes", {"a": 1}),
        ("pretrained_cfg", "unheard_of", 1),
        ("pretrained_cfg", "test_input_size", 7),
        ("pretrained_cfg", "min_input_size", [3, -1, 16]),
        ("pretrained_cfg", "input_size", {}),
        ("model_args", "img_size", 1.5),
        ("model_args", "img_size", {"height": 16}),
    ],
)
def test_our_own_ways_tell_what_timm_stumbles_over(published: Any, place: str, key: str, value: Any) -> None:
    _, change, folder = published
    change(place, key, value)
    for load in (
        lambda: getattr(hubconf, ENCODER)(weights=REPO),
        lambda: getattr(hubconf, ENCODER)(weights=str(folder)),
        lambda: load_named(REPO),
        lambda: load_named(str(folder)),
    ):
        with pytest.raises(ArgumentsError, match=f"^The config.json of .*{key}"):
            load()


@pytest.mark.parametrize("text", [b"", b"[]", b"\x80", b"{" * 100_000, b"null"])
def test_a_config_that_is_none(published: Any, text: bytes) -> None:
    *_, folder = published
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ArgumentsError, match="is no JSON of a model"):
        load_named(str(folder))


def test_what_the_caller_says_is_the_callers(published: Any) -> None:
    """Arguments and files passed in Python are not the repository's."""
    _, change, _ = published
    change("model_args", "depth", 10**9)
    loaded: Any = timm.create_model(f"hf-hub:{REPO}", depth=1, drop_path_rate=0.1)
    assert len(loaded.blocks) == 1
    change("model_args", "depth", 2)
    again = timm.create_model(f"hf-hub:{REPO}", pretrained=True, features_only=True, out_indices=(0, 1))
    assert len(again(torch.ones(1, 3, 16, 16))) == 2


@pytest.mark.parametrize("architecture", ["resnet50", "hf-hub:owner/model", "local-dir:/", 7, None, "x" * 100_000])
def test_only_models_of_the_zoo_are_published(published: Any, architecture: Any) -> None:
    _, change, folder = published
    change("", "architecture", architecture)
    with pytest.raises(PublishError, match="names no architecture of the zoo"):
        publish.check_folder(folder)
