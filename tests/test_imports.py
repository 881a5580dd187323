"""Who may import whom (design: data flows one way), and that `import zoo` registers whatever comes first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
    "sgbm": {"errors"},
    "scenes": {"errors", "photos"},
    "train": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "photos", "pictures", "scenes"),
        "weights",
    },
    "demo": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "matching", "models", "pictures", "sgbm"),
        "weights",
    },
    "publish": {"catalog", "errors", "lookup", "weights", "models", "pictures", "scenes", "train", "demo"},
    "evaluate": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "pictures", "scenes", "weights"),
        *("demo", "matching", "photos", "sgbm", "train"),
    },
    "cli": {
        *("catalog", "colors", "errors", "geometry", "layers", "lookup", "models", "pictures", "scenes", "weights"),
        *("demo", "evaluate", "matching", "photos", "points", "publish", "train"),
    },
}


def imported(path: Path) -> set[str]:
    """The rooms of the zoo that a file imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [
                f"{node.module}.{alias.name}" if node.module == "zoo" else str(node.module) for alias in node.names
            ]
        rooms |= {name.split(".")[1] for name in names if name.startswith("zoo.")}
    return rooms - {"__version__"}


def test_every_room_is_listed() -> None:
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "zoo").iterdir()}
    assert {name for name in found if not name.startswith(("__", "."))} - {"weights.lock"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_import_arrows(room: str) -> None:
    place = ROOT / "zoo" / room
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        assert imported(path) <= ROOMS[room] | {room}, path


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
        "import zoo, importlib.util; importlib.util.find_spec('timm'); import timm",  # as torch.hub looks for it
    ],
)
def test_import_zoo_registers(program: str) -> None:
    check = "\nassert timm.is_model('crocov2_base_patch16_224')"
    subprocess.run([sys.executable, "-c", program + check], cwd=ROOT, check=True)
