"""torch.hub: entry points of a clone, called as users call them: in a new process, from another folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.catalog import VARIANTS

REPOSITORY = Path(__file__).resolve().parents[1]
NANO = "croco_nano_patch8_64"

# torch.hub.list and help know GitHub repositories only; with this they find the clone as if it had been fetched.
HUB = """
import torch
torch.hub._get_cache_or_reload = lambda *args, **kwargs: {clone!r}
load = lambda *args, **kwargs: torch.hub.load({clone!r}, *args, source="local", **kwargs)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "somebody_pretext-zoo_main"
    shutil.copytree(REPOSITORY / "zoo", folder / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "hubconf.py", folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with another module called zoo, which comes first on sys.path in all tests."""
    (tmp_path / "zoo.py").write_text("wrong = True\n")
    return tmp_path


def run(code: str, clone: Path, cwd: Path) -> str:
    """What the code prints, with errors at its end."""
    code = HUB.format(clone=str(clone)) + code
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_list_help_and_load(clone: Path, elsewhere: Path) -> None:
    output = run(
        f"""
import sys
before = list(sys.path)
print(*sorted(torch.hub.list("somebody/pretext-zoo")), sep="\\n")
print("----")
for name in torch.hub.list("somebody/pretext-zoo"):
    print(torch.hub.help("somebody/pretext-zoo", name))
print("----")
model = load({NANO!r}, num_classes=7)
import zoo
print(zoo.__file__, sys.path == before, tuple(model(torch.zeros(1, 3, 64, 64)).shape))
""",
        clone,
        elsewhere,
    )
    names, texts, loaded = output.split("----\n")
    assert names.split() == sorted({variant.architecture for variant in VARIANTS})
    for variant in VARIANTS:
        assert f"{variant.tag}: {variant.description} ({variant.license})" in texts or not variant.tag
    assert texts.count("weights: load those of this tag, or a local file") == len(names.split())
    assert loaded.split(" ", 1) == [str(clone / "zoo" / "__init__.py"), "True (1, 7)\n"]


def test_missing_dependencies_are_named_by_torch_hub(clone: Path, elsewhere: Path) -> None:
    output = run(
        f"""
import importlib.util
find = importlib.util.find_spec
torch.hub._check_module_exists = lambda name: name != "timm" and find(name) is not None
load({NANO!r})
""",
        clone,
        elsewhere,
    )
    assert output.endswith("RuntimeError: Missing dependencies: timm\n")


def test_weights_by_path_and_by_tag(clone: Path, elsewhere: Path) -> None:
    output = run(
        f"""
import safetensors.torch
saved = load({NANO!r}, embed_dim=48, depth=1)
safetensors.torch.save_file(saved.state_dict(), "tiny.safetensors")
loaded = load({NANO!r}, weights="tiny.safetensors", embed_dim=48, depth=1)
print(all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items()))

torch.save({{"model": saved.state_dict()}}, "tiny.pth")
loaded = load({NANO!r}, weights="tiny.pth", embed_dim=48, depth=1)
print(all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items()))

import timm
timm.create_model = lambda name, **kwargs: (name, kwargs)
print(load("crocov2_base_patch16_224", weights="habitat_real_basedec", img_size=320))
load("crocov2_base_patch16_224", weights="habitat")
""",
        clone,
        elsewhere,
    )
    first, second, tagged = output.splitlines()[:3]
    assert (first, second) == ("True", "True")
    assert tagged == "('crocov2_base_patch16_224.habitat_real_basedec', {'pretrained': True, 'img_size': 320})"
    assert output.endswith(
        "UnknownVariantError: 'habitat' is neither a tag of crocov2_base_patch16_224 nor a file; "
        "its tags are: habitat_real_smalldec, habitat_real_basedec.\n"
    )


def test_another_module_called_zoo_that_is_imported_already_is_named(clone: Path, elsewhere: Path) -> None:
    output = run(f"import zoo; load({NANO!r})", clone, elsewhere)
    assert output.endswith(
        f"ImportError: The models in {clone} need the package zoo from that folder, but {elsewhere / 'zoo.py'} was "
        "imported under this name before; load them in a fresh Python process.\n"
    )
