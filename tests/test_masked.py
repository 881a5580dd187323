"""Masked image modeling: every small recipe learns, on images that it has not seen, more than a constant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoo.layers.masking import patch_loss, split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.pretrain import engine
from zoo.pretrain.data import StepSampler, make_loader
from zoo.pretrain.recipe import Recipe, load_recipe

SECONDS = {
    "schedule": {"unit": "steps", "warmup": 5, "length": 50},
    "optimizer.lr": 2e-3,
    "batch_size": 16,
    "log_steps": 10,
    "data.texture_scale": [0.5, 1.5],
}
RECIPES = ["convmae_nano", "hivit_nano", "itpn_nano_pixel", "itpn_nano_ema"]


def held_out_batch(objective: Any, recipe: Recipe, count: int = 64) -> dict[str, torch.Tensor]:
    """Of the same kind as the recipe's images, and none of them."""
    source = engine.make_source(replace(recipe, seed=recipe.seed + 1))
    (batch,) = make_loader(source, objective.transform, StepSampler(len(source), count, 1, 0, 1, 1, 0, 1), 0, False)
    return batch


@pytest.mark.parametrize("name", RECIPES)
def test_nano_runs_beat_a_constant(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, SECONDS)
    engine.train(recipe, tmp_path, workers=0, progress=False)
    objective: Any = engine.make_objective(recipe, engine.make_source(recipe))
    batch = held_out_batch(objective, recipe)
    images, mask = objective.to_input(batch["image"]), batch["mask"]
    _, hidden = split_mask(mask, objective.hidden)
    target = normalize_patches(take_tokens(patchify(images, 16), hidden))
    constant = patch_loss(torch.zeros_like(target), target)  # each patch's mean is the best constant
    before = objective.model.complete(images, mask=mask).loss
    objective.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    after = objective.model.complete(images, mask=mask).loss
    assert after < 0.98 * constant and constant < before
