"""torch.hub: entry points of a clone, called as users call them: in a new process, from another folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

import zoo
from tests.support.forks import forks
from tests.support.hub_server import HubServer
from zoo import publish
from zoo.catalog import VARIANTS

Reads = Callable[[object], None]

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


def run(code: str, clone: Path, cwd: Path, **environment: str) -> str:
    """What the code prints, with errors at its end."""
    done = forks("import torch, torchvision").run(HUB.format(clone=str(clone)) + code, cwd, environment)
    return done.output + done.errors


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
    architectures = {variant.architecture for variant in VARIANTS}
    assert names.split() == sorted(architectures | {variant.name for variant in VARIANTS} | {"create_pair_model"})
    for variant in VARIANTS:
        assert f"{variant.tag}: {variant.description} ({variant.license})" in texts or not variant.tag
    assert texts.count("weights: load those of this tag; or of a repository on the Hub") == len(architectures) + 1
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
print(load("crocov2_base_patch16_224.habitat_real_basedec", pretrained=True, img_size=320))
try:
    load("croco_nano_patch8_64.scenes_rich", weights="scenes_far")
except ValueError as error:
    print(error)
load("crocov2_base_patch16_224", weights="habitat")
""",
        clone,
        elsewhere,
    )
    first, second, tagged, named, twice = output.splitlines()[:5]
    assert (first, second) == ("True", "True")
    assert tagged == "('crocov2_base_patch16_224.habitat_real_basedec', {'pretrained': True, 'img_size': 320})"
    assert named == tagged
    assert twice == (
        "croco_nano_patch8_64.scenes_rich names its weights already; give weights= to croco_nano_patch8_64, or "
        "pretrained=True here."
    )
    assert output.endswith(
        "UnknownVariantError: 'habitat' is neither a tag of crocov2_base_patch16_224, nor a file or folder that is "
        "there, nor a repository on the Hub (OWNER/NAME or OWNER/NAME@REVISION); "
        "its tags are: habitat_real_smalldec, habitat_real_basedec.\n"
    )


def test_another_module_called_zoo_that_is_imported_already_is_named(
    clone: Path, elsewhere: Path, reads: Reads
) -> None:
    error = run(f"import zoo; load({NANO!r})", clone, elsewhere).splitlines()[-1]
    assert str(clone) in error and str(elsewhere / "zoo.py") in error
    reads(error.removeprefix("ImportError: "))


def test_the_same_package_that_is_imported_already_serves(clone: Path, elsewhere: Path) -> None:
    """As where the package is installed, and the clone is another folder."""
    (elsewhere / "zoo.py").unlink()
    output = run(
        f"""
import sys, timm, zoo
model = load({NANO!r} + ".scenes_far", pretrained=True)
print(zoo.__file__, sys.modules["zoo"] is zoo, type(model) is type(timm.create_model({NANO!r})))
""",
        clone,
        elsewhere,
        PYTHONPATH=str(REPOSITORY),
    )
    assert output == f"{REPOSITORY / 'zoo' / '__init__.py'} True True\n"


def test_another_version_that_is_imported_already_is_named(clone: Path, reads: Reads) -> None:
    code = f"import zoo; zoo.__version__ = '9.1'; load({NANO!r})"
    error = run(code, clone, clone.parent, PYTHONPATH=str(REPOSITORY)).splitlines()[-1]
    assert f"of pretext-zoo {zoo.__version__}, but version 9.1 was imported from {REPOSITORY}" in error
    reads(error.removeprefix("ImportError: "))


# Finds "another zoo" before sys.path is asked, as the import hooks of editable installs may.
FINDER = """
import importlib.abc, importlib.util
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, "zoo.py") if name == "zoo" else None
sys.meta_path.insert(0, Finder())
"""


def test_own_package_whatever_else_is_called_zoo(clone: Path, elsewhere: Path) -> None:
    output = run(f"import sys\n{FINDER}\nmodel = load({NANO!r})\nimport zoo; print(zoo.__file__)", clone, elsewhere)
    assert output == f"{clone / 'zoo' / '__init__.py'}\n"
    code = f"""
import sys, types
sys.modules["zoo"] = types.ModuleType("zoo")  # a folder without __init__.py is a package too, without a file
sys.modules["zoo"].__path__ = ["/somewhere/my zoo"]
load({NANO!r})
"""
    output = run(code, clone, elsewhere)
    assert "from that folder, but /somewhere/my zoo was imported under this name before; load them in a fresh" in output


def test_repositories_of_the_hub(clone: Path, elsewhere: Path, tmp_path: Path) -> None:
    """By name, by revision, without network once they are here, and what is said when they can't be had."""
    tiny = timm.create_model(NANO, embed_dim=48, depth=1, num_heads=3, img_size=16)
    folder = publish.export_model(tiny, tmp_path / "published", "owner/tiny")
    files = {name: (folder / name).read_bytes() for name in publish.listing(folder)}
    with HubServer(tmp_path / "server") as hub:
        hub.add_repo("owner/tiny", files)
        hub.add_repo("owner/gated", files, gated=True)
        hub.add_repo("owner/private", files, private=True)
        hub.add_repo("owner/empty", {"model.safetensors": files["model.safetensors"]})
        commit = hub.repos["owner/tiny"].refs["main"]
        hub.add_files("owner/tiny", {"config.json": b"broken"})
        environment = hub.environment(tmp_path / "home", ZOO_CACHE=str(tmp_path / "cache"))
        code = f"""
model = load({NANO!r}, weights="owner/tiny@{commit}")
print(sum(p.numel() for p in model.parameters()))
wider = load({NANO!r}, weights="owner/tiny@{commit}", img_size=64, num_classes=3)
print(tuple(wider(torch.zeros(1, 3, 64, 64)).shape))
folder = load({NANO!r}, weights={str(folder)!r})
print(all(torch.equal(value, folder.state_dict()[key]) for key, value in model.state_dict().items()))
import os
for name, weights, token in (
    ("{NANO}_dec128d4", "owner/tiny@{commit}", ""), ({NANO!r}, "owner/tiny", ""), ({NANO!r}, "owner/gated", ""),
    ({NANO!r}, "owner/private", ""), ({NANO!r}, "owner/empty", ""), ({NANO!r}, "owner/tiny@v2", ""),
    ({NANO!r}, "a/b.safetensors", ""), ({NANO!r}, "owner/gated", {hub.guest_token!r}),
    ({NANO!r}, "owner/gated", {hub.owner_token!r}), ({NANO!r}, "owner/private", {hub.owner_token!r}),
):
    os.environ["HF_TOKEN"] = token
    try:
        print("Loaded:", type(load(name, weights=weights)).__name__)
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
        output = run(code, clone, elsewhere, **environment).splitlines()
        assert output[1:3] == ["(1, 3)", "True"] and int(output[0]) == sum(p.numel() for p in tiny.parameters())
        config = "WeightsUnavailableError: config.json of owner/"
        page = f"{hub.url}/owner"
        for line, message in zip(
            [line for line in output if "Error: " in line],
            (
                f"CheckpointMismatchError: hf-hub:owner/tiny@{commit} is a {NANO}, not a {NANO}_dec128d4; load it by",
                "CheckpointMismatchError: hf-hub:owner/tiny has no config.json that names an architecture",
                f"{config}gated can't be had from the Hub: it is gated: ask for access at {page}/gated, and log in",
                f"{config}private can't be had from the Hub: there is no repository {page}/private, or it is private",
                f"{config}empty can't be had from the Hub: there is no such file: see {page}/empty/tree/main",
                f"{config}tiny at v2 can't be had from the Hub: there is no such revision",
                "UnknownVariantError: 'a/b.safetensors' is neither a tag",
                f"{config}gated can't be had from the Hub: it is gated and your login has no access to it: ask for it",
            ),
            strict=True,
        ):
            assert line.startswith(message), line
        assert output.count("Loaded: CrocoEncoder") == 2
    # the server is gone
    code = f"""
print(type(load({NANO!r}, weights="owner/tiny@{commit}")).__name__)
load({NANO!r}, weights="owner/other")
"""
    output = run(code, clone, elsewhere, **environment, HF_HUB_OFFLINE="1")
    assert output.startswith("CrocoEncoder\n") and "HF_HUB_OFFLINE is set and it is not in the Hub's cache" in output
    assert not (tmp_path / "cache").exists()  # local files are read where they lie, and the Hub has its own cache
