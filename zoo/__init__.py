"""pretext-zoo: self-supervised vision backbones for timm, torch.hub and the Hugging Face Hub.

`import zoo` registers every architecture with timm, so that `timm.create_model("crocov2_base_patch16_224",
pretrained=True)` works. When timm has not been imported yet, this happens as soon as it is: the `zoo` command
then answers `zoo --help` and `zoo list` without loading torch.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.lookup import find_variant
    from zoo.models import fetch
    from zoo.models.croco import create_pair_model
    from zoo.models.making.compiling import compile_blocks
    from zoo.publish import push_to_hub

_PUBLIC = {
    "compile_blocks": "zoo.models.making.compiling",
    "create_pair_model": "zoo.models.croco",
    "fetch": "zoo.models",
    "find_variant": "zoo.lookup",
    "push_to_hub": "zoo.publish",
}

__all__ = ["__version__", "compile_blocks", "create_pair_model", "fetch", "find_variant", "push_to_hub"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterAfterTimm(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds timm as Python would, and imports zoo.models right after timm itself."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != "timm":
            return None
        # also asked by who only looks for timm
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module("zoo.models")


if "timm" in sys.modules:
    importlib.import_module("zoo.models")
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
