"""The notebooks of examples/ run from top to bottom, from what a user has installed, and draw what they say."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.environment import build, make_environment
from tests.support.hub_server import HubServer

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = {"quickstart": 3, "dense_prediction": 2, "train_and_publish": 2, "pointmaps": 2}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(PICTURES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build(["--wheel"], tmp_path_factory.mktemp("source"), out)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.parametrize("name", PICTURES)
def test_notebook(name: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment of its own, with what its first cell says that it needs."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    (extras,) = re.findall(r"`pip install '\.\[([\w,]+)\]' jupyter`", notebook.cells[0].source)
    python = make_environment(tmp_path / "environment", wheel, set(extras.split(",")), {"ipykernel"})
    kernel = tmp_path / "jupyter" / "kernels" / "its_own" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps(dict(argv=command, display_name="its own", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("EXAMPLE_STEPS", "4")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with HubServer(tmp_path / "hub") as hub:
        for key, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.owner_token, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("EXAMPLE_REPO", f"{hub.owner.name}/croco_nano_rooms")
        where = "import zoo, sys; print(zoo.__file__, *sys.path, sep='\\n')"
        notebook.cells.append(nbformat.v4.new_code_cell(where))
        resources = {"metadata": {"path": str(EXAMPLES)}}
        NotebookClient(notebook, timeout=300, kernel_name="its_own", resources=resources).execute(env=dict(os.environ))
    *cells, last = notebook.cells
    file, *path = last.outputs[0].text.splitlines()
    assert str(tmp_path) in file and not any("site-packages" in p and str(tmp_path) not in p for p in path)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == PICTURES[name]
