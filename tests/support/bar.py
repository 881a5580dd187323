"""How much time and memory a file takes whoever loads it, and whether it takes the process with it.

A process of its own loads files in a child that it forks, so that imports are paid once, and a crash or a hang is an
outcome like others. The next child is forked as soon as a file has left memory behind, since what is free already would
not be counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60  # seconds of a child's own time for a file
KEPT = 4_000_000  # bytes that a child may have kept of the files before, and reads the next one


@dataclass(frozen=True)
class Outcome:
    """kind: "loaded", the class of the error, or "killed by signal N". text: the message.

    seconds: the processor's. bytes: by how much memory grew at its peak; -1 where the system doesn't tell.
    """

    kind: str
    text: str
    seconds: float
    bytes: int


class Bar:
    """Loads files into a small model, one by one: `load` says what came of it.

    other: a checkpoint of another model, loaded first, so that models that others are compared with are there already.
    """

    def __init__(self, other: Path) -> None:
        self.other = other

    def __enter__(self) -> Bar:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bar", str(self.other)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def load(self, path: Path) -> Outcome:
        assert self.process.stdin and self.process.stdout
        print(path, file=self.process.stdin, flush=True)
        return Outcome(**json.loads(self.process.stdout.readline()))


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    with open("/proc/self/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":")), 0)


def _load(model: object, path: str) -> Outcome:
    from zoo.errors import ZooError

    try:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # the peak starts anew
        measured = True
    except OSError:
        measured = False
    before, start = _status("VmRSS") if measured else 0, time.process_time()
    kind, text = "loaded", ""
    try:
        model.load_pretrained(path)  # type: ignore[attr-defined]
    except ZooError as error:
        kind, text = type(error).__name__, str(error)
    except BaseException as error:
        kind, text = f"raw {type(error).__name__}", str(error)[:300]
    seconds = time.process_time() - start
    return Outcome(kind, text, seconds, _status("VmHWM") - before if measured else -1)


def _answer(model: object) -> int:
    """Load the files whose paths come in, one by one, until a load has left memory behind; 1 at the end of input."""
    fresh = _status("VmRSS")
    while path := os.read(0, 4096).decode().rstrip("\n"):  # the next one is only sent after the answer
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + LIMIT, resource.RLIM_INFINITY))
        os.write(1, (json.dumps(vars(_load(model, path))) + "\n").encode())
        if _status("VmRSS") > fresh + KEPT:
            return 0
    return 1


def _main() -> None:
    import timm

    import zoo  # noqa: F401

    model = timm.create_model("croco_nano_patch8_64", device="meta")
    with contextlib.suppress(Exception):  # a checkpoint of another model makes whatever it is compared with
        model.load_pretrained(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 0
    while status != 1 << 8:
        if not (pid := os.fork()):
            os._exit(_answer(model))
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed = Outcome(f"killed by signal {os.WTERMSIG(status)}", "", 0.0, 0)
            os.write(1, (json.dumps(vars(killed)) + "\n").encode())


if __name__ == "__main__":
    _main()
