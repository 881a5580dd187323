"""`zoo list` and `zoo info`: looking around in the catalog."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from zoo.catalog import VARIANTS, Source, Variant
from zoo.cli._app import print_rows, print_table
from zoo.cli._models import training_command
from zoo.errors import CorruptWeightsError, UnknownVariantError
from zoo.lookup import find_variant


class Form(str, enum.Enum):
    """The catalog's forms."""

    encoder = "encoder"
    pretraining = "pretraining"
    binocular = "binocular"
    dense = "dense"
    pointmaps = "pointmaps"


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
    print_table(
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
        *([("notice", entry.notice)] if entry.notice else []),
        ("paper", f"{paper.title} ({paper.venue} {paper.year}), https://arxiv.org/abs/{paper.arxiv}"),
        ("training", entry.training or "not trained yet"),
        ("recipe", training_command(entry) if entry.recipe else "none in the zoo"),
        *([("not known", entry.unknown)] if entry.unknown else []),
        *(("source", _describe_source(source, full=True)) for source in entry.sources),
        *(("local file", line) for line in _describe_local(entry)),
        *(
            ("published", f"{m.task}, {m.dataset}: {m.name} {m.value} ({m.conditions}; {m.cited})")
            for m in entry.metrics
        ),
    ]
    print_rows(rows)
    call = "features = model(images)" if entry.form == "encoder" else "result = model(img1, img2)"
    pretrained = ", pretrained=True" if entry.sources else ""
    print(f'\nimport timm, zoo\nmodel = timm.create_model("{entry.name}"{pretrained}).eval()\n{call}')


def _describe_source(source: Source, full: bool = False) -> str:
    if source.kind == "package":
        return "in the package" + (f", {source.location}" if full else "")
    if source.kind == "gdrive":
        return f"https://drive.google.com/file/d/{source.location}" if full else "drive.google.com"
    if source.kind == "hub":
        return f"https://huggingface.co/{source.location}" if full else "huggingface.co"
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
            lines.append(f"{path} ({_origin(path)})")
    return lines or [f"none yet; the cache would keep it as {weights.cached_path(variant)}"]


def _origin(path: Path) -> str:
    """Where a weights file came from by its record, which may be anything."""
    from zoo import weights

    try:
        record = weights.source_of(path)
        said = [record["source"]["kind"], record["source"]["location"], record.get("created", "undated")]
    except (CorruptWeightsError, KeyError, TypeError):
        said = []
    if not said or not all(isinstance(text, str) and text.isprintable() and len(text) < 500 for text in said):
        return "its record is damaged; `zoo verify` tells what to do"
    return "from {} {}, {}".format(*said)
