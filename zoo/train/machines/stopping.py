"""How a run ends early without losing what it has done."""

from __future__ import annotations

import signal
import threading


class StopSignal:
    """Ctrl-C or a scheduler's SIGTERM: finish the step (several processes: up to the next logged one), save, stop.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.wished = False

    def __enter__(self) -> StopSignal:
        main = threading.current_thread() is threading.main_thread()  # only there can signals be handled
        self._before = {s: signal.signal(s, self._wish) for s in (signal.SIGINT, signal.SIGTERM) if main}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: object) -> None:
        if self.wished and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wished = True
