"""Two-image models on timm's own ViTs, and models read from folders that timm itself wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import zoo

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
    with pytest.raises(TypeError, match="ResNet"):
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
