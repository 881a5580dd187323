"""How much time and memory a file takes whoever loads it, and whether it takes the process with it.

A process of its own loads each file in a child that it forks, so that imports are paid once, every file starts with
the same memory, and a crash or a hang is an outcome like others.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60  # seconds of a child's own time


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
    """Loads files into a small model, one by one: `load` says what came of it."""

    def __enter__(self) -> Bar:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bar"],
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


def _child(model: object, path: str) -> Outcome:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(writing, "w") as out:
            out.write(json.dumps(vars(_load(model, path))))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    return Outcome(**json.loads(text)) if text else Outcome(f"killed by signal {os.WTERMSIG(status)}", "", 0.0, 0)


def _main() -> None:
    import timm

    import zoo  # noqa: F401

    model = timm.create_model("croco_nano_patch8_64", device="meta")
    for line in sys.stdin:
        print(json.dumps(vars(_child(model, line.rstrip("\n")))), flush=True)


if __name__ == "__main__":
    _main()
