"""Kinds of settings that a recipe may give: what stands in the annotation of whatever takes them.

    def __init__(self, model, source, mask_ratio: Share = 0.75, crop: Side | None = None): ...

A declaration says type and range at once. Values are checked against it before anything is made of them (`checked`),
and the tables of docs/train.md are written from it (`described`).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from zoo.errors import RecipeError

_LONGEST_TEXT = 4096  # characters: as long as paths can be
_MOST_ENTRIES = 1000  # of a list


@dataclass(frozen=True)
class Within:
    """Numbers from `low` to `high`; without those themselves if `above` or `below` say so."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {_written(self.low)}"
        return f"{low} {'and below' if self.below else 'to'} {_written(self.high)}"


@dataclass(frozen=True)
class Rising:
    """Of several numbers none is smaller than that before it."""

    def holds(self, value: Any) -> bool:
        return all(first <= second for first, second in pairwise(value))

    def __str__(self) -> str:
        return "the smaller first"


@dataclass(frozen=True)
class OneOf:
    """Names that stand for something."""

    names: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return " or ".join(self.names)


Share = Annotated[float, Within(0, 1)]
"""Of a whole, or a probability."""

Jitter = Annotated[float, Within(0, 1)]
"""Strength of a change of colors: 0.4 means factors 0.6 to 1.4."""

Side = Annotated[int, Within(1, 4096)]
"""Pixels along one side of an image."""

Count = Annotated[int, Within(1, 1 << 62)]
"""Of samples; the most is what stands for no end."""

Steps = Annotated[int, Within(1, 1 << 40)]

Units = Annotated[float, Within(0, 1e9)]
"""Of a schedule: epochs or steps."""

Rate = Annotated[float, Within(0, 1e4)]
"""A learning rate."""


@dataclass(frozen=True)
class Like:
    """Text of a form; `example` is one of them, for people."""

    pattern: str
    example: str

    def holds(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"text such as {self.example}"


_Area = Annotated[float, Within(0, 1, above=True)]

AreaRange = Annotated[tuple[_Area, _Area], Rising()]
"""Of a random crop's share of the image's area."""

Temperature = Annotated[float, Within(1e-4, 1e4)]

PathLike = str | Path
"""Of a file or folder."""


class _Unfit(Exception):
    """A value is not of a kind."""


def checked(name: str, value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that is declared for it, if it is of that kind. YAML reads 1e-3 as text, so that is a number
    too.

    where: what errors name before the setting. Raises RecipeError (a ValueError).
    """
    try:
        return _fit(value, hint)
    except _Unfit:
        raise RecipeError(f"{where} has {name}: {reprlib.repr(value)}; it must be {described(hint)}.") from None


def _fit(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = _fit(value, args[0])
        if not all(rule.holds(found) for rule in args[1:]):
            raise _Unfit
        return found
    if origin in (typing.Union, types.UnionType):
        return _fit_any(value, args)
    if origin is Literal:
        return _demand(value, any(type(value) is type(known) and value == known for known in args))
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return _demand(value, type(value) is str and len(value) <= _LONGEST_TEXT and "\0" not in value)
    if hint is bool or hint is type(None):
        return _demand(value, type(value) is hint)
    if hint is Path:
        return _demand(value, isinstance(value, Path))
    if origin is tuple or origin in (list, Sequence):
        return _entries(value, args)
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return _demand(value, type(value) is dict and all(type(key) is str for key in value))
    return value  # of a kind that somebody else declared


def _fit_any(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return _fit(value, hint)
        except _Unfit:
            continue
    raise _Unfit


def _demand(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _number(value: Any, kind: type) -> Any:
    if type(value) not in (int, float, str) or (type(value) is str and len(value) > 40):
        raise _Unfit
    if kind is int and type(value) is int:  # of any length
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Unfit from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise _Unfit
    return kind(number)


def _entries(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_ENTRIES:
        raise _Unfit
    if len(hints) == 1 or hints[1:] == (...,):
        return tuple(_fit(entry, hints[0]) for entry in value)
    if len(value) != len(hints):
        raise _Unfit
    return tuple(_fit(entry, hint) for entry, hint in zip(value, hints))


def described(hint: Any) -> str:
    """A kind in words: "a whole number from 1 to 4,096"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if isinstance(args[1], (OneOf, Like)):
            return str(args[1])
        within = isinstance(args[1], Within)
        return f"{described(args[0])}{' ' if within else ', '}{', '.join(map(str, args[1:]))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(described, args)))
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple and args[1:] != (...,):
        kinds = list(dict.fromkeys(map(described, args)))
        return f"a list of {len(args)}: {' and '.join(kinds)}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {described(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping of names to values"
    plain = {int: "a whole number", float: "a number", str: "text", Path: "text", bool: "true or false"}
    return "null" if hint is type(None) else plain.get(hint, getattr(hint, "__name__", str(hint)))


def _written(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True)
class Declared:
    """A setting as it is declared: its kind, and its default, `inspect.Parameter.empty` if it must be given."""

    hint: Any
    default: Any


def declared(*takers: Callable[..., Any], skip: Sequence[str] = ("self", "model", "source")) -> dict[str, Declared]:
    """The settings of what takes them, a function or class.

    Of one that hands further ones on (`**settings`), the next taker's are settings too; of a class, its parents'.
    skip: parameters that are no settings.
    """
    found: dict[str, Declared] = {}
    for taker in takers:
        for function in _constructors(taker):
            parameters = inspect.signature(function).parameters.values()
            hints = _hints(function)
            for parameter in parameters:
                plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                if plain and parameter.name not in skip:
                    found.setdefault(parameter.name, Declared(hints.get(parameter.name, Any), parameter.default))
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return found
    return found


def _constructors(taker: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not isinstance(taker, type):
        return [taker]
    return [parent.__dict__["__init__"] for parent in taker.__mro__ if "__init__" in parent.__dict__]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # somebody else's, of names that are only there for type checkers
        return {}


def check_settings(
    settings: Mapping[str, Any], known: Mapping[str, Declared], where: str, prefix: str = ""
) -> dict[str, Any]:
    """Settings of the kinds that are declared for them.

    where: what errors name before a setting. prefix: what stands before its name. Raises RecipeError (a ValueError).
    """
    if unknown := [str(name) for name in settings if name not in known]:
        listed = ", ".join(f"{prefix}{name}" for name in unknown)
        raise RecipeError(f"{where} has unknown settings {listed}; known are {', '.join(known)}.")
    return {name: checked(prefix + name, value, known[name].hint, where) for name, value in settings.items()}
