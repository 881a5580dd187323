"""`zoo convert`, `zoo export`, `zoo verify` and `zoo mirror`: weights files."""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.catalog import VARIANTS
from zoo.cli._models import load_model
from zoo.errors import ArgumentsError, CorruptWeightsError, UnknownVariantError, WeightsUnavailableError
from zoo.lookup import find_variant

if TYPE_CHECKING:
    from zoo.models import ZooModel


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A reference checkpoint.", exists=True, dir_okay=False)],
    variant: Annotated[str, typer.Option(help="The variant that it is one of.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
) -> None:
    """Convert a reference checkpoint to the zoo's layout.

    Every tensor is accounted for, and no code in the file is run.

    Example: zoo convert CroCo.pth --variant croco_base_patch16_224.habitat -o croco.safetensors
    """
    from zoo import weights
    from zoo.models import convert_checkpoint
    from zoo.weights.disk import files, records

    entry = find_variant(variant)
    state, metadata = convert_checkpoint(entry, weights.read_checkpoint(checkpoint))
    records.remove_record(output)
    weights.save_safetensors(state, output, {"format": "pt", "variant": entry.name, **metadata})
    digest = files.sha256(checkpoint, progress=True)
    records.write_record(
        output, variant=entry.name, kind="file", location=str(checkpoint.resolve()), source_sha256=digest
    )
    print(f"{output}: {len(state)} tensors of {entry.name}; its record is {records.record_path(output)}")


class Layout(str, enum.Enum):
    """Names to export under."""

    reference = "reference"
    zoo = "zoo"


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
    from zoo.weights.disk import files

    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise typer.BadParameter(f"{output} must end in .pth, .pt or .safetensors.")
    path, about = (Path(model) if Path(model).is_file() else None), {}
    if path is None:
        entry = find_variant(model)
        name = entry.name
    else:
        about = weights.read_checkpoint(path).extra
        said = variant or about.get("variant") or about.get("architecture")
        if not (said and isinstance(said, str)):
            raise typer.BadParameter(f"{path} doesn't say which variant it is of; add --variant.")
        entry, name = find_variant(said), said
    net: ZooModel = load_model(entry, path, _model_args(entry.architecture, about, path))
    state = net.reference_state() if layout is Layout.reference else net.state_dict()
    if output.suffix == ".safetensors":
        weights.save_safetensors(state, output, {"format": "pt", "variant": name, **net.file_metadata()})
    else:
        with files.atomic_writer(output) as file:
            torch.save({"model": state} | (net.reference_settings() if layout is Layout.reference else {}), file)
    print(f"{output}: {len(state)} tensors of {name}, {layout.value} names")


def _model_args(architecture: str, about: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """What a file says that its model was made with; ArgumentsError for what it may not say."""
    from zoo.models.making.arguments import check_arguments

    try:
        args = json.loads(about.get("model_args", "{}"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentsError(f"The model_args of {path} are no JSON; export the file that training wrote.") from error
    if isinstance(args, dict):
        args.pop("pretrained", None)  # of the training run: this file holds the weights
    check_arguments(architecture, args, str(path))
    return args


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


def mirror(
    folder: Annotated[Path, typer.Argument(help="The folder to fill.", file_okay=False)],
    pattern: Annotated[
        str, typer.Option("--filter", help="Only variants like this, with * and ? as in a shell.")
    ] = "*",
    workers: Annotated[int, typer.Option(min=1, help="Checkpoints at a time.")] = 4,
) -> None:
    """Put the weights of all variants into a folder.

    ZOO_WEIGHTS=FOLDER then serves them where there is no network. The same command goes on with a mirror that was
    stopped. What is on its way lies in the cache, and is copied from there.

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
