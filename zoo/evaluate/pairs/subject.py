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
from zoo.weights.network.hub import HUB_FILENAME, hub_file, hub_id_of, split_id


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
    """A pretrained two-image model by its timm name, that of a training run or of an exported folder, or one that was
    published on the Hub, as OWNER/NAME[@REVISION].

    A run that is still going is loaded from its last checkpoint. form: the catalog's, "binocular" or "pointmaps".

    Raises UnknownVariantError, RecipeError (ValueErrors) or TrainingError (a RuntimeError).
    """
    folder = Path(model_or_run)
    if (folder / "config.json").is_file():  # exported for the Hub
        beside = folder / RECIPE
        return _load_published(f"local-dir:{folder}", form, folder / HUB_FILENAME, beside if beside.is_file() else None)
    if folder.is_dir():
        return _load_run(folder, form)
    if (hub_id := hub_id_of(model_or_run)) is None:
        return _load_pretrained(model_or_run, form)
    repo, revision = split_id(hub_id)
    try:
        recipe: Path | None = hub_file(repo, RECIPE, revision)
    except WeightsUnavailableError:
        recipe = None  # of models that were published without a run
    return _load_published(f"hf-hub:{hub_id}", form, hub_file(repo, HUB_FILENAME, revision), recipe)


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


def _load_published(name: str, form: str, weights: Path, recipe: Path | None) -> Subject:
    model: Any = timm.create_model(name, pretrained=True).eval()
    model_cls, refusal = _KINDS[form]
    if not isinstance(model, model_cls):
        raise RecipeError(f"{name} {refusal}; name a {form} model.")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Subject(name.partition(":")[2], model, load_recipe(recipe) if recipe else None, weights, sha256, None)
