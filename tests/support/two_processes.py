"""A program in two processes on the CPU, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_two_processes(program: str, folder: Path) -> None:
    """Run a Python program twice at once, joined by gloo; its files go into `folder`, where its text is put too."""
    script = folder / "program.py"
    script.write_text(program)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
