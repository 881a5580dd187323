"""Two processes that share out a model compute what one does, write whole checkpoints, and go on from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.two_processes import by_torchrun, in_two_processes
from zoo.errors import RecipeError
from zoo.train.engine import train
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import read_log

SIZES = dict(embed_dim=32, depth=2, num_heads=2, decoder_dim=32, decoder_depth=2, decoder_num_heads=2)


def small(**changes: Any) -> Recipe:
    steps = dict(unit="steps", warmup=1, length=6)
    settings = {"model_args": SIZES, "batch_size": 8, "schedule": steps, "log_steps": 1, "checkpoint_steps": 3}
    return load_recipe("croco_nano", settings | changes)


class Killed(Exception):
    pass


def train_sharded(folder: Path, killed_after: int | None = None) -> None:
    """Run in both processes. killed_after: a step in which both of them die."""
    recipe = small(shard=True)
    if killed_after is not None:
        from zoo.train.objectives.cross_view import CrossViewCompletion

        def die(self: Any, progress: float) -> None:
            if progress > killed_after / 6:
                raise Killed

        CrossViewCompletion.after_step = die  # type: ignore[method-assign]
    try:
        train(recipe, folder, workers=0, progress=False)
    except Killed:
        assert killed_after is not None


def program(folder: Path, call: str) -> str:
    return f"""
from pathlib import Path
from tests.train.machines.test_sharding import train_sharded
run = Path({str(folder / "two")!r})
{call}
"""


def assert_like_one_process(folder: Path) -> None:
    train(small(), folder / "one", workers=0, progress=False)
    one, two = (load_file(folder / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)
    one, two = (load_file(folder / run / "checkpoint.safetensors") for run in ("one", "two"))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    losses = [[row["loss"] for row in read_log(folder / run)] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    in_two_processes(program(folder, "train_sharded(run, killed_after=4)"))
    assert not (folder / "two" / "model.safetensors").exists()
    return folder


def test_two_processes_that_share_out_a_model(killed_run: Path, tmp_path: Path) -> None:
    shutil.copytree(killed_run, tmp_path, dirs_exist_ok=True)
    by_torchrun(program(tmp_path, "train_sharded(run)"), tmp_path)
    assert_like_one_process(tmp_path)


def test_a_shared_out_run_goes_on_in_one_process(killed_run: Path, tmp_path: Path) -> None:
    shutil.copytree(killed_run, tmp_path, dirs_exist_ok=True)
    train(small(shard=True), tmp_path / "two", workers=0, progress=False)
    assert_like_one_process(tmp_path)


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"validation": {"samples": 8}}])
def test_what_shards_cannot(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave out ema and validation"):
        train(small(shard=True, **setting), tmp_path, workers=0, progress=False)
