"""Masked image modeling: every small recipe learns, on images that it has not seen, more than a constant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from zoo.errors import RecipeError
from zoo.layers.masking import patch_loss, split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.train import build, engine, run
from zoo.train.data.loading import StepSampler, make_loader
from zoo.train.recipe import Recipe, load_recipe

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
    source = build.make_source(replace(recipe, seed=recipe.seed + 1))
    (batch,) = make_loader(source, objective.transform, StepSampler(len(source), count, 1, 0, 1, 1, 0, 1), 0, False)
    return batch


@pytest.mark.parametrize("name", RECIPES)
def test_nano_runs_beat_a_constant(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, SECONDS)
    engine.train(recipe, tmp_path, workers=0, progress=False)
    objective: Any = build.make_objective(recipe, build.make_source(recipe))
    batch = held_out_batch(objective, recipe)
    images, mask = objective.to_input(batch["image"]), batch["mask"]
    _, hidden = split_mask(mask, objective.hidden)
    target = normalize_patches(take_tokens(patchify(images, 16), hidden))
    constant = patch_loss(torch.zeros_like(target), target)  # each patch's mean is the best constant
    before = objective.model.complete(images, mask=mask).loss
    objective.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    after = objective.model.complete(images, mask=mask).loss
    assert after < 0.98 * constant and constant < before


def test_moving_average_learns_from_a_teacher_that_follows(tmp_path: Path) -> None:
    recipe = load_recipe("itpn_nano_ema", SECONDS | {"schedule.length": 4})
    start: Any = build.make_objective(recipe, build.make_source(recipe)).model
    engine.train(recipe, tmp_path, workers=0, progress=False)
    end = load_file(tmp_path / "model.safetensors")
    row = run.read_log(tmp_path)[-1]
    assert abs(row["loss"] - row["pixels"] - row["features"]) < 1e-4
    name = "encoder.blocks.0.mlp.fc1.weight"
    before, student, teacher = start.state_dict()[name], end[name], end[name.replace("encoder", "teacher")]
    assert 0 < (teacher - before).norm() < 0.1 * (student - before).norm(), "the teacher moves slowly"


def clip_recipe(**changes: Any) -> Recipe:
    tiny = dict(img_size=64, embed_dim=32, depths=(1, 1, 2), num_heads=2, fpn_dim=16, teacher_dim=192)
    settings = {"model_args": tiny, "objective.teacher": "timm:vit_tiny_patch16_224", "objective.hidden_share": 0.5}
    data = {"data": {"source": "scenes", "image_size": 64, "texture_scale": [0.5, 1.5]}}
    return load_recipe("itpn_base_clip", SECONDS | settings | data | {"optimizer.base_lr": None} | changes)


def test_tokens_of_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model  # a teacher's pretrained weights can't be fetched here
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **args: create(name, **args))
    recipe = clip_recipe(**{"schedule.length": 30})
    engine.train(recipe, tmp_path, workers=0, progress=False)
    losses = [row["loss"] for row in run.read_log(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(RecipeError, match="192 channels and the model predicts 7"):
        other = clip_recipe(model_args=recipe.model_args | {"teacher_dim": 7})
        build.make_objective(other, build.make_source(other))


def test_objectives_say_which_models_they_train() -> None:
    for objective, model, named in (
        ("convmae_nano", "convmae_nano_patch16_64", "masked autoencoder, not ConvMAE"),
        ("itpn_nano_ema", "itpn_nano_patch16_64_pixel", "moving-average form, not ITPNPixel"),
        ("itpn_base_clip", "hivit_nano_patch16_64_mae", "CLIP form, not HiViTMAE"),
    ):
        recipe = load_recipe(objective, {"model": model, "data": {"source": "scenes"}})
        with pytest.raises(RecipeError, match=named):
            build.make_objective(recipe, build.make_source(recipe))
