"""The model that a command's MODEL names: one way for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.catalog import VARIANTS, Variant
from zoo.cli._app import need
from zoo.errors import UnknownVariantError, WeightsUnavailableError
from zoo.lookup import find_variant


def load_model(variant: Variant, weights: Path | None, args: dict[str, Any] | None = None) -> Any:
    """A variant with its own weights or those of a file, in eval mode. args: where a trained one departs from it."""
    import timm

    overlay = dict(file=str(weights)) if weights is not None else None
    try:
        return timm.create_model(variant.name, pretrained=True, pretrained_cfg_overlay=overlay, **args or {}).eval()
    except WeightsUnavailableError as error:
        if variant.sources:
            raise
        train = f"train it with `{training_command(variant)}`, name the run's folder; or " if variant.recipe else ""
        raise WeightsUnavailableError(
            f"{variant.name} has no published weights; {train}choose one of `zoo list --form {variant.form} "
            "--pretrained`."
        ) from error


def training_command(variant: Variant) -> str:
    """What trains a variant that has a recipe. One without weights may share that of a published architecture."""
    shared = not variant.sources and any(
        other.sources and (other.recipe, other.form) == (variant.recipe, variant.form) for other in VARIANTS
    )
    return f"zoo train {variant.recipe}" + (f" --set model={variant.architecture}" if shared else "")


def load_named(model: str, weights: Path | None = None, form: str | None = None, lacks: str = "") -> tuple[Any, str]:
    """The model that a command's MODEL names, in eval mode, and its name: a variant, the folder of a training run or
    one that was exported for the Hub, or a repository of the Hub as OWNER/NAME[@REVISION].

    weights: a file in place of a variant's own. form: the catalog's, "binocular", "dense" or "pointmaps"; of others is
    said what they lack. Raises UnknownVariantError for those, and for what is no model.
    """
    import timm

    from zoo.models.making.arguments import check_config_file
    from zoo.weights.network.hub import hub_file, hub_id_of, split_id

    folder, net, hub_id = Path(model), None, None
    if (folder / "config.json").is_file():
        kind, timm_name, config = "An exported model", f"local-dir:{model}", folder / "config.json"
    elif (folder / "recipe.yaml").is_file():
        kind, timm_name = "A training run", ""
    elif folder.is_dir() and (len(folder.parts) > 1 or folder.is_absolute()):
        raise UnknownVariantError(
            f"The folder {model} holds neither a training run (recipe.yaml) nor an exported model (config.json); name "
            "one that does, or a variant."
        )
    elif (hub_id := hub_id_of(model)) is not None:
        kind, timm_name = "A repository", f"hf-hub:{hub_id}"
    else:
        variant = find_variant(model)
        if form is not None and variant.form != form:
            raise _of_another_form(f"{variant.name} ({variant.form})", form, lacks)
        return load_model(variant, weights), variant.name
    if weights is not None:
        raise UnknownVariantError(f"{kind} has its own weights; leave out --weights, or name a variant with them.")
    if not timm_name:
        need("train", "yaml", "accelerate")
        from zoo.evaluate.runs import load_run

        net = load_run(folder).model
    elif hub_id is not None:
        try:  # with errors that say what to do; timm finds it in the cache
            config = hub_file(split_id(hub_id)[0], "config.json", split_id(hub_id)[1])
        except WeightsUnavailableError as error:
            raise WeightsUnavailableError(f"{model} is no folder here, and on the Hub: {error}") from error
    if net is None:
        check_config_file(config, f"The config.json of {model}")
        net = timm.create_model(timm_name, pretrained=True).eval()
    if form is not None and not _is_of_form(net, form):
        raise _of_another_form(model, form, lacks)
    return net, model


def _is_of_form(net: Any, form: str) -> bool:
    from zoo.models.croco import DensePairModel, PairModel
    from zoo.models.pointmaps import PointmapModel

    dense = isinstance(net, DensePairModel)
    kinds = {"binocular": isinstance(net, PairModel) and not dense, "dense": dense}
    return {**kinds, "pointmaps": isinstance(net, PointmapModel)}[form]


def _of_another_form(what: str, form: str, lacks: str) -> UnknownVariantError:
    return UnknownVariantError(f"{what} {lacks}; choose one of `zoo list --form {form}`.")
