"""Settings that DUSt3R's and its descendants' checkpoints carry beside their tensors: read as data, never evaluated.

A .pth has `args`, whose `model` is the text of a constructor call, which the reference's code gives to eval(). A
folder of the Hub has them as config.json, with JavaScript's Infinity in it, which Python's json reads.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointMismatchError, CorruptWeightsError, printable
from zoo.weights import Checkpoint
from zoo.weights.authors import CONFIG_FILE
from zoo.weights.disk.files import read_json

_MAX_TEXT = 4096  # characters of a constructor call; the published ones have about 400
_CHECKED = ("pos_embed", "enc_num_heads", "dec_num_heads", "depth_mode", "conf_mode", "desc_conf_mode")
"""What decides the function and shows in no tensor's name or shape."""


def reference_settings_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The constructor arguments that come with a checkpoint, in it or in a config.json beside it; None if none do.

    Raises CorruptWeightsError for a text that is no constructor call with plain arguments.
    """
    args = checkpoint.extra.get("args")
    text = args.get("model") if isinstance(args, dict) else getattr(args, "__dict__", {}).get("model")
    if isinstance(text, str):
        return parse_constructor(text, str(checkpoint.path))
    settings = _read_config(checkpoint.path.parent / CONFIG_FILE)
    return settings if settings is not None and "enc_embed_dim" in settings else None


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except CorruptWeightsError:  # somebody else's file of that name
        return None


def parse_constructor(text: str, where: str) -> dict[str, Any]:
    """ "Name(a=1, b=('exp', -inf, inf))" -> {"a": 1, "b": ["exp", -inf, inf]}; no name in it is looked up.

    Sequences become lists, as in JSON. where: what the error names. Raises CorruptWeightsError.
    """
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError("it is too long")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("it is no call with named arguments")
        return {_name(keyword): _plain(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise CorruptWeightsError(
            f"The text in {where} that should describe its model is no constructor call ({reason}); nothing of it was "
            "run. Get the file again."
        ) from error


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("it has ** arguments")
    return keyword.arg


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_plain(item) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(value := _plain(operand), (int, float)):
            return -value
        case ast.Name(id="inf") | ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value="inf")], keywords=[]):
            return float("inf")
    raise ValueError(f"an argument is a {type(node).__name__}, neither a number nor a text")


def check_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Compare a checkpoint's settings with the model's, as far as its tensors don't tell them.

    Raises CheckpointMismatchError (a ValueError) that names the first that differs.
    """
    for key in _CHECKED:
        if key in theirs and key in ours and theirs[key] != ours[key]:
            raise CheckpointMismatchError(
                f"{where} is of a model with {key} {_shown(theirs[key])}, not {ours[key]!r}, so its tensors would fit "
                "and compute something else. Make the model with the arguments that the file names."
            )


def _shown(value: Any) -> str:
    try:
        return printable(repr(value))
    except RecursionError:
        return "something nested"
