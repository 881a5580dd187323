"""The model that is evaluated, from the zoo or from a training run, and what it was trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import timm

from zoo.errors import RecipeError, WeightsUnavailableError
from zoo.evaluate.runs import RECIPE, load_run
from zoo.lookup import find_variant
from zoo.models import fetch
from zoo.models.croco import PairModel
from zoo.models.pointmaps import PointmapModel
from zoo.scenes import SceneConfig
from zoo.train.data.sources import make_source
from zoo.train.recipe import Recipe, load_recipe
from zoo.weights.hub import HUB_FILENAME, hub_file, hub_id_of, split_id


class Subject(NamedTuple):
    """A model to be evaluated, how it was trained (None: unknown), and the file of its weights."""

    name: str
    model: Any
    recipe: Recipe | None
    weights: Path
    sha256: str
    step: int | None

    @property
    def mask_ratio(self) -> float:
        """Share of patches that it is to complete: what its training ended with, or CroCo's."""
        return self.recipe.objective.get("mask_ratio", 0.9) if self.recipe else 0.9

    def scenes(self, seed: int) -> SceneConfig:
        """The kind of scenes that it was trained on, or the renderer's default.

        Raises RecipeError (a ValueError) when it was trained on the very scenes of `seed`.
        """
        if self.recipe is None or self.recipe.data["source"] != "scenes":
            return SceneConfig(image_size=self.model.encoder.patch_embed.img_size)
        if seed == self.recipe.seed:
            raise RecipeError(f"Seed {seed} is the one that this model was trained with; choose another --seed.")
        return make_source(self.recipe.data, seed, "pair").config


_KINDS: dict[str, tuple[type, str]] = {
    "binocular": (PairModel, "completes no pairs"),
    "pointmaps": (PointmapModel, "gives no points"),
}
"""Of each form that is evaluated: its class, and what is said of others."""


def load_subject(model_or_run: str, form: str = "binocular") -> Subject:
    """A pretrained two-image model by its timm name, the model of a training run by the run's folder, or one that was
    published on the Hub, as OWNER/NAME[@REVISION].

    A run that is still going is loaded from its last checkpoint. form: the catalog's, "binocular" or "pointmaps".

    Raises UnknownVariantError, RecipeError (ValueErrors) or TrainingError (a RuntimeError).
    """
    folder = Path(model_or_run)
    if folder.is_dir():
        return _load_run(folder, form)
    hub_id = hub_id_of(model_or_run)
    return _load_pretrained(model_or_run, form) if hub_id is None else _load_published(hub_id, form)


def _load_run(folder: Path, form: str) -> Subject:
    model_cls, refusal = _KINDS[form]

    def check(model: Any, recipe: Recipe) -> None:
        if not isinstance(model, model_cls):
            raise RecipeError(f"{folder} trains {recipe.model}, which {refusal}; name the run of a {form} model.")

    model, recipe, path, sha256, step = load_run(folder, check)
    return Subject(recipe.model, model, recipe, path, sha256, step)


def _load_pretrained(name: str, form: str) -> Subject:
    variant = find_variant(name)
    if variant.form != form:
        raise RecipeError(f"{name} {_KINDS[form][1]}; choose one of `zoo list --form {form}`.")
    recipe = load_recipe(variant.recipe) if variant.recipe else None
    path = fetch(variant.name)
    model: Any = timm.create_model(variant.name, pretrained=True).eval()
    return Subject(variant.name, model, recipe, path, hashlib.sha256(path.read_bytes()).hexdigest(), None)


def _load_published(hub_id: str, form: str) -> Subject:
    repo, revision = split_id(hub_id)
    path = hub_file(repo, HUB_FILENAME, revision)
    model: Any = timm.create_model(f"hf-hub:{hub_id}", pretrained=True).eval()
    model_cls, refusal = _KINDS[form]
    if not isinstance(model, model_cls):
        raise RecipeError(f"{hub_id} {refusal}; name the repository of a {form} model.")
    try:
        recipe = load_recipe(hub_file(repo, RECIPE, revision))
    except WeightsUnavailableError:
        recipe = None  # of models that were published without a run
    return Subject(hub_id, model, recipe, path, hashlib.sha256(path.read_bytes()).hexdigest(), None)
