"""tools/bench.py: every row runs, in its tiny form."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tools import bench

IN_A_PROCESS = "cold_start"  # of its own, as all of them are in truth


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_here(program: str, **environment: str) -> dict[str, float]:
    """What `_run_python` gives, without the seconds in which a process imports torch."""
    printed = io.StringIO()
    with patch.dict(os.environ, environment), contextlib.redirect_stdout(printed):
        exec(program, {})
    return json.loads(printed.getvalue().splitlines()[-1])


def rows(path: Path, *only: str) -> dict[str, dict]:
    with pytest.raises(SystemExit) as done:
        bench.main(["--tiny", "--json", str(path), "--only", *only])
    assert done.value.code == 0
    return json.loads(path.read_text())["results"]


@pytest.mark.slow
def test_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "_run_python", run_here)
    names = [name for name in bench.BENCHES if name != IN_A_PROCESS]
    found = rows(tmp_path / "bench.json", *names)
    printed = capsys.readouterr().out
    for name in names:
        figures = {key: value for key, value in found[name].items() if key not in ("bar", "holds")}
        assert figures and all(isinstance(value, (int, float)) for value in figures.values()), name
        assert name in printed and "no" not in printed.split(), name


def test_a_row_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = rows(tmp_path / "bench.json", IN_A_PROCESS)[IN_A_PROCESS]
    assert 0 < found["seconds"] < found["seconds_with_first_forward"] and found["file_bytes"] > 0
