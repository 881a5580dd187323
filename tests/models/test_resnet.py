"""The jigsaw families' ResNets: timm's own class, and every public container of theirs, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import zoo  # noqa: F401  (registers the models)
from tests.support.checkpoints import foreign_object, save_foreign
from zoo.catalog import VARIANTS
from zoo.errors import CheckpointMismatchError
from zoo.weights import read_checkpoint, save_safetensors

SMALL = dict(layers=(1, 1, 1, 1), channels=(12, 12, 12, 12))
FAMILIES = ("pirl", "jigsaw", "jigclu")
ENCODERS = sorted(
    {v.architecture for v in VARIANTS if v.family in FAMILIES and v.form == "encoder" and "resnet50" in v.name}
)


def load(architecture: str, path: Path, **args: Any) -> nn.Module:
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **args).eval()


# -------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("name", ENCODERS)
def test_same_as_timms(name: str) -> None:
    """Names, shapes and order of timm's resnet50 (wide: of every channel doubled); what it gives, at any size."""
    model = timm.create_model(name, device="meta")
    like = timm.create_model("resnet50", num_classes=0, device="meta")
    double = 2 if name.endswith("_w2") else 1
    expected = {
        key: tuple(n * double if n >= 64 else n for n in value.shape) for key, value in like.state_dict().items()
    }
    assert list(model.state_dict()) == list(expected)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert [info["num_chs"] for info in model.feature_info] == [double * info["num_chs"] for info in like.feature_info]


def test_protocol() -> None:
    small = timm.create_model("pirl_resnet50", num_classes=7, in_chans=1, drop_path_rate=0.1, **SMALL)
    x = torch.randn(2, 1, 70, 90)
    small.set_grad_checkpointing()
    small.train()(x).mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    small.eval()
    assert small(x).shape == (2, 7) and small.forward_features(x).shape == (2, 48, 3, 3)
    assert [m.shape[1] for m in small.forward_intermediates(x, intermediates_only=True)] == [64, 48, 48, 48, 48]
    small.reset_classifier(3, "max")
    assert small(x).shape == (2, 3) and small.get_classifier() is small.fc
    features = timm.create_model("pirl_resnet50_w2", features_only=True, **SMALL).eval()
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert features.feature_info.channels() == [128, 96, 96, 96, 96]
    assert [m.shape for m in features(torch.randn(1, 3, 64, 96))] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(features.feature_info.channels(), features.feature_info.reduction())
    ]
    strided = timm.create_model("pirl_resnet50", output_stride=8, features_only=True, **SMALL)
    assert strided(torch.randn(1, 3, 64, 64))[-1].shape == (1, 48, 8, 8)
    config = timm.data.resolve_model_data_config(timm.create_model("jigclu_resnet50", device="meta"))
    assert config["mean"] == (0.485, 0.456, 0.406) and config["crop_pct"] == 0.875


# ---------------------------------------------------------------------------------------------- conversion


@pytest.fixture(scope="module")
def reference() -> torchvision.models.ResNet:
    """torchvision's ResNet-50 with other than the initial statistics."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    for key, value in model.state_dict().items():
        if "bn" in key or "downsample.1" in key:
            value += torch.rand_like(value) if value.is_floating_point() else 1
    return model


def trunk(reference: nn.Module, counted: bool) -> dict[str, Tensor]:
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    return state if counted else {key: value for key, value in state.items() if "num_batches_tracked" not in key}


def vissl(state: dict[str, Tensor]) -> dict[str, Any]:
    """VISSL's container; the names of the heads are made up."""
    thing = foreign_object(memory=torch.ones(5, 3), step=3)
    base_model = {
        "model": {
            "trunk": {f"_feature_blocks.{key}": value for key, value in state.items()},
            "heads": {"0.some.weight": torch.ones(4, 8), "1.other": torch.ones(3)},
        },
        "meters": thing,
    }
    return {
        "phase_idx": 199,
        "loss": thing,
        "iteration": 250_000,
        "classy_state_dict": {
            "train": True,
            "base_model": base_model,
            "meters": [thing],
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
            "loss": {"NCEAverage.memory": torch.ones(2, 2)},
        },
    }


CONTAINERS: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Any]]]] = {
    "vissl": ("pirl_resnet50", vissl),
    "vissl_of_jigsaw": ("jigsaw_resnet50", vissl),
    "older": ("jigsaw_resnet50", lambda state: {"model_state_dict": state, "config": foreign_object(a=1)}),
    "older_with_blocks": (
        "pirl_resnet50",
        lambda state: {
            "model_state_dict": {f"_feature_blocks.{key}": value for key, value in state.items()},
            "config": foreign_object(a=1),
        },
    ),
    "older_with_branches": (
        "pirl_resnet50",
        lambda state: {
            "model_state_dict": {"trunk": {f"_feature_blocks.{key}": value for key, value in state.items()}},
            "config": foreign_object(a=1),
        },
    ),
    "jigclu": (
        "jigclu_resnet50",
        lambda state: {
            "epoch": 200,
            "arch": foreign_object(name="resnet50"),
            "state_dict": {
                f"module.encoder.{key}": value
                for key, value in {
                    **state,
                    "fc_clu.0.weight": torch.ones(2048, 2048),
                    "fc_clu.0.bias": torch.ones(2048),
                    "fc_clu.2.weight": torch.ones(128, 2048),
                    "fc_clu.2.bias": torch.ones(128),
                    "fc_loc.weight": torch.ones(4, 2048),
                    "fc_loc.bias": torch.ones(4),
                }.items()
            },
        },
    ),
}


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "uncounted"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_features_are_torchvisions(
    container: str, counted: bool, reference: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    architecture, wrap = CONTAINERS[container]
    save_foreign(tmp_path / "c.torch", wrap(trunk(reference, counted)))
    with caplog.at_level("INFO", "zoo"):
        model = load(architecture, tmp_path / "c.torch")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = nn.Sequential(*list(reference.children())[:-1])(x).flatten(1)
        assert torch.equal(model(x), features)
    for part, why in {"vissl": "the head of the pretext task", "jigclu": "where a quarter was"}.items():
        assert (why in caplog.text) == (part in container), "what is left out is named"
    assert model.bn1.num_batches_tracked.dtype == torch.int64
    assert model.bn1.num_batches_tracked.item() == int(counted)


def test_wrong_checkpoints(reference: nn.Module, tmp_path: Path) -> None:
    state = trunk(reference, counted=True)
    save_foreign(tmp_path / "c.torch", vissl(state))
    with pytest.raises(CheckpointMismatchError, match=r"no checkpoint of pirl_resnet50_w2 but one of pirl_resnet50"):
        load("pirl_resnet50_w2", tmp_path / "c.torch")
    save_foreign(tmp_path / "c.torch", vissl({k: v for k, v in state.items() if not k.startswith("layer4")}))
    with pytest.raises(CheckpointMismatchError, match=r"lacks .* of 318 tensors \(layer4"):
        load("pirl_resnet50", tmp_path / "c.torch")
    save_foreign(tmp_path / "c.torch", vissl(state | {"layer5.weight": torch.ones(1)}))
    with pytest.raises(CheckpointMismatchError, match=r"unexpected ones \(layer5"):
        load("pirl_resnet50", tmp_path / "c.torch")


def test_jigclu_names() -> None:
    """The names and shapes of the public checkpoint (its prefix left out) are ours and its heads'."""
    theirs = json.loads((Path(__file__).parents[1] / "upstream_keys" / "jigclu_resnet50_encoder.json").read_text())
    own = timm.create_model("jigclu_resnet50", device="meta").state_dict()
    assert {key: list(value.shape) for key, value in own.items()} == {
        key: shape for key, shape in theirs.items() if not key.startswith(("fc_clu.", "fc_loc."))
    }


def test_pretraining_form_and_its_encoder(reference: nn.Module, tmp_path: Path, caplog) -> None:
    """The encoder of our own runs; a public encoder under new heads, which start at random and say so."""
    model = timm.create_model("pirl_resnet50_lin128", **SMALL)
    save_safetensors(model.state_dict(), tmp_path / "own.safetensors", {})
    encoder = load("pirl_resnet50", tmp_path / "own.safetensors", **SMALL)
    assert all(torch.equal(value, model.encoder.state_dict()[key]) for key, value in encoder.state_dict().items())
    again = load("pirl_resnet50_lin128", tmp_path / "own.safetensors", **SMALL)
    assert torch.equal(again.heads.merge.weight, model.heads.merge.weight) and not caplog.text

    small = {key: value.clone() for key, value in encoder.state_dict().items()}
    save_foreign(tmp_path / "c.torch", vissl(small))
    assert read_checkpoint(tmp_path / "c.torch").extra["phase_idx"] == 199
    fresh = load("pirl_resnet50_mlp128", tmp_path / "c.torch", **SMALL)
    assert "heads is not in" in caplog.text
    assert torch.equal(fresh.encoder.conv1.weight, small["conv1.weight"])
    assert fresh.heads.image[0].weight.std() > 0 and not any(p.is_meta for p in fresh.parameters())
    with pytest.raises(ValueError, match="create pirl_resnet50 with features_only"):
        timm.create_model("pirl_resnet50_lin128", features_only=True)


def test_heads() -> None:
    """Linear and MLP heads have the published widths; the patches of a jigsaw count in their order."""
    linear = timm.create_model("pirl_resnet50_lin128", device="meta").heads
    assert linear.image[0].weight.shape == (128, 2048) and linear.merge.weight.shape == (128, 9 * 128)
    mlp = timm.create_model("pirl_resnet50_mlp128", device="meta").heads
    kinds = [type(layer).__name__ for layer in mlp.patch]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU"] and len(mlp.image) == 3
    model = timm.create_model("pirl_resnet50_lin128", **SMALL).eval()
    patches = torch.randn(2, 9, 3, 32, 32)
    with torch.no_grad():
        one, two = model.embed_view(patches), model.embed_view(patches.flip(1))
        assert one.shape == (2, 128) and not torch.allclose(one, two)
        turned = timm.create_model("pirl_resnet50_lin128", patches=1, **SMALL)
        assert turned.embed_view(patches[:, :1]).shape == (2, 128)
