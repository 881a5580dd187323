"""Programs in processes of their own, without paying for their imports again: each is a fork of one that has them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

LIMIT = 300  # seconds that programs may take

_SERVER = """
import atexit, json, os, signal, sys, threading, traceback
exec(sys.argv[1])

def run(job, environment):
    os.setsid()  # a group of its own, for signals
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(job["files"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    try:
        exec(compile(job["code"], "program", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return 1 if isinstance(error.code, str) else error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    children = []
    for environment in job["environments"]:
        child = os.fork()
        if child == 0:
            status = run(job, environment)
            threading._shutdown(), atexit._run_exitfuncs()  # as at every program's end
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        children.append(child)
    print(json.dumps(children), flush=True)
    statuses = {}
    while len(statuses) < len(children):
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        for other in children:
            if statuses[child] and other not in statuses:  # which may wait for the one that failed
                os.kill(other, signal.SIGKILL)
    print(json.dumps([statuses[child] for child in children]), flush=True)
"""


class Done(NamedTuple):
    """statuses: of each process, negative of a signal. output, errors: what all of them printed."""

    statuses: list[int]
    output: str
    errors: str


class Forks:
    """A process that imports once, and is forked for each program.

    preload: the imports, of what knows nothing of the environment that the programs will have.
    """

    def __init__(self, preload: str, **environment: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, preload],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: list[int] = []
        assert self._line() == "ready"
        atexit.register(self.close)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def start(self, code: str, cwd: Path, *environments: dict[str, str]) -> list[int]:
        """Start the program once for each environment, which is added to this process's, all at once.

        Returns the processes' numbers; `wait` is next.
        """
        assert self._server.stdin is not None
        assert not self._children, "wait for the programs before first"
        self._folder = Path(tempfile.mkdtemp())
        files = [self._folder / name for name in ("output", "errors")]
        for file in files:
            file.touch()
        job = dict(
            code=code,
            cwd=str(cwd),
            environments=[os.environ | more for more in environments or ({},)],
            files=[str(file) for file in files],
        )
        print(json.dumps(job), file=self._server.stdin, flush=True)
        self._children = json.loads(self._line())
        return self._children

    def wait(self) -> Done:
        """Until all have ended; if one fails, or after `LIMIT`, the others are killed."""
        limit = threading.Timer(LIMIT, self._kill)
        limit.daemon = True
        limit.start()
        try:
            statuses = json.loads(self._line())
            self._children = []
            output, errors = ((self._folder / name).read_text(encoding="utf-8") for name in ("output", "errors"))
        finally:
            limit.cancel()
            shutil.rmtree(self._folder)
        return Done(statuses, output, errors)

    def _kill(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)

    def run(self, code: str, cwd: Path, *environments: dict[str, str]) -> Done:
        self.start(code, cwd, *environments)
        return self.wait()

    def close(self) -> None:
        self._kill()
        self._server.kill()
        self._server.communicate()


def own_lock_of_bars() -> None:
    """For whoever forks processes that are killed: tqdm's usual lock is one for all of them, and who is killed while it
    has it never gives it back."""
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # nor may a thread have it at a fork


TRAINING = "import accelerate, timm, zoo.scenes.torch.render, zoo.train.engine"
"""To preload for programs that train."""


@cache
def forks(preload: str) -> Forks:
    """Those with these imports, which all of a test process's files share."""
    return Forks(preload)
