"""From a model or a run to the folder that is published, proved to load back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from timm.models._hub import save_config_for_hf
from torch import nn

from zoo.catalog import Metric, Variant
from zoo.errors import PublishError
from zoo.models import ZooModel
from zoo.publish.card import make_card
from zoo.publish.checks import check_finite, check_loads_back, check_repository, variant_of
from zoo.publish.example import draw_example
from zoo.publish.folder import CARD, CONFIG, FILES, LOSS, RECIPE, write_sums, write_text
from zoo.publish.licenses import choose_license
from zoo.publish.private import public_recipe
from zoo.publish.runs import Run, draw_loss, read_run, write_recipe
from zoo.weights import save_safetensors
from zoo.weights.disk import files
from zoo.weights.network.hub import HUB_FILENAME


def export_model(
    model: nn.Module,
    folder: str | Path,
    repo: str,
    *,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
    run: Run | None = None,
) -> Path:
    """Write what `upload` sends; arguments as of `push_to_hub`. run: where the weights come from.

    Raises PublishError, ImageError or CorruptWeightsError (a full disk).
    """
    check_repository(repo)
    folder = Path(folder)
    for name in FILES:  # links of what was there before are not written through
        if (folder / name).is_symlink():
            (folder / name).unlink()
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    variant = variant_of(model)
    assert isinstance(model, ZooModel)
    license = choose_license(license, model.ancestor)
    write_weights(model, folder, license, classes=run.classes if run else ())
    loaded = check_loads_back(folder, model)
    if run is not None:
        run = replace(run, recipe=public_recipe(run.recipe))
        write_recipe(run.recipe, folder / RECIPE)
        draw_loss(run, folder / LOSS)
    draw_example(loaded, variant, folder)
    write_text(folder / CARD, make_card(model, variant, folder, repo, license, datasets, metrics, run))
    write_sums(folder)
    return folder


def export_run(
    run: str | Path, folder: str | Path, repo: str, *, license: str | None = None, datasets: Sequence[str] = ()
) -> Path:
    """Write what `upload` sends from a folder of `zoo train`, of a finished run or one that was interrupted.

    Raises PublishError if it holds no run, and what `export_model` raises.
    """
    check_repository(repo)
    model, state = read_run(run)
    return export_model(model, folder, repo, license=license, datasets=datasets, metrics=state.metrics, run=state)


def write_weights(
    model: ZooModel, folder: Path, license: str, variant: Variant | None = None, classes: Sequence[str] = ()
) -> None:
    """Write model.safetensors and timm's config.json.

    variant: the published one that this is, if it is one. classes: names for a classifier's outputs.

    Raises PublishError for weights that are not finite, and for arguments that JSON can't hold.
    """
    state = model.state_dict()
    check_finite(state)
    about = {"format": "pt", "architecture": model.pretrained_cfg["architecture"], "license": license}
    about |= model.file_metadata()
    if variant is not None:
        about["variant"] = variant.name
    elif model.ancestor is not None:
        about["base_model"] = model.ancestor.name
    save_safetensors(state, folder / HUB_FILENAME, about)
    path = folder / CONFIG
    try:
        labels = dict(label_names=list(classes)) if len(classes) == model.num_classes else {}
        save_config_for_hf(model, str(path), model_config=labels)
    except ValueError as error:  # timm's sentence
        raise PublishError(f"This model would not load back: {error} Make it again with plain arguments.") from error
    config = json.loads(path.read_text("utf-8"))
    # at the root already, and transformers' timm wrapper would pass it twice
    config["model_args"].pop("num_classes", None)
    config["pretrained_cfg"]["license"] = license
    if variant is None:
        config["pretrained_cfg"].pop("tag", None)
        config["pretrained_cfg"].pop("description", None)
    files.write_json(path, config)
