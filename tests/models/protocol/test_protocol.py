"""timm's model protocol, for every architecture of the zoo, at its full size."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import zoo  # noqa: F401  (registers the models)
from zoo.catalog import VARIANTS
from zoo.errors import ImageError
from zoo.models.croco import dpt_hooks

ARCHITECTURES = {variant.architecture: variant for variant in reversed(VARIANTS)}
ENCODERS = [  # those that are a flat list of blocks
    name for name, variant in ARCHITECTURES.items() if variant.form == "encoder" and variant.family == "croco"
]
BINOCULAR = [name for name, variant in ARCHITECTURES.items() if variant.form == "binocular"]
DENSE = [name for name, variant in ARCHITECTURES.items() if variant.form == "dense"]


def create(name: str, **kwargs) -> nn.Module:
    """The full architecture with cheap random weights: drawing 400 M of them properly takes longer than the test."""
    model = timm.create_model(name, device="meta", **kwargs).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 16, generator=generator) * 0.02
    for key, tensor in model.state_dict().items():
        if key.endswith("norm.weight") or (".norm" in key and key.endswith("weight")):
            tensor.fill_(1.0)
        else:
            tensor.view(-1).copy_(noise.repeat(tensor.numel() // len(noise) + 1)[: tensor.numel()])
    return model


def patch(name: str) -> int:
    return ARCHITECTURES[name].args.get("patch_size", 16)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_registered(name: str) -> None:
    variant = ARCHITECTURES[name]
    assert timm.is_model(name)
    cfg = timm.get_pretrained_cfg(variant.name)
    assert (cfg.input_size, cfg.mean, cfg.std) == (variant.input_size, variant.mean, variant.std)
    assert timm.is_model_pretrained(variant.name) == bool(variant.sources)
    assert timm.get_pretrained_cfg(name).tag == (variant.tag or None), "the first tag of the catalog is the default"


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str) -> None:
    p = patch(name)
    height, width = 3 * p, 5 * p
    model = create(name, img_size=(height, width), in_chans=1, num_classes=7, drop_path_rate=0.1)
    x = torch.randn(2, 1, height, width)

    model.train()
    model.set_grad_checkpointing()
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad(set_to_none=True)
    model.set_grad_checkpointing(False)
    model.eval()

    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (2, 15, model.num_features)
        assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(tokens), model(x))
        assert isinstance(model.get_classifier(), nn.Linear)

        depth = len(model.blocks)
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, tokens)
        assert [m.shape for m in maps] == [(2, model.embed_dim, 3, 5)] * depth
        sequences = model.forward_intermediates(x, [0, -1], norm=True, output_fmt="NLC", intermediates_only=True)
        torch.testing.assert_close(sequences[1], tokens)
        torch.testing.assert_close(model.norm(maps[0].flatten(2).transpose(1, 2)), sequences[0])
        (early,) = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early, maps[1])
        result = model.forward_intermediates(x, 1, output_dict=True)
        torch.testing.assert_close(result["image_features"], tokens)
        with pytest.raises(ValueError, match="output_fmt"):
            model.forward_intermediates(x, output_fmt="NHWC")

        model.reset_classifier(3, "max")
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == tokens.shape

        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        torch.testing.assert_close(model.forward_intermediates(x, [1], intermediates_only=True)[0], maps[1])

    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = {g["lr_scale"] for g in groups}
    assert len(scales) == 3  # the stem and the two blocks left after pruning; the norm joins the last


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_features_only(name: str) -> None:
    p = patch(name)
    model = create(name, features_only=True, img_size=(2 * p, 4 * p), out_indices=(0, -1)).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 2 * p, 4 * p))
    width = ARCHITECTURES[name].args["embed_dim"]
    assert [m.shape for m in maps] == [(1, width, 2, 4)] * 2
    assert model.feature_info.channels() == [width, width]
    assert model.feature_info.reduction() == [p, p]


@pytest.mark.parametrize("name", ["croco_nano_patch8_64", "croco_base_patch16_224"])
def test_encoder_sizes(name: str) -> None:
    """A size given at creation, at call, and set afterwards is the same function."""
    p = patch(name)
    other = (2 * p, 3 * p)
    dynamic = timm.create_model(name, dynamic_img_size=True).eval()
    made = timm.create_model(name, img_size=other).eval()
    state = dynamic.state_dict()
    made.load_state_dict(made.adapt_state(dict(state)))
    moved = timm.create_model(name).eval()
    moved.load_state_dict(state)
    moved.set_input_size(other)
    x = torch.randn(1, 3, *other)
    with torch.no_grad():
        torch.testing.assert_close(made(x), dynamic(x))
        torch.testing.assert_close(moved(x), dynamic(x))
        with pytest.raises(ImageError, match=r"made for .*img_size=\(.*dynamic_img_size=True"):
            made(torch.randn(1, 3, 3 * p, 3 * p))
        with pytest.raises(ImageError, match=f"multiples of {p}"):
            dynamic(torch.randn(1, 3, 2 * p + 1, 3 * p))


def test_bicubic_positions() -> None:
    model = timm.create_model("croco_base_patch16_224", pos_resample="bicubic", dynamic_img_size=True, depth=1).eval()
    exact = timm.create_model("croco_base_patch16_224", dynamic_img_size=True, depth=1).eval()
    assert torch.equal(model.pos_embed((14, 14)), exact.pos_embed((14, 14)))
    resampled, computed = model.pos_embed((7, 7)), exact.pos_embed((7, 7))
    assert resampled.shape == computed.shape == (49, 768)
    assert not torch.allclose(resampled, computed)


@pytest.mark.parametrize("name", BINOCULAR)
def test_binocular(name: str) -> None:
    p = patch(name)
    model = create(name)
    img1, img2 = torch.randn(2, 3, 2 * p, 3 * p), torch.randn(2, 3, 2 * p, 3 * p)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, [0, 2, 3]] = True
    model.completion_loss(img1, img2, mask, 3).backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    model.zero_grad(set_to_none=True)

    model.eval()
    depth = len(model.encoder.blocks)
    with torch.no_grad():
        tokens = model(img1, img2)
        assert tokens.shape == (2, 6, model.num_features)
        one, two = model(img1, img2, symmetric=True)
        torch.testing.assert_close(one, tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two, model(img2, img1), rtol=1e-4, atol=1e-5)

        blocks = model.forward_intermediates(img1, img2)
        assert len(blocks) == len(model.feature_info)
        assert [b.shape[-1] for b in blocks] == [info["num_chs"] for info in model.feature_info]
        torch.testing.assert_close(blocks[-1], tokens)
        torch.testing.assert_close(blocks[depth - 1], model.encoder.forward_features(img1), rtol=1e-4, atol=1e-5)
        maps = model.forward_intermediates(img1, img2, indices=[-1, 0], output_fmt="NCHW")
        torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), tokens)
        torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), blocks[0])
        (alone,) = model.forward_intermediates(img1, img2, indices=[0])  # no decoder needed
        torch.testing.assert_close(alone, blocks[0], rtol=1e-4, atol=1e-5)

        other = torch.randn(2, 3, 3 * p, p)  # images of two sizes in one pair
        one, two = model(img1, other, symmetric=True)
        assert one.shape == (2, 6, model.num_features) and two.shape == (2, 3, model.num_features)
        torch.testing.assert_close(two, model(other, img1))

        result = model.complete(img1, img2, mask=mask)
        assert result.image.shape == img1.shape and result.loss.isfinite()
        visible = ~mask.reshape(2, 1, 2, 3).repeat_interleave(p, 2).repeat_interleave(p, 3).expand_as(img1)
        assert torch.equal(result.image[visible], img1[visible])
        assert torch.isclose(result.image[~visible], img1[~visible]).float().mean() < 0.1
        again = [model.complete(img1, img2, generator=torch.Generator().manual_seed(1)).image for _ in range(2)]
        assert torch.equal(*again)
        with pytest.raises(ValueError, match="hide the same number"):
            model.complete(img1, img2, mask=torch.tensor([[True] * 3 + [False] * 3, [True] + [False] * 5]))

    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.9)
    assert len({g["lr_scale"] for g in groups}) == 1 + depth + 1 + len(
        model.decoder.blocks
    )  # norms join their last block
    with pytest.raises(ValueError, match="two images"):
        timm.create_model(name, features_only=True)


def test_dpt_hooks() -> None:
    assert dpt_hooks(24, 12) == (23, 27, 31, 35) and dpt_hooks(12, 8) == (10, 13, 16, 19)
    assert dpt_hooks(12) == (2, 5, 8, 11)


def test_impossible_settings() -> None:
    pair = timm.create_model("croco_nano_patch8_64_dec128d4")
    images = torch.randn(2, 1, 3, 128, 128)
    with pytest.raises(ValueError, match="64 patches, but image 1 has 16 x 16"):
        pair.completion_loss(*images, torch.zeros(1, 64, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="some and not all"):
        pair.complete(*images, mask_ratio=0.001)
    with pytest.raises(ValueError, match="multiples of 8"):
        timm.create_model("croco_nano_patch8_64", img_size=60)
    with pytest.raises(ValueError, match="divisible by 4"):
        timm.create_model("croco_nano_patch8_64", num_heads=64)
    with pytest.raises(ValueError, match="global_pool 'token'"):
        timm.create_model("croco_nano_patch8_64", global_pool="token")


@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str) -> None:
    model = create(name).eval()
    depths = len(model.encoder.blocks), len(model.decoder.blocks)
    hooks = {(24, 12): (23, 27, 31, 35), (12, 12): (11, 15, 19, 23), (12, 8): (10, 13, 16, 19), (4, 4): (1, 3, 5, 7)}
    assert model.hooks == hooks[depths]
    with torch.no_grad():
        dense = model(torch.randn(1, 3, 48, 80), torch.randn(1, 3, 48, 80))  # odd patch grid: 3 x 5
    assert dense.shape == (1, ARCHITECTURES[name].args["out_chans"], 48, 80)
