"""Comparing two ways of computing the same, within one run of tools/bench.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from torch.utils.flop_counter import FlopCounterMode


def gflop(run: Callable[[], object]) -> float:
    """Billions of floating point operations of one call, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median times of both, run in turns, and the median of their ratios."""
    ours(), theirs()  # warm up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return dict(
        seconds=median(a for a, _ in pairs),
        reference_seconds=median(b for _, b in pairs),
        ratio=median(a / b for a, b in pairs),
    )
