"""Everything that a GPU is wanted for, by one command: ceilings, golden cases, speed, memory, small models trained.

    python tools/gpu.py                                    # all stages in 9 minutes, into $OUT
    python tools/gpu.py --stages a b c d e --minutes 3     # a look at what works
    python tools/gpu.py --tiny --output /tmp/gpu           # the same program on a CPU, in tiny sizes

Stages, ordered by worth: (a) ceilings of the card, (b) golden cases on it, (c) forward passes, (d) pretraining steps,
(e) scenes, (f) training. Each is a process of its own with a time limit. A row of figures is written as soon as it is
measured, so that neither a crash nor the end of the time loses one. The output folder gets rows.jsonl, gpu.json (the
same rows, and what machine they are of), tables.txt, logs.tar.gz, and of stage f weights.

Needs Python 3.11 or later, the package's dependencies and its extras train and eval; says at once which are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's zoo, installed or not

EXTRAS = ("train", "eval", "demo")
PATIENCE = 5.0  # seconds that a stage has for saving once it is told to stop


class Stage(NamedTuple):
    """What is run. module, function: where it is written. seconds: its limit, or less if there isn't time for all;
    None: whatever is left."""

    title: str
    module: str
    function: str
    seconds: float | None


STAGES = {
    "a": Stage("ceilings of the card", "tools.gpu_speed", "ceilings", 20),
    "b": Stage("golden cases", "tools.gpu_speed", "golden", 40),
    "c": Stage("forward passes", "tools.gpu_speed", "forwards", 90),
    "d": Stage("pretraining steps", "tools.gpu_speed", "steps", 90),
    "e": Stage("scenes", "tools.gpu_speed", "scenes", 60),
    "f": Stage("training", "tools.gpu_training", "training", None),
}


@dataclass
class Lab:
    """Where a stage works. tiny: sizes for a CPU. deadline: on time.monotonic's clock. scratch: for its own files.
    compiled: let trainings compile their blocks. without: trainings and evaluations that are left out."""

    stage: str
    device: str
    tiny: bool
    output: Path
    scratch: Path
    deadline: float
    compiled: bool = False
    without: tuple[str, ...] = ()
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the stage's end."""
        return self.deadline - time.monotonic()

    def row(self, name: str, **figures: Any) -> None:
        """Write a row of figures, at once, and show it."""
        row = dict(stage=self.stage, name=name, **figures, at=round(time.monotonic() - self.started, 1))
        with open(self.output / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.say(describe(row))

    def say(self, text: str) -> None:
        """Show text on the terminal; what is printed goes into the stage's log."""
        os.write(_console, (text + "\n").encode())

    def attempt(self, name: str, work: Callable[[], dict[str, Any]], needs: float = 0.0, **about: Any) -> None:
        """A row of what `work` gives, or of why it gave nothing: the next one is not to suffer from it.

        needs: seconds that have to be left for it.
        """
        if self.left() < needs:
            self.row(name, **about, skipped=f"{self.left():.0f} s were left")
            return
        try:
            figures = work()
        except Exception as error:  # whatever it is belongs into the row
            traceback.print_exc()
            figures = dict(error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])
        self.row(name, **about, **figures)


_console = 1  # the terminal's file descriptor, also where a stage's own output goes to its log


def rows_of(output: Path) -> list[dict[str, Any]]:
    """What has been measured so far."""
    path = output / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def describe(row: dict[str, Any]) -> str:
    """A row as one line of text."""
    figures = [f"{key} {_short(value)}" for key, value in row.items() if key not in ("stage", "name", "at")]
    return f"{row['stage']}  {row['name']}: {', '.join(figures)}"


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def missing_packages() -> list[str]:
    """The package's dependencies that this Python lacks, with what is there instead."""
    import tomllib

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    missing = []
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                missing.append(f"{line} ({version} is here)")
    return missing


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    about: dict[str, Any] = dict(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(["python", *sys.argv]),
        python=platform.python_version(),
        processor=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
    )
    about |= {name: metadata.version(name) for name in ("torch", "timm", "accelerate", "numpy")}
    if device == "cuda":
        about["card"] = _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
        about["cuda"] = torch.version.cuda
    about["commit"] = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return about


def _said(*command: str) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def run_stage(lab: Lab, log: Path) -> None:
    """The stage, to its end or its deadline; a row says how it ended."""
    stage = STAGES[lab.stage]
    os.write(_console, f"\n{lab.stage}  {stage.title}, {lab.left():.0f} s at most\n".encode())
    begun = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(lab, stage, log))
    process.start()
    process.join(max(1.0, lab.left()))
    ended = "finished" if process.exitcode == 0 else f"ended with exit code {process.exitcode}"
    if process.is_alive():
        ended = "cut off"
        _signal_group(process, signal.SIGTERM)
        process.join(PATIENCE)
    _signal_group(process, signal.SIGKILL)  # what it may have left running
    process.join()
    lab.row("the stage", ended=ended, seconds=round(time.monotonic() - begun, 1))


def _work(lab: Lab, stage: Stage, log: Path) -> None:
    global _console
    os.setpgrp()  # so that all of its processes can be ended together
    _console = os.dup(1)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        getattr(importlib.import_module(stage.module), stage.function)(lab)
    except Exception as error:
        traceback.print_exc()
        lab.row("a fault", error=f"{type(error).__name__}: {error}"[:300])
        sys.exit(1)


def _signal_group(process: Any, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one stage as text; a column for each figure that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("stage", "at")))
    cells = [columns, *([_short(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def write_report(output: Path, about: dict[str, Any], logs: Path) -> str:
    """gpu.json, tables.txt and logs.tar.gz of what is there so far; returns the tables."""
    rows = rows_of(output)
    (output / "gpu.json").write_text(json.dumps(dict(about=about, rows=rows), indent=1) + "\n", encoding="utf-8")
    parts = [
        f"{key}  {stage.title}\n{table(of)}"
        for key, stage in STAGES.items()
        if (of := [row for row in rows if row["stage"] == key])
    ]
    text = "\n\n".join([", ".join(f"{key}: {value}" for key, value in about.items()), *parts]) + "\n"
    (output / "tables.txt").write_text(text, encoding="utf-8")
    with tarfile.open(output / "logs.tar.gz", "w:gz") as archive:
        for path in sorted(logs.rglob("*")):
            if path.is_file() and path.stat().st_size < 2**22:
                archive.add(path, path.relative_to(logs))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="which to run")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them together")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--without", nargs="+", default=[], metavar="JOB", help="trainings or evaluations to leave out")
    parser.add_argument("--compile", action="store_true", help="let trainings compile their blocks")
    parser.add_argument("--output", type=Path, help="folder for what is measured; default: $OUT")
    parser.add_argument("--scratch", type=Path, help="folder for runs and logs; default: a new one for temporary files")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes

    if missing := missing_packages():
        parser.error(f"this Python ({sys.executable}) lacks {', '.join(missing)}; install or bring them")
    if args.output is None and "OUT" not in os.environ:
        parser.error("say with --output, or in OUT, where the results are to go")
    output = args.output or Path(os.environ["OUT"])
    output.mkdir(parents=True, exist_ok=True)
    scratch = (args.scratch or Path(tempfile.mkdtemp(prefix="zoo-gpu-"))).resolve()
    logs = scratch / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # whoever asks for a GPU here shall not start to use it: forks
    chosen = [key for key in STAGES if key in args.stages]  # couldn't then
    for key in chosen:  # before the stages are forked: they then needn't import torch and timm
        with contextlib.suppress(Exception):  # it comes again in the stage that it is of
            importlib.import_module(STAGES[key].module)
    if args.tiny:
        end = time.monotonic() + 60 * args.minutes  # a busy machine imports for a minute

    device = "cpu" if args.tiny else "cuda"
    about = machine(device)
    if device == "cuda" and not about["card"]:  # asking torch would keep the forked stages from using it
        parser.error("there is no GPU here; --tiny runs the same program on a CPU")
    print(json.dumps(about, indent=1), flush=True)
    for place, key in enumerate(chosen):
        limits = [STAGES[later].seconds or 0 for later in chosen[place:]]
        share = limits[0] and limits[0] * min(1.0, (end - time.monotonic()) / sum(limits))
        deadline = time.monotonic() + share if share else end
        if deadline - time.monotonic() > 2:
            options = args.compile, tuple(args.without)
            run_stage(Lab(key, device, args.tiny, output, scratch, deadline, *options), logs / f"stage_{key}.log")
        text = write_report(output, about, logs)
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
