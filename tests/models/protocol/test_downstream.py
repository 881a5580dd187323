"""Zoo encoders in other libraries: transformers' timm wrappers, segmentation_models_pytorch; the examples run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.support.hub_server import HubServer
from zoo import publish

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NANO = "croco_nano_patch8_64"
REPO = "owner/encoder"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An encoder with arguments of its own, in the test Hub and in a folder."""
    model: Any = timm.create_model(NANO, pretrained=True, img_size=(96, 128), global_pool="max").eval()
    monkeypatch.setattr(publish.export, "draw_example", lambda *_: None)
    folder = publish.export_model(model, tmp_path / "published", REPO)
    with HubServer(tmp_path / "server") as hub:
        hub.patch(monkeypatch, tmp_path / "home")
        hub.add_repo(REPO, {name: (folder / name).read_bytes() for name in publish.listing(folder)})
        yield model, folder


def test_transformers(published: Any) -> None:
    example = load_example("transformers_backbone")
    model, folder = published
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    config = timm.data.resolve_data_config(model=model, args={"input_size": (3, 96, 128)})
    images = timm.data.create_transform(**config)(photo).unsqueeze(0)
    with torch.inference_mode():
        expected = model.forward_features(images), model(images)
        *_, last = model.forward_intermediates(images, indices=2, intermediates_only=True)
    for place in (REPO, str(folder)):
        tokens, vector = example.extract(place, photo)
        torch.testing.assert_close((tokens, vector), expected)
    for name in (f"{NANO}.scenes_rich", f"hf-hub:{REPO}"):
        found = example.maps(name, images)
        assert len(found) == 2
        torch.testing.assert_close(found[1], last)

    from transformers import AutoBackbone, AutoModelForImageClassification, TimmWrapperModel

    # a name that the Hub does not know is timm's
    network = AutoBackbone.from_pretrained(f"{NANO}.scenes_rich", out_indices=(1, 3), img_size=(96, 128))
    assert network.channels == [192, 192] and len(network(images).feature_maps) == 2
    hidden = TimmWrapperModel.from_pretrained(REPO)(images, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[-1], last)
    classifier = AutoModelForImageClassification.from_pretrained(REPO, num_labels=5)
    assert classifier(images).logits.shape == (1, 5)


def test_segmentation(published: Any) -> None:
    example = load_example("segmentation")
    for name in (f"{NANO}.scenes_rich", f"hf-hub:{REPO}"):
        model = example.make_model(name)
        weights = published[0].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in model.encoder.model.state_dict().items())
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64, 96)
    torch.manual_seed(0)
    losses = example.train(example.make_model(f"{NANO}.scenes_rich"), steps=12)
    assert sum(losses[-3:]) / 3 < 0.8 * sum(losses[:3]) / 3


def test_examples_are_scripts(tmp_path: Path) -> None:
    model = timm.create_model(NANO, pretrained=True)
    publish.export_model(model, tmp_path / "published", REPO)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    arguments = ["--model", str(tmp_path / "published"), "--image", str(tmp_path / "published" / "features.png")]
    command = [sys.executable, str(EXAMPLES / "transformers_backbone.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tokens (1, 64, 192), vector (1, 192)" in done.stdout
    assert done.stdout.count(f"{NANO}: map (1, 192, 12, 16)") == 2
