"""What a checkpoint is: which architectures of the zoo its tensors are those of, exactly or in part."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from typing import Any

from timm.models import create_model
from torch import Tensor

from zoo import weights
from zoo.catalog import VARIANTS, Variant
from zoo.errors import CheckpointMismatchError, ZooError
from zoo.models.shared.registry import MODEL_CLASSES
from zoo.weights import Checkpoint, without_prefixes

_MAX_TENSORS = 2000  # of a checkpoint that is looked at; the largest of the zoo have 1100
_ALIKE = 0.5  # share of names that a checkpoint must have in common with a class's to be compared with all of it


@dataclass(frozen=True)
class Match:
    """An architecture that a checkpoint is of.

    variant: the first of its variants with these tensors. variants: all of them. known: of variants whose file it is
    besides, how that is known.
    args: what the file decides of the constructor's arguments, such as num_classes.
    left_out: parts of the file that the architecture does not take, with the reason. missing: parts of the
    architecture that the file does not have. prefix: what stands in front of all names.
    """

    variant: str
    variants: tuple[str, ...]
    architecture: str
    args: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    prefix: str = ""
    known: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Nearest:
    """The architecture that an unknown checkpoint is most like, and the first names that differ.

    prefix: what all names begin with and would have to be taken off first.
    """

    architecture: str
    share: float
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]
    prefix: str = ""


def identify(checkpoint: Checkpoint, known: Mapping[str, str] | None = None) -> tuple[list[Match], Nearest | None]:
    """All architectures that a checkpoint is of, the most exact first; if there are none, the one it is most like.

    known: variants whose file it is, as far as its tensors are theirs, with how that is known; those come before others
    of the same tensors.
    """
    if not 0 < len(checkpoint.tensors) <= _MAX_TENSORS:
        return [], None
    # shapes tell it all, but for tables of positions, whose values tell their grid
    shapes = {key: value if tells_by_values(key) else value.to("meta") for key, value in checkpoint.tensors.items()}
    checkpoint = replace(checkpoint, tensors=shapes)
    with _unlogged():
        matches, nearest = _look(checkpoint, known or {})
        if not matches and nearest is None:
            nearest = _nearest_below(checkpoint)
    return matches, nearest


@contextmanager
def _unlogged() -> Iterator[None]:
    """What this thread's conversions log in the meantime is of trials, and would be taken for the caller's own."""
    logger, thread = logging.getLogger("zoo"), threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(from_elsewhere)


def _look(checkpoint: Checkpoint, known: Mapping[str, str]) -> tuple[list[Match], Nearest | None]:
    matches: list[Match] = []
    nearest: Nearest | None = None
    compared: dict[Any, Match | Nearest | None] = {}
    for variants in _candidates(checkpoint):
        first = variants[0]
        model_cls = MODEL_CLASSES[first.architecture]
        told = _told(checkpoint, model_cls)
        network = model_cls, repr(first.args | told), first.num_classes
        if network not in compared:  # families share ResNets, and tags may differ in nothing but what the file tells
            compared[network] = _compare(checkpoint, first, told)
        found = compared[network]
        if isinstance(found, Match):
            names = sorted((variant.name for variant in variants), key=lambda name: name not in known)
            matches.append(
                replace(
                    found,
                    variant=names[0],
                    variants=tuple(names),
                    architecture=first.architecture,
                    args=_decided(found.args, first, model_cls),
                    known={name: known[name] for name in names if name in known},
                )
            )
        elif found is not None and (nearest is None or found.share > nearest.share):
            nearest = found
    matches.sort(key=lambda match: (len(match.missing), len(match.left_out), len(match.args), not match.known))
    return _closest(matches), None if matches else nearest


def _nearest_below(checkpoint: Checkpoint, words: int = 3) -> Nearest | None:
    """What a checkpoint is most like once the words, up to this many, that all its names begin with are taken off."""
    prefix = _common_prefix(checkpoint.tensors)
    if not prefix or not words:
        return None
    shorter = {key.removeprefix(prefix): value for key, value in checkpoint.tensors.items()}
    matches, nearest = _look(replace(checkpoint, tensors=shorter), {})
    if matches:
        nearest = Nearest(matches[0].architecture, 1.0, (), (), ())
    nearest = nearest or _nearest_below(replace(checkpoint, tensors=shorter), words - 1)
    return nearest and replace(nearest, prefix=prefix + nearest.prefix)


def _common_prefix(names: Iterable[str]) -> str:
    """The first word of all names, with its dot; "" if they begin differently."""
    first = {name.partition(".")[0] for name in names if "." in name} | {"" for name in names if "." not in name}
    return f"{first.pop()}." if len(first) == 1 and "" not in first else ""


def _closest(matches: list[Match]) -> list[Match]:
    """Of an architecture whose tags differ in their arguments, the matches for which the file decides the fewest."""
    fewest: dict[str, int] = {}
    for match in matches:
        fewest[match.architecture] = min(len(match.args), fewest.get(match.architecture, len(match.args)))
    return [match for match in matches if len(match.args) == fewest[match.architecture]]


def tells_by_values(key: str) -> bool:
    """Whether a tensor of this name may be a table of positions, of which more than the shape is asked."""
    return "pos" in key


def _candidates(checkpoint: Checkpoint) -> Iterator[list[Variant]]:
    """Variants that are the same network, of all networks whose names are like the checkpoint's."""
    patterns = [_patterns(tensors) for _, tensors in without_prefixes(checkpoint.tensors)]
    networks: dict[Any, list[Variant]] = {}
    for variant in VARIANTS:
        networks.setdefault((variant.architecture, repr(variant.args), variant.num_classes), []).append(variant)
    alike: dict[Any, bool] = {}
    size = sum(value.numel() for value in checkpoint.tensors.values())
    widths = {len(value) for value in checkpoint.tensors.values() if value.ndim == 4}
    for (first, *_), variants in ((variants, variants) for variants in networks.values()):
        model_cls = MODEL_CLASSES[first.architecture]
        if model_cls not in alike:
            own = _patterns_of(model_cls)
            alike[model_cls] = any(len(theirs & own) >= _ALIKE * len(theirs) for theirs in patterns) or any(
                rules.covers(tensors)
                for rules in model_cls.layouts.values()
                if not rules.covers(("anything",))
                for _, tensors in without_prefixes(checkpoint.tensors)
            )
        if alike[model_cls] and size >= first.parameters // 8 and _has_width(first.args, widths):
            yield variants


def _has_width(args: dict[str, Any], widths: set[int]) -> bool:
    """Whether a network of these arguments embeds patches to one of the widths; a quick look before it is made."""
    dim = args.get("embed_dim")
    if dim is None:
        return True
    return bool({dim, dim // 4} & widths) if isinstance(dim, int) else dim[0] in widths


def _patterns(names: Iterable[str]) -> set[str]:
    """Names without the numbers in them, which depend on a model's depth."""
    return {re.sub(r"\d+", "#", name) for name in names}


@cache
def _patterns_of(model_cls: Any) -> set[str]:
    smallest = min(
        (variant for variant in VARIANTS if MODEL_CLASSES[variant.architecture] is model_cls),
        key=lambda variant: variant.parameters,
    )
    return _patterns(create_model(smallest.architecture, device="meta").state_dict())


def _compare(checkpoint: Checkpoint, variant: Variant, told: dict[str, Any]) -> Match | Nearest | None:
    """What a checkpoint is to a variant's network, made as the catalog says or else with a classifier, and with bias
    tables, if the checkpoint has them; None where it can't even be told. A match has all arguments that it was made
    with besides the catalog's."""
    best = None
    for args in _arguments(checkpoint, variant):
        found = _compare_with(checkpoint, variant, told | args)
        if isinstance(found, Match):
            return found
        if found is not None and (best is None or found.share > best.share):
            best = found
    return best


def _arguments(checkpoint: Checkpoint, variant: Variant) -> Iterator[dict[str, Any]]:
    yield {}
    if variant.form != "encoder":
        return
    head = next((value for key, value in checkpoint.tensors.items() if re.search(r"(^|\.)head\.weight$", key)), None)
    if head is not None and head.ndim == 2:
        yield {"num_classes": len(head)}
        if any(("rel" in key and "bias_table" in key) or "rel_pos" in key for key in checkpoint.tensors):
            yield {"num_classes": len(head), "rel_pos": True}


def _compare_with(checkpoint: Checkpoint, variant: Variant, args: dict[str, Any]) -> Match | Nearest | None:
    try:
        model: Any = create_model(variant.name, device="meta", **args)
        found = model.layout_of(checkpoint)
        state = model.adapt_state(model.convert(checkpoint))
    except (ZooError, ValueError, TypeError):
        return None
    own = model.state_dict()
    if variant.form == "encoder":
        args = args | {"num_classes": _classes(state, model.head_name)}
        own, state = (
            {k: v for k, v in part.items() if not k.startswith(f"{model.head_name}.")} for part in (own, state)
        )
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    parts = _whole_parts(missing, own)
    if unexpected or reshaped or parts is None:
        share = (len(own) - len(missing) - len(reshaped)) / max(len(own), len(state), 1)
        shown = [f"{key}: {list(state[key].shape)} where {list(own[key].shape)} is expected" for key in reshaped[:3]]
        return Nearest(variant.architecture, share, tuple(missing[:3]), tuple(unexpected[:3]), tuple(shown))
    prefix, tensors, rules = found or ("", {}, None)
    left_out = (
        () if rules is None else tuple(f"{count} tensors: {why}" for why, count in rules.left_out(tensors).items())
    )
    return Match(variant.name, (variant.name,), variant.architecture, args, left_out, tuple(parts), prefix)


def _decided(args: dict[str, Any], variant: Variant, model_cls: Any) -> dict[str, Any]:
    """Those of a match's arguments that are not a variant's anyway."""
    defaults = {name: parameter.default for name, parameter in signature(model_cls).parameters.items()}
    known = defaults | {"num_classes": variant.num_classes} | variant.args
    return {name: value for name, value in args.items() if known.get(name) != value}


def _told(checkpoint: Checkpoint, model_cls: Any) -> dict[str, Any]:
    """The arguments of a form that a checkpoint decides."""
    try:
        return model_cls.args_from(checkpoint)
    except (ZooError, ValueError, TypeError, LookupError):
        return {}


def _classes(state: dict[str, Tensor], head: str) -> int:
    weight = state.get(f"{head}.weight")
    return 0 if weight is None or weight.ndim != 2 else len(weight)


def _whole_parts(missing: list[str], own: dict[str, Tensor]) -> list[str] | None:
    """The top-level parts that a checkpoint lacks, if it lacks nothing else and has some; else None."""
    parts = dict.fromkeys(key.partition(".")[0] for key in missing)
    there = {key.partition(".")[0] for key in own if key not in set(missing)}
    trunk = {"encoder", "blocks", "stages", "layer1", "patch_embed", "pos_embed"}
    if not there or there & set(parts) or trunk & set(parts) or (missing and not trunk & there):
        return None
    return list(parts)


def check_model_state(
    model_cls: Any,
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    name: str,
    checkpoint: Checkpoint,
) -> None:
    """`weights.check_state`, whose error says which other variant of the zoo the checkpoint is of, if it is."""
    try:
        weights.check_state(state, expected, name=name, path=checkpoint.path)
    except CheckpointMismatchError as error:
        other = _recognize(checkpoint, model_cls)
        same = {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
        if other is None or other == name or same:  # of it, and of other types
            raise
        raise CheckpointMismatchError(
            f"{checkpoint.path} is no checkpoint of {name} but one of {other}. Load it as that, or look for the right "
            "file."
        ) from error


def _recognize(checkpoint: Checkpoint, model_cls: Any) -> str | None:
    """The variant whose checkpoint it is, if it is of one: of the class, or else of the form, of `model_cls`."""
    forms = {variant.architecture: variant.form for variant in VARIANTS}
    form = next((form for name, form in forms.items() if MODEL_CLASSES[name] is model_cls), None)
    found = [match for match in identify(checkpoint)[0] if not match.missing]
    found.sort(
        key=lambda match: (MODEL_CLASSES[match.architecture] is not model_cls, forms[match.architecture] != form)
    )
    return found[0].variant if found else None
