"""Every setting of every objective and source, set to what makes no sense: a RecipeError of a sentence or two before
anything is trained, or a value that the first step can take."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.test_training import tiny
from zoo.errors import RecipeError, ZooError
from zoo.settings import checked, declared, described
from zoo.train.build import OBJECTIVES, make_model, make_objective, make_source
from zoo.train.data.sources import SOURCES, source_settings
from zoo.train.data.sources import make_source as source_of
from zoo.train.recipe import describe_settings, load_recipe, parse_recipe

NUMBERS = [-1, 0, 1, 0.5, -0.5, 1e-9, 10**12, 10**400, math.nan, math.inf, True, None]
TEXTS = ["", "..", "/etc/passwd", "nan", "1e400", "9" * 5000, "a\0b", "\x1b[2J", "rand-n99-m30-inc1"]
LISTS = [[], [1], [[1]], [0.5, 0.1], [0, 0], [1e-9, 1e-9], [-1, 1], [math.nan, 1], ["a", "b"], [10**9, 10**9], [None]]
WRONG = [*NUMBERS, *TEXTS, *LISTS, {}, {"a": 1}]

RECIPES = {
    "cross_view_completion": "croco_nano",
    "masked_image_modeling": "hivit_nano",
    "masked_feature_modeling": "itpn_nano_ema",
    "jigsaw": "jigsaw_nano",
    "jigsaw_clustering": "jigclu_nano",
    "pirl": "pirl_nano",
    "classification": "classify_nano",
    "linear_probe": "probe_nano",
    "pointmaps": "dust3r_nano",
    "stereo": "croco_nano_stereo",
    "flow": "croco_nano_flow",
}
PLAIN = {"data.textures": None, "data.draw": "workers", "data.render": "workers"}  # scenes that a worker draws


def is_sentence(error: ZooError) -> bool:
    return len(str(error)) < 600 and "\n" not in str(error) and str(error).endswith(".")


@pytest.mark.parametrize("name", RECIPES)
def test_objectives(name: str) -> None:
    whole = load_recipe(RECIPES[name])
    scenes = whole.data["source"] == "scenes"
    small = {"data.image_size": 32} if "truth" in dir(OBJECTIVES[name]) else {}
    recipe = load_recipe(RECIPES[name], PLAIN | {"data.samples": 1000} | small if scenes else {})
    source, model = make_source(recipe), make_model(recipe)
    samples = [{**source[index], "index": index} for index in range(2)]
    refused = 0
    for setting in declared(OBJECTIVES[name]):
        for value in WRONG:
            try:
                odd = replace(recipe, objective={**recipe.objective, setting: copy.deepcopy(value)})
                objective = make_objective(odd, source, model)
            except RecipeError as error:
                assert is_sentence(error), error
                refused += 1
                continue
            rows = [objective.transform(sample, 0) for sample in samples]
            try:
                batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
                assert objective(batch)["loss"].isfinite(), (setting, value)
            except ZooError as error:  # what depends on the images
                assert is_sentence(error), error
    assert refused > 20 * len(declared(OBJECTIVES[name]))


@pytest.mark.parametrize(("kind", "sample"), [place for place in SOURCES if place[0] in ("scenes", "patterns")])
def test_sources(kind: str, sample: str) -> None:
    for setting in source_settings(kind, sample):
        for value in WRONG:
            try:
                source_of({"source": kind, setting: copy.deepcopy(value)}, 0, sample)[0]
            except ZooError as error:
                assert is_sentence(error), error


@pytest.mark.parametrize(("kind", "sample"), [place for place in SOURCES if place[0] not in ("scenes", "patterns")])
def test_sources_of_files(kind: str, sample: str) -> None:
    """Whose settings are told before anything of the files is."""
    known = source_settings(kind, sample)
    for setting in known:
        for value in ({}, {"a": 1}, [[1]], math.nan, "a\0b"):
            with pytest.raises(RecipeError, match=rf"data\.{setting}: .*; it must be "):
                source_of({"source": kind, "path": "nowhere", setting: value}, 0, sample)


def test_recipes() -> None:
    """All other settings: those of the table in docs/train.md."""
    whole = tiny().to_dict()
    for setting in describe_settings():
        *above, last = setting.name.split(".")
        for value in WRONG:
            settings = copy.deepcopy(whole)
            (settings[above[0]] if above else settings)[last] = copy.deepcopy(value)
            try:
                parse_recipe(settings, "it")
            except RecipeError as error:
                assert is_sentence(error), error


def test_every_kind_is_declared() -> None:
    """Of the zoo's own: an annotation that can't be read would check nothing."""
    everything = [declared(cls) for cls in OBJECTIVES.values()] + [source_settings(*place) for place in SOURCES]
    assert all(setting.hint is not Any for settings in everything for setting in settings.values())
    assert {OBJECTIVES[name] for name in RECIPES} | {
        OBJECTIVES["masked_token_modeling"],  # which needs a teacher
        OBJECTIVES["linear_heads"],  # and a ResNet: its one setting is linear_probe's
    } == set(OBJECTIVES.values())


def test_numbers_as_yaml_writes_them() -> None:
    scale = declared(OBJECTIVES["jigsaw"])["crop_scale"].hint
    assert checked("scale", ["1e-3", 1], scale, "it") == (1e-3, 1.0)
    with pytest.raises(RecipeError, match="it must be a list of 2: a number above 0 to 1, the smaller first"):
        checked("scale", "..", scale, "it")
    assert described(declared(OBJECTIVES["pirl"])["view"].hint) == "jigsaw or rotation"
