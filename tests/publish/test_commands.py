"""Commands take what was trained and published as their model: by a folder, or by a name on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Run
from tests.support.hub_server import HubServer
from tests.support.publishing import REPO, train
from zoo.cli._models import load_named
from zoo.errors import UnknownVariantError, WeightsUnavailableError
from zoo.evaluate.pairs import load_subject
from zoo.features import open_features


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_runs_folders_and_repositories(
    zoo: Run, hub: HubServer, tmp_path: Path, recipe_file: Path, photo: Path, no_pictures: None
) -> None:
    run, exported = train(recipe_file, tmp_path / "run"), tmp_path / "exported"
    assert zoo("push", run, "--repo", REPO, "-o", exported)[0] == 0
    found: list[Any] = []
    for number, model in enumerate((run, exported, REPO, f"hf-hub:{REPO}", f"hf_hub:{REPO}@main")):
        out = tmp_path / f"{number}.safetensors"
        code, _, err = zoo("features", model, photo, "-o", out, "--maps")
        assert code == 0, err
        found.append(open_features(out)[0])
    assert found[0].shape == (48, 2, 2) and all(torch.equal(other, found[0]) for other in found)
    (run / "model.safetensors").unlink()  # as of a run that still goes: there is its checkpoint
    net, name = load_named(str(run), form="binocular")
    assert name == str(run) and not net.training
    assert zoo("complete", photo, photo, "-o", tmp_path / "x.png", "--model", REPO)[0] == 0
    assert load_subject(str(exported)).recipe == load_subject(REPO).recipe
    subject = load_subject(REPO)
    assert subject.name == REPO and subject.recipe is not None and subject.scenes(5).image_size == 16
    for command in (("stereo", photo, photo), ("points", photo, photo)):
        code, out, err = zoo(*command, "-o", tmp_path / "x.ply", "--model", REPO)
        assert (code, out) == (2, "") and err.splitlines()[-1].startswith(f"{REPO} ")
    code, _, err = zoo("features", REPO, photo, "-o", tmp_path / "y", "--weights", exported / "model.safetensors")
    assert code == 2 and err == "A repository has its own weights; leave out --weights, or name a variant with them.\n"


def test_names_that_are_no_model(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownVariantError, match="holds neither a training run"):
        load_named(str(tmp_path / "empty"))
    with pytest.raises(WeightsUnavailableError, match="runs/croco is no folder here, and on the Hub"):
        load_named("runs/croco")
    with pytest.raises(WeightsUnavailableError, match="on the Hub"):
        load_named("hf-hub:a b/c")
    for name in ("nonsense", "a/b/c", "/nowhere/run"):
        with pytest.raises(UnknownVariantError, match="has no variant called"):
            load_named(name)
