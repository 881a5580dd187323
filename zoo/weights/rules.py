"""Renaming between the reference's tensor names and the zoo's: strict, and invertible by construction.

A family writes down its rules once; reading a reference checkpoint, exporting to the reference's names and
comparing gradients under them all use the same list.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import CheckpointMismatchError, printable

_logger = logging.getLogger("zoo")


@dataclass(frozen=True)
class Rename:
    """`theirs` is called `ours` here.

    In patterns, "*" stands for one or more characters: the last one for any, the others for characters other
    than dots, such as a block's index. Both sides have the same number of them.
    squeeze: axes of length 1 that the reference's tensor has and ours lacks, such as the two of a 1x1 convolution.
    grid: the reference's first axis (after squeezing) counts the places of a grid, where ours has two, rows and
        columns. Reading leaves it as it is: how the places lie is decided where the model's own grid is known
        (`GridTable.fit`).
    """

    theirs: str
    ours: str
    squeeze: tuple[int, ...] = ()
    grid: bool = False

    def apply(self, tensor: Tensor) -> Tensor:
        """The reference's tensor as ours; one that lacks the axes stays as it is, to be told by its shape."""
        if any(not -tensor.ndim <= axis < tensor.ndim for axis in self.squeeze):
            return tensor
        return tensor.squeeze(self.squeeze) if self.squeeze else tensor

    def invert(self, tensor: Tensor) -> Tensor:
        """Our tensor as the reference's."""
        if self.grid and tensor.ndim == 3:
            tensor = tensor.flatten(0, 1)
        for axis in sorted(axis % (tensor.ndim + len(self.squeeze)) for axis in self.squeeze):
            tensor = tensor.unsqueeze(axis)
        return tensor


@dataclass(frozen=True)
class Drop:
    """A part of the reference that this form of the model does not have; `why` is named in the log."""

    theirs: str
    why: str


@dataclass(frozen=True)
class Alias:
    """`theirs` is a second name of the tensor that the reference also calls `same_as`.

    It is checked to be equal when reading, or stands for the other where a file has this name alone (safetensors holds
    a shared tensor once); it is written again on export.
    """

    theirs: str
    same_as: str


@dataclass(frozen=True)
class Fresh:
    """Tensors of ours that the reference's checkpoint doesn't have: all of them are `value`; `why` is logged.

    For what an untrained layer starts with by definition, such as a norm's ones; nothing is drawn at random.
    """

    ours: str
    value: float
    why: str


_Found = tuple[Rename | Drop | Alias | None, tuple[str, ...]]
_REMEMBERED = 4096  # names; a checkpoint is asked for its layout, converted, and compared with several models


class KeyRules:
    """An ordered list of rules; the first that matches a name decides, in both directions.

    Raises ValueError for a rule whose two patterns don't have the same number of wildcards.
    """

    def __init__(self, *rules: Rename | Drop | Alias | Fresh) -> None:
        self.fresh = [rule for rule in rules if isinstance(rule, Fresh)]
        self.rules = [rule for rule in rules if not isinstance(rule, Fresh)]
        self._looked_up: dict[str, _Found] = {}
        for rule in self.rules:
            other = rule.ours if isinstance(rule, Rename) else rule.same_as if isinstance(rule, Alias) else rule.theirs
            if rule.theirs.count("*") != other.count("*"):
                raise ValueError(f"{rule} has a different number of wildcards on its two sides")

    def covers(self, names: Iterable[str]) -> bool:
        """Whether every one of a checkpoint's tensor names has a rule: whether this is its layout."""
        return all(self._rule_for(theirs)[0] is not None for theirs in names)

    def left_out(self, names: Iterable[str]) -> Counter[str]:
        """Why tensors of a checkpoint are left out, and how many."""
        rules = (self._rule_for(theirs)[0] for theirs in names)
        return Counter(rule.why for rule in rules if isinstance(rule, Drop))

    def to_zoo(self, state: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
        """The tensors of a reference checkpoint under the zoo's names.

        name: the variant's, for messages.
        Raises CheckpointMismatchError for names that no rule covers and for aliases that differ.
        """
        renamed: dict[str, Tensor] = {}
        unknown: list[str] = []
        dropped: Counter[str] = Counter()
        for theirs, tensor in state.items():
            rule, parts = self._rule_for(theirs)
            if isinstance(rule, Alias):
                same_as = _fill(rule.same_as, parts)
                if same_as in state:
                    _check_alias(state, theirs, same_as, name)
                    continue
                theirs = same_as
                rule, parts = self._rule_for(theirs)
            if rule is None:
                unknown.append(theirs)
            elif isinstance(rule, Drop):
                dropped[rule.why] += 1
            else:
                assert isinstance(rule, Rename)  # an alias is of a tensor that is renamed
                ours = _fill(rule.ours, parts)
                if ours in renamed or self.reference_name(ours) != theirs:
                    raise CheckpointMismatchError(
                        f"{name}: the checkpoint's {printable(theirs)} is ambiguous, since it is no reference's name "
                        f"of {printable(ours)}. Check that the file was made for this variant; `zoo inspect` tells "
                        "what it is."
                    )
                renamed[ours] = rule.apply(tensor)
        if unknown:
            raise CheckpointMismatchError(
                f"{name}: the checkpoint has {len(unknown)} tensors (of {len(state)}) under names that this "
                f"variant doesn't know, such as {_examples(unknown)}. "
                "Check that the file was made for this variant; `zoo inspect` tells what it is."
            )
        for why, count in dropped.items():
            _logger.info("%s: left out %d tensors of the checkpoint: %s", name, count, why)
        return renamed

    def fill(self, state: dict[str, Tensor], expected: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
        """`state` with the tensors of `Fresh` rules, in the shapes of the model's own (`expected`).

        A rule none of whose tensors is there fills all; of a part that is there, the rest would be missing.
        """
        for rule in self.fresh:
            if any(_match(rule.ours, key) is not None for key in state):
                continue
            added = [key for key in expected if key not in state and _match(rule.ours, key) is not None]
            state |= {key: torch.full(expected[key].shape, rule.value, dtype=expected[key].dtype) for key in added}
            if added:
                _logger.info("%s: %d tensors start at %g: %s", name, len(added), rule.value, rule.why)
        return state

    def to_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_zoo`: tensors under the reference's names, aliases included.

        Raises CheckpointMismatchError for a name that the reference has no counterpart of.
        """
        exported = {}
        for ours, tensor in state.items():
            rule, theirs = self._rename_of(ours)
            exported[theirs] = rule.invert(tensor)
        for alias in self.rules:
            if isinstance(alias, Alias):
                for theirs, tensor in list(exported.items()):
                    parts = _match(alias.same_as, theirs)
                    if parts is not None:
                        exported[_fill(alias.theirs, parts)] = tensor
        return exported

    def reference_name(self, ours: str) -> str:
        """The reference's name of one of the zoo's tensors. Raises CheckpointMismatchError if it has none."""
        return self._rename_of(ours)[1]

    def _rename_of(self, ours: str) -> tuple[Rename, str]:
        for rule in self.rules:
            if isinstance(rule, Rename):
                parts = _match(rule.ours, ours)
                if parts is not None:
                    return rule, _fill(rule.theirs, parts)
        raise CheckpointMismatchError(
            f"The reference has no tensor that corresponds to {ours}. Only models of the zoo's own forms, "
            "without layers added to them, can be written under the reference's names."
        )

    def _rule_for(self, theirs: str) -> _Found:
        found = self._looked_up.get(theirs)
        if found is None:
            if len(self._looked_up) >= _REMEMBERED:
                self._looked_up.clear()
            found = self._looked_up[theirs] = self._first_match(theirs)
        return found

    def _first_match(self, theirs: str) -> _Found:
        for rule in self.rules:
            parts = _match(rule.theirs, theirs)
            if parts is not None:
                return rule, parts
        return None, ()


def check_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    name: str,
    path: str | Path,
) -> None:
    """Compare names, shapes and kinds of numbers with those of the model, strictly; floats may be of any width.

    expected: the model's tensors. name: the variant's. path: the file's, both for the message.
    Raises CheckpointMismatchError with counts, up to 3 examples of each kind, and what the file looks like.
    """
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = {
        key: (tuple(state[key].shape), tuple(want.shape))
        for key, want in expected.items()
        if key in state and state[key].shape != want.shape
    }
    retyped = [
        f"{key}: {str(state[key].dtype).removeprefix('torch.')}"
        for key, want in expected.items()
        if key in state and state[key].is_floating_point() != want.is_floating_point()
    ]
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of {len(expected)} tensors ({_examples(missing)})")
    if unexpected:
        problems.append(f"has {len(unexpected)} unexpected ones ({_examples(unexpected)})")
    if reshaped:
        shown = [f"{key}: {list(got)} where {list(want)} is expected" for key, (got, want) in reshaped.items()]
        problems.append(f"has {len(reshaped)} of other shapes ({_examples(shown)})")
    if retyped:
        problems.append(f"has {len(retyped)} of other types ({_examples(retyped)})")
    if problems:
        *first, last = problems
        listed = f"{', '.join(first)} and {last}" if first else last
        raise CheckpointMismatchError(
            f"{path} is no checkpoint of {name}: it {listed}{_guess(reshaped)}. "
            "Check that the file was made for this variant; `zoo inspect` tells what it is."
        )


_SIZES = {384: "small", 768: "base", 1024: "large", 1280: "huge"}  # the field's names of transformer widths


def _guess(reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """What a checkpoint looks like whose shapes all differ by one factor, as those of another size do."""
    pairs = Counter(
        (a, b) for got, want in reshaped.values() if len(got) == len(want) for a, b in zip(got, want) if a != b
    )
    if not pairs or any(len(got) != len(want) for got, want in reshaped.values()):
        return ""
    if len({Fraction(a, b) for a, b in pairs if b}) != 1:
        return ""
    got, want = min(pairs)  # the narrowest is the model's width, the others are its MLPs' and projections'
    sizes = ""
    if got in _SIZES and want in _SIZES:
        sizes = f" (a {_SIZES[got]} checkpoint in place of a {_SIZES[want]} one?)"
    return f"; it has width {got} where {want} is expected{sizes}"


def _check_alias(state: Mapping[str, Tensor], theirs: str, same_as: str, name: str) -> None:
    if not _same_bytes(state[theirs], state[same_as]):
        raise CheckpointMismatchError(
            f"{name}: the checkpoint's {printable(theirs)} should be a second name of {printable(same_as)}, but they "
            "differ. "
            "Check that the file was made for this variant; `zoo inspect` tells what it is."
        )


def _same_bytes(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are the same, NaNs included and of any type (torch.equal doesn't know all of them)."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.data_ptr() == two.data_ptr() and one.stride() == two.stride():
        return True
    return torch.equal(*(tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (one, two)))


def _match(pattern: str, key: str) -> tuple[str, ...] | None:
    """What the wildcards of `pattern` stand for in `key`, or None if it doesn't match."""
    if "*" not in pattern:
        return () if pattern == key else None
    found = _compiled(pattern).fullmatch(key)
    return found.groups() if found else None


@cache  # of the rules that are written down
def _compiled(pattern: str) -> re.Pattern[str]:
    *head, last, tail = map(re.escape, pattern.split("*"))
    return re.compile("([^.]+)".join([*head, last]) + "(.+)" + tail)


def _fill(pattern: str, parts: tuple[str, ...]) -> str:
    first, *rest = pattern.split("*")
    return first + "".join(part + text for part, text in zip(parts, rest))


def _examples(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


# of DistributedDataParallel, and as modules around a model call it
_PREFIXES = ("module.", "model.", "backbone.", "net.")
_INSIDE = ("_orig_mod.", "module.")  # torch.compile's and DistributedDataParallel's, of parts of a model


def without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """A checkpoint's tensors as they are called, and then without what wrappers of models put in front of all names.

    Each time with what was taken off, "" for nothing. A prefix that only some of the names have is none of these.
    """
    taken = ""
    yield taken, tensors
    while True:
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None)
        if tensors and prefix is not None:
            shorter = {key.removeprefix(prefix): value for key, value in tensors.items()}
        elif found := next((part for part in _INSIDE if any(f".{part}" in f".{key}" for key in tensors)), None):
            prefix = found
            shorter = {f".{key}".replace(f".{prefix}", ".")[1:]: value for key, value in tensors.items()}
        else:
            return
        if len(shorter) != len(tensors):
            return
        taken, tensors = taken + prefix, shorter
        yield taken, tensors
