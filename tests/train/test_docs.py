"""The lines of docs/train.md: own objectives and sources as they are documented, and the table of settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.make_settings import PAGE, page_with_table
from zoo.train.run import read_log

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    """Code of the section on one's own objective and data."""
    section = PAGE.read_text(encoding="utf-8").split("## Your own objective and data")[1]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_own_parts_as_documented(tmp_path: Path) -> None:
    module, script = blocks("python")
    (command,) = blocks("bash")
    (tmp_path / "my_parts.py").write_text(module)
    (tmp_path / "script.py").write_text(script)
    path, program, *arguments = command.replace("\\\n", " ").split()
    assert (path, program) == ("PYTHONPATH=.", "zoo")  # `zoo` doesn't look into the current folder by itself
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), ".")), "OMP_NUM_THREADS": "1"}
    for line in ([sys.executable, "-m", "zoo.cli", *arguments, "--workers", "0"], [sys.executable, "script.py"]):
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for run in ("croco_nano", "stripes"):
        assert {"loss", "plain"} <= read_log(tmp_path / "runs" / run)[-1].keys()


def test_table_of_settings_is_fresh() -> None:
    assert page_with_table() == PAGE.read_text(encoding="utf-8"), "run python tools/make_settings.py"
