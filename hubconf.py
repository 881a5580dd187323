"""torch.hub entry points: every architecture of the catalog, made on the spot, so that no list is kept here.

torch.hub takes whatever is callable here and has no leading underscore for an entry point: so classes are
imported for type checkers only.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import nn

# Import names: torch.hub looks for all of them before it calls an entry point, and says which are missing.
dependencies = ["torch", "timm", "huggingface_hub", "safetensors", "einops", "requests", "filelock", "numpy", "tqdm"]

_FOLDER = os.path.dirname(os.path.realpath(__file__))
_imported = sys.modules.get("zoo")
_origin = os.path.realpath(getattr(_imported, "__file__", None) or "")
if _imported is not None and _origin != os.path.join(_FOLDER, "zoo", "__init__.py"):
    raise ImportError(
        f"The models in {_FOLDER} need the package zoo from that folder, but {_origin} was imported under this name "
        "before; load them in a fresh Python process."
    )
sys.path.insert(0, _FOLDER)  # before any other module called zoo
try:
    from zoo import catalog, errors
finally:
    sys.path.remove(_FOLDER)


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
        if not os.path.isfile(path):
            raise errors.UnknownVariantError(
                f"'{weights}' is neither a tag of {architecture} nor a file; its tags are: {known}."
            )
        return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=dict(file=path), **kwargs)

    first = variants[0]
    described = "\n".join(f"        {v.tag or 'no tag yet'}: {v.description} ({v.license})" for v in variants)
    create.__name__ = create.__qualname__ = architecture
    create.__doc__ = f"""{first.parameters / 1e6:.1f} M parameters, input {first.input_size}, arXiv {first.paper.arxiv}.

    pretrained: load the weights of the first tag.
    weights: load those of this tag, or a local file, from where it lies: a safetensors file of the zoo or a
        checkpoint of the reference code. Tags, with the license of their weights:
{described}
    Other keyword arguments go to timm.create_model.
    """
    return create


globals().update({variant.architecture: _entry_point(variant.architecture) for variant in catalog.VARIANTS})
