"""What a release is made of: wheel and sdist that work outside of the repository, and a site that builds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import zoo
from tests.support.environment import build
from zoo.catalog import VARIANTS

ROOT = Path(__file__).parents[1]
SMOKE = """
import timm, torch, zoo
assert "site-packages" in zoo.__file__, zoo.__file__
model = timm.create_model("croco_nano_patch8_64", pretrained=True).eval()
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 192)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of what git tracks, built from a copy, so that the tree stays clean."""
    out = tmp_path_factory.mktemp("dist")
    build([], tmp_path_factory.mktemp("source"), out)
    return out


def test_wheel_works_outside_of_the_repository(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in ("croco_nano_patch8_64_dec128d4.scenes_rich", "croco_nano_patch8_64_dec128d4.scenes_far"):
        assert f"zoo/weights/bundled/{name}.safetensors" in names
    for name in ("croco_nano_patch8_dec128d4_flow.scenes", "dust3r_nano_patch8_64.scenes"):
        assert f"zoo/weights/bundled/{name}.safetensors" in names
    assert wheel.stat().st_size < 45e6
    assert any(name.endswith("recipes/croco/croco_nano.yaml") for name in names)
    assert {name.split("/")[0] for name in names} == {"zoo", f"pretext_zoo-{zoo.__version__}.dist-info"}

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # installed already, not ours
    subprocess.run([python, "-c", SMOKE], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "venv" / "bin" / "zoo", "--version"], cwd=tmp_path, capture_output=True)
    assert printed.stdout.decode().split() == ["pretext-zoo", zoo.__version__]


def test_sdist_has_what_a_wheel_is_built_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "zoo/weights.lock.json"} <= names


def test_documentation_builds_without_warnings(tmp_path: Path) -> None:
    # --quiet would hide warnings from --strict, too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "index.html").read_text()
    assert "two-image" in page, "docstrings are in it"

    start = (tmp_path / "site" / "index.html").read_text()
    (picture,) = re.findall(r'<img alt="Disparity of a motorcycle[^>]* src="([^"]+)"', start)
    assert (tmp_path / "site" / picture).is_file()
    assert 'href="assets/site.css"' in start
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        assert f'href="examples/{notebook.stem}/"' in start
        page = (tmp_path / "site" / "examples" / notebook.stem / "index.html").read_text()
        assert f'href="../{notebook.name}"' in page and "import" in page
        assert (tmp_path / "site" / "examples" / notebook.name).is_file()
    found = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())["docs"]
    tags = {card["title"]: card["tags"] for card in found if "tags" in card}
    assert all(tags[variant.name] == re.split("[._]", variant.name) for variant in VARIANTS)


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == zoo.__version__
    assert f"## {zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": "make test"}
