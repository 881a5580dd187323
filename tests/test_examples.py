"""The notebooks of examples/ run from top to bottom, and draw what they say."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.hub_server import HubServer

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = {"quickstart": 3, "dense_prediction": 2, "train_and_publish": 2, "pointmaps": 2}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))  # this tree's zoo, installed or not
    monkeypatch.setenv("EXAMPLE_STEPS", "4")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with HubServer(tmp_path / "hub") as hub:
        for key, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.owner_token, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("EXAMPLE_REPO", f"{hub.owner.name}/croco_nano_rooms")
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
        assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
        resources = {"metadata": {"path": str(EXAMPLES)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == PICTURES[name]
