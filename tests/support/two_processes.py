"""A program in two processes on the CPU, joined by gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.forks import TRAINING, forks

ROOT = Path(__file__).parents[2]
_SETTINGS = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def in_two_processes(program: str) -> None:
    """Run a Python program twice at once, with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [_SETTINGS | joined | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    done = forks(TRAINING).run(program, ROOT, *ranks)
    assert done.statuses == [0, 0], done.errors[-2000:]


def by_torchrun(program: str, folder: Path) -> None:
    """Run it as users do, which takes three processes' imports; its text is put into `folder`."""
    script = folder / "program.py"
    script.write_text(program)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | _SETTINGS | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
