"""tools/fuzz.py, for a minute where atheris is installed; ZOO_FUZZ_SECONDS is for those in a hurry, or with a night."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = os.environ.get("ZOO_FUZZ_SECONDS", "60")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_nothing_is_found() -> None:
    pytest.importorskip("atheris")
    done = run("--seconds", SECONDS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("nothing found") == 5


def test_what_breaks_a_promise_is_found(tmp_path: Path) -> None:
    """A reader that runs what it reads: the fuzzer's own seed is enough."""
    pytest.importorskip("atheris")
    broken = (ROOT / "tools" / "fuzz.py").read_text(encoding="utf-8")
    broken = broken.replace("parents[1]", f"parents[0] / {str(ROOT)!r}")
    broken = broken.replace('"pickle": lambda: _read_pickle,', '"pickle": lambda: lambda _: os.system("true"),')
    (tmp_path / "fuzz.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fuzz.py"), "pickle", "--seconds", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "os.system" in done.stderr + done.stdout


def test_unknown_target() -> None:
    done = run("nonsense")
    assert done.returncode == 2 and "pickle, file, header, recipe, config" in done.stderr
