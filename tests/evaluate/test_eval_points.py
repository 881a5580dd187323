"""zoo eval points: a model that knows the truth is right, one that knows nothing is not; folders do as scenes do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.train.data.test_posed import write
from zoo import geometry
from zoo.errors import RecipeError
from zoo.evaluate import points
from zoo.evaluate.pairs.subject import load_subject
from zoo.models.pointmaps import PointmapModel, Pointmaps
from zoo.scenes import SceneConfig, ScenePairs

TRUTHS = ("points1", "points2", "pose")


class Oracle(PointmapModel):
    """Knows the true points of the pairs that it is asked about, in either order; tells them at another scale."""

    def __init__(self, source: Any, change: Callable[[Tensor], Tensor] = lambda points: points) -> None:
        super().__init__(img_size=64, patch_size=8, embed_dim=48, depth=1, num_heads=3, decoder_dim=48, decoder_depth=1)
        self.pretrained_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
        self.source, self.change, self.asked = source, change, 0

    def forward(self, img1: Tensor, img2: Tensor) -> Pointmaps:
        start, swapped = self.asked // 2 * 16, self.asked % 2 == 1
        self.asked += 1
        views: list[list[Tensor]] = [[], []]
        for i in range(start, start + len(img1)):
            sample = {key: torch.as_tensor(self.source[i][key]) for key in TRUTHS}
            pair = [sample["points1"], sample["points2"]]
            if swapped:
                pair = [geometry.move(p, sample["pose"]) for p in reversed(pair)]
            for view, p in zip(views, pair):
                view.append(self.change(3 * p))
        one, two = (torch.stack(view) for view in views)
        return Pointmaps(one, two, torch.full(one.shape[:3], 2.0), torch.full(two.shape[:3], 2.0))


@pytest.fixture(scope="module")
def scenes() -> ScenePairs:
    return ScenePairs(SceneConfig(image_size=64), seed=7, length=6, truths=TRUTHS)


def test_the_truth_is_right(scenes: ScenePairs) -> None:
    result = points.measure(Oracle(scenes).eval(), scenes)
    assert result["pairs"] == 6
    for view in ("depth1", "depth2"):
        assert result[view]["median_rel"] < 1e-4 and result[view]["abs_rel"] < 1e-4
        assert result[view]["within_1.25"] == 1
        assert 0.05 < result[view]["plane_median_rel"] < 0.6
    assert result["points2"]["median_rel"] < 1e-4 and result["focal"]["median_rel"] < 1e-4
    for way in ("procrustes", *(["pnp"] if "pnp" in result else [])):
        assert result[way]["rotation_median"] < 0.1 and result[way]["both_auc_5"] > 0.95
    json.dumps(result)


def test_errors_are_what_they_are(scenes: ScenePairs) -> None:
    result = points.measure(Oracle(scenes, lambda p: torch.ones_like(p) * torch.tensor([0.0, 0.0, 5.0])).eval(), scenes)
    depth = result["depth1"]  # a constant depth, the median's: as good as the best or little worse
    assert depth["plane_median_rel"] <= depth["median_rel"] < 1.5 * depth["plane_median_rel"]
    assert result["points2"]["median_rel"] > 0.1

    def tilted(p: Tensor) -> Tensor:
        return p * torch.linspace(0.8, 1.2, p.shape[1])[None, :, None]

    assert 0.05 < points.measure(Oracle(scenes, tilted).eval(), scenes)["depth1"]["abs_rel"] < 0.15


def test_areas_under_the_curve() -> None:
    assert points._area(np.array([0.0, 5.0, 10.0, 100.0]), 10) == pytest.approx((1 + 0.5) / 4)


def test_a_run_and_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model = timm.create_model("dust3r_nano_patch8_64")
    import yaml

    from zoo.train.recipe import load_recipe
    from zoo.weights import save_safetensors

    recipe = load_recipe("dust3r_nano", {"init": ""})
    (run / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe.to_dict()))))
    save_safetensors(model.state_dict(), run / "model.safetensors", {"steps": "5"})
    subject = load_subject(str(run), "pointmaps")
    assert subject.step == 5
    result = points.evaluate(subject, count=2)
    assert result["settings"]["scene_seed"] == points.HELD_OUT_SEED and result["pairs"] == 2
    assert not result["verdict"]["beats_plane_by_a_third"]  # untrained
    with pytest.raises(RecipeError, match="trained with"):
        points.evaluate(subject, count=2, seed=recipe.seed)
    write(tmp_path / "posed", (64, 64))
    folder = points.evaluate(subject, str(tmp_path / "posed"), count=5)
    assert folder["pairs"] == 2 and folder["settings"]["data"].endswith("posed")
    assert points.draw(subject, str(tmp_path / "posed"), 0, 2).axes


def test_other_models_are_refused() -> None:
    with pytest.raises(RecipeError, match="gives no points; choose one of `zoo list --form pointmaps`"):
        load_subject("croco_nano_patch8_64_dec128d4", "pointmaps")
