"""torch.hub entry points: every architecture and every variant of the catalog, made on the spot.

    torch.hub.load("PATH/TO/pretext-zoo", "croco_nano_patch8_64", source="local", weights="scenes_rich")
    torch.hub.load("PATH/TO/pretext-zoo", "croco_nano_patch8_64.scenes_rich", source="local", pretrained=True)

torch.hub.list and torch.hub.help take repositories on GitHub only. In a clone's folder
`python -c "import hubconf; help(hubconf.croco_nano_patch8_64)"` says the same, and `zoo list` and `zoo info` say more.

torch.hub takes whatever is callable here and has no leading underscore for an entry point: so classes are
imported for type checkers only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
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
    """catalog and errors of the package beside this file, whatever else may be called zoo on sys.path.

    If the package has been imported from another place, such as where it is installed, that one serves, provided that
    it is of this version: there can be only one in a process.
    """
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
        _check_same(package, next(filter(None, places), "another one"))
    return importlib.import_module("zoo.catalog"), importlib.import_module("zoo.errors")


def _check_same(package: ModuleType, place: str) -> None:
    """ImportError unless the package that was imported from `place` is this one, of this version."""
    if "create_pair_model" not in getattr(package, "__all__", ()):
        raise ImportError(
            f"The models in {_FOLDER} need the package zoo from that folder, but {place} was imported under this name "
            "before; load them in a fresh Python process."
        )
    with open(os.path.join(_FOLDER, "zoo", "version.py"), encoding="utf-8") as file:
        found = re.search(r'^__version__ = "([^"]+)"', file.read(), re.MULTILINE)
    own, other = found and found[1], getattr(package, "__version__", None)
    if own != other:
        raise ImportError(
            f"The models in {_FOLDER} are of pretext-zoo {own}, but version {other} was imported from {place} before. "
            f"Load them before `import zoo`, in a fresh Python process; or make them with timm.create_model, from "
            f"version {other}; or install this one: pip install {_FOLDER}"
        )


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
            hub = importlib.import_module("zoo.weights.network.hub")
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

    described = "\n".join(f"        {v.tag or 'no tag yet'}: {v.description} ({v.license})" for v in variants)
    create.__name__ = create.__qualname__ = architecture
    facts = (
        _facts(variants[0])
        if variants
        else "A two-image decoder on one of timm's transformers: its encoder=, and more."
    )
    create.__doc__ = f"""{facts}

    pretrained: load the weights of the first tag.
    weights: load those of this tag; or of a repository on the Hub, "OWNER/NAME" or "OWNER/NAME@REVISION"; or a local
        file, from where it lies: a safetensors file of the zoo, a checkpoint of the reference code, or the folder
        of a published model. Tags, with the license of their weights:
{described}
    Other keyword arguments go to timm.create_model.
    """
    return create


def _variant_entry_point(variant: Any) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if "weights" in kwargs:
            raise errors.UnknownVariantError(
                f"{variant.name} names its weights already; give weights= to {variant.architecture}, or "
                "pretrained=True here."
            )
        timm = importlib.import_module("timm")
        importlib.import_module("zoo.models")
        return timm.create_model(variant.name, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = variant.name
    create.__doc__ = f"""{_facts(variant)}

    {variant.description} ({variant.license}).
    pretrained: load these weights.
    Other keyword arguments go to timm.create_model.
    """
    return create


def _facts(variant: Any) -> str:
    return f"{variant.parameters / 1e6:.1f} M parameters, input {variant.input_size}, arXiv {variant.paper.arxiv}."


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
    making = importlib.import_module("zoo.models.making.arguments")
    making.check_config_file(pathlib.Path(config), f"The config.json of {name}")
    return importlib.import_module("timm").create_model(name, pretrained=True, **kwargs)


globals().update({variant.architecture: _entry_point(variant.architecture) for variant in catalog.VARIANTS})
globals()["create_pair_model"] = _entry_point("create_pair_model")  # what zoo.create_pair_model makes
# names with a dot, which only torch.hub can call
globals().update({variant.name: _variant_entry_point(variant) for variant in catalog.VARIANTS if variant.tag})
