"""A run's folder: one run at a time, whatever a bad day has done to it, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from tests.support.forks import TRAINING, forks
from tests.support.two_processes import ROOT
from tests.train.test_training import tiny, weights_of
from zoo.errors import StorageError, TrainingError, ZooError
from zoo.train.engine import train
from zoo.train.run import read_checkpoint, read_log
from zoo.weights import save_safetensors

SHORT = {"schedule.length": 4, "schedule.warmup": 0}


def run(folder: Path, **changes: Any) -> Path:
    return train(tiny(**SHORT | changes), folder, workers=0, progress=False)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run that has saved its second step, and no weights yet."""
    folder = tmp_path / "run"
    run(folder)
    (folder / "model.safetensors").unlink()
    return folder


# --------------------------------------------------------------------------------------------- one at a time


def test_two_runs_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused as long as the first lives, be it in another process or in this one."""
    program = f"""
import sys, time
from tests.train.test_run_folder import tiny, SHORT
from zoo.train.engine import train
from zoo.train.run import Run
log = Run.log
def slow(self, *args):
    print("training", flush=True)
    time.sleep(60)
    return log(self, *args)
Run.log = slow
train(tiny(**SHORT), {str(tmp_path)!r}, workers=0, progress=False)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "training\n"
        before = (tmp_path / "recipe.yaml").read_bytes()
        with pytest.raises(TrainingError, match=f"^Another process is training into {tmp_path}; wait until it ends"):
            run(tmp_path, seed=5)
        assert (tmp_path / "recipe.yaml").read_bytes() == before
        other.send_signal(signal.SIGKILL)
    run(tmp_path, seed=5)  # a killed one holds nothing


def test_a_failed_run_lets_go(tmp_path: Path) -> None:
    """Though somebody keeps its error, as notebooks do."""
    with pytest.raises(ZooError) as kept:
        run(tmp_path, **{"optimizer.lr": 1e30})
    (tmp_path / "checkpoint.safetensors").unlink(missing_ok=True)
    run(tmp_path)
    assert kept.value.__traceback__ is not None


def test_killed_saves_leave_nothing(tmp_path: Path) -> None:
    """kill -9 in the middle of a save; the next start removes what it has left, and of other files nothing."""
    program = f"""
import os, signal
from tests.train.test_run_folder import tiny, SHORT
from zoo.train.engine import train
replace = os.replace
def die(source, target):
    if str(target).endswith("checkpoint.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = die
train(tiny(**SHORT), {str(tmp_path)!r}, workers=0, progress=False)
"""
    for _ in range(2):
        assert forks(TRAINING).run(program, ROOT).statuses == [-signal.SIGKILL]
        assert len(list(tmp_path.glob(".checkpoint.safetensors.*.tmp"))) == 1
    (tmp_path / ".checkpoint.tmp").write_text("mine")
    run(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".checkpoint.tmp"]


# ---------------------------------------------------------------------------------------- damaged checkpoints


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    state, tensors = read_checkpoint(path)
    change(state, tensors)
    save_safetensors(tensors, path, {"run": json.dumps(state)})


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth else {}


TENSOR = "objective.model.decoder.mask_token"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a header alone": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "text": lambda path: path.write_text("hello"),
    "foreign": lambda path: save_safetensors({"a": torch.ones(1)}, path, {}),
    "no JSON": lambda path: save_safetensors({"a": torch.ones(1)}, path, {"run": "{"}),
    "nested": lambda path: save_safetensors({"a": torch.ones(1)}, path, {"run": "[" * 100_000}),
    "a list": lambda path: save_safetensors({"a": torch.ones(1)}, path, {"run": "[]"}),
    "no step": lambda path: rewritten(path, lambda state, _: state.pop("step")),
    "a step before": lambda path: rewritten(path, lambda state, _: state.update(step=-1)),
    "a step beyond": lambda path: rewritten(path, lambda state, _: state.update(step=10**12)),
    "half a step": lambda path: rewritten(path, lambda state, _: state.update(step=2.5)),
    "no recipe": lambda path: rewritten(path, lambda state, _: state.update(recipe=7)),
    "a nested recipe": lambda path: rewritten(path, lambda state, _: state["recipe"].update(data=nested(500))),
    "no seconds": lambda path: rewritten(path, lambda state, _: state.update(seconds="long")),
    "tensors missing": lambda path: rewritten(
        path, lambda _, tensors: tensors.pop("objective.model.decoder.mask_token")
    ),
    "another shape": lambda path: rewritten(
        path, lambda _, tensors: tensors.update({"objective.model.decoder.mask_token": torch.ones(3)})
    ),
    "optimizer of another": lambda path: rewritten(path, lambda _, t: t.update({"optimizer.x.y": torch.ones(3)})),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint(interrupted: Path, damage: str) -> None:
    DAMAGES[damage](interrupted / "checkpoint.safetensors")
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors.*(choose another --output|so choose another)"):
        run(interrupted)
    assert not (interrupted / "model.safetensors").exists()


def test_damaged_log(interrupted: Path) -> None:
    log = interrupted / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 3, "lo')
    run(interrupted)  # cut by a kill: that row comes again
    assert [row["step"] for row in read_log(interrupted)] == [2, 4]
    log.write_text("hello\n" + log.read_text())
    with pytest.raises(TrainingError, match=r"log\.jsonl can't be read in row 1"):
        run(interrupted)


# ------------------------------------------------------------------------------------------- bad places


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for output in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(StorageError, match=f"^The run's folder {output} can't be written .*another --output"):
            run(output)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_folder_of_another_user(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    request.getfixturevalue("as_nobody")
    for output in (folder, folder / "new"):
        with pytest.raises(StorageError, match="Permission denied"):
            run(output)


@pytest.mark.parametrize("where", ["log.jsonl", "tensorboard", "checkpoint", "model", "loss.png"])
def test_full_disk(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if where == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        def fail(*args: object, **options: object) -> None:
            raise full

        monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    elif where == "loss.png":
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", lambda *args, **options: (_ for _ in ()).throw(full))
    elif where == "log.jsonl":
        import builtins

        real = builtins.open

        def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if str(path).endswith("log.jsonl") and mode == "a":
                raise full
            return real(path, mode, *args, **options)

        monkeypatch.setattr(builtins, "open", opened)
    else:
        fsync = os.fsync

        def syncing(descriptor: int) -> None:
            if where in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise full
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", syncing)
    with pytest.raises(StorageError, match="can't be written .No space left on device"):
        run(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.undo()
    run(tmp_path)  # there is space again
    assert len(weights_of(tmp_path)) > 10


class Killer(Dataset):
    """Pairs whose worker is killed, as by a system out of memory."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_recipe_is_written_over_no_link(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.yaml", "log.jsonl", "model.safetensors", "loss.png", "run.lock"):
        (folder / name).symlink_to(treasure)
    run(folder)
    assert treasure.read_text() == "gold"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "4"


def test_numbers_beyond_measure(tmp_path: Path) -> None:
    start = time.monotonic()
    for key, value in (
        ("batch_size", 10**12),
        ("seed", -1),
        ("seed", 10**30),
        ("schedule.length", float("inf")),
        ("optimizer.lr", float("nan")),
        ("checkpoint_steps", 10**30),
        ("data.image_size", 10**9),
        ("data.image_size", 0),
        ("objective.mask_ratio", 10**9),
    ):
        with pytest.raises(ZooError):
            run(tmp_path, **{key: value})
    assert time.monotonic() - start < 10


def test_log_that_is_a_pipe(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(TrainingError, match="can't be read in row 1"):
        run(tmp_path)
