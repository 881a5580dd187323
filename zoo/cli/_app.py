"""The typer app, its errors and exit codes, and what several groups of commands share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.catalog import Variant
from zoo.errors import UnknownVariantError, ZooError
from zoo.lookup import find_variant
from zoo.version import __version__

_EXTRAS = {
    "accelerate": "train",
    "tensorboard": "train",
    "yaml": "train",
    "matplotlib": "demo",
    "sklearn": "eval",
    "trimesh": "points",
}

app = typer.Typer(
    name="zoo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit code 2 for errors that the user can mend, 130 for Ctrl-C."""
    logger, handler = logging.getLogger("zoo"), logging.StreamHandler()
    logger.setLevel(logging.INFO)  # tells which source served the weights
    logger.addHandler(handler)
    try:
        app()
    except ZooError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:  # a file or folder of the user's, or a full disk
        if error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(_complain(f"{place}{error.strerror}. Check that it is there, and yours to use."))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(_complain(f"This command needs {package}; get it with pip install 'pretext-zoo[{_EXTRAS[package]}]'."))
    finally:
        logger.removeHandler(handler)


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pretext-zoo {__version__}")
        raise typer.Exit


@app.callback()
def zoo(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self-supervised vision backbones for timm: look, convert, extract, complete, train."""


def print_table(*rows: tuple[str, ...]) -> None:
    """Aligned columns, as wide as they are: a cut or folded name could not be copied."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<12}{value}", flush=True)


def load_model(variant: Variant, weights: Path | None, args: dict[str, Any] | None = None) -> Any:
    """A variant with its own weights or those of a file, in eval mode. args: where a trained one departs from it."""
    import timm

    overlay = dict(file=str(weights)) if weights is not None else None
    return timm.create_model(variant.name, pretrained=True, pretrained_cfg_overlay=overlay, **args or {}).eval()


_HUB_PREFIXES = ("hf-hub:", "hf_hub:")


def load_named(model: str, weights: Path | None = None) -> tuple[Any, str]:
    """The model that a command's MODEL names, in eval mode, and its name: a variant, the folder of a training run or
    one that was exported for the Hub, or a repository of the Hub as OWNER/NAME[@REVISION].

    weights: a file in place of a variant's own. Raises UnknownVariantError for what is none of them.
    """
    import timm

    folder = Path(model)
    if (folder / "config.json").is_file():
        kind, name = "An exported model", f"local-dir:{model}"
    elif (folder / "recipe.yaml").is_file():
        kind, name = "A training run", model
    elif is_hub_name(model):
        kind, name = "A repository", f"hf-hub:{_hub_id(model)}"
    elif folder.is_dir() and (len(folder.parts) > 1 or folder.is_absolute()):
        raise UnknownVariantError(
            f"The folder {model} holds neither a training run (recipe.yaml) nor an exported model (config.json); name "
            "one that does, or a variant."
        )
    else:
        variant = find_variant(model)
        return load_model(variant, weights), variant.name
    if weights is not None:
        raise UnknownVariantError(f"{kind} has its own weights; leave out --weights, or name a variant with them.")
    if name == model:
        from zoo.evaluate.runs import load_run

        return load_run(folder).model, model
    if name.startswith("hf-hub:"):
        from zoo.weights.hub import hub_file, split_id

        repo, revision = split_id(_hub_id(model))
        hub_file(repo, "config.json", revision)  # with errors that say what to do; timm finds it in the cache
    return timm.create_model(name, pretrained=True).eval(), model


def is_hub_name(model: str) -> bool:
    """Whether a command's MODEL is a repository of the Hub, not a folder or a variant."""
    if model.startswith(_HUB_PREFIXES):
        return True
    return model.count("/") == 1 and not model.startswith(("/", ".", "~")) and not Path(model).is_dir()


def _hub_id(model: str) -> str:
    return model.partition(":")[2] if model.startswith(_HUB_PREFIXES) else model


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "384x512" -> height and width; "384" is a square."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"'{text}' is no size; write height x width, such as 384x512.")
    return int(sides[0]), int(sides[-1])
