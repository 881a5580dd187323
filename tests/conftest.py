"""Shared by all tests: nothing here touches the network or the user's own cache, and three workers share two cores."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forks import own_lock_of_bars
from zoo import cli

own_lock_of_bars()

Run = Callable[..., tuple[int, str, str]]
"""A command line's arguments -> exit code, stdout, stderr."""

FAULTS = Path(__file__).parents[1] / "docs" / "faults.md"

# What the words in capitals of docs/faults.md stand for.
_WILDCARDS = {
    "DIGEST": "[0-9a-f]{64}",
    "HOST": r"\S+",
    "NUMBER": r"[\d.]+",
    "PATH": r"\S*/\S+",
    "FOLDER": r"/\S+",
    "REASON": ".+",
    "REPO": r"\S+",
    "TENSOR": r"\S+",
    "URL": r"http\S+",
    "VARIANT": r"\S+",
}


def fault_rows() -> list[list[str]]:
    """The table's rows: fault, what happens, what is read ("" for nothing), test ("file::function")."""
    lines = [line for line in FAULTS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    return [[*row[:3], row[3].strip("`")] for row in rows]


def _pattern(text: str) -> str:
    words = re.split(rf"\b({'|'.join(_WILDCARDS)})\b", text)
    return "".join(_WILDCARDS.get(word, re.escape(word)) for word in words)


@pytest.fixture
def reads(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Check that a message is, word for word, what docs/faults.md says of this test's fault."""
    name = f"{request.path.name}::{request.function.__name__}"
    (expected,) = [row[2] for row in fault_rows() if row[3] == name]
    (frame,) = re.findall("^> (The weights of .*)$", FAULTS.read_text(encoding="utf-8"), re.MULTILINE)

    def check(message: object) -> None:
        text = str(message)
        framed = re.fullmatch(_pattern(frame).replace(_WILDCARDS["REASON"], "(.+)"), text)
        text = framed[1] if framed else text
        assert re.fullmatch(_pattern(expected), text), f"{text!r} is read, docs/faults.md says {expected!r}"

    return check


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    logging.getLogger("zoo").setLevel(logging.NOTSET)  # the command line's tests leave it talkative


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("ZOO_WEIGHTS", "ZOO_HUB_ORG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the entry point with arguments; gives its exit code, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return run
