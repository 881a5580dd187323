"""`zoo inspect`: what a checkpoint is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli._app import print_rows

if TYPE_CHECKING:
    from zoo.models.shared.identify import Match


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A file, a folder, or a repository of the Hub as OWNER/NAME.")],
    digest: Annotated[
        bool, typer.Option("--digest/--no-digest", help="Read the whole file, for its SHA-256 and checksums.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Tell what a checkpoint is: its container, whose it is, and how to load it.

    Nothing in the file is run.

    Example: zoo inspect CroCo_V2_ViTLarge_BaseDecoder.pth
    """
    from zoo.models.inspection import inspect_checkpoint

    found = inspect_checkpoint(checkpoint, digest)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    inside = f", the tensors under '{found.entry}'" if found.entry else ""
    rows = [
        ("file", str(found.path)),
        *([("on the Hub", found.repository)] if found.repository else []),
        ("container", f"{found.container}{inside}, {found.size:,} bytes"),
        ("tensors", f"{found.tensors} ({dtypes}), {found.parameters:,} numbers"),
        *([("SHA-256", found.sha256)] if found.sha256 else []),
        *(row for match in found.matches for row in _rows_of(match)),
    ]
    if found.nearest is not None:
        near = found.nearest
        rows.append(("it is", f"none of the zoo's; most like {near.architecture} ({near.share:.0%} of its tensors)"))
        rows += [("", f"once {near.prefix} is taken off all names")] if near.prefix else []
        rows += [("", f"lacks: {name}") for name in near.missing]
        rows += [("", f"has besides: {name}") for name in near.unexpected]
        rows += [("", f"other shape: {text}") for text in near.other_shapes]
    elif not found.matches:
        rows.append(("it is", "nothing like any model of the zoo"))
    rows += [("it says", f"{name}: {text}") for name, text in found.training.items()]
    print_rows(rows)
    if (code := found.code()) is not None:
        print(f"\n{code}")
    if (command := found.command()) is not None:
        print(f"\n{command}")


def _rows_of(match: Match) -> list[tuple[str, str]]:
    """What a checkpoint is, how that is known where tensors don't tell, and what of it is left out or missing."""
    whole = "" if match.left_out or match.missing else ", exactly"
    sure = [name for name in match.variants if name in match.known]
    others = [name for name in match.variants if name not in match.known]
    if sure:
        rows = [("it is", f"{' or '.join(sure)}{whole}, {match.known[sure[0]]}")]
        rows += [("", f"its tensors alone may be of {' or '.join(others)} too")] if others else []
    else:
        rows = [("it is", f"{' or '.join(others)}{whole}, by its tensors")]
    if match.prefix:
        rows.append(("", f"behind the prefix {match.prefix}"))
    rows += [("", f"decided by the file: {name}={value!r}") for name, value in match.args.items()]
    rows += [("", f"left out: {part}") for part in match.left_out]
    rows += [("", f"not in the file, to be trained: {part}") for part in match.missing]
    return rows
