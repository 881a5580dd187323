"""From a catalog entry to a timm model: registration, construction, weights. Shared by all families.

`pretrained=True` builds the module on the meta device and gives it the checkpoint's own tensors: nothing is
initialized that will be overwritten, and nothing is copied. Files of the package and the cache stay mapped; whatever
somebody else may write over is read into memory.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    create_model,
    generate_default_cfgs,
    register_model,
    register_model_deprecations,
    resolve_pretrained_cfg,
)
from torch import nn

from zoo import weights
from zoo.catalog import RENAMED, VARIANTS, Variant
from zoo.errors import ArgumentsError, WeightsUnavailableError
from zoo.lookup import check_retired, current_name, find_variant
from zoo.models.making.arguments import check_arguments, check_config
from zoo.models.shared.ancestry import Ancestor, published_variant, strictest
from zoo.models.shared.identify import check_model_state
from zoo.models.shared.model import ZooModel, without_classifier
from zoo.models.shared.registry import BUILDERS, MODEL_CLASSES
from zoo.weights import Checkpoint
from zoo.weights.authors import config_beside
from zoo.weights.network.hub import HUB_FILENAME, hub_file, split_id
from zoo.weights.sources import BUNDLED, Converted

_logger = logging.getLogger("zoo")


def _pretrained_cfg(variant: Variant, model_cls: type[ZooModel]) -> dict[str, Any]:
    remote = next((source for source in variant.sources if source.kind != "package"), None)
    packaged = next((source.location for source in variant.sources if source.kind == "package"), None)
    return dict(
        url=remote and ("https://huggingface.co/" if remote.kind == "hub" else "") + remote.location,
        file=str(BUNDLED / packaged) if packaged else None,
        custom_load=True,  # ZooModel.load_pretrained checks every key and shape
        input_size=variant.input_size,
        fixed_input_size=True,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=variant.mean,
        std=variant.std,
        num_classes=variant.num_classes,
        first_conv=model_cls.first_conv,
        classifier=model_cls.head_name if variant.form == "encoder" else None,
        license=variant.license.lower(),
        description=variant.description,
        paper_name=variant.paper.title,
        paper_ids=f"arXiv:{variant.paper.arxiv}",
    ) | dict(model_cls.cfg)


def register_family(family: str, forms: Mapping[str, type[ZooModel]], module_name: str) -> dict:
    """Register every architecture of a family with timm, as entry points of the module `module_name`.

    forms: the class of each form, or of the architectures whose names end in it (a family may have several
    pretraining forms). Returns timm's pretrained configs of the family, made from the catalog; they
    belong into the module as `default_cfgs`, where timm looks for them.
    """
    module = sys.modules[module_name]
    variants = [variant for variant in VARIANTS if variant.family == family]
    MODEL_CLASSES.update({variant.architecture: _model_cls(variant, forms) for variant in variants})
    default_cfgs = generate_default_cfgs({v.name: _pretrained_cfg(v, MODEL_CLASSES[v.architecture]) for v in variants})
    module.default_cfgs = default_cfgs  # type: ignore[attr-defined]  # register_model reads it there
    by_architecture: dict[str, list[Variant]] = {}
    for variant in variants:
        by_architecture.setdefault(variant.architecture, []).append(variant)
    for architecture, tagged in by_architecture.items():
        entrypoint = _entrypoint(tagged, MODEL_CLASSES[architecture], module_name)
        setattr(module, architecture, register_model(entrypoint))
    renamed = {old: new for old, new in RENAMED.items() if "." not in old and new.partition(".")[0] in by_architecture}
    register_model_deprecations(module_name, renamed)  # type: ignore[arg-type]
    return default_cfgs


def _model_cls(variant: Variant, forms: Mapping[str, type[ZooModel]]) -> type[ZooModel]:
    ending = variant.architecture.rpartition("_")[2]
    return forms[ending if ending in forms else variant.form]


def _entrypoint(variants: list[Variant], model_cls: type[ZooModel], module_name: str) -> Callable[..., nn.Module]:
    """timm's entry point of an architecture, whose tags are `variants`; the first is the default."""
    first = variants[0]
    tags = [variant.tag for variant in variants if variant.tag]

    def create(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        tag = pretrained_cfg if isinstance(pretrained_cfg, str) else first.tag
        name = f"{first.architecture}.{tag}"
        if (current := current_name(name)) != name:  # timm's deprecations are of architectures alone
            warnings.warn(f"Mapping deprecated model name {name} to current {current}.", stacklevel=2)
            pretrained_cfg = tag = current.partition(".")[2]
        check_retired(name)
        variant = next((variant for variant in variants if variant.tag == tag), first)
        return _create(model_cls, variant, pretrained, pretrained_cfg, **kwargs)

    create.__name__ = create.__qualname__ = first.architecture
    create.__module__ = module_name
    create.__doc__ = (
        f"{first.description}.\n\n"
        f"    Input {first.input_size}, {first.parameters / 1e6:.1f} M parameters, "
        f"{first.paper.venue} {first.paper.year}, arXiv {first.paper.arxiv}.\n"
        f"    Pretrained tags: {', '.join(tags) if tags else 'none'}.\n"
        f"    Keyword arguments go to {model_cls.__module__}.{model_cls.__name__}.\n    "
    )
    return create


def _create(
    model_cls: type[ZooModel],
    variant: Variant,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> nn.Module:
    if variant.form != "encoder" and kwargs.pop("features_only", False):
        raise ValueError(model_cls.features_only_advice.format(variant.architecture, _encoder_of(variant)))
    if variant.form != "encoder" and kwargs.get("num_classes"):
        raise ArgumentsError(
            f"{variant.architecture} has no classifier, so num_classes={kwargs['num_classes']} means nothing; create "
            f"{_encoder_of(variant)} with it."
        )
    overlay = dict(pretrained_cfg_overlay or {})
    if (place := _published_place(pretrained_cfg)) is not None:
        pretrained_cfg = _check_published(variant.architecture, pretrained_cfg, kwargs, place)
    partial = overlay.pop("partial", False)  # a file may hold the encoder alone
    origin = None
    args = dict(variant.args)
    if pretrained:
        path, origin = _weights_file(variant.architecture, pretrained_cfg, overlay, cache_dir)
        overlay.update(file=str(path), custom_load=True, source=None)
        if model_cls.file_args:
            told = weights.read_checkpoint(path, mapped=True, checked=False)  # for a moment, and not the gigabytes
            args |= _args_from(model_cls, told, args, variant.architecture)

    def build(pretrained: bool, device: torch.device | str | None) -> nn.Module:
        return build_model_with_cfg(
            model_cls,
            variant.architecture,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            cache_dir=cache_dir,
            feature_cfg=dict(out_indices=model_cls.default_out_indices, feature_cls="getter"),
            kwargs_filter=None if variant.form == "encoder" else ("num_classes", "global_pool"),  # type: ignore[arg-type]
            device=device,
            **{**args, **kwargs},
        )

    if pretrained and partial and _is_of_encoder(build(False, "meta"), checkpoint := weights.read_checkpoint(path)):
        model = build(False, device)
        model.load_encoder(checkpoint)  # type: ignore[operator]
    else:
        model = build(pretrained, "meta" if pretrained else device)
    if origin is not None and isinstance(model, ZooModel):
        _take_origin(model, origin)
    # timm adds the caller's; so a published config says all of them
    model._model_args = args  # type: ignore[assignment]
    return model.to(device) if pretrained and device is not None else model


def register_builder(build: Callable[..., Any], module_name: str) -> None:
    """Let timm make models of no architecture of their own by one of our functions, under its name.

    `build(pretrained, **kwargs)`: `pretrained` loads what it starts from. That is what timm.create_model means too,
    unless a file, repository or folder of such a model is named: then all of its weights are taken from there.
    """
    name = build.__name__
    BUILDERS[name] = build

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        overlay = dict(pretrained_cfg_overlay or {})
        place = _published_place(pretrained_cfg)
        if place is not None:
            pretrained_cfg = _check_published(name, pretrained_cfg, kwargs, place)
        kwargs.pop("pretrained_model_args", None)
        whole = pretrained and (place is not None or bool(overlay.get("file") or overlay.get("hf_hub_id")))
        with warnings.catch_warnings():
            if whole:  # what is frozen is not random for long
                warnings.simplefilter("ignore")
            model = build(pretrained=pretrained and not whole, **kwargs)
        if place is not None:
            named = {key: value for key, value in pretrained_cfg.items() if value is not None}
            model.pretrained_cfg = {**model.pretrained_cfg, **named, "architecture": name}
        if whole:
            path, origin = _weights_file(name, pretrained_cfg, overlay, cache_dir)
            model.load_pretrained(path)
            if origin is not None:
                _take_origin(model, origin)
        return model if device is None else model.to(device)

    create.__name__ = create.__qualname__ = name
    create.__module__ = module_name
    create.__doc__ = build.__doc__
    register_model(create)


def _take_origin(model: ZooModel, origin: str) -> None:
    """Remember the repository or variant that a model's weights are from, under the stricter of both licenses."""
    found = model.ancestor
    known, said = published_variant(origin), model.pretrained_cfg.get("license")
    said = known.license.lower() if known else said or (found.license if found else "")
    model.ancestor = replace(strictest(Ancestor(origin, said), *([found] if found else [])), name=origin)


def _encoder_of(variant: Variant) -> str:
    """The architecture of a form's encoder alone, by their names."""
    encoders = {other.architecture for other in VARIANTS if other.family == variant.family and other.form == "encoder"}
    base = variant.architecture.partition("_dec")[0] + "_"
    inside = [name for name in encoders if variant.architecture.startswith(f"{name}_")]
    inside = inside or [name for name in encoders if name.startswith(base)]
    return max(inside, key=len, default="the encoder's architecture (`zoo list --form encoder`)")


def _published_place(pretrained_cfg: Any) -> str | None:
    """The repository or folder whose config.json timm has read; None if the config is the caller's or the catalog's."""
    cfg = pretrained_cfg.to_dict() if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
    if not isinstance(cfg, dict) or cfg.get("source") not in _OWN_PLACE:
        return None
    return str(cfg.get(_OWN_PLACE[cfg["source"]]))


_OTHER_FILENAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
"""What a folder's weights are called where they are no safetensors."""

_OWN_PLACE = {"hf-hub": "hf_hub_id", "local-dir": "file"}
"""What timm itself writes into the config of each source of published models: where it was read from."""


def _check_published(architecture: str, pretrained_cfg: Any, kwargs: dict[str, Any], place: str) -> dict[str, Any]:
    """A published model's config without what it says of other places; ArgumentsError for a model that can't be.

    kwargs: timm's, where the config's own arguments stand unless the caller has given others.
    """
    cfg = dict(pretrained_cfg.to_dict() if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg)
    own = _OWN_PLACE[cfg["source"]]
    for key in ("url", "file", "state_dict", "hf_hub_id"):
        if key != own and cfg.pop(key, None):
            _logger.warning("%s: its config.json names another %s, which is left alone.", place, key)
    where = f"The config.json of {place}"
    check_config(cfg, where)
    theirs = kwargs.get("pretrained_model_args") or {}
    for name in [name for name, value in theirs.items() if value is None and name in kwargs and kwargs[name] is None]:
        del kwargs[name]  # which stands for the default in timm's own configs
    check_arguments(architecture, {name: value for name, value in theirs.items() if kwargs.get(name) is value}, where)
    return cfg


def _is_of_encoder(model: Any, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is not of the whole model, but of its encoder."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, ZooModel) or model.takes(checkpoint):
        return False
    return encoder.takes(without_classifier(checkpoint, encoder))


def _args_from(model_cls: type[ZooModel], checkpoint: Checkpoint, args: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments that a checkpoint decides; what differs from `args` is told."""
    decided = model_cls.args_from(checkpoint)
    for argument, value in decided.items():
        if argument in args and args[argument] != value:
            _logger.info(
                "%s: %s is of a model with %s %r instead of %r, and that is made",
                *(name, checkpoint.path, argument, value, args[argument]),
            )
    return decided


def _weights_file(
    architecture: str,
    pretrained_cfg: Any,
    overlay: dict[str, Any],
    cache_dir: str | Path | None,
) -> tuple[Path, str | None]:
    """The local file that `pretrained=True` means: the user's own, a Hub repository's, or the catalog's.

    With the name of the repository or variant, None for the user's own.
    """
    # what the caller named, be it timm for a Hub repository or folder, goes before the catalog
    named = (pretrained_cfg.to_dict() if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg) or {}
    named = {**(named if isinstance(named, dict) else {}), **overlay}
    if named.get("url") or named.get("state_dict"):
        raise ValueError(
            f"{architecture} takes its own weights from a file or the Hub, not from a url or state_dict in "
            "pretrained_cfg; pass pretrained_cfg_overlay=dict(file=...), or call load_state_dict."
        )
    if named.get("file"):
        path = Path(named["file"])
        if path.is_dir():  # what timm's save_for_hf writes there
            path = next(
                (path / name for name in (HUB_FILENAME, *_OTHER_FILENAMES) if (path / name).is_file()),
                path / HUB_FILENAME,
            )
        return path, None
    if named.get("hf_hub_id"):
        repo, revision = split_id(named["hf_hub_id"])
        if architecture in MODEL_CLASSES and MODEL_CLASSES[architecture].config_file:
            config_beside(repo, revision, cache_dir)
        return hub_file(repo, named.get("hf_hub_filename") or HUB_FILENAME, revision, cache_dir), repo
    tag = resolve_pretrained_cfg(architecture, pretrained_cfg, overlay).tag or ""
    if not tag:
        raise WeightsUnavailableError(
            f"{architecture} has no published weights; create it with pretrained=False, train it with "
            "`zoo train`, or pass a file as pretrained_cfg_overlay=dict(file=...)."
        )
    name = f"{architecture}.{tag}"
    return fetch(name), name


def fetch(name: str) -> Path:
    """The verified local .safetensors of a catalog variant, fetched and converted if need be.

    Raises UnknownVariantError, WeightsUnavailableError, DownloadError, CheckpointMismatchError and the like
    (zoo.errors), each in one sentence.
    """
    variant = find_variant(name)
    return weights.fetch(variant, lambda checkpoint: convert_checkpoint(variant, checkpoint))


def convert_checkpoint(variant: Variant, checkpoint: Checkpoint) -> Converted:
    """A reference checkpoint as the zoo's tensors of a variant, and what their safetensors file is to say besides.

    Raises CheckpointMismatchError (a ValueError) for a checkpoint of something else.
    """
    args = _args_from(MODEL_CLASSES[variant.architecture], checkpoint, variant.args, variant.name)
    model: Any = create_model(variant.name, device="meta", **args)
    state = model.convert(checkpoint)
    check_model_state(type(model), state, model.state_dict(), variant.name, checkpoint)
    return Converted(state, model.file_metadata())
