"""timm's model protocol and masked autoencoding, for every hierarchical family of the zoo, with few blocks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import zoo
from zoo.catalog import VARIANTS
from zoo.errors import ImageError
from zoo.models.shared.hierarchical import HierarchicalBackbone
from zoo.models.shared.masked import MaskedAutoencoder

ARCHITECTURES = {variant.architecture: variant for variant in reversed(VARIANTS) if "depths" in variant.args}
BACKBONES = [name for name, variant in ARCHITECTURES.items() if variant.form == "encoder"]
MASKED = [name for name, variant in ARCHITECTURES.items() if variant.form == "pretraining" and "_clip" not in name]
SMALL = [name for name in BACKBONES if "nano" in name] + ["fast_itpn_tiny_patch16_224"]
SIZE = (32, 48)  # pixels
GRID = (2, 3)  # patches


def create(name: str, **kwargs: Any) -> Any:
    """The architecture at its own widths, with few blocks and parameters that are neither zeros nor ones."""
    if "decoder_depth" in ARCHITECTURES[name].args:
        kwargs["decoder_depth"] = 1
    model = timm.create_model(name, **(dict(depths=(1, 1, 2), img_size=SIZE) | kwargs))
    generator = torch.Generator().manual_seed(0)
    net = model.model if kwargs.get("features_only") else model
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    model = create(name, in_chans=1, num_classes=7, drop_path_rate=0.1, drop_rate=0.1)
    assert isinstance(model, HierarchicalBackbone)
    x = torch.randn(2, 1, *SIZE)
    model.train()
    model.set_grad_checkpointing()
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.set_grad_checkpointing(False)
    model.eval()

    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    merged = name.startswith("convmae")  # its convolutional stages are one layer
    assert len({group["lr_scale"] for group in groups}) == (4 if merged else 1 + len(model.blocks) + 1)
    position = next(p for key, p in model.named_parameters() if key.startswith("pos_embed"))
    assert any(group["weight_decay"] == 0 and any(p is position for p in group["params"]) for group in groups)

    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (2, 6, model.num_features)
        assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(tokens), model(x))
        assert isinstance(model.get_classifier(), nn.Linear)

        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, tokens)
        dims = [info["num_chs"] for info in model.feature_info]
        assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
        assert [m.shape for m in maps] == [(2, dim, 32 // s, 48 // s) for dim, s in zip(dims, (4, 8, 16, 32))]
        torch.testing.assert_close(maps[2].flatten(2).transpose(1, 2), tokens)
        last, first = model.forward_intermediates(x, [-2, 0], norm=True, output_fmt="NLC", intermediates_only=True)
        torch.testing.assert_close(last, tokens)
        torch.testing.assert_close(first, maps[0].flatten(2).transpose(1, 2))
        (pooled,) = model.forward_intermediates(x, [3], intermediates_only=True)
        torch.testing.assert_close(pooled, nn.functional.max_pool2d(maps[2], 2))
        early, (second,) = model.forward_intermediates(x, [1], stop_early=True)
        torch.testing.assert_close(second, maps[1])
        torch.testing.assert_close(early, maps[1].flatten(2).transpose(1, 2))
        result = model.forward_intermediates(x, 2, output_dict=True)
        torch.testing.assert_close(result["image_features"], tokens)
        torch.testing.assert_close(result["image_intermediates"], maps[2:])
        assert len({info["module"] for info in model.feature_info}) == 4, "each level has a name of its own"
        with pytest.raises(ValueError, match="output_fmt"):
            model.forward_intermediates(x, output_fmt="NHWC")

        model.reset_classifier(3, "max")
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == tokens.shape

        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        assert model.num_features == dims[1] and not any("pos_embed" in key for key in model.state_dict())
        torch.testing.assert_close(model.forward_intermediates(x, [1], intermediates_only=True)[0], maps[1])


@pytest.mark.parametrize("name", BACKBONES)
def test_features_only(name: str) -> None:
    x = torch.randn(1, 3, *SIZE)
    for more, strides in (({}, [4, 8, 16]), (dict(out_indices=(0, 1, 2, 3)), [4, 8, 16, 32])):
        model = create(name, features_only=True, **more).eval()
        assert model.feature_info.reduction() == strides
        with torch.no_grad():
            maps = model(x)
        assert [m.shape[1:] for m in maps] == [
            (dim, 32 // s, 48 // s) for dim, s in zip(model.feature_info.channels(), strides)
        ]
        assert not any(key.startswith(("model.head", "model.fc_norm")) for key in model.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_sizes(name: str) -> None:
    """A size given at creation, at call, and set afterwards is the same function."""
    dynamic = create(name, img_size=64, dynamic_img_size=True).eval()
    state = dynamic.state_dict()
    made = create(name).eval()
    made.load_state_dict(made.adapt_state(dict(state)))
    moved = create(name, img_size=64).eval()
    moved.load_state_dict(state)
    moved.set_input_size(SIZE)
    x = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        expected = dynamic(x)
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moved(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(dynamic(torch.randn(1, 3, 48, 32)), expected)
        with pytest.raises(ImageError, match="made for 32x48"):
            made(torch.randn(1, 3, 64, 64))
        with pytest.raises(ImageError, match="multiples of 16"):
            dynamic(torch.randn(1, 3, 40, 48))
    with pytest.raises(ImageError, match="multiples of 16"):
        timm.create_model(name, img_size=(64, 60))


@pytest.mark.parametrize("name", SMALL)
def test_own_weights_at_another_size(name: str, tmp_path) -> None:
    """A saved model of one shape serves another of as many patches: a table tells its grid."""
    model = create(name, img_size=(16, 64), dynamic_img_size=True).eval()
    path = tmp_path / "own.safetensors"
    zoo.weights.save_safetensors(model.state_dict(), path, {})
    args = dict(depths=(1, 1, 2), pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        other = timm.create_model(name, img_size=32, **args).eval()
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
        same = timm.create_model(name, img_size=(16, 64), **args).eval()
        torch.testing.assert_close(same(x.view(1, 3, 16, 64)), model(x.view(1, 3, 16, 64)))


@pytest.mark.parametrize("name", MASKED)
def test_masked_autoencoder(name: str) -> None:
    model = create(name, in_chans=1)
    assert isinstance(model, MaskedAutoencoder) and model.img_size == SIZE
    image = torch.randn(2, 1, *SIZE)
    mask = torch.tensor([[True, False, True, True, False, True], [False, True, True, True, True, False]])
    model.set_grad_checkpointing()
    model.completion_loss(image, mask, 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval()

    with torch.no_grad():
        prediction, index = model.predict(image, mask, 4)
        assert prediction.shape == (2, 4, 256) and index.shape == (2, 4)
        whole = model(image, mask, 4)
        torch.testing.assert_close(whole.gather(1, index[..., None].expand_as(prediction)), prediction)
        hidden = mask.view(2, 1, *GRID).repeat_interleave(16, 2).repeat_interleave(16, 3)
        other = torch.where(hidden, torch.full_like(image, 7.0), image)
        assert torch.equal(model.predict(other, mask, 4)[0], prediction), "hidden pixels have no influence"
        changed = torch.where(hidden, image, image + 1)
        assert not torch.allclose(model.predict(changed, mask, 4)[0], prediction)

        result = model.complete(image, mask=mask)
        assert torch.equal(result.image[~hidden], image[~hidden]) and result.loss.isfinite()
        again = [model.complete(image, generator=torch.Generator().manual_seed(1)).image for _ in range(2)]
        assert torch.equal(*again)
        assert model.complete(torch.randn(1, 1, 64, 32)).mask.shape == (1, 8)
        with pytest.raises(ImageError, match="6 patches"):
            model.completion_loss(torch.randn(2, 1, 64, 64), mask, 4)
    with pytest.raises(ValueError, match="features_only"):
        timm.create_model(name, features_only=True)


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="global_pool 'token'"):
        timm.create_model(SMALL[0], global_pool="token")
