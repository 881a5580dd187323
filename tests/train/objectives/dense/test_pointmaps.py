"""Training pointmaps: the losses' properties (their numbers are golden cases), recipes, and a few steps that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.train.data.test_posed import write
from zoo.errors import RecipeError
from zoo.train.build import make_objective, make_source
from zoo.train.engine import train
from zoo.train.objectives.dense.pointmap_losses import confidence_loss, point_distances, regression_loss, scales
from zoo.train.objectives.dense.pointmaps import Pointmaps
from zoo.train.recipe import load_recipe
from zoo.train.run import read_log


def points(seed: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 6, 3, generator=generator) + torch.tensor([0, 0, 4.0])


def valid(seed: int, share: float = 0.7) -> torch.Tensor:
    return torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(seed)) < share


def test_each_pair_has_its_own_scale() -> None:
    predicted, true, masks = (points(0), points(1)), (points(2), points(3)), (valid(4), valid(5))
    factors = torch.tensor([3.0, 0.2])[:, None, None, None]
    scaled = tuple(p * factors for p in predicted)
    for a, b in zip(point_distances(predicted, true, masks), point_distances(scaled, true, masks)):  # type: ignore[arg-type]
        torch.testing.assert_close(a, b)
    kept = torch.cat([p[0][m[0]] for p, m in zip(predicted, masks)])
    torch.testing.assert_close(scales(*predicted, *masks)[0, 0, 0, 0], kept.norm(dim=1).mean())


def test_what_is_not_valid_reaches_nothing() -> None:
    predicted = [points(0).requires_grad_(), points(1).requires_grad_()]
    true, masks = [points(2), points(3)], (valid(4), valid(5))
    confidences = [torch.full((2, 4, 6), 2.0, requires_grad=True) for _ in range(2)]
    losses = []
    for filling in (0.0, torch.nan, torch.inf):
        for t, m in zip(true, masks):
            t[~m] = filling
        distances = point_distances(tuple(predicted), tuple(true), masks)  # type: ignore[arg-type]
        loss = confidence_loss(distances, tuple(confidences), masks)  # type: ignore[arg-type]
        grads = torch.autograd.grad(loss, [*predicted, *confidences])
        assert all(g.isfinite().all() for g in grads)
        assert all((g[~m] == 0).all() for g, m in zip(grads, masks * 2))
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2]


def test_a_view_without_valid_points_counts_zero() -> None:
    predicted, true = (points(0), points(1)), (points(2), points(3))
    none = torch.zeros(2, 4, 6, dtype=torch.bool)
    one, two = point_distances(predicted, true, (valid(4), none))
    assert two.sum() == 0
    alone = one.sum() / valid(4).sum()
    torch.testing.assert_close(regression_loss((one, two), (valid(4), none)), alone)
    nothing = point_distances(predicted, true, (none, none))
    assert confidence_loss(nothing, (torch.ones(2, 4, 6),) * 2, (none, none)) == 0


def test_the_best_confidence_is_alpha_over_distance() -> None:
    """d c - alpha log c is least at c = alpha / d: what the confidence learns to tell."""
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    distance = torch.full((1, 1, 1), 0.05)
    confidence = torch.tensor([[[4.0]]], requires_grad=True)
    (grad,) = torch.autograd.grad(confidence_loss((distance, distance), (confidence,) * 2, (mask, mask)), confidence)
    assert grad.abs().item() < 1e-6


@pytest.mark.parametrize("name", ["dust3r_224_linear", "dust3r_512_linear", "dust3r_512_dpt"])
def test_published_recipes_read_posed_pairs(name: str, tmp_path: Path) -> None:
    write(tmp_path, (160, 224))
    recipe = load_recipe(name, {"data.path": str(tmp_path), "init": ""})
    source = make_source(recipe)
    with torch.device("meta"):
        model = timm.create_model(recipe.model)
    objective = make_objective(recipe, source, model)
    assert isinstance(objective, Pointmaps)
    row = objective.transform({"index": 0, **source[0]}, 0)
    size = model.encoder.img_size
    assert row["image1"].shape == (3, *size) and row["points2"].shape == (*size, 3)
    assert recipe.optimizer.betas == (0.9, 0.95) and recipe.optimizer.weight_decay == 0.05
    assert recipe.optimizer.lr == 1e-4 and recipe.schedule.min_lr == 1e-6
    published = {"dust3r_224_linear": (128, 100), "dust3r_512_linear": (64, 100), "dust3r_512_dpt": (64, 90)}
    assert (recipe.batch_size, recipe.schedule.length) == published[name]


def test_heights_are_drawn_and_cropped_in_the_middle() -> None:
    model = timm.create_model("dust3r_nano_patch8_64")
    objective = Pointmaps(model, range(4), heights=[16, 40])
    rows = torch.arange(64.0)[None, :, None, None].expand(2, 64, 64, 3)
    batch = dict(
        **{f"image{i}": rows.permute(0, 3, 1, 2).to(torch.uint8) for i in (1, 2)},
        **{f"points{i}": rows + 1 for i in (1, 2)},
    )
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        images, true = objective.views(batch)
        height = images[0].shape[2]
        seen.add(height)
        assert images[0][0, 0, 0, 0] == (64 - height) // 2 == true[1][0, 0, 0, 0] - 1
    assert seen == {16, 40}
    assert objective(batch)["loss"].isfinite()
    for heights in ([20], [], [0]):
        with pytest.raises(RecipeError, match="heights"):
            Pointmaps(model, range(4), heights=heights)
    with pytest.raises(RecipeError, match="more than the images'"):
        Pointmaps(model, range(4), heights=[128]).views(batch)


def test_other_models_are_refused() -> None:
    with torch.device("meta"):
        for name in ("mast3r_large_patch16_512", "croco_nano_patch8_64_dec128d4"):
            with pytest.raises(RecipeError, match="zoo list 'dust3r"):
                Pointmaps(timm.create_model(name), range(4))


@pytest.mark.parametrize("draw", ["workers", "device"])
def test_the_small_recipe_learns_and_goes_on(draw: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **{"data.draw": draw, "data.render": draw, "batch_size": 8, "schedule.warmup": 2, "schedule.length": 12},
        **{"precision": "fp32", "checkpoint_steps": 6},
    }
    recipe = load_recipe("dust3r_nano", settings)
    train(recipe, tmp_path / "run", workers=0, progress=False)
    rows = read_log(tmp_path / "run")
    losses = [row["loss"] for row in rows]
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    assert all("regression" in row for row in rows)
