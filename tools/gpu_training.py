"""Stage f of tools/gpu.py: small models trained on one card, several processes at a time, and what they are worth.

The order: the small CroCo and, beside it, the masked autoencoder that it is compared with; from them stereo, flow and
pointmaps; beside and after these the evaluations. Each job has its share of the stage's time. Trainings measure their
own speed, among the others, and take as many steps as fit (`zoo train --minutes`); one that doesn't finish in time is
told to stop, and the weights of its checkpoint are taken. Whatever is finished is packed at once.
"""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tools.gpu import Lab
from zoo import cli
from zoo.train.engine import train
from zoo.train.preview import fit_to_time
from zoo.train.recipe import load_recipe, recipe_names
from zoo.train.run import read_log
from zoo.weights import save_safetensors
from zoo.weights.files import write_json

START = 5.0  # seconds that a process needs on a GPU before it computes
GRACE = 10.0  # seconds that a training has for stopping
ARCHIVES, ARCHIVE_BYTES = 3, 16_000_000  # of weights
KEPT = ("recipe.yaml", "log.jsonl", "loss.png", "results.json")  # of a run, besides its weights


@dataclass
class Job:
    """A process. work: what it does in so many seconds: arguments of `zoo`, made when it starts, or a function's call.

    after: jobs that have to be finished. begin, end: shares of the stage's time, from when it may run and until when;
    late: by how much it may take longer, if it can't finish otherwise. run: the folder of a training. shown: last lines
    of its output that the terminal gets.
    """

    name: str
    work: Callable[[float], list[str] | None]
    end: float
    after: tuple[str, ...] = ()
    begin: float = 0.0
    late: float = 0.0
    run: Path | None = None
    threads: int = 1
    shown: int = 0
    process: Any = None
    started: float = 0.0
    state: str = "waiting"
    told: float | None = field(default=None, repr=False)


class Jobs:
    """Runs jobs as they become possible, within the stage's time, as forks of this process: they needn't import much.
    So this process itself must leave the GPU alone.
    """

    def __init__(self, lab: Lab, jobs: list[Job]) -> None:
        self.lab, self.jobs = lab, jobs
        self.begun, self.seconds = time.monotonic(), lab.left() - 5
        self.logs = lab.scratch / "logs"

    def now(self) -> float:
        """The share of the time that has passed."""
        return (time.monotonic() - self.begun) / self.seconds

    def run(self) -> None:
        while any(job.state in ("waiting", "running") for job in self.jobs):
            for job in self.jobs:
                if job.state == "waiting":
                    self._try_to_start(job)
                elif job.state == "running":
                    self._look_after(job)
            time.sleep(0.1)

    def _try_to_start(self, job: Job) -> None:
        before = [other for other in self.jobs if other.name in job.after]
        left = (job.end - self.now()) * self.seconds
        if lost := [other.name for other in before if other.state in ("failed", "skipped")]:
            self._skip(job, f"without {', '.join(lost)}")
        elif left < (2 if self.lab.tiny else START):
            self._skip(job, f"{left:.0f} s were left")
        elif self.now() >= job.begin and all(other.state == "done" for other in before):
            job.started, job.state = time.monotonic(), "running"
            job.process = multiprocessing.get_context("fork").Process(target=self._work, args=(job, left))
            job.process.start()

    def _work(self, job: Job, seconds: float) -> None:
        with open(self.logs / f"{job.name}.log", "a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(job.threads)
        arguments = job.work(seconds)
        if arguments is not None:
            sys.argv = ["zoo", *arguments]
            print(" ".join(sys.argv), flush=True)
            cli.main()

    def _skip(self, job: Job, why: str) -> None:
        job.state = "skipped"
        self.lab.row(job.name, skipped=why)

    def _look_after(self, job: Job) -> None:
        code = job.process.exitcode
        if code is None:
            if self.now() > job.end + job.late and job.told is None:
                job.told = time.monotonic()
                job.process.terminate()  # a training saves where it is
            elif job.told is not None and time.monotonic() > job.told + GRACE:
                job.process.kill()
            return
        ended = "finished" if code == 0 else "stopped at its time" if job.told is not None else f"exit code {code}"
        if job.run is not None and code != 0 and job.told is not None:
            take_checkpoint(job.run)
        usable = (job.run / "model.safetensors").exists() if job.run is not None else code == 0
        job.state = "done" if usable else "failed"
        figures = summary(job.run) if job.run is not None else {}
        self.lab.row(job.name, ended=ended, seconds=round(time.monotonic() - job.started, 1), **figures)
        if job.shown or (code != 0 and job.told is None):
            text = (self.logs / f"{job.name}.log").read_text("utf-8", "replace").splitlines()
            self.lab.say("\n".join(text[-(job.shown or 15) :]))
        pack(self.lab)


def summary(run: Path) -> dict[str, Any]:
    """What a training came to."""
    if not (run / "log.jsonl").exists():
        return {}
    rows = read_log(run)
    recipe = load_recipe(run / "recipe.yaml")
    half = rows[len(rows) // 2 :]
    speed = sum(row["images_per_second"] for row in half) / max(1, len(half))
    return dict(
        steps=rows[-1]["step"] if rows else 0,
        of=recipe.schedule.length,
        samples=rows[-1]["step"] * recipe.batch_size if rows else 0,
        per_second=speed,
        loss=sum(row["loss"] for row in rows[-10:]) / max(1, len(rows[-10:])),
    )


def take_checkpoint(run: Path) -> None:
    """Make model.safetensors of the checkpoint of a run that was stopped, if there is one."""
    checkpoint = run / "checkpoint.safetensors"
    if not checkpoint.exists() or (run / "model.safetensors").exists():
        return
    with safe_open(checkpoint, "pt") as file:
        state = json.loads(file.metadata()["run"])
        prefix = "objective.model."
        tensors = {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    recipe = state["recipe"]
    about = dict(
        architecture=recipe["model"],
        recipe=recipe["name"],
        steps=str(state["step"]),
        model_args=json.dumps(recipe["model_args"]),
    )
    save_safetensors(tensors, run / "model.safetensors", about)


# --- What comes back ----------------------------------------------------------------------------------------


def pack(lab: Lab) -> None:
    """training.tar.gz: logs, recipes, pictures and evaluations; weights-N.tar: the weights, those worth most first,
    of which the first are in float32 and the others in half precision."""
    runs = sorted({path.parent for path in lab.scratch.glob("runs/**/recipe.yaml")}, key=lambda run: _worth(run.name))
    with tarfile.open(lab.output / "training.tar.gz", "w:gz") as archive:
        for run in runs:
            for name in KEPT:
                if (run / name).exists():
                    archive.add(run / name, f"{run.name}/{name}")
        for path in sorted((lab.scratch / "results").glob("*")):
            if path.is_file() and path.stat().st_size < 4_000_000:
                archive.add(path, f"results/{path.name}")
    archives: list[list[tuple[str, bytes]]] = [[] for _ in range(ARCHIVES)]
    for run in runs:
        weights = run / "model.safetensors"
        if not weights.exists() or run.is_symlink():
            continue
        data = weights.read_bytes() if run.name in WHOLE else in_half(weights)
        for archive_files in archives:
            if sum(len(of) for _, of in archive_files) + len(data) <= ARCHIVE_BYTES:
                archive_files.append((f"{run.name}.safetensors", data))
                break
    for number, files in enumerate(archives, 1):
        if files:
            with tarfile.open(lab.output / f"weights-{number}.tar", "w") as archive:
                for name, data in files:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))


CROCO, MAE = "croco_nano_rich", "mae_nano_rich"
WHOLE = (CROCO, "croco_nano")  # whose weights come back in float32
_ORDER = (CROCO, "dust3r_nano", "croco_nano_flow", "stereo_croco_0", MAE)


def _worth(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def in_half(weights: Path) -> bytes:
    """A weights file with its numbers in half precision."""
    with safe_open(weights, "pt") as file:
        about = file.metadata() or {}
    state = {key: value.half() if value.is_floating_point() else value for key, value in load_file(weights).items()}
    return save(state, about)


# --- The plan -----------------------------------------------------------------------------------------------

ON_DEVICE = {"data.draw": "device", "data.render": "device"}
TINY = {"batch_size": 4, "log_steps": 1, "checkpoint_steps": 10}
WITHOUT_CHECKPOINTS = {"checkpoint_steps": 100_000, "log_steps": 20}  # a run that is told to stop writes one, too


def training(lab: Lab) -> None:
    """Everything, see the top of this file."""
    runs, results = lab.scratch / "runs", lab.scratch / "results"
    for folder in (runs, results, lab.scratch / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    changes = TINY if lab.tiny else ON_DEVICE | WITHOUT_CHECKPOINTS | {"validation": {}}
    Jobs(lab, plan(lab, runs, results, changes)).run()
    pack(lab)


def plan(lab: Lab, runs: Path, results: Path, changes: dict[str, Any]) -> list[Job]:
    """The jobs that this version of the zoo has recipes and evaluations for, in the order of their worth."""
    workers = 0 if lab.tiny else 2
    start_up = 0.0 if lab.tiny else START
    options = ["--workers", str(workers), *(["--compile"] if lab.compiled else [])]
    croco, mae = (runs / name for name in (("croco_nano", "mae_nano") if lab.tiny else (CROCO, MAE)))

    def trained(recipe: str, run: Path, end: float, after: tuple[str, ...] = (), init: Path | None = None) -> Job:
        """A training that measures itself how many steps there is time for."""

        def work(seconds: float) -> list[str]:
            minutes = max(0.05, (seconds - start_up) / 60)
            first = ["--init", str(init)] if init is not None else []
            sets = [f"--set={key}={value}" for key, value in changes.items()]
            return ["train", recipe, "--minutes", f"{minutes:.3f}", "--output", str(run), *first, *options, *sets]

        return Job(run.name, work, end, after, late=LATE, run=run)

    def follow(seconds: float) -> None:
        train_alike(mae.name, changes, mae, croco, seconds - start_up, workers, lab.compiled)

    first = 0.6
    jobs = [trained(croco.name, croco, first), Job(mae.name, follow, first, late=LATE, run=mae)]
    pairs = ["eval", "pairs", str(croco), "--output", str(results / "pairs.json")]
    pairs += ["--picture", str(results / "pairs.png"), "--pairs", "8" if lab.tiny else "500"]
    jobs.append(Job("pairs", lambda seconds: pairs, 1.0, (croco.name,), threads=4, shown=40))
    if "dust3r_nano" in recipe_names() and not lab.tiny:
        dust3r = runs / "dust3r_nano"
        jobs.append(trained("dust3r_nano", dust3r, 0.86, (croco.name,), init=croco))
        points = ["eval", "points", str(dust3r), "--output", str(results / "points.json")]
        points += ["--picture", str(results / "points.png")]
        jobs.append(Job("points", lambda seconds: points, 1.0, ("dust3r_nano",), threads=4, shown=30))
    if "croco_nano_flow" in recipe_names() and not lab.tiny:
        jobs.append(trained("croco_nano_flow", runs / "croco_nano_flow", 0.86, (croco.name,), init=croco))
    if importlib.util.find_spec("zoo.evaluate.stereo_ordering") and not lab.tiny:
        jobs += stereo(lab, runs, results, first)
    return jobs


LATE = 0.05  # of the stage's time
STEREO = "croco_nano_stereo"
BESIDE = 3 / 12  # of the speed among three processes is left among all of stereo's, and two others
UNMEASURED = 20.0  # steps a second, if the trial fails
MEASURING = 45.0  # seconds behind the trainings


def stereo(lab: Lab, runs: Path, results: Path, first: float) -> list[Job]:
    """What pretraining is worth for stereo, three seeds of fine-tuning from one pretraining each; a trial at the end of
    the pretrainings says how many steps there is time for."""
    speed = results / "stereo_speed.json"

    def trial(seconds: float) -> None:
        write_json(speed, steps_per_second(STEREO, ON_DEVICE | {"validation": {}}))

    def compare(seconds: float) -> list[str]:
        for recipe in ("croco_nano", "mae_nano"):
            for seed in range(3):
                (runs / "3d").mkdir(exist_ok=True)
                (runs / "3d" / f"{recipe}_{seed}").symlink_to(runs / f"{recipe}_rich")
        rate = BESIDE * (json.loads(speed.read_text("utf-8")) if speed.exists() else UNMEASURED)
        steps = max(50, int(rate * (seconds - START - MEASURING)))
        pretraining = read_log(runs / CROCO)[-1]["step"]
        where = ["--output", str(results / "ordering.md"), "--runs", str(runs / "3d")]
        sizes = ["--pretraining-steps", str(pretraining), "--steps", str(steps), "--seeds", "3", "--jobs", "9"]
        return ["eval", "stereo-ordering", *where, *sizes, "--render", "device"]

    return [
        Job("stereo_trial", trial, first + 0.02, begin=first - 0.1),
        Job("stereo", compare, 0.98, (CROCO, MAE), shown=20),
    ]


def steps_per_second(recipe: str, changes: dict[str, Any]) -> float:
    """Of a recipe, among what else runs now."""
    fitted = fit_to_time(load_recipe(recipe, changes), 120.0, workers=1)
    return fitted.schedule.length / 120.0


def train_alike(
    name: str, changes: dict[str, Any], run: Path, leader: Path, seconds: float, workers: int, compiled: bool
) -> None:
    """Train a recipe for as many steps as another run that is under way, once both have measured their speed."""
    recipe = fit_to_time(load_recipe(name, changes), seconds, workers=workers, compiled=compiled)
    waited = time.monotonic()
    while not (leader / "recipe.yaml").exists() and time.monotonic() < waited + 60:
        time.sleep(0.1)
    theirs = load_recipe(leader / "recipe.yaml").schedule
    schedule = replace(recipe.schedule, length=theirs.length, warmup=theirs.warmup)
    train(replace(recipe, schedule=schedule), run, workers=workers, compiled=compiled, progress=False)
