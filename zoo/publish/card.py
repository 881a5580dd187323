"""A published model's card: the README.md that people read, with the metadata that the Hub reads."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models._input import get_model_input_config

from zoo.catalog import VARIANTS, Metric, Variant
from zoo.models import Ancestor, ZooModel
from zoo.publish.folder import LOSS, PICTURES, RECIPE, SUMS
from zoo.publish.runs import Run
from zoo.weights import sources
from zoo.weights.disk import files

REPOSITORY = "ZOO_REPOSITORY"
"""Environment variable: where the zoo's git repository is, for cards to say; it has no public address of its own."""

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
        f"trained by pretext-zoo's recipe {_code(run.recipe.name)}" if run is not None else "published with pretext-zoo"
    )
    what = _FORMS[variant.form] if variant in VARIANTS else variant.description  # of create_pair_model
    sections = [
        f"# {repo.rpartition('/')[2]}",
        f"{what}: `{variant.architecture}`, {millions:.1f} M parameters, {trained}. The "
        f"architecture is that of [{variant.paper.title}](https://arxiv.org/abs/{variant.paper.arxiv}).",
    ]
    for name, alt in PICTURES.items():
        if (folder / name).is_file():
            sections.append(f"![{alt}]({name})")
    sections.append(f"## How to load it\n\n{_loading(variant, repo, model)}")
    if run is not None:
        sections.append(f"## Training\n\n{_training(run, (folder / LOSS).is_file())}")
    if metrics:
        cells = [(m.task, m.dataset, m.name, f"{m.value}", m.conditions, m.cited) for m in metrics]
        rows = [f"| {' | '.join(map(plain, row))} |" for row in cells]
        head = "| Task | Data | Measure | Value | Conditions | Source |\n| --- | --- | --- | ---: | --- | --- |"
        sections.append("## Figures\n\n" + "\n".join((head, *rows)))
    origin = f" They started from {plain(ancestor.name)} ({plain(ancestor.license)})." if ancestor else ""
    if run is not None and not (ancestor or run.recipe.init):
        origin = " They started at random."
    sections.append(
        f"## License and origin\n\nThe weights are under {plain(license)}.{origin} `sha256sum -c {SUMS}` checks the "
        "files."
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
            metric_name=f"{metric.name}, {metric.conditions}" + (", secondary source" if metric.secondary else ""),
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
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        return name.partition("@")[0]
    pin = (files.read_json(sources.LOCK_FILE) or {}).get(name)
    return pin["repo"] if pin else None


def _loading(variant: Variant, repo: str, model: ZooModel) -> str:
    size = ", ".join(map(str, get_model_input_config(model)["input_size"]))
    call = {
        "encoder": f"output = model(torch.randn(1, {size}))",
        "pretraining": f"features = model.encoder(torch.randn(1, {size}))",
    }.get(variant.form, f"output = model(*torch.randn(2, 1, {size}))  # two images")
    address = os.environ.get(REPOSITORY, "")
    install = f"pip install git+{address}" if address else "in a clone of pretext-zoo: pip install ."
    return f"""```python
import timm
import torch

import zoo  # registers its architectures with timm; {install}

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
{call}
```

Or by torch.hub, from a clone of pretext-zoo{f" (`git clone {address}`)" if address else ""}:

```python
model = torch.hub.load("path/to/pretext-zoo", "{variant.architecture}", source="local", weights="{repo}").eval()
```"""


def _training(run: Run, has_curve: bool) -> str:
    recipe = run.recipe
    rows = {
        "Recipe": f"[{plain(recipe.name)}]({RECIPE})" + (f", {plain(recipe.source)}" if recipe.source else ""),
        "Objective": _settings(recipe.objective, "name"),
        "Data": _settings({key: value for key, value in recipe.data.items() if key != "path"}, "source"),
        "Steps": f"{run.steps:,} of {recipe.batch_size} samples"
        + ("" if run.finished else "; **the run was not finished when this was published**"),
        "Optimizer": f"{plain(recipe.optimizer.name)}, peak learning rate {recipe.learning_rate():.3g}, weight decay "
        f"{recipe.optimizer.weight_decay:g}; {recipe.precision}",
    }
    if run.rows:
        rows["Last loss"] = f"{run.rows[-1]['loss']:.4f}"
    table = "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return table + (f"\n\n![The loss over the steps]({LOSS})" if has_curve else "")


def _settings(settings: dict[str, Any], title: str) -> str:
    """ "scenes, image_size 64": the value of `title`, and the other settings behind it, in whatever order they are."""
    others = [f"{plain(key)} {plain(value)}" for key, value in settings.items() if key != title]
    return ", ".join([plain(settings.get(title, "")), *others])


def plain(text: Any) -> str:
    """A text as Markdown that shows it and does nothing else: on one line, in a table too."""
    line = re.sub(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+", " ", str(text)).strip()
    return re.sub(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w))", r"\\\1", line)  # within words _ does nothing


def _code(text: str) -> str:
    """A name in Markdown's typewriter letters."""
    return "`" + re.sub(r"[`|\s\x00-\x1f]+", " ", text).strip() + "`"
