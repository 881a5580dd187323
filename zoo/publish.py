"""Publishing weights on the Hugging Face Hub: a folder that timm understands, proved to load back, in one commit.

A published folder holds config.json and model.safetensors (what `timm.create_model("hf-hub:OWNER/NAME")` reads), a
card, pictures, the run's recipe, and SHA256SUMS. Tokens are huggingface_hub's own affair: its login and HF_TOKEN.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    errors,
)
from safetensors import safe_open
from timm.models._hub import save_config_for_hf
from timm.models._input import get_model_input_config
from torch import Tensor, nn

from zoo import __version__, pictures
from zoo.catalog import Metric, Variant
from zoo.demo import stereo_pair
from zoo.errors import DataError, PublishError, UnknownVariantError
from zoo.lookup import find_variant
from zoo.models import Ancestor, ZooModel
from zoo.models._masked import PatchPredictor
from zoo.scenes.render import SceneConfig, ScenePairs
from zoo.train.recipe import Recipe, load_recipe
from zoo.weights import files, save_safetensors, sources
from zoo.weights.hub import HUB_FILENAME, explain

CONFIG, CARD, RECIPE, LOSS, SUMS = "config.json", "README.md", "recipe.yaml", "loss.png", "SHA256SUMS"
COMPLETION, FEATURES = "completion.png", "features.png"
PICTURES = {
    COMPLETION: "A photo rebuilt from a few of its patches",
    FEATURES: "What the patches look like to the model, as colors",
}
FILES = (CARD, CONFIG, HUB_FILENAME, RECIPE, LOSS, *PICTURES, "matches.png", "scenes.png", SUMS)
"""What a published folder may hold; nothing else of it is uploaded."""

PERMISSIVE = frozenset(("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit", "unlicense"))
"""Licenses under which weights may be published under another one, in the Hub's spelling."""

DEFAULT_LICENSE = "apache-2.0"
"""Of weights that started at random, when nobody says."""


_PICTURE_PATCHES = 32  # rows and columns of the features' picture


@dataclass(frozen=True)
class Run:
    """A training run, finished or not. rows: of its log. steps: how many the weights have seen.

    classes: names of a classifier's. metrics: of the validation at the end.
    """

    recipe: Recipe
    rows: list[dict[str, Any]]
    steps: int
    finished: bool
    classes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    datasets: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
) -> CommitInfo:
    """Publish a zoo model as `repo` ("OWNER/NAME") on the Hub; returns the commit (its URL, as text, and `oid`).

    license: in the Hub's spelling, such as "mit"; by default that of the weights that these started from, or
    Apache-2.0. private: if the repository has to be made. revision: a branch, made if need be. create_pr: propose the
    change instead. force: overwrite files that were not published by this function. datasets: the Hub's names of what
    the weights were trained on. metrics: figures for the card and the Hub's leaderboards.

    Raises PublishError (a RuntimeError) for weights that are not finite or would not load back, for a license that
    the weights may not have, for files that would be lost, and for what the Hub refuses.

    >>> zoo.push_to_hub(model, "me/croco_nano_rooms", license="mit")
    """
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, folder, repo, license=license, datasets=datasets, metrics=metrics)
        return upload(folder, repo, private=private, revision=revision, create_pr=create_pr, force=force)


# ------------------------------------------------------------------------------------------- the folder


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    variant = _variant_of(model)
    assert isinstance(model, ZooModel)
    license = choose_license(license, model.ancestor)
    write_weights(model, folder, license, classes=run.classes if run else ())
    loaded = check_loads_back(folder, model)
    if run is not None:
        _write_recipe(run.recipe, folder / RECIPE)
        _draw_loss(run, folder / LOSS)
    draw_example(loaded, variant, folder)
    (folder / CARD).write_text(make_card(model, variant, folder, repo, license, datasets, metrics, run), "utf-8")
    write_sums(folder)
    return folder


def export_run(
    run: str | Path, folder: str | Path, repo: str, *, license: str | None = None, datasets: Sequence[str] = ()
) -> Path:
    """Write what `upload` sends from a folder of `zoo train`, of a finished run or one that was interrupted.

    Raises PublishError if it holds no run, and what `export_model` raises.
    """
    from zoo.train import engine  # needs more packages than models do

    run = Path(run)
    if not (run / RECIPE).is_file():
        raise PublishError(
            f"{run} holds neither a training run ({RECIPE}) nor a folder to publish ({CONFIG}); give one of them."
        )
    recipe = load_recipe(run / RECIPE)
    rows = engine.read_log(run) if (run / "log.jsonl").is_file() else []
    if (run / HUB_FILENAME).is_file():
        about = _metadata(run / HUB_FILENAME)
        model = _model_of_run(recipe, run / HUB_FILENAME)
        results = files.read_json(run / "results.json") or {}
        classes, metrics = tuple(results.get("classes", ())), _figures(recipe, results)
        state = Run(recipe, rows, int(about["steps"]), True, classes, metrics)
    elif (run / "checkpoint.safetensors").is_file():
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / HUB_FILENAME
            steps = _take_weights(run / "checkpoint.safetensors", path, recipe)
            model = _model_of_run(recipe, path)
        state = Run(recipe, [row for row in rows if row["step"] <= steps], steps, finished=False)
    else:
        raise PublishError(f"The run in {run} has saved no weights yet; let it reach its first checkpoint.")
    return export_model(model, folder, repo, license=license, datasets=datasets, metrics=state.metrics, run=state)


def _figures(recipe: Recipe, results: dict[str, Any]) -> tuple[Metric, ...]:
    data = {**recipe.data, **recipe.validation}
    name = Path(str(data.get("path") or data.get("source"))).name
    return tuple(
        Metric("image classification", name, key.removeprefix("validation_"), value, "held-out images", "zoo train")
        for key, value in results.items()
        if key.startswith("validation_")
    )


def _take_weights(checkpoint: Path, path: Path, recipe: Recipe) -> int:
    """Copy an interrupted run's model out of its checkpoint, described as a finished one is; returns its steps."""
    state = json.loads(_metadata(checkpoint)["run"])
    prefix = "objective.model."
    with safe_open(checkpoint, "pt") as file:
        tensors = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    about = dict(architecture=recipe.model, recipe=recipe.name, steps=str(state["step"]))
    save_safetensors(tensors, path, {**about, **state.get("ancestry", {})})
    return state["step"]


def _model_of_run(recipe: Recipe, weights: Path) -> nn.Module:
    if recipe.model == "create_pair_model":
        raise PublishError(
            "A model of create_pair_model has no architecture that timm could make again from its name, so it would "
            "not load back; train one of `zoo list --form binocular`."
        )
    args = dict(recipe.model_args)
    started_from = recipe.init or (recipe.model if args.pop("pretrained", False) else None)
    overlay = {**args.pop("pretrained_cfg_overlay", {}), "file": str(weights)}
    model: Any = timm.create_model(recipe.model, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval()
    if started_from and model.ancestor is None:  # a run from before these were recorded, or weights of the package
        with suppress(UnknownVariantError):  # files and runs say themselves what they come from
            variant = find_variant(started_from)
            model.ancestor = Ancestor(variant.name, variant.license.lower())
    return model


def _variant_of(model: nn.Module) -> Variant:
    """The catalog's entry of a model's architecture. Raises PublishError for what timm could not make again."""
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    if isinstance(model, ZooModel) and hasattr(model, "_model_args"):
        try:
            return find_variant(architecture)
        except UnknownVariantError:
            pass
    raise PublishError(
        f"This {type(model).__name__} was not made by timm.create_model from a name of `zoo list`, so it would not "
        "load back; make it that way (features_only: publish the model without it), and load your weights into it."
    )


def choose_license(claimed: str | None, ancestor: Ancestor | None) -> str:
    """The license to publish under, in the Hub's spelling. Raises PublishError if it is not for us to choose."""
    if ancestor is None or ancestor.license.lower() in PERMISSIVE:
        return (claimed or (ancestor.license if ancestor else DEFAULT_LICENSE)).lower()
    inherited = ancestor.license.lower()
    if not inherited:
        raise PublishError(
            f"These weights started from {ancestor.name}, which doesn't say under which license it is; "
            "publish them where you got it from, or start from weights with a license."
        )
    if claimed is not None and claimed.lower() != inherited:
        raise PublishError(
            f"These weights started from {ancestor.name}, which is under {inherited}, and keep its license, so they "
            f"can't be published under {claimed}; leave the license out or name that one."
        )
    return inherited


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


def check_finite(state: dict[str, Tensor]) -> None:
    """Raise PublishError if any tensor holds NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise PublishError(
                f"{name} holds {count} values that are NaN or infinite, so the weights can't be published; go back to "
                "an earlier checkpoint."
            )


def check_loads_back(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """Load a folder as users of the Hub will, and compare outputs with those of `model`; returns what was loaded.

    Raises PublishError if timm can't make the model, or if it computes something else.
    """
    try:
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PublishError(
            f"This model would not load back: {reason.rstrip('.')}. Publish one whose layers are those that its name "
            "and arguments give."
        ) from error
    if model is None:
        return loaded
    like = next(model.parameters())
    loaded.to(like.device, like.dtype)
    theirs = loaded.state_dict()
    if changed := [key for key, value in model.state_dict().items() if not torch.equal(value, theirs[key])]:
        raise PublishError(
            f"This model would not load back: {changed[0]} would have other values. Publish it in the precision that "
            "it was made in."
        )
    training = model.training
    try:
        results = [_outputs(net.eval(), loaded) for net in (model, loaded)]
    finally:
        model.train(training)
    for ours, theirs in zip(*results, strict=True):
        difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
        if not difference <= 1e-4 * max(1.0, ours.abs().max().item()):
            raise PublishError(
                f"This model would not load back: made again from its name and arguments, it gives other outputs (by "
                f"{difference:.2g}). Publish one that was not changed after timm.create_model had made it."
            )
    return loaded


@torch.inference_mode()
def _outputs(model: Any, like: ZooModel) -> list[Tensor]:
    """What a model makes of noise of `like`'s own input size: all tensors, as float32."""
    generator, form = torch.Generator().manual_seed(0), _variant_of(like).form
    images = torch.randn(2, 1, *like.pretrained_cfg["input_size"], generator=generator).to(next(model.parameters()))
    if form in ("binocular", "dense"):
        output = model(*images)
    elif form == "encoder":
        output = model(images[0])
    else:  # pretext tasks differ in what they take, their backbones don't
        output = [model.encoder(images[0])]
        if isinstance(model, PatchPredictor):
            output.append(model.complete(images[0], generator=generator).image)  # type: ignore[operator]
    return [tensor.float() for tensor in _tensors(output)]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


@torch.inference_mode()
def draw_example(model: Any, variant: Variant, folder: Path) -> None:
    """A picture of what a model in eval mode has learned: a completion if it makes some, else its features.

    Forms that neither complete nor have a backbone, and models of other than RGB images, get none. Changes the
    model's input size.
    """
    if model.in_chans != 3:
        return
    views = _example_views()
    completes = getattr(model, "head", model) is not None  # pairs may be made without
    if isinstance(model, PatchPredictor) and variant.form != "dense" and completes:
        figure = _draw_completion(model, variant, views)
        pictures.save_figure(figure, folder / COMPLETION)
        return
    encoder = getattr(model, "encoder", model)
    if not hasattr(encoder, "forward_intermediates"):
        return
    side = _PICTURE_PATCHES * encoder.feature_info[-1]["reduction"]
    if hasattr(encoder, "set_input_size"):  # convolutional networks take any size
        encoder.set_input_size((side, side))
    encoder.pretrained_cfg = model.pretrained_cfg  # the normalization
    image = pictures.to_input(views[0], encoder, (side, side))
    (maps,) = encoder.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)  # 1, D, h, w
    rows, columns = maps.shape[2:]
    colors = pictures.pca_rgb(maps[0].flatten(1).T).unflatten(0, (rows, columns)).numpy()
    figure = pictures.draw_images(
        [(pictures.to_pixels(image, model)[0], colors)],
        ("photo", "features"),
        "",
        f"Three principal components of the features as red, green and blue, a map of {rows} x {columns}.",
    )
    pictures.save_figure(figure, folder / FEATURES)


def _draw_completion(model: Any, variant: Variant, views: tuple[Any, Any]) -> Any:
    caption = pictures.completion_caption(model)
    img1, img2 = (pictures.to_input(view, model) for view in views)
    if variant.form == "binocular":
        row = pictures.picture_completion(model, img1, img2)
        return pictures.draw_completions([row], caption, "90% of a photo hidden")
    result = model.complete(img1, generator=torch.Generator().manual_seed(0))
    truth = pictures.to_pixels(img1, model)
    hidden = pictures.hide(truth, result.mask, model.patch_size)
    images = (hidden[0], pictures.to_pixels(result.image, model)[0], truth[0])
    return pictures.draw_images([images], ("input", "completion", "truth"), "75% of a photo hidden", caption, panel=2.4)


def _example_views() -> tuple[Any, Any]:
    """Two views of one scene, uint8 (H, W, 3): photos where scikit-image has them, else rendered."""
    try:
        window = stereo_pair().crop(20, 120, 448, 448)
        return window.left, window.right
    except DataError:
        scene = ScenePairs(SceneConfig(image_size=448))[0]
        return scene["image1"], scene["image2"]


def _write_recipe(recipe: Recipe, path: Path) -> None:
    """The recipe as it was run, with files and folders by their last names: the rest is nobody's business."""
    settings = json.loads(json.dumps(recipe.to_dict()))
    for place, key in ((settings["data"], "path"), (settings["validation"], "path"), (settings, "init")):
        if isinstance(place.get(key), str):
            place[key] = ",".join(Path(part).name for part in place[key].split(","))
    path.write_text(yaml.safe_dump(settings), "utf-8")


def _draw_loss(run: Run, path: Path) -> None:
    from zoo.train import engine

    if run.rows:
        engine.draw_loss(run.rows, path, run.recipe.name)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of what else is to be published, for `sha256sum -c`."""
    lines = [f"{files.sha256(folder / name)}  {name}\n" for name in listing(folder) if name != SUMS]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def listing(folder: Path) -> list[str]:
    """Names of what a folder has to publish."""
    return [name for name in FILES if (folder / name).is_file()]


def _metadata(path: Path) -> dict[str, str]:
    files.header_digest(path)  # says what is wrong with a damaged file
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


# --------------------------------------------------------------------------------------------- the card

_FORMS = {
    "encoder": "A backbone for single images",
    "pretraining": "A backbone with the parts of its pretext task",
    "binocular": "An encoder with a decoder for two images",
    "dense": "A two-image model with a dense head",
}


def make_card(
    model: ZooModel,
    variant: Variant,
    folder: Path,
    repo: str,
    license: str,
    datasets: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
    run: Run | None = None,
) -> str:
    """The text of a README.md, with the metadata that the Hub reads. folder: for the pictures that are there."""
    ancestor = model.ancestor
    data = card_data(variant, repo, license, model.num_classes, datasets, metrics, ancestor)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    trained = (
        f"trained by pretext-zoo's recipe `{run.recipe.name}`" if run is not None else "published with pretext-zoo"
    )
    sections = [
        f"# {repo.rpartition('/')[2]}",
        f"{_FORMS[variant.form]}: `{variant.architecture}`, {millions:.1f} M parameters, {trained}. The "
        f"architecture is that of [{variant.paper.title}](https://arxiv.org/abs/{variant.paper.arxiv}).",
    ]
    for name, alt in PICTURES.items():
        if (folder / name).is_file():
            sections.append(f"![{alt}]({name})")
    sections.append(f"## How to load it\n\n{_loading(variant, repo, model)}")
    if run is not None:
        sections.append(f"## Training\n\n{_training(run, (folder / LOSS).is_file())}")
    if metrics:
        rows = [f"| {m.task} | {m.dataset} | {m.name} | {m.value:g} | {m.conditions} | {m.source} |" for m in metrics]
        head = "| Task | Data | Measure | Value | Conditions | Source |\n| --- | --- | --- | ---: | --- | --- |"
        sections.append("## Figures\n\n" + "\n".join((head, *rows)))
    origin = f" They started from {ancestor.name} ({ancestor.license})." if ancestor else ""
    if run is not None and not (ancestor or run.recipe.init):
        origin = " They started at random."
    sections.append(
        f"## License and origin\n\nThe weights are under {license}.{origin} `sha256sum -c {SUMS}` checks the files."
    )
    return f"---\n{data}\n---\n\n" + "\n\n".join(sections) + "\n"


def card_data(
    variant: Variant,
    repo: str,
    license: str,
    num_classes: int = 0,
    datasets: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
    ancestor: Ancestor | None = None,
) -> ModelCardData:
    """A card's metadata, with a model-index if there are figures."""
    results = [
        EvalResult(
            task_type=metric.task.lower().replace(" ", "-"),
            dataset_type=metric.dataset.lower().replace(" ", "-"),
            dataset_name=metric.dataset,
            metric_type=metric.name,
            metric_name=f"{metric.name}, {metric.conditions}",
            metric_value=metric.value,
        )
        for metric in metrics
    ]
    return ModelCardData(
        license=license,
        library_name="timm",
        pipeline_tag="image-classification" if num_classes else "image-feature-extraction",
        tags=["timm", "pretext-zoo", "self-supervised-learning", variant.family],
        datasets=list(datasets) or None,
        base_model=_hub_repository(ancestor.name) if ancestor else None,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _hub_repository(name: str) -> str | None:
    """The Hub's repository that an ancestor's name means: itself, or where a variant is pinned to."""
    if "/" in name:
        return name
    pin = (files.read_json(sources.LOCK_FILE) or {}).get(name)
    return pin["repo"] if pin else None


def _loading(variant: Variant, repo: str, model: ZooModel) -> str:
    size = ", ".join(map(str, get_model_input_config(model)["input_size"]))
    call = {
        "encoder": f"output = model(torch.randn(1, {size}))",
        "pretraining": f"features = model.encoder(torch.randn(1, {size}))",
    }.get(variant.form, f"output = model(*torch.randn(2, 1, {size}))  # two images")
    return f"""```python
import timm
import torch

import zoo  # pip install pretext-zoo; registers its architectures with timm

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
{call}
```

Or by torch.hub, from a clone of pretext-zoo:

```python
model = torch.hub.load("path/to/pretext-zoo", "{variant.architecture}", source="local", weights="{repo}")
```"""


def _training(run: Run, has_curve: bool) -> str:
    recipe = run.recipe
    _, *data = recipe.data.items()
    rows = {
        "Recipe": f"[{recipe.name}]({RECIPE})" + (f", {recipe.source}" if recipe.source else ""),
        "Objective": _settings(recipe.objective),
        "Data": recipe.data.get("source", "") + "".join(f", {key} {value}" for key, value in data if key != "path"),
        "Steps": f"{run.steps:,} of {recipe.batch_size} samples"
        + ("" if run.finished else "; **the run was not finished when this was published**"),
        "Optimizer": f"{recipe.optimizer.name}, peak learning rate {recipe.learning_rate():.3g}, weight decay "
        f"{recipe.optimizer.weight_decay:g}; {recipe.precision}",
    }
    if run.rows:
        rows["Last loss"] = f"{run.rows[-1]['loss']:.4f}"
    table = "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return table + (f"\n\n![The loss over the steps]({LOSS})" if has_curve else "")


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(str(value) if key == "name" else f"{key} {value}" for key, value in settings.items())


# ------------------------------------------------------------------------------------------------ the Hub


def check_folder(folder: str | Path, license: str | None = None) -> None:
    """Check a folder that was exported before and maybe edited since, and bring its SHA256SUMS up to date.

    license: what the card must say, if given.

    Raises PublishError for a missing file, weights that are not finite, a model that would not load back, a card that
    the Hub would refuse, and a license that the weights may not have.
    """
    folder = Path(folder)
    for name in (CONFIG, HUB_FILENAME, CARD):
        if not (folder / name).is_file():
            raise PublishError(f"{folder} has no {name}; export the model again, with `zoo push --dry-run`.")
    loaded = check_loads_back(folder)
    check_finite(loaded.state_dict())
    try:
        claimed = ModelCard.load(folder / CARD).data.license
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise PublishError(
            f"The metadata at the top of {folder / CARD} can't be read ({reason}); correct it."
        ) from error
    if not isinstance(claimed, str):
        raise PublishError(f"{folder / CARD} names no license; add a line such as 'license: {DEFAULT_LICENSE}'.")
    if license is not None and license.lower() != claimed.lower():
        raise PublishError(f"{folder / CARD} says that the license is {claimed}, not {license}; change it there.")
    about = _metadata(folder / HUB_FILENAME)
    if about.get("license"):
        choose_license(
            claimed, Ancestor(about.get("base_model", about.get("variant", "those of this file")), about["license"])
        )
    write_sums(folder)


def upload(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    message: str = "Publish with pretext-zoo",
) -> CommitInfo:
    """Send a folder to the Hub in one commit, which also removes what an earlier one of ours left; see `push_to_hub`.

    Raises PublishError.
    """
    folder = Path(folder)
    ours = {name: folder / name for name in listing(folder)}
    api = HfApi(library_name="pretext-zoo", library_version=__version__)
    with _in_plain_words(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.model_info(repo, revision=revision, files_metadata=True)
        if private and not info.private:
            raise PublishError(
                f"{repo} is there and public; make it private at {constants.ENDPOINT}/{repo}/settings, or leave out "
                "private."
            )
        theirs = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        with tempfile.TemporaryDirectory() as temporary:
            remote = _Remote(api, repo, info.sha, theirs, Path(temporary))
            published = remote.published()
            lost = [
                name
                for name in ours
                if name in theirs
                and name != SUMS
                and remote.digest(name) not in (published.get(name), files.sha256(ours[name]))
            ]
            if SUMS in theirs and not published:
                lost.append(SUMS)
            if lost and not force:
                raise PublishError(
                    f"{repo} has {', '.join(lost)} with contents that `zoo push` did not write, which would be lost; "
                    "choose another repository, or overwrite them with --force (force=True)."
                )
            stale = [
                name
                for name in FILES
                if name not in ours and name in theirs and remote.digest(name) == published.get(name)
            ]
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in ours.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(
            repo,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else info.sha,  # nobody's change in between is overwritten
        )


class _Remote:
    """What a repository holds at a commit."""

    def __init__(self, api: HfApi, repo: str, commit: str | None, siblings: dict[str, Any], folder: Path) -> None:
        self.api, self.repo, self.commit, self.siblings, self.folder = api, repo, commit, siblings, folder

    def published(self) -> dict[str, str]:
        """Names and SHA-256 that an earlier upload of ours has written down; empty if there was none."""
        if SUMS not in self.siblings:
            return {}
        lines = [line.split("  ") for line in self._read(SUMS).decode("utf-8", "replace").splitlines()]
        if not all(len(line) == 2 and len(line[0]) == 64 for line in lines):
            return {}
        return {name: digest for digest, name in lines if name in FILES}

    def digest(self, name: str) -> str:
        """SHA-256 of a file: large files have it in the listing, others are small."""
        lfs = self.siblings[name].lfs
        return lfs.sha256 if lfs else files.sha256(self._fetch(name))

    def _read(self, name: str) -> bytes:
        return self._fetch(name).read_bytes()

    def _fetch(self, name: str) -> Path:
        return Path(self.api.hf_hub_download(self.repo, name, revision=self.commit, cache_dir=self.folder))


@contextmanager
def _in_plain_words(repo: str) -> Iterator[None]:
    """huggingface_hub's errors as a PublishError that says what to do."""
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PublishError(
            f"{repo} can't be published without a login; run `hf auth login` or set HF_TOKEN."
        ) from error
    except (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.OfflineModeIsEnabled,
    ) as error:
        raise PublishError(f"{repo} can't be published: {explain(error, repo)}.") from error
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, PublishError):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, errors.HTTPError) else error
        raise PublishError(f"{repo} can't be published: {explain(cause, repo)}.") from error
