"""YAML as people write it: nothing that grows when it is read, refers to itself, or is more than text and numbers."""

from __future__ import annotations

import math
from typing import Any

import yaml

MAX_LENGTH = 100_000
"""Characters; the longest recipe of the zoo has 2,000."""

MAX_DEPTH = 20


class PlainYamlError(ValueError):
    """Text that is no YAML, or YAML that settings have no use for; says what is wrong, in one clause."""


class _Loader(yaml.SafeLoader):
    """A safe loader without aliases: a few lines of them stand for gigabytes, or for something within itself."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise PlainYamlError(f"line {self.peek_event().start_mark.line + 1} has an alias (*name)")
        if self.depth > MAX_DEPTH:
            raise PlainYamlError(f"it is nested more than {MAX_DEPTH} levels deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_yaml(text: str) -> Any:
    """Mappings with text as keys, lists, text, finite numbers, booleans and None.

    Raises PlainYamlError (a ValueError).
    """
    if len(text) > MAX_LENGTH:
        raise PlainYamlError(f"it has {len(text):,} characters, and may have {MAX_LENGTH:,}")
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise PlainYamlError(f"{getattr(error, 'problem', None) or 'it holds what no YAML does'}{place}") from error
    except PlainYamlError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, LookupError) as error:  # of numbers and dates
        raise PlainYamlError(str(error).partition("\n")[0] or "it is nested too deep") from error
    check_plain(content)
    return content


def check_plain(content: Any, depth: int = 0) -> None:
    """Raise PlainYamlError (a ValueError) for what `read_yaml` would not have given, from wherever it is."""
    if depth > MAX_DEPTH:
        raise PlainYamlError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(content, dict):
        if odd := [key for key in content if not isinstance(key, str)]:
            raise PlainYamlError(f"the name {odd[0]!r} is no text; write it in quotes")
        for value in content.values():
            check_plain(value, depth + 1)
    elif isinstance(content, list):
        for value in content:
            check_plain(value, depth + 1)
    elif isinstance(content, int):
        if abs(content) >= 1 << 63:
            raise PlainYamlError("it has a number beyond all measure")
    elif isinstance(content, float):
        if not math.isfinite(content):
            raise PlainYamlError(f"it has {content}, which is no number to set anything to")
    elif content is not None and not isinstance(content, str):
        raise PlainYamlError(f"it has a value of type {type(content).__name__}; write text or numbers")
