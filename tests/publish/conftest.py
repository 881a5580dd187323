"""A Hub, a recipe and a run for the tests of publishing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.hub_server import HubServer
from tests.support.publishing import PAIR, TINY, train
from zoo import publish


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "server", part_size=50_000) as server:
        server.patch(monkeypatch, tmp_path / "home", server.owner_token)
        yield server


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time and are looked at elsewhere."""
    monkeypatch.setattr(publish.export, "draw_example", lambda *_: None)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = dict(
        model=PAIR,
        model_args=dict(TINY, decoder_dim=32, decoder_depth=1, decoder_num_heads=2),
        objective=dict(name="cross_view_completion", mask_ratio=0.5, color_jitter=0.1),
        data=dict(source="scenes", image_size=16),
        batch_size=2,
        optimizer=dict(name="adamw", lr=1e-3),
        schedule=dict(unit="steps", warmup=1, length=4),
        checkpoint_steps=2,
        log_steps=1,
    )
    path = tmp_path_factory.mktemp("recipe") / "tiny_pair.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def trained(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return train(recipe_file, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of the test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
