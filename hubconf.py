"""torch.hub entry points: every architecture of the catalog, made on the spot, so that no list is kept here.

torch.hub takes whatever is callable here and has no leading underscore for an entry point: so classes are
imported for type checkers only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from torch import nn

# Import names: torch.hub looks for all of them before it calls an entry point, and says which are missing.
dependencies = ["torch", "timm", "huggingface_hub", "safetensors", "einops", "requests", "filelock", "numpy", "tqdm"]

_FOLDER = os.path.dirname(os.path.realpath(__file__))


# OWNER/NAME or OWNER/NAME@REVISION; a path with one of these endings is one of a file that isn't there.
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def _import_zoo() -> tuple[ModuleType, ModuleType]:
    """catalog and errors of the package beside this file, whatever else may be called zoo on sys.path."""
    init = os.path.join(_FOLDER, "zoo", "__init__.py")
    package = sys.modules.get("zoo")
    if package is None:
        spec = importlib.util.spec_from_file_location("zoo", init)  # asks neither sys.path nor anybody's finder
        assert spec is not None and spec.loader is not None
        package = sys.modules["zoo"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules["zoo"]
            raise
    places = [getattr(package, "__file__", None) or "", *getattr(package, "__path__", [])]
    if os.path.realpath(places[0]) != init:
        other = next(filter(None, places), "another one")
        raise ImportError(
            f"The models in {_FOLDER} need the package zoo from that folder, but {other} was imported under this name "
            "before; load them in a fresh Python process."
        )
    return importlib.import_module("zoo.catalog"), importlib.import_module("zoo.errors")


catalog, errors = _import_zoo()


def _entry_point(architecture: str) -> Callable[..., nn.Module]:
    variants = [variant for variant in catalog.VARIANTS if variant.architecture == architecture]
    tags = [variant.tag for variant in variants if variant.tag]
    known = ", ".join(tags) or "none"

    def create(pretrained: bool = False, weights: str | os.PathLike[str] | None = None, **kwargs: Any) -> nn.Module:
        timm = importlib.import_module("timm")  # not before now: torch.hub reports missing dependencies better
        importlib.import_module("zoo.models")  # registers the architectures with timm
        if weights is None:
            return timm.create_model(architecture, pretrained=pretrained, **kwargs)
        if weights in tags:
            return timm.create_model(f"{architecture}.{weights}", pretrained=True, **kwargs)
        path = os.path.expanduser(weights)
        if os.path.isfile(path):
            return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=dict(file=path), **kwargs)
        if os.path.isdir(path):
            return _create_published(architecture, f"local-dir:{path}", os.path.join(path, "config.json"), kwargs)
        if _REPOSITORY.fullmatch(path) and not path.endswith(_SUFFIXES):
            hub = importlib.import_module("zoo.weights.hub")
            repo, revision = hub.split_id(path)
            config = hub.hub_file(repo, "config.json", revision)
            if _is_dust3rs(config):
                overlay = dict(hf_hub_id=path)
                return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
            return _create_published(architecture, f"hf-hub:{path}", config, kwargs)
        raise errors.UnknownVariantError(
            f"'{weights}' is neither a tag of {architecture}, nor a file or folder that is there, nor a repository on "
            f"the Hub (OWNER/NAME or OWNER/NAME@REVISION); its tags are: {known}."
        )

    first = variants[0]
    described = "\n".join(f"        {v.tag or 'no tag yet'}: {v.description} ({v.license})" for v in variants)
    create.__name__ = create.__qualname__ = architecture
    create.__doc__ = f"""{first.parameters / 1e6:.1f} M parameters, input {first.input_size}, arXiv {first.paper.arxiv}.

    pretrained: load the weights of the first tag.
    weights: load those of this tag; or of a repository on the Hub, "OWNER/NAME" or "OWNER/NAME@REVISION"; or a local
        file, from where it lies: a safetensors file of the zoo, a checkpoint of the reference code, or the folder
        of a published model. Tags, with the license of their weights:
{described}
    Other keyword arguments go to timm.create_model.
    """
    return create


def _is_dust3rs(config: str | os.PathLike[str]) -> bool:
    """Whether a repository is DUSt3R's or a descendant's, whose config names arguments, not an architecture."""
    try:
        return "enc_embed_dim" in _read_config(config)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _read_config(config: str | os.PathLike[str]) -> Any:
    if not os.path.isfile(config):  # a pipe would be waited for
        raise FileNotFoundError(config)
    with open(config, encoding="utf-8") as file:
        return json.load(file)


def _create_published(
    architecture: str, name: str, config: str | os.PathLike[str], kwargs: dict[str, Any]
) -> nn.Module:
    """What `zoo push` has published: timm makes it from its config, if that is of the architecture asked for."""
    try:
        theirs = _read_config(config)["architecture"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.CheckpointMismatchError(
            f"{name} has no config.json that names an architecture, so it is not from `zoo push`; give its weights "
            "file by its path."
        ) from error
    if theirs != architecture:
        raise errors.CheckpointMismatchError(f"{name} is a {theirs}, not a {architecture}; load it by that name.")
    return importlib.import_module("timm").create_model(name, pretrained=True, **kwargs)


globals().update({variant.architecture: _entry_point(variant.architecture) for variant in catalog.VARIANTS})
