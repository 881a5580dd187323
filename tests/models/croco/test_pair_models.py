"""Two-image models on timm's own ViTs, and models read from folders that timm itself wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from timm.models import save_for_hf

import zoo
from zoo.errors import ImageError, UnsuitableModelError, WeightsUnavailableError, ZooError
from zoo.models.pointmaps import PointmapModel

VITS = {
    "vit_tiny_patch16_224": dict(img_size=64),  # class token
    "vit_small_patch14_reg4_dinov2": dict(img_size=70),  # class and register tokens, patch 14
    "vit_base_patch16_clip_224": dict(img_size=64),  # norm before the blocks
}


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("decoder", ["cross64d2", "cat64d2"])
def test_any_timm_vit(name: str, decoder: str) -> None:
    torch.manual_seed(0)
    pair = zoo.create_pair_model(name, decoder, depth=2, **VITS[name]).eval()
    side = VITS[name]["img_size"]
    grid = side // pair.patch_size
    img1, img2 = torch.randn(2, 2, 3, side, side)
    tokens = pair(img1, img2)
    assert tokens.shape == (2, grid**2, 64)
    blocks = pair.forward_intermediates(img1, img2)
    assert [b.shape[1:] for b in blocks] == [(grid**2, pair.encoder.embed_dim)] * 2 + [(grid**2, 64)] * 2
    torch.testing.assert_close(blocks[-1], tokens)

    # the encoder's own features, and nothing else, reach the decoder
    vit = pair.encoder.vit
    torch.testing.assert_close(
        pair.encoder.forward_tokens(img1)[0], vit.forward_features(img1)[:, vit.num_prefix_tokens :]
    )

    other = torch.randn(2, 3, pair.patch_size * 2, pair.patch_size * 3)
    assert pair(other, img2).shape == (2, 6, 64)

    mask = torch.zeros(2, grid**2, dtype=torch.bool)
    mask[:, ::2] = True
    hidden = int(mask[0].sum())
    pair.completion_loss(img1, img2, mask, hidden).backward()
    assert all(p.grad is not None for p in pair.decoder.parameters())
    assert vit.patch_embed.proj.weight.grad.abs().sum() > 0
    assert pair.complete(img1, img2, mask=mask).image.shape == img1.shape


def test_hidden_patches_are_dropped_before_the_first_block() -> None:
    """What is hidden of image 1 has no influence at all."""
    pair = zoo.create_pair_model("vit_tiny_patch16_224", "cross64d2", depth=2, img_size=64).eval()
    img1, img2 = torch.randn(2, 1, 3, 64, 64)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, :8] = True  # the upper half
    changed = img1.clone()
    changed[:, :, :32] = 7.0
    with torch.no_grad():
        torch.testing.assert_close(pair.predict(img1, img2, mask, 8)[0], pair.predict(changed, img2, mask, 8)[0])


def test_frozen_encoder() -> None:
    with pytest.warns(UserWarning, match="frozen with random weights"):
        pair = zoo.create_pair_model("vit_tiny_patch16_224", "cross64d2", freeze_encoder=True, depth=2, img_size=64)
    pair.train()
    assert not pair.encoder.training and pair.decoder.training
    images = torch.randn(2, 2, 3, 64, 64)
    mask = torch.arange(16).expand(2, -1) < 8
    pair.completion_loss(*images, mask, 8).backward()
    assert all(p.grad is None for p in pair.encoder.parameters())
    assert all(p.grad is not None for p in pair.decoder.parameters())


def test_zoo_encoder_and_modules() -> None:
    pair = zoo.create_pair_model("croco_nano_patch8_64", "cross64d2", pos_embed="sincos")
    assert pair(*torch.randn(2, 1, 3, 64, 64)).shape == (1, 64, 64)
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    assert zoo.create_pair_model(vit, "cross64d1").encoder.vit is vit
    with pytest.raises(ValueError, match="cross512d8"):
        zoo.create_pair_model("vit_tiny_patch16_224", "big")
    with pytest.raises(TypeError, match="resnet18 can.t be the encoder"):
        zoo.create_pair_model("resnet18")


def test_dinov2_as_in_the_readme() -> None:
    with pytest.warns(UserWarning, match="frozen"):
        pair = zoo.create_pair_model(encoder="vit_base_patch14_dinov2", decoder="cross512d8", freeze_encoder=True)
    assert pair.head.out_features == 14 * 14 * 3 and len(pair.decoder.blocks) == 8
    with torch.no_grad():
        assert pair(*torch.randn(2, 1, 3, 56, 70)).shape == (1, 20, 512)


@pytest.mark.parametrize("name", ["croco_nano_patch8_64", "croco_nano_patch8_64_dec128d4"])
def test_timm_folders(name: str, tmp_path: Path) -> None:
    """A folder in timm's Hub format, with other arguments than the catalog's, loads back through timm."""
    args = dict(img_size=(48, 80)) | (dict(num_classes=3) if name == "croco_nano_patch8_64" else {})
    model = timm.create_model(name, **args).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2 if "_dec" in name else 1, 1, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(back(*images), model(*images))


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"]
)
def test_eva(name: str) -> None:
    """Each patch keeps its own rotation where others are hidden."""
    torch.manual_seed(0)
    pair = zoo.create_pair_model(name, "cross64d1", depth=2, img_size=70 if "14" in name else 64).eval()
    p, vit = pair.patch_size, pair.encoder.vit
    img1, img2 = torch.randn(2, 2, 3, 3 * p, 4 * p)
    with torch.no_grad():
        features = vit.forward_features(img1)[:, vit.num_prefix_tokens :]
        torch.testing.assert_close(pair.encoder.forward_tokens(img1)[0], features)
        order = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]])
        visible = pair.encoder.forward_tokens(img1, order)[0]
        torch.testing.assert_close(visible, features.take_along_dim(order[..., None], 1), rtol=1e-4, atol=1e-4)
        assert pair.complete(img1, img2, mask_ratio=0.5).image.shape == img1.shape


def test_weights_of_an_encoder_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise LocalEntryNotFoundError("An error happened") from HTTPError("no such host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsUnavailableError, match=r"vit_tiny_patch16_224.* \(no such host\): check the net"):
        zoo.create_pair_model("vit_tiny_patch16_224", pretrained=True)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "beit_base_patch16_224", "samvit_base_patch16", "vit_tiny_r_s16_p8_224", "hivit_nano_patch16_64"],
)
def test_unsuitable_encoders_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UnsuitableModelError, match="choose one of timm's VisionTransformer"):
        zoo.create_pair_model(name, "cross64d1", **(dict(depth=1) if "beit" in name else {}))
    with pytest.raises(ZooError, match="no model called 'vit_nothing'"):
        zoo.create_pair_model("vit_nothing")
    with pytest.raises(ZooError, match="cross512d8"):
        zoo.create_pair_model("vit_tiny_patch16_224", "wide")


def test_pairs_are_checked() -> None:
    """Images of different batches, sizes that no patch fills, no images: a sentence, never other images' results."""
    pair: Any = timm.create_model("croco_nano_patch8_64_dec128d4", depth=1, decoder_depth=1).eval()
    dense: Any = timm.create_model("croco_nano_patch8_dec128d4_stereo", depth=1, decoder_depth=4).eval()
    tiny: dict[str, Any] = dict(embed_dim=64, num_heads=2, decoder_dim=64, decoder_num_heads=2)
    maps = PointmapModel(img_size=64, depth=1, decoder_depth=1, **tiny)
    four, two = torch.randn(4, 3, 64, 64), torch.randn(2, 3, 64, 64)
    mask = torch.zeros(4, 64, dtype=torch.bool)
    mask[:, ::2] = True
    calls = [
        lambda: pair(four, two),
        lambda: pair(four, two, symmetric=True),
        lambda: pair.forward_intermediates(four, two),
        lambda: pair.forward_intermediates(four, two, [0]),
        lambda: pair.predict(four, two, mask, 32),
        lambda: pair.completion_loss(four, two, mask, 32),
        lambda: pair.complete(four, two),
        lambda: dense(four, two),
        lambda: dense.forward_tiled(four, two),
        lambda: pair(four, four[:, :1]),
        lambda: pair.predict(two, two, mask, 32),
        lambda: maps(four, two),
    ]
    for call in calls:
        with pytest.raises(ImageError):
            call()
    for shape, message in (((1, 3, 60, 64), "multiples of 8"), ((0, 3, 64, 64), "at least one")):
        with pytest.raises(ImageError, match=message):
            pair.complete(torch.zeros(shape), torch.zeros(shape))
        mae: Any = timm.create_model("croco_nano_patch8_64_mae", depth=1, decoder_depth=1)
        with pytest.raises(ImageError, match=message):
            mae.complete(torch.zeros(shape))


def test_classes_are_not_ignored() -> None:
    encoders = {
        "croco_nano_patch8_64_dec128d4": "croco_nano_patch8_64",
        "croco_nano_patch8_dec128d4_stereo": "croco_nano_patch8_64",
        "hivit_nano_patch16_64_mae": "hivit_nano_patch16_64",
        "pirl_nano_48_lin64": "pirl_nano_48",
        "dust3r_nano_patch8_64": "the encoder's architecture",
    }
    for name, encoder in encoders.items():
        for pretrained in (False, True):
            with pytest.raises(ZooError, match=f"num_classes=10 means nothing; create {encoder} "):
                timm.create_model(name, pretrained, num_classes=10)
        timm.create_model(name, num_classes=0)
    with pytest.raises(ZooError, match="num_classes=10 means nothing"):
        zoo.create_pair_model("vit_tiny_patch16_224", "cross64d1", depth=1, num_classes=10)


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("croco_nano_patch8_64_dec128d4", dict(depth=1, decoder_depth=1)),
        ("croco_nano_patch8_64", dict(depth=1)),
        ("itpn_nano_patch16_64", dict(depths=(1, 1, 1))),
        ("hivit_nano_patch16_64", dict(depths=(1, 1, 1), rel_pos=True)),
        ("convmae_nano_patch16_64", dict(depths=(1, 1, 1))),
        ("croco_nano_patch8_dec128d4_stereo", dict(depth=1, decoder_depth=4)),
        ("pirl_nano_48_lin64", {}),
    ],
)
def test_distributed_forward(name: str, args: dict[str, Any], alone: None) -> None:
    """A second step of a plain forward, which DistributedDataParallel refuses if a parameter had no gradient."""
    model = timm.create_model(name, **args)
    two = "_dec" in name
    images = torch.randn(2, 3, 64, 64)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped(*([images] * (2 if two else 1))).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    model(*([images] * (2 if two else 1))).float().square().mean().backward()
    idle = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert all(key.startswith(("decoder.mask_token", "head", "pyramid", "dense.fusion.3")) for key in idle)


def test_without_completion() -> None:
    pair = zoo.create_pair_model("vit_tiny_patch16_224", "cross64d1", depth=1, img_size=64, completes=False)
    assert pair.head is None and pair.decoder.mask_token is None
