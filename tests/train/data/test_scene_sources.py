"""Scenes as a recipe's data: what each task's samples hold, wherever they are drawn and rendered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zoo.errors import RecipeError
from zoo.train.data.sources import TASKS, make_source

SCENES = dict(source="scenes", image_size=[24, 32], displacement=[0.05, 0.2])
SHAPES = dict(
    disparity=(24, 32),
    flow=(24, 32, 2),
    points1=(24, 32, 3),
    points2=(24, 32, 3),
    depth1=(24, 32),
    depth2=(24, 32),
    intrinsics=(3, 3),
    pose=(4, 4),
)


def batch_of(source: Any, count: int = 2) -> dict[str, torch.Tensor]:
    batch = torch.utils.data.default_collate([source[i] for i in range(count)])
    return source.render_batch(batch)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("where", [{}, {"render": "device"}, {"render": "device", "draw": "device"}])
def test_tasks(task: str, where: dict[str, str]) -> None:
    source = make_source(SCENES | {"task": task} | where, 3, task)
    if where:
        batch = batch_of(source)
        found = {key: tuple(value.shape[1:]) for key, value in batch.items()}
        assert found.pop("image1") == found.pop("image2") == (3, 24, 32)
    else:
        sample = source[0]
        found = {key: value.shape for key, value in sample.items()}
        assert found.pop("image1") == found.pop("image2") == (24, 32, 3)
        assert all(sample[key].dtype == np.float32 for key in found) and sample["image1"].dtype == np.uint8
    assert found == {key: SHAPES[key] for key in TASKS[task]}


def test_the_same_scenes_wherever_they_are_rendered() -> None:
    for task in TASKS:
        here, there = (make_source(SCENES | where, 3, task) for where in ({}, {"render": "device"}))
        for key, value in batch_of(there).items():
            if not key.startswith("image"):
                assert np.mean(np.abs(value[1].numpy() - here[1][key]) > 1e-3) < 1e-2, key


def test_single_images_and_pairs() -> None:
    for where in ({"render": "device"}, {"render": "device", "draw": "device"}):
        assert {k: v.shape for k, v in batch_of(make_source(SCENES | where, 0, "image")).items()} == dict(
            image=(2, 3, 24, 32)
        )
        assert set(batch_of(make_source(SCENES | where, 0, "pair"))) == {"image1", "image2"}


def test_a_task_that_the_objective_does_not_take() -> None:
    with pytest.raises(RecipeError, match="as stereo, not as flow"):
        make_source(SCENES | {"task": "flow"}, 0, "stereo")
    with pytest.raises(RecipeError, match="no data source 'pairs' of pairs for stereo"):
        make_source({"source": "pairs"}, 0, "stereo")
