"""`zoo train` and `zoo show-batch`: training recipes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli._app import need, print_rows, print_table
from zoo.errors import RecipeError

if TYPE_CHECKING:
    from zoo.train.recipe import Recipe

_Data = Annotated[
    str | None,
    typer.Option(
        help="Your data: a folder of images, folders with a pairs.txt or listing.txt (commas between), a Hugging Face "
        "data set, or shards such as 'train-{0000..1023}.tar'. The source that reads it is chosen by what is there."
    ),
]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; repeatable.")
]


def train(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe (see `zoo recipes`), a .yaml file, or the folder of a run to go on with."),
    ],
    data: _Data = None,
    init: Annotated[
        str | None, typer.Option(help="What to start from: a weights file, the folder of a run, or a variant.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; default: runs/RECIPE.")
    ] = None,
    settings: _Settings = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = 2,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts to compute a batch in, to save memory; default: the recipe's.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Let torch compile the model's blocks: slow to start, then faster, on a GPU."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Choose schedule.length so that the run takes as long, by a trial on this machine."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take three steps and tell what the run comes to.")
    ] = False,
) -> None:
    """Train a recipe, or go on with the run in --output; `zoo train RUN` goes on with a run as it was.

    On several GPUs: accelerate launch -m zoo.cli train RECIPE.

    Example: zoo train croco_nano --set schedule.length=1000 --output runs/short
    """
    need("train", "accelerate", "matplotlib", "yaml")
    from zoo.train import build, engine, preview, schedule

    run = _load_recipe(recipe, data, settings, init)
    folder = output or (Path(recipe) if Path(recipe).is_dir() else Path("runs") / run.name)
    if minutes is not None:
        if (folder / "checkpoint.safetensors").exists():
            raise RecipeError(f"The run in {folder} has its length already; leave out --minutes to go on with it.")
        run = preview.fit_to_time(run, 60 * minutes, workers=workers, accumulate=accumulate, compiled=compiled)
    source, held_out = build.make_source(run), build.make_validation_source(run)
    plan, labeled = schedule.make_plan(run, len(source)), build.objective_class(run).labeled
    optimizer, warmup = run.optimizer, min(plan.warmup, plan.steps)
    rows = [
        ("recipe", run.name + (f" ({run.source})" if run.source else "")),
        ("model", run.model + (f", from {run.init}" if run.init else "")),
        ("objective", _settings_line(run.objective)),
        ("data", _settings_line(run.data) + _size(source, labeled)),
        *(
            [("validation", f"every {plan.validate_every:,} steps{_size(held_out, labeled)}")]
            if held_out is not None
            else []
        ),
        ("steps", f"{plan.steps:,} of {run.batch_size} samples, the first {warmup:,.0f} warm up; {run.precision}"),
        ("optimizer", f"{optimizer.name}, peak learning rate {plan.lr:.3g}, weight decay {optimizer.weight_decay:g}"),
        ("output", str(folder)),
    ]
    if os.environ.get("RANK", "0") == "0":  # set by accelerate launch; one process speaks for all
        print_rows(rows)
    if not dry_run:
        print(engine.train(run, folder, workers=workers, accumulate=accumulate, compiled=compiled))
        return
    trial = preview.dry_run(run, workers=workers, accumulate=accumulate, compiled=compiled)
    epochs = "" if trial["epochs"] is None else f", {trial['epochs']:,.1f} epochs"
    print_rows(
        [
            ("samples", f"{trial['samples']:,}{epochs}"),
            ("parameters", f"{trial['parameters'] / 1e6:.1f} M"),
            ("a step", f"{_duration(trial['seconds_per_step'])} on {trial['device']}"),
            ("all steps", _duration(trial["hours"] * 3600)),
            ("memory", f"{trial['memory_bytes'] / 2**30:.1f} GiB at peak"),
        ]
    )


def show_batch(
    recipe: Annotated[str, typer.Argument(help="A recipe of the zoo, or a .yaml file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    data: _Data = None,
    settings: _Settings = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 4,
) -> None:
    """Draw what the network sees when it is trained on a recipe.

    Example: zoo show-batch croco_nano -o batch.png
    """
    need("train", "accelerate", "matplotlib", "yaml")
    from zoo.pictures import save_figure
    from zoo.train import preview

    print(save_figure(preview.show_batch(_load_recipe(recipe, data, settings), samples), output))


def _load_recipe(recipe: str, data: str | None, settings: list[str] | None, init: str | None = None) -> Recipe:
    from zoo.train.recipe import load_recipe

    overrides = _parse_settings(settings or [])
    if init is not None:
        overrides["init"] = init
    if data is not None:
        overrides = _data_settings(load_recipe(recipe, overrides), data, overrides) | overrides
    return load_recipe(recipe, overrides)


def _data_settings(recipe: Recipe, data: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """What --data comes to: another path, and the source that reads it, unless one was named."""
    from zoo.train.build import objective_class
    from zoo.train.data.choose import settings_for

    if "data.source" in overrides or "data" in overrides:
        return {"data.path": data}
    held_out = any(key.partition(".")[0] == "validation" for key in overrides)
    return settings_for(data, recipe, objective_class(recipe).sample, held_out)


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, to be printed whole.")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Print all settings that a recipe may have.")] = False,
) -> None:
    """List the recipes of the zoo.

    Example: zoo recipes crocov2_large
    """
    need("train", "yaml")
    from zoo.train.recipe import describe_settings, load_recipe, recipe_names, recipe_path

    if settings:
        print_table(("setting", "type", "default", "meaning"), *describe_settings())
        return
    if name is not None:
        load_recipe(name)
        print(recipe_path(name).read_text(encoding="utf-8"), end="")
        return
    rows = [(name, load_recipe(name)) for name in recipe_names()]
    print_table(
        ("recipe", "model", "objective", "data", "batch", "length"),
        *(
            (
                name,
                recipe.model,
                recipe.objective["name"],
                recipe.data["source"],
                str(recipe.batch_size),
                f"{recipe.schedule.stop or recipe.schedule.length:,g} {recipe.schedule.unit}",
            )
            for name, recipe in rows
        ),
    )


def _parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """ "schedule.length=100" -> {"schedule.length": 100}; values as in YAML, and 1e-3 is a number."""
    from zoo.train.plain_yaml import PlainYamlError, read_yaml

    parsed = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"'{setting}' sets nothing; write KEY=VALUE, such as schedule.length=1000.")
        try:
            value = read_yaml(text)
        except PlainYamlError as error:
            raise RecipeError(f"The value in '{setting}' is no YAML; write a number, a word or [a, list].") from error
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML wants 1.0e-3
                value = float(value)
        parsed[key] = value
    return parsed


def _size(source: Any, labeled: bool) -> str:
    """What a training run says of a source: its samples, if they end, and its classes, if they are needed."""
    from zoo.train.data.loading import ENDLESS

    samples, classes = len(source), getattr(source, "num_classes", 0) if labeled else 0
    return (f"; {samples:,} samples" if samples < ENDLESS else "") + (f"; {classes:,} classes" if classes else "")


def _settings_line(settings: dict[str, Any]) -> str:
    title = next(key for key in ("source", "name", *settings) if key in settings)  # recipes of runs are sorted
    return ", ".join([str(settings[title]), *(f"{key} {value}" for key, value in settings.items() if key != title)])


def _duration(seconds: float) -> str:
    """Seconds in the unit that people would say them in."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds * 1000:.0f} ms"
