"""The `zoo` command: a thin face over the package's functions.

torch and timm are imported inside the commands that need them, so that `zoo --help` and `zoo list` answer at
once. Whatever the zoo raises on purpose becomes one message and exit code 2.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo import __version__
from zoo.catalog import DEFAULT_PAIR, VARIANTS, Source, Variant
from zoo.errors import (
    CorruptWeightsError,
    ImageError,
    RecipeError,
    UnknownVariantError,
    WeightsUnavailableError,
    ZooError,
)
from zoo.lookup import find_variant

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models import ZooModel
    from zoo.train.recipe import Recipe

_EXTRAS = {"accelerate": "train", "tensorboard": "train", "yaml": "train", "matplotlib": "demo", "sklearn": "eval"}

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


# ------------------------------------------------------------------------------------------ looking around


class Form(str, enum.Enum):
    """The catalog's forms."""

    encoder = "encoder"
    pretraining = "pretraining"
    binocular = "binocular"
    dense = "dense"


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ? as in a shell.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only this family, such as croco.")] = None,
    form: Annotated[Form | None, typer.Option(help="Only this form.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only variants with weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the catalog's entries as JSON.")] = False,
) -> None:
    """List the zoo's variants.

    Example: zoo list 'crocov2*' --form binocular
    """
    import dataclasses
    from fnmatch import fnmatchcase

    found = [
        variant
        for variant in VARIANTS
        if fnmatchcase(variant.name, pattern)
        and family in (None, variant.family)
        and form in (None, variant.form)
        and (variant.sources or not pretrained)
    ]
    if not found:
        raise UnknownVariantError("The zoo has no variant like that; `zoo list` prints all of them.")
    if as_json:
        print(json.dumps([{"name": variant.name, **dataclasses.asdict(variant)} for variant in found], indent=2))
        return
    _print_table(
        ("variant", "form", "input", "parameters", "license", "weights"),
        *(
            (
                variant.name,
                variant.form,
                "x".join(map(str, variant.input_size[1:])),
                f"{variant.parameters / 1e6:.1f} M",
                variant.license,
                _describe_source(variant.sources[0]) if variant.sources else "none",
            )
            for variant in found
        ),
    )


@app.command()
def info(variant: Annotated[str, typer.Argument(help="A variant, or an architecture for its first tag.")]) -> None:
    """Show all of one variant's entry, its local files, and how to load it.

    Example: zoo info crocov2_large_patch16_224.habitat_real
    """
    entry = find_variant(variant)
    print(f"{entry.name}\n{entry.description}\n")
    paper = entry.paper
    rows = [
        ("family", entry.family),
        ("form", entry.form),
        ("input", f"{' x '.join(map(str, entry.input_size))}, mean {entry.mean}, std {entry.std}"),
        ("parameters", f"{entry.parameters:,}"),
        ("classes", str(entry.num_classes or "none")),
        ("arguments", ", ".join(f"{key}={value!r}" for key, value in entry.args.items())),
        ("license", entry.license),
        ("paper", f"{paper.title} ({paper.venue} {paper.year}), https://arxiv.org/abs/{paper.arxiv}"),
        ("training", entry.training or "not trained yet"),
        ("recipe", f"zoo train {entry.recipe}" if entry.recipe else "none in the zoo"),
        *(("source", _describe_source(source, full=True)) for source in entry.sources),
        *(("local file", line) for line in _describe_local(entry)),
        *(
            ("published", f"{m.task}, {m.dataset}: {m.name} {m.value:g} ({m.conditions}; {m.source})")
            for m in entry.metrics
        ),
    ]
    _print_rows(rows)
    call = "features = model(images)" if entry.form == "encoder" else "result = model(img1, img2)"
    pretrained = ", pretrained=True" if entry.sources else ""
    print(f'\nimport timm, zoo\nmodel = timm.create_model("{entry.name}"{pretrained}).eval()\n{call}')


def _describe_source(source: Source, full: bool = False) -> str:
    if source.kind == "package":
        return "in the package" + (f", {source.location}" if full else "")
    if source.kind == "gdrive":
        return f"https://drive.google.com/file/d/{source.location}" if full else "drive.google.com"
    return source.location if full else source.location.split("/")[2]


def _describe_local(variant: Variant) -> list[str]:
    """Each weights file of a variant that is on this machine, with where it came from."""
    from zoo import weights

    candidates = [weights.sources.BUNDLED / s.location for s in variant.sources if s.kind == "package"]
    if mirror := os.environ.get("ZOO_WEIGHTS"):
        candidates.append(Path(mirror).expanduser() / f"{variant.name}.safetensors")
    candidates.append(weights.cached_path(variant))
    lines = []
    for path in candidates:
        if path.is_file():
            record = weights.source_of(path)
            source = record["source"]
            lines.append(f"{path} (from {source['kind']} {source['location']}, {record.get('created', 'undated')})")
    return lines or [f"none yet; the cache would keep it as {weights.cached_path(variant)}"]


def _print_table(*rows: tuple[str, ...]) -> None:
    """Aligned columns, as wide as they are: a cut or folded name could not be copied."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


# ------------------------------------------------------------------------------------------- using models

_Model = Annotated[str, typer.Argument(help="A variant, or an architecture for its first tag.")]
_Weights = Annotated[
    Path | None, typer.Option("--weights", help="Weights file to use in place of the published ones.", exists=True)
]
_Size = Annotated[
    str | None, typer.Option(help="Height x width to resize and crop photos to, such as 384x512; default: the model's.")
]


@app.command()
def features(
    model: _Model,
    images: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", exists=True)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    maps: Annotated[bool, typer.Option("--maps", help="Write feature maps (C, h, w), not pooled (C,).")] = False,
    size: _Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos at a time.")] = 16,
    weights: _Weights = None,
) -> None:
    """Extract features of photos into a .safetensors file.

    It gets one tensor a photo, under the photo's path. A two-image model gives its encoder's features. Runs on
    a GPU if there is one.

    Example: zoo features crocov2_base_patch16_224 photos/ -o features.safetensors --maps
    """
    import torch
    from tqdm import tqdm

    from zoo.pictures import check_size, to_input
    from zoo.weights import save_safetensors

    variant = find_variant(model)
    paths = _find_photos(images)
    img_size = _parse_size(size)
    net = _load(variant, weights)
    encoder: Any = net if variant.form == "encoder" else net.encoder
    if img_size is not None:
        check_size(net, img_size)
        if hasattr(encoder, "set_input_size"):  # convolutional networks take any size
            encoder.set_input_size(img_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    found: dict[str, Tensor] = {}
    with torch.inference_mode(), tqdm(total=len(paths), desc=variant.name, unit="photo", disable=None) as bar:
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            batch = torch.cat([to_input(path, net, img_size) for path in chunk]).to(device)
            if maps:
                values = encoder.forward_intermediates(batch, indices=1, norm=True, intermediates_only=True)[0]
            else:
                values = encoder.forward_head(encoder.forward_features(batch), pre_logits=True)
            found.update(zip((path.as_posix() for path in chunk), values.cpu(), strict=True))
            bar.update(len(chunk))
    save_safetensors(found, output, {"format": "pt", "variant": variant.name})
    print(f"{output}: {len(found)} tensors of shape {tuple(values.shape[1:])}")


@app.command()
def complete(
    img1: Annotated[Path, typer.Argument(help="The photo to hide and complete.", exists=True, dir_okay=False)],
    img2: Annotated[Path, typer.Argument(help="Another view of the same scene.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    model: Annotated[str, typer.Option(help="A binocular variant.")] = DEFAULT_PAIR,
    mask_ratio: Annotated[float, typer.Option(min=0.05, max=0.99, help="Share of the photo to hide.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Which patches are hidden.")] = 0,
    size: _Size = None,
    weights: _Weights = None,
) -> None:
    """Draw a photo rebuilt from a few patches and another view.

    Example: zoo complete left.jpg right.jpg -o completion.png --mask-ratio 0.75
    """
    from zoo import pictures

    variant = find_variant(model)
    if variant.form != "binocular":
        raise UnknownVariantError(
            f"{variant.name} ({variant.form}) can't complete photos; choose one of `zoo list --form binocular`."
        )
    img_size = _parse_size(size)
    net = _load(variant, weights)
    hidden, reference = (pictures.to_input(path, net, img_size) for path in (img1, img2))
    row = pictures.picture_completion(net, hidden, reference, "", mask_ratio, seed)
    figure = pictures.draw_completions(
        [row], pictures.completion_caption(net), f"{variant.name}, {mask_ratio:.0%} hidden"
    )
    print(pictures.save_figure(figure, output))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
    model: Annotated[str, typer.Option(help="A binocular variant.")] = DEFAULT_PAIR,
    weights: _Weights = None,
) -> None:
    """Show completion, features and matches of a real stereo pair.

    The default model's weights and the photos need no network.

    Example: zoo demo --output demo
    """
    from zoo.demo import run_demo

    run_demo(output, model, weights)


def _load(variant: Variant, weights: Path | None, args: dict[str, Any] | None = None) -> Any:
    """A variant with its own weights or those of a file, in eval mode. args: where a trained one departs from it."""
    import timm

    overlay = dict(file=str(weights)) if weights is not None else None
    return timm.create_model(variant.name, pretrained=True, pretrained_cfg_overlay=overlay, **args or {}).eval()


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """ "384x512" -> height and width; "384" is a square."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"'{text}' is no size; write height x width, such as 384x512.")
    return int(sides[0]), int(sides[-1])


_PHOTO_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def _find_photos(paths: Iterable[Path]) -> list[Path]:
    """The files as they are given, and all photos below the folders."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PHOTO_SUFFIXES)
        if not inside:
            raise ImageError(f"The folder {path} holds no photos; they end in {', '.join(sorted(_PHOTO_SUFFIXES))}.")
        found += inside
    return found


# ------------------------------------------------------------------------------------------------ weights


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A reference checkpoint.", exists=True, dir_okay=False)],
    variant: Annotated[str, typer.Option(help="The variant that it is one of.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
) -> None:
    """Convert a reference checkpoint to the zoo's layout.

    Every tensor is accounted for, and no code in the file is run.

    Example: zoo convert CroCo.pth --variant croco_base_patch16_224.habitat -o croco.safetensors
    """
    import timm

    from zoo import weights
    from zoo.weights import files

    entry = find_variant(variant)
    model: Any = timm.create_model(entry.architecture, device="meta")
    loaded = weights.read_checkpoint(checkpoint)
    state = model.convert(loaded)
    weights.check_state(state, model.state_dict(), name=entry.name, path=checkpoint)
    weights.save_safetensors(state, output, {"format": "pt", "variant": entry.name})
    digest = files.sha256(checkpoint, progress=True)
    files.write_record(
        output, variant=entry.name, kind="file", location=str(checkpoint.resolve()), source_sha256=digest
    )
    print(f"{output}: {len(state)} tensors of {entry.name}; its record is {files.record_path(output)}")


class Layout(str, enum.Enum):
    """Names to export under."""

    reference = "reference"
    zoo = "zoo"


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A variant, or a weights file such as runs/.../model.safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .pth, .pt or .safetensors.")],
    layout: Annotated[Layout, typer.Option("--format", help="Whose tensor names to use.")] = Layout.reference,
    variant: Annotated[str | None, typer.Option(help="The file's variant, if the file doesn't say.")] = None,
) -> None:
    """Write weights under the reference's tensor names.

    For code that reads the reference's checkpoints: a .pth or .pt file holds {"model": tensors} and, for a CroCo
    pair, "croco_kwargs". `zoo convert` is the exact inverse.

    Example: zoo export runs/croco_base/model.safetensors -o CroCo.pth
    """
    import torch

    from zoo import weights
    from zoo.weights import files

    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise typer.BadParameter(f"{output} must end in .pth, .pt or .safetensors.")
    path, about = (Path(model) if Path(model).is_file() else None), {}
    if path is None:
        entry = find_variant(model)
    else:
        about = weights.read_checkpoint(path).extra
        name = variant or about.get("variant") or about.get("architecture")
        if not name:
            raise typer.BadParameter(f"{path} doesn't say which variant it is of; add --variant.")
        entry = find_variant(name)
    net: ZooModel = _load(entry, path, json.loads(about.get("model_args", "{}")))
    state = net.reference_state() if layout is Layout.reference else net.state_dict()
    if output.suffix == ".safetensors":
        weights.save_safetensors(state, output, {"format": "pt", "variant": entry.name})
    else:
        with files.atomic_writer(output) as file:
            torch.save({"model": state} | (net.reference_settings() if layout is Layout.reference else {}), file)
    print(f"{output}: {len(state)} tensors of {entry.name}, {layout.value} names")


@app.command()
def verify(
    variants: Annotated[
        list[str] | None, typer.Argument(help="Variants; default: all.", metavar="[VARIANT]...")
    ] = None,
) -> None:
    """Check the weights files on this machine against their SHA-256.

    Example: zoo verify croco_base_patch16_224.habitat
    """
    from zoo import weights

    chosen = [find_variant(name) for name in variants] if variants else VARIANTS
    results = {result.path: result for variant in chosen for result in weights.verify(variant)}
    for path, result in results.items():
        state = "BAD" if result.problem else "ok" if result.recorded else "no record"
        print(f"{state:<10}{result.problem or f'{path}  {result.sha256}'}")
    if not results:
        print("No weights of these variants are on this machine.")
    if bad := sum(result.problem is not None for result in results.values()):
        raise CorruptWeightsError(f"{bad} of {len(results)} weights files failed the check; see above what to do.")


@app.command()
def mirror(
    folder: Annotated[Path, typer.Argument(help="The folder to fill.", file_okay=False)],
    pattern: Annotated[
        str, typer.Option("--filter", help="Only variants like this, with * and ? as in a shell.")
    ] = "*",
    workers: Annotated[int, typer.Option(min=1, help="Checkpoints at a time.")] = 4,
) -> None:
    """Put the weights of all variants into a folder.

    ZOO_WEIGHTS=FOLDER then serves them where there is no network. The same command goes on with a mirror that was
    stopped. What is on its way lies in the cache: with ZOO_CACHE on the same disk, files are shared, not copied.

    Example: zoo mirror /data/zoo --filter 'croco*'
    """
    from fnmatch import fnmatchcase

    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from zoo.models import fetch
    from zoo.weights.mirror import mirror as fill

    chosen = [variant for variant in VARIANTS if variant.tag and fnmatchcase(variant.name, pattern)]
    if not chosen:
        raise UnknownVariantError(f"No variant with weights is like '{pattern}'; `zoo list` prints all of them.")
    missing = []
    with (
        logging_redirect_tqdm([logging.getLogger("zoo")]),
        tqdm(total=len(chosen), desc=str(folder), unit="variant", disable=None) as bar,
    ):
        for result in fill(folder, chosen, fetch, workers=workers):
            if result.problem is None:
                tqdm.write(f"ok        {result.path}")
            else:
                missing.append(result.problem)
            bar.update()
    for problem in missing:
        print(f"MISSING   {problem}")
    got = f"{len(chosen) - len(missing)} of {len(chosen)} variants are in {folder}"
    if missing:
        raise WeightsUnavailableError(f"{got}; see above why not all. The same command tries the others again.")
    print(f"{got}; use them with ZOO_WEIGHTS={folder.resolve()}")


# --------------------------------------------------------------------------------------------- publishing


@app.command()
def push(
    source: Annotated[
        Path, typer.Argument(help="Folder of a training run, or one that was exported before.", exists=True)
    ],
    repo: Annotated[str, typer.Option(help="Repository on the Hub, as OWNER/NAME.")],
    license: Annotated[
        str | None,
        typer.Option(help="License of the weights; default: that of those they started from, or apache-2.0."),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="The Hub's name of their training data; repeatable.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to; made if need be.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that zoo push did not write.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also keep what is uploaded, in this folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show it; upload nothing.")] = False,
) -> None:
    """Publish a training run on the Hugging Face Hub.

    Weights, timm's config, a card, pictures and the recipe go there in one commit, once it is sure that they load
    back. Uses the login of `hf auth login`, or HF_TOKEN.

    Example: zoo push runs/croco_nano --repo me/croco_nano_rooms --private
    """
    import shutil
    import tempfile

    from zoo import publish

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if (source / publish.CONFIG).is_file():
            for name in publish.FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
            publish.check_folder(folder, license)
        else:
            publish.export_run(source, folder, repo, license=license, datasets=dataset or ())
        _print_table(*((name, f"{(folder / name).stat().st_size:,} bytes") for name in publish.listing(folder)))
        if output is not None:
            shutil.copytree(folder, output, dirs_exist_ok=True)
        if dry_run:
            print(f"\n{(folder / publish.CARD).read_text('utf-8')}\nNothing was uploaded to {repo}.")
            return
        commit = publish.upload(folder, repo, private=private, revision=revision, create_pr=create_pr, force=force)
        print(commit.pr_url or commit)


# ----------------------------------------------------------------------------------------------- training

_Data = Annotated[
    str | None,
    typer.Option(
        help="Where the recipe's data is: a folder of images, folders with a pairs.txt or listing.txt (commas "
        "between), a Hugging Face data set, or shards such as 'train-{0000..1023}.tar'."
    ),
]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; repeatable.")
]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe of the zoo, or a .yaml file.")],
    data: _Data = None,
    init: Annotated[
        str | None, typer.Option(help="What to start from: a weights file, the folder of a run, or a variant.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; default: runs/RECIPE.")
    ] = None,
    settings: _Settings = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = 2,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts to compute a batch in, to save memory.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take three steps and tell what the run comes to.")
    ] = False,
) -> None:
    """Train a recipe, or go on with the run in --output.

    On several GPUs: accelerate launch -m zoo.cli train RECIPE.

    Example: zoo train croco_nano --set schedule.length=1000 --output runs/short
    """
    from zoo.train import engine

    run = _load_recipe(recipe, data, settings, init)
    folder = output or Path("runs") / run.name
    source, held_out = engine.make_source(run), engine.make_validation_source(run)
    plan = engine.make_plan(run, len(source))
    optimizer = run.optimizer
    rows = [
        ("recipe", run.name + (f" ({run.source})" if run.source else "")),
        ("model", run.model + (f", from {run.init}" if run.init else "")),
        ("objective", _settings_line(run.objective)),
        ("data", _settings_line(run.data) + _size(source)),
        *([("validation", f"every {plan.validate_every:,} steps{_size(held_out)}")] if held_out is not None else []),
        ("steps", f"{plan.steps:,} of {run.batch_size} samples, the first {plan.warmup:,.0f} warm up; {run.precision}"),
        ("optimizer", f"{optimizer.name}, peak learning rate {plan.lr:.3g}, weight decay {optimizer.weight_decay:g}"),
        ("output", str(folder)),
    ]
    if os.environ.get("RANK", "0") == "0":  # set by accelerate launch; one process speaks for all
        _print_rows(rows)
    if not dry_run:
        print(engine.train(run, folder, workers=workers, accumulate=accumulate))
        return
    trial = engine.dry_run(run, workers=workers, accumulate=accumulate)
    epochs = "" if trial["epochs"] is None else f", {trial['epochs']:,.1f} epochs"
    _print_rows(
        [
            ("samples", f"{trial['samples']:,}{epochs}"),
            ("parameters", f"{trial['parameters'] / 1e6:.1f} M"),
            ("a step", f"{_duration(trial['seconds_per_step'])} on {trial['device']}"),
            ("all steps", _duration(trial["hours"] * 3600)),
            ("memory", f"{trial['memory_bytes'] / 2**30:.1f} GiB at peak"),
        ]
    )


@app.command()
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
    from zoo.pictures import save_figure
    from zoo.train import engine

    print(save_figure(engine.show_batch(_load_recipe(recipe, data, settings), samples), output))


def _load_recipe(recipe: str, data: str | None, settings: list[str] | None, init: str | None = None) -> Recipe:
    from zoo.train.recipe import load_recipe

    overrides = _parse_settings(settings or [])
    if data is not None:
        overrides["data.path"] = data
    if init is not None:
        overrides["init"] = init
    return load_recipe(recipe, overrides)


def _parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """ "schedule.length=100" -> {"schedule.length": 100}; values as in YAML, and 1e-3 is a number."""
    import yaml

    parsed = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"'{setting}' sets nothing; write KEY=VALUE, such as schedule.length=1000.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value in '{setting}' is no YAML; write a number, a word or [a, list].") from error
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML wants 1.0e-3
                value = float(value)
        parsed[key] = value
    return parsed


def _size(source: Any) -> str:
    """What a training run says of a source: its samples, if they end, and its classes, if it has some."""
    from zoo.train.data.loading import ENDLESS

    samples, classes = len(source), getattr(source, "num_classes", 0)
    return (f"; {samples:,} samples" if samples < ENDLESS else "") + (f"; {classes:,} classes" if classes else "")


def _settings_line(settings: dict[str, Any]) -> str:
    first, *rest = settings.items()
    return ", ".join([str(first[1]), *(f"{key} {value}" for key, value in rest)])


def _duration(seconds: float) -> str:
    """Seconds in the unit that people would say them in."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<12}{value}", flush=True)


# --------------------------------------------------------------------------------------------- evaluating

_eval = typer.Typer(no_args_is_help=True, help="Measure what models have learned.")
app.add_typer(_eval, name="eval")


class Precision(str, enum.Enum):
    """What training computes in."""

    fp32 = "fp32"
    bf16 = "bf16"


@_eval.command("pairs")
def eval_pairs(
    model_or_run: Annotated[str, typer.Argument(help="A two-image model, or the folder of a training run.")],
    pairs: Annotated[int, typer.Option(min=8, help="Number of held-out scenes.")] = 500,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the scenes; default: one that no recipe trains with.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result to this JSON file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw some completions into this picture.")] = None,
) -> None:
    """Measure what a two-image model takes from its second image.

    Its completions are set against predictions that know less, on held-out scenes and real photos.

    Example: zoo eval pairs runs/croco_nano --picture completions.png
    """
    from rich.console import Console

    from zoo.evaluate import pairs as evaluation
    from zoo.pictures import save_figure
    from zoo.weights.files import write_json

    subject = evaluation.load_subject(model_or_run)
    with Console(stderr=True).status(f"evaluating {subject.name}, about a minute for a small model"):
        result, scenes, photos = evaluation.evaluate(subject, pairs, evaluation.HELD_OUT_SEED if seed is None else seed)
    evaluation.print_result(result)
    if output is not None:
        write_json(output, result)
    if picture is not None:
        sets = dict(scenes=scenes, photos=photos)
        print(save_figure(evaluation.draw_completions(subject.model, sets), picture))


@_eval.command("look")
def eval_look(
    model_or_run: Annotated[str, typer.Argument(help="A two-image model, or the folder of a training run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path("look"),
) -> None:
    """Draw what a two-image model has learned: completions, attention, matches and features, before and after.

    Example: zoo eval look croco_nano_patch8_64_dec128d4 -o look
    """
    from zoo.evaluate.pairs import load_subject
    from zoo.evaluate.pictures import draw_learning

    for path in draw_learning(load_subject(model_or_run), output):
        print(path)


@_eval.command("pretext")
def eval_pretext(
    run: Annotated[Path, typer.Argument(help="Folder of a training run of PIRL, Jigsaw or Jigsaw Clustering.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The JSON file to write; default: RUN/evaluation.json.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many to measure with.")] = 1000,
) -> None:
    """Measure how well a run does its own pretext task.

    The samples are new ones, those that would come next if the run went on.

    Example: zoo eval pretext runs/pirl_nano --samples 500
    """
    from zoo.evaluate.pretext import evaluate
    from zoo.weights.files import write_json

    result = evaluate(run, samples)
    write_json(output or run / "evaluation.json", result)
    _print_table(
        *((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in result.items())
    )


@_eval.command("ordering")
def eval_ordering(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; .json and .png are written beside it.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder of the training runs and of what was measured.")] = Path("runs/3d"),
    steps: Annotated[int, typer.Option(min=10, help="Of each pretraining.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="How many; 0 is the first.")] = 3,
    flow_steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning for flow.")] = 300,
    precision: Annotated[Precision, typer.Option(help="Of all training.")] = Precision.bf16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare training data.")] = 2,
) -> None:
    """Compare CroCo, a masked autoencoder and an untrained network.

    On three tasks in 3D, and on one that isn't. It trains all but the last, for
    hours; stopped, the same command goes on with what is in --runs.

    Example: zoo eval ordering --output docs/3d_ordering.md
    """
    from zoo.evaluate import ordering
    from zoo.pictures import save_figure
    from zoo.weights.files import atomic_writer, write_json

    options = f"--steps {steps} --seeds {seeds} --flow-steps {flow_steps} --precision {precision.value}"
    command = f"zoo eval ordering {options} --runs {runs} --output {output}"
    sizes = ordering.Sizes(flow_steps=flow_steps)
    result = ordering.compare(steps, list(range(seeds)), runs, sizes, precision.value, workers, command)
    ordering.print_table(result)
    write_json(output.with_suffix(".json"), result)
    picture = save_figure(ordering.draw(result), output.with_suffix(".png"))
    with atomic_writer(output) as file:
        file.write(ordering.page(result, picture.name).encode())
    print(output)


if __name__ == "__main__":
    main()
