"""Which arguments a model may be made with when a file names them: a recipe, a run, a repository's config.

A file that says how a model is built must not choose other files, nor a model that fills the memory. So what it may
say is listed here by name, with the values that make sense; what a caller passes in Python is the caller's own.
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from timm.models import PretrainedCfg

from zoo.errors import ArgumentsError, CorruptWeightsError, ZooError
from zoo.models.shared.registry import BUILDERS, MODEL_CLASSES
from zoo.weights.disk import files

MAX_CLASSES = 100_000
"""Classes that a file may ask for; ImageNet-21K has 21,841."""

MAX_PARAMETERS = 4_000_000_000
"""Numbers that a model which a file describes may hold, positions included; the catalog's largest has 0.7 billion."""

MAX_SIDE = 4096
"""Height and width in pixels."""

MAX_PATCHES = 65_536

Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _several(check: Check, most: int = 8) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and 0 < len(value) <= most and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _side(value: Any) -> bool:
    return _whole(1, MAX_SIDE)(value)


def _size(value: Any) -> bool:
    return _side(value) or (_several(_side)(value) and len(value) == 2)


_YES_NO = _one_of(True, False)
_WIDTH = _whole(1, 16_384)
_WIDTHS = _either(_WIDTH, _several(_WIDTH))
_DEPTH = _whole(0, 256)
_HEADS = _whole(1, 512)
_RATIO = _number(0.01, 32)
_RATE = _number(0, 0.999)

ARGUMENTS: dict[str, Check] = {
    **dict.fromkeys(("img_size",), _size),
    **dict.fromkeys(("patch_size",), _whole(1, 256)),
    **dict.fromkeys(("in_chans", "out_chans"), _whole(1, 256)),
    **dict.fromkeys(("num_classes",), _whole(0, MAX_CLASSES)),
    **dict.fromkeys(("embed_dim", "channels", "layer_dims"), _WIDTHS),
    **dict.fromkeys(("decoder_dim", "fpn_dim", "teacher_dim", "dim", "feature_dim", "last_dim"), _WIDTH),
    **dict.fromkeys(("descriptor_dim",), _whole(0, 16_384)),
    **dict.fromkeys(("depth", "decoder_depth", "fpn_depth"), _DEPTH),
    **dict.fromkeys(("depths", "layers"), _several(_DEPTH)),
    **dict.fromkeys(("num_heads", "decoder_num_heads"), _HEADS),
    **dict.fromkeys(("mlp_ratio",), _either(_RATIO, _several(_RATIO))),
    **dict.fromkeys(("decoder_mlp_ratio", "stem_mlp_ratio"), _RATIO),
    **dict.fromkeys(("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), _RATE),
    **dict.fromkeys(("pos_drop_rate", "patch_drop_rate"), _RATE),  # of timm's ViTs, under `create_pair_model`
    **dict.fromkeys(("qkv_bias", "rel_pos", "norm_memory", "norm_target", "completes", "stretch_masked"), _YES_NO),
    **dict.fromkeys(("freeze_encoder", "dynamic_img_size", "head_norm", "mlp", "zero_init_last"), _YES_NO),
    **dict.fromkeys(("class_token", "no_embed_class", "qk_norm", "pre_norm", "final_norm", "fc_norm"), _YES_NO),
    "reg_tokens": _whole(0, 64),
    "global_pool": _one_of("", "avg", "max", "avgmax", "token", "map"),
    "pos_embed": _one_of("rope", "sincos", "learned"),
    "pos_resample": _one_of("compute", "bicubic"),
    "decoder_block": _one_of("cross", "cat"),
    "head_type": _one_of("linear", "dpt", "catmlp+dpt"),
    "features": _one_of("pyramid", "dense", "stages"),
    "norm_layer": _one_of("batchnorm2d", "frozenbatchnorm2d", "groupnorm", "groupnorm1", "layernorm2d"),  # timm's names
    "rope_base": _number(1, 1e6),
    "init_values": _number(0, 100),
    "feature_weight": _number(0, 1e6),
    "momentum": _number(0, 1),
    "hooks": _several(_whole(-256, 256)),
    "width": _whole(1, 16),
    "output_stride": _one_of(8, 16, 32),
    "patches": _whole(1, 64),
    "permutations": _whole(2, MAX_CLASSES),
    "features_only": _YES_NO,
    "out_indices": _either(_whole(-256, 256), _several(_whole(-256, 256), 256)),
}
"""What a file may say of a model, and whether a value makes sense."""


_LOADING = frozenset(
    name
    for function in (timm.create_model, timm.models.build_model_with_cfg)
    for name in inspect.signature(function).parameters
)
"""What timm takes for itself: which weights, from where, by what class."""

_OBJECTS = frozenset(("self", "device", "dtype", "encoder", "kwargs", "args"))
"""What constructors take besides, and no file can say."""


def check_arguments(architecture: str, args: Mapping[str, Any], where: str) -> None:
    """Raise ArgumentsError (a ValueError) unless a file's arguments build a model of this architecture and no more.

    architecture: a name of the zoo or of timm, or "create_pair_model". where: what names them, for the error.
    """
    if not isinstance(args, Mapping):
        raise ArgumentsError(f"{where} has model arguments that are no mapping of names to values; correct them.")
    args = {name: value for name, value in args.items() if value is not None}  # timm leaves those out
    named = dict(args)
    if architecture == "create_pair_model":
        _check_pair(named, where)
    ours = architecture == "create_pair_model" or architecture.partition(".")[0] in MODEL_CLASSES
    for name, value in named.items():
        fits = ARGUMENTS.get(name) or (_plain if not ours or name in _constructor_arguments() else None)
        if fits is None or name in _LOADING:
            raise ArgumentsError(
                f"{where} names the model argument {_shown(name)}, which a file may not give; leave it out, or pass it "
                "to timm.create_model yourself."
            )
        if not fits(value):
            raise ArgumentsError(f"{where} has {_shown(name)}: {_shown(value)}, which no model can have; correct it.")
    _check_total(architecture, args, where)


def check_config(cfg: Mapping[str, Any], where: str) -> None:
    """Raise ArgumentsError (a ValueError) unless what timm takes from a repository's pretrained_cfg makes sense.

    timm makes arguments of num_classes, global_pool and input_size where model_args have none.
    """
    for name in ("input_size", "test_input_size", "min_input_size"):
        size = cfg.get(name)
        if size is not None and not (_several(_side)(size) and len(size) == 3):
            raise ArgumentsError(f"{where} has {name}: {_shown(size)}, which no model can have; correct it.")
    for name in ("num_classes", "global_pool"):
        if cfg.get(name) is not None and not ARGUMENTS[name](cfg[name]):
            raise ArgumentsError(f"{where} has {name}: {_shown(cfg[name])}, which no model can have; correct it.")
    for name in ("license", "architecture", "tag", "hf_hub_id", "hf_hub_filename"):
        if not isinstance(cfg.get(name), (str, type(None))):
            raise ArgumentsError(f"{where} has {name}: {_shown(cfg[name])}, which is no text; correct it.")
    for name, low in (("mean", -1e3), ("std", 1e-6)):
        if cfg.get(name) is not None and not _several(_number(low, 1e3), 256)(cfg[name]):
            raise ArgumentsError(f"{where} has {name}: {_shown(cfg[name])}, which normalizes nothing; correct it.")


def check_config_file(path: Path, where: str) -> None:
    """Raise ArgumentsError (a ValueError) unless timm can take a published model's config.json for what it is.

    timm reads it before any of our code is asked, and stumbles over what is of another kind than it expects. For ways
    to a model that are ours. where: what names the file, for the error.
    """
    try:
        config = files.read_json(path)
    except CorruptWeightsError as error:
        raise ArgumentsError(
            f"{where} is no JSON of a model ({error.__cause__ or 'no mapping'}); correct it."
        ) from error
    if config is None:
        raise ArgumentsError(f"{where} isn't there; export the model anew.")
    cfg = config.get("pretrained_cfg", {})
    for name, value in (("pretrained_cfg", cfg), ("model_args", config.get("model_args", {}))):
        if not isinstance(value, dict):
            raise ArgumentsError(f"{where} has {name}: {_shown(value)}, which is no mapping of names; correct it.")
    if not isinstance(config.get("architecture", cfg.get("architecture")), str):
        raise ArgumentsError(f"{where} names no architecture; export the model anew.")
    known = {field.name for field in fields(PretrainedCfg)}
    if unknown := [key for key in cfg if key not in known]:
        raise ArgumentsError(
            f"{where} has {_shown(unknown[0])} in pretrained_cfg, which timm {timm.__version__} doesn't know; take it "
            "out, or use the timm that wrote it."
        )
    named = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    check_config(cfg | named, where)
    size = config.get("model_args", {}).get("img_size")
    if size is not None and not _size(size):
        raise ArgumentsError(f"{where} has img_size: {_shown(size)}, which no model can have; correct it.")


@cache
def _constructor_arguments() -> frozenset[str]:
    """What any class of the zoo is made with; whether it is this one, its constructor tells."""
    parents = {parent for model_cls in MODEL_CLASSES.values() for parent in model_cls.__mro__}
    constructors = [parent.__init__ for parent in parents if parent.__module__.startswith("zoo.")]
    names = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    return frozenset(names - _OBJECTS)


def _plain(value: Any) -> bool:
    """Whether a value for one of timm's own models is a number, a switch, or a word that can't be a path."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(map(_plain, value))
    if isinstance(value, str):
        return re.fullmatch(r"\w{0,32}", value) is not None
    return isinstance(value, bool) or _number(-MAX_CLASSES, MAX_CLASSES)(value)


def _check_pair(args: dict[str, Any], where: str) -> None:
    """Take out of `args` what only `create_pair_model` knows, once it is seen to be fine."""
    encoder, decoder = args.pop("encoder", None), args.pop("decoder", "cross512d8")
    if not (isinstance(encoder, str) and re.fullmatch(r"[\w.-]+", encoder) and timm.is_model(encoder)):
        raise ArgumentsError(f"{where} names the encoder {_shown(encoder)}, which timm doesn't have; name one of its.")
    match = re.fullmatch(r"(?:cross|cat)(\d{1,5})d(\d{1,3})", decoder) if isinstance(decoder, str) else None
    if match is None or not (_WIDTH(int(match[1])) and _DEPTH(int(match[2]))):
        raise ArgumentsError(f"{where} has decoder: {_shown(decoder)}; write one such as cross512d8.")
    if not _YES_NO(args.pop("pretrained", False)):
        raise ArgumentsError(f"{where} has a pretrained that is neither true nor false; correct it.")


def _check_total(architecture: str, args: dict[str, Any], where: str) -> None:
    """Build the model without memory, to see that the arguments go together and how large it is."""
    size = args.get("img_size")
    sides = size if isinstance(size, (list, tuple)) else [size or 1] * 2
    if math.prod(sides) > MAX_PATCHES * args.get("patch_size", 16) ** 2:
        raise ArgumentsError(
            f"{where} asks for images of {' x '.join(map(str, sides))} pixels, whose patches no attention can take; "
            "choose a smaller img_size."
        )
    try:
        with torch.device("meta"):
            if architecture in BUILDERS:
                model: Any = BUILDERS[architecture](**{**args, "pretrained": False, "freeze_encoder": False})
            else:
                model = timm.create_model(architecture, **args)
    except ZooError as error:
        raise ArgumentsError(f"{where} has model arguments that don't fit {architecture}: {error}") from error
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ArgumentsError(
            f"{where} has model arguments that don't fit {architecture} ({reason}); correct them."
        ) from error
    total = sum(tensor.numel() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    if total > MAX_PARAMETERS:
        raise ArgumentsError(
            f"{where} describes a model of {total / 1e9:.0f} billion numbers, which would fill the memory; correct "
            "its arguments."
        )


def _shown(value: Any) -> str:
    """A value in an error: on one line, and not longer than what can be read, however deep it is."""
    return reprlib.repr(value)
