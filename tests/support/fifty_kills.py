"""Kills processes at random moments of getting weights; the next one must always end with the right ones.

python tests/support/fifty_kills.py URL_OF_A_CHECKPOINT prints the phase in which each of the fifty died. They are
forks of this one, which has torch, and each phase is drawn out so that there is a moment to hit.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.checkpoints import convert, variant_of
from tests.support.forks import own_lock_of_bars
from zoo.catalog import Source
from zoo.weights import cache_dir, cached_path, fetch, sources, verify
from zoo.weights.disk import files, records, safetensors_format
from zoo.weights.network import download as download_module

own_lock_of_bars()

PHASES = {"downloading": 0.06, "converting": 0.03, "writing": 0.05}  # about as many seconds each


def draw_out(report: Callable[[str], None]) -> Callable[[Any], Any]:
    """Make every phase last, and report when it begins; returns the conversion."""

    def after(seconds: float, function: Callable[..., Any], phase: str | None = None) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            if phase:
                report(phase)
            time.sleep(seconds)
            return function(*args, **kwargs)

        return slow

    download_module._CHUNK = 4096
    download_module.Pace.add = after(0.002, download_module.Pace.add)
    sources.download = after(0.0, sources.download, "downloading")
    safetensors_format.save_safetensors = after(0.0, safetensors_format.save_safetensors, "writing")
    os.fsync = after(0.005, os.fsync)
    os.replace = after(0.005, os.replace)
    return after(0.03, convert, "converting")


def killed_in(phase: str, moment: float, url: str) -> str:
    """Start a process, kill it `moment` seconds into a phase, and return the phase that it had reached."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        slow = draw_out(lambda reached: os.write(writing, f"{reached} ".encode()) and None)
        fetch(variant_of(Source("url", url)), slow)
        os._exit(0)
    os.close(writing)
    reached = ""
    while phase not in reached and (text := os.read(reading, 100).decode()):
        reached += text
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while text := os.read(reading, 100).decode():
        reached += text
    os.close(reading)
    return reached.split()[-1]


def main(url: str) -> None:
    chance = random.Random(0)
    variant = variant_of(Source("url", url))
    path = cached_path(variant)
    right = files.sha256(fetch(variant, convert))

    def remove(doomed: Path) -> None:
        doomed.unlink(missing_ok=True)

    for round_ in range(50):
        phase = list(PHASES)[round_ % len(PHASES)]
        remove(path)
        remove(records.record_path(path))
        for downloaded in list((cache_dir() / "downloads").glob("*.pth*")):
            if chance.random() < 0.5 or (phase == "downloading" and downloaded.suffix == ".pth"):
                remove(downloaded)
        print(killed_in(phase, chance.uniform(0, PHASES[phase]), url), flush=True)
        if path.exists() and records.record_path(path).exists():
            assert records.check_full(path)["sha256"] == right
        assert files.sha256(fetch(variant, convert)) == right
        assert [(report.problem, report.recorded) for report in verify(variant)] == [(None, True)] * 2
        assert not list(cache_dir().glob(".*.tmp"))


if __name__ == "__main__":
    main(sys.argv[1])
