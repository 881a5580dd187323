"""The small CroCo's control: its encoder as a masked autoencoder, and what becomes of its weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.layers.masking import num_hidden, random_mask
from zoo.layers.patchify import patchify, unpatchify
from zoo.train.recipe import load_recipe
from zoo.weights import save_safetensors

NAME, PAIR = "croco_nano_patch8_64_mae", "croco_nano_patch8_64_dec128d4"


def images_and_mask(count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 64, 64, generator=generator), random_mask(count, 64, 0.75, generator)


def test_predicts_from_visible_patches_only() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME).eval()
    images, mask = images_and_mask()
    with torch.no_grad():
        patches = patchify(images, 8)
        other = unpatchify(torch.where(mask[..., None], torch.randn_like(patches), patches), 8, (8, 8))
        torch.testing.assert_close(model(images, mask, 48), model(other, mask, 48))
        prediction, index = model.predict(images, mask, 48)
        assert prediction.shape == (2, 48, 192) and mask.gather(1, index).all()
        torch.testing.assert_close(model.complete(images, mask=mask).loss, model.completion_loss(images, mask, 48))
    assert torch.equal(patchify(model.complete(images, mask=mask).image, 8)[~mask], patches[~mask])


def test_gradients_reach_everything() -> None:
    model: Any = timm.create_model(NAME, in_chans=1).train()
    model.set_grad_checkpointing()
    images, mask = images_and_mask()
    model.completion_loss(images[:, :1], mask, 48).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_its_weights_serve_the_encoder(tmp_path: Path) -> None:
    model: Any = timm.create_model(NAME).eval()
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors", {})
    overlay = dict(file=str(tmp_path / "model.safetensors"))
    encoder = timm.create_model("croco_nano_patch8_64", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    images, _ = images_and_mask()
    with torch.no_grad():
        assert torch.equal(encoder.forward_features(images), model.encoder.forward_features(images))


@pytest.mark.parametrize("kind", ["nano", "nano_rich"])
def test_recipes_compute_as_much(kind: str) -> None:
    """A step of mae_nano costs what one of croco_nano does, within 5 %, and both differ in nothing else."""
    croco, mae = load_recipe(f"croco_{kind}"), load_recipe(f"mae_{kind}")
    assert (croco.schedule, croco.optimizer, croco.data) == (mae.schedule, mae.optimizer, mae.data)
    pair, model = timm.create_model(PAIR), timm.create_model(NAME)
    images, mask = images_and_mask(1)
    hidden = num_hidden(64, croco.objective["mask_ratio"])
    assert mae.objective["mask_ratio"] == 0.75

    with FlopCounterMode(display=False) as of_pair:
        pair.completion_loss(images, images, torch.arange(64)[None] < hidden, hidden).backward()
    with FlopCounterMode(display=False) as of_image:
        model.completion_loss(images, mask, 48).backward()
    ratio = mae.batch_size * of_image.get_total_flops() / (croco.batch_size * of_pair.get_total_flops())
    assert 0.95 < ratio < 1.05, ratio
