"""Recipes with a setting that makes no sense: a RecipeError, whatever it is, before anything is trained."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from tests.train.test_training import tiny
from zoo.errors import RecipeError, ZooError
from zoo.train.build import make_parts
from zoo.train.recipe import load_recipe, parse_recipe

CASES: list[tuple[str, str, Any]] = [
    ("croco_nano", "objective.name", {"a": 1}),
    ("croco_nano", "objective.name", [[1]]),
    ("croco_nano", "objective.mask_ratio", "a:b"),
    ("croco_nano", "objective.color_jitter", ["a"]),
    ("croco_nano", "data.source", {}),
    ("croco_nano", "data.texture_scale", ""),
    ("croco_nano", "data.texture_scale", [1]),
    ("croco_nano", "data.image_size", [64]),
    ("croco_nano", "data.samples", []),
    ("croco_nano", "optimizer.betas", []),
    ("croco_nano", "optimizer.betas", [[1, 2]]),
    ("croco_nano", "optimizer.name", "no_such"),
    ("pirl_nano", "objective.temperature", "hot"),
    ("pirl_nano", "data.samples", 10**18),
    ("jigsaw_nano", "objective.grayscale", 2),
    ("jigclu_nano", "objective.blur", {"name": "x"}),
    ("classify_nano", "optimizer.layer_decay", 1e300),
    ("classify_nano", "objective.label_smoothing", "/etc/passwd"),
    ("classify_nano", "validation.samples", []),
]


@pytest.mark.parametrize(("recipe", "key", "value"), CASES)
def test_odd_settings(recipe: str, key: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        make_parts(load_recipe(recipe, {key: value}))
    assert len(str(caught.value)) < 1000


def test_any_odd_settings() -> None:
    """Every setting of a small recipe set to all kinds of things."""
    generator = random.Random(0)
    odd = (None, True, -1, 0, 1e300, 10**18, "", "x", "a:b", "nan", [], {}, [[1, 2]], {"name": "x"}, "\x1b[2J")
    whole = json.loads(json.dumps(tiny().to_dict()))

    def places(settings: dict[str, Any], above: tuple[str, ...] = ()) -> Any:
        for key, value in settings.items():
            yield (*above, key)
            if isinstance(value, dict):
                yield from places(value, (*above, key))

    refused = 0
    for place in places(whole):
        for value in generator.sample(odd, 4):
            settings = inner = copy.deepcopy(whole)
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                make_parts(parse_recipe(settings, "it"))
            except ZooError:
                refused += 1
    assert refused > 100
