"""Who may import whom (design: data flows one way), and that `import zoo` registers whatever comes first."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.forks import forks

ROOT = Path(__file__).parents[1]
ROOMS = {  # what each room may import of ours, besides itself
    "catalog": set(),
    "colors": set(),
    "errors": set(),
    "lookup": {"catalog", "errors"},
    "layers": {"errors"},
    "weights": {"catalog", "errors", "lookup"},
    "models": {"catalog", "errors", "lookup", "layers", "photos", "weights"},
    "geometry": {"errors", "weights"},
    "matching": {"colors", "errors", "geometry"},
    "points": {"errors", "geometry", "models", "pictures"},
    "pictures": {"errors", "layers", "photos"},
    "photos": {"errors"},
    "features": {"errors", "photos", "pictures", "weights"},
    "sgbm": {"errors"},
    "version": set(),
    "scenes": {"errors", "photos", "settings"},
    "settings": {"errors"},
    "train": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "photos", "pictures", "scenes"),
        *("settings", "weights"),
    },
    "demo": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "matching", "models", "pictures", "sgbm"),
        "weights",
    },
    "publish": {
        *("catalog", "demo", "errors", "lookup", "models", "pictures", "scenes", "train", "version", "weights"),
    },
    "evaluate": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "pictures", "scenes", "weights"),
        *("demo", "matching", "photos", "sgbm", "train"),
    },
    "cli": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "pictures", "scenes", "weights"),
        *("demo", "evaluate", "features", "matching", "photos", "points", "publish", "train", "version"),
    },
}


def imported(path: Path) -> set[str]:
    """The modules of the zoo that a file imports, anywhere in it, for types alone too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in modules if module.startswith("zoo.")}


def test_every_room_is_listed() -> None:
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "zoo").iterdir()}
    assert {name for name in found if not name.startswith(("__", "."))} - {"weights.lock"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_import_arrows(room: str) -> None:
    place = ROOT / "zoo" / room
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        assert {module.split(".")[1] for module in imported(path)} <= ROOMS[room] | {room}, path


@pytest.mark.parametrize("folder", sorted(path.parent for path in (ROOT / "zoo").rglob("__init__.py")), ids=str)
def test_no_arrow_runs_back_up(folder: Path) -> None:
    """Whatever lies side by side in a folder, files and rooms, can be put on floors, each above what it imports."""
    package = ".".join(folder.relative_to(ROOT).parts)
    arrows: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        inside = path.relative_to(folder)
        part = inside.parts[0].removesuffix(".py")
        for module in imported(path):
            if module.startswith(f"{package}."):
                name = module.removeprefix(f"{package}.").split(".")[0]
                there = (folder / name).is_dir() or (folder / f"{name}.py").is_file()
                arrows.setdefault(part, set()).add(name if there else "__init__")
    arrows = {part: others - {part} for part, others in arrows.items()}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_the_catalog_needs_nothing_but_python() -> None:
    program = """
import sys, types
package = types.ModuleType("zoo")  # in place of the package, which registers the models with timm
package.__path__ = ["zoo"]
sys.modules["zoo"] = package
before = set(sys.modules)
import zoo.catalog
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - {"zoo"} - set(sys.stdlib_module_names))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    "program",
    [
        "import zoo, timm",
        "import timm, zoo",
        "import zoo.models.croco, timm",
        "import zoo.layers.attention, timm",
        "import zoo, importlib.util; importlib.util.find_spec('timm'); import timm",  # as torch.hub looks for it
    ],
)
def test_import_zoo_registers(program: str) -> None:
    check = "\nassert timm.is_model('crocov2_base_patch16_224')"
    done = forks("import torch, torchvision").run(program + check, ROOT)
    assert done.statuses == [0], done.errors
