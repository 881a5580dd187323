"""Stage f of tools/gpu.py: small models trained on one card, several processes at a time, and what they are worth.

The order: the small CroCo and, beside it, three seeds of what it is compared with (`zoo eval ordering`: CroCo and a
masked autoencoder, shorter and as long as each other); from the one pointmaps, from the others what pretraining is
worth for stereo; flow from the package's small stereo model, as its recipe has it; beside and after these the
evaluations. Each job has its share of the stage's time. Trainings measure their own speed, among the others, and take
as many steps as fit (`zoo train --minutes`); one that doesn't finish in time is told to stop, and the weights of its
checkpoint are taken. Whatever is finished is packed at once.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tools.gpu import Lab
from zoo import cli
from zoo.train.preview import fit_to_time
from zoo.train.recipe import load_recipe
from zoo.train.run import read_log
from zoo.weights import save_safetensors
from zoo.weights.disk.files import write_json

START = 5.0  # seconds that a process needs on a GPU before it computes
GRACE = 10.0  # seconds that a training has for stopping
ARCHIVES, ARCHIVE_BYTES = 3, 16_000_000  # of weights
KEPT = ("recipe.yaml", "log.jsonl", "loss.png", "results.json")  # of a run, besides its weights


@dataclass
class Job:
    """A process. work: what it does in so many seconds: arguments of `zoo`, made when it starts, or a function's call.

    after: jobs that have to be finished. ready: what has to be true besides. begin, end: shares of the stage's time,
    from when it may run and until when; late: by how much it may take longer, if it can't finish otherwise. run: the
    folder of a training. shown: last lines of its output that the terminal gets.
    """

    name: str
    work: Callable[[float], list[str] | None]
    end: float
    after: tuple[str, ...] = ()
    ready: Callable[[], bool] = lambda: True
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
        elif self.now() >= job.begin and all(other.state == "done" for other in before) and job.ready():
            job.started, job.state = time.monotonic(), "running"
            job.process = multiprocessing.get_context("fork").Process(target=self._work, args=(job, left))
            job.process.start()

    def _work(self, job: Job, seconds: float) -> None:
        with open(self.logs / f"{job.name}.log", "a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(job.threads)
        os.environ["OMP_NUM_THREADS"] = str(job.threads)  # of processes that it starts
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


WHOLE = ("croco_nano_rich", "croco_nano")  # whose weights come back in float32
_ORDER = ("croco_nano_rich", "dust3r_nano", "croco_nano_flow", "stereo_croco_0", "croco_0", "mae_0", "mae_nano")


def _worth(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def in_half(weights: Path) -> bytes:
    """A weights file with its numbers in half precision."""
    with safe_open(weights, "pt") as file:
        about = file.metadata() or {}
    state = {key: value.half() if value.is_floating_point() else value for key, value in load_file(weights).items()}
    return save(state, about)


# --- The plan -----------------------------------------------------------------------------------------------

ON_DEVICE = {"data.draw": "device", "data.render": "device", "validation": {}}
FEW_CHECKPOINTS = {"checkpoint_steps": 100_000, "log_steps": 20}  # a run that is told to stop writes one, too
TINY = {"batch_size": 4, "log_steps": 1, "checkpoint_steps": 10}
CROCO = "croco_nano_rich"
SEEDS = range(3)
LATE = 0.05  # of the stage's time
PRETRAINED, TUNED = 0.56, 0.86  # shares of the time, when each kind of training is to end
MEASURING = 45.0  # seconds of an ordering's evaluations, behind its trainings
BESIDE = 1 / 3  # of the speed among the pretrainings is left to each of stereo's trainings
UNMEASURED = 20.0  # steps a second, where a trial failed


def training(lab: Lab) -> None:
    """Everything, see the top of this file."""
    runs, results = lab.scratch / "runs", lab.scratch / "results"
    for folder in (runs / "3d", results, lab.scratch / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = tiny_plan(lab, runs, results) if lab.tiny else plan(lab, runs, results)
    Jobs(lab, [job for job in jobs if job.name not in lab.without]).run()
    pack(lab)


def plan(lab: Lab, runs: Path, results: Path) -> list[Job]:
    """The jobs in the order of their worth."""
    changes = ON_DEVICE | FEW_CHECKPOINTS
    croco, dust3r = runs / CROCO, runs / "dust3r_nano"
    return [
        trained(lab, CROCO, croco, changes, PRETRAINED),
        *ordering(lab, runs / "3d", results),
        evaluated("pairs", croco, results, "--pairs", "500"),
        trained(lab, "dust3r_nano", dust3r, changes, TUNED, (CROCO,), init=croco),
        trained(lab, "croco_nano_flow", runs / "croco_nano_flow", changes, TUNED, (CROCO,)),
        evaluated("points", dust3r, results),
        *stereo(lab, runs / "3d", results),
    ]


def tiny_plan(lab: Lab, runs: Path, results: Path) -> list[Job]:
    """The same program where there is no GPU."""
    croco, mae = runs / "croco_nano", runs / "mae_nano"
    return [
        trained(lab, "croco_nano", croco, TINY, PRETRAINED),
        trained(lab, "mae_nano", mae, TINY, PRETRAINED),
        evaluated("pairs", croco, results, "--pairs", "8"),
    ]


def trained(
    lab: Lab,
    recipe: str,
    run: Path,
    changes: dict[str, Any],
    end: float,
    after: tuple[str, ...] = (),
    init: Path | None = None,
) -> Job:
    """A training that measures itself how many steps there is time for. init: the run that it starts from, if not from
    what its recipe says."""

    def work(seconds: float) -> list[str]:
        minutes = max(0.05, (seconds - (0 if lab.tiny else START)) / 60)
        options = ["--minutes", f"{minutes:.3f}", "--output", str(run), "--workers", "0" if lab.tiny else "2"]
        options += ["--init", str(init)] if init is not None else []
        options += ["--compile"] if lab.compiled else []
        return ["train", recipe, *options, *(f"--set={key}={value}" for key, value in changes.items())]

    return Job(run.name, work, end, after, late=LATE, run=run)


def evaluated(kind: str, run: Path, results: Path, *options: str) -> Job:
    """`zoo eval pairs` or points of a run."""
    arguments = ["eval", kind, str(run), "--output", str(results / f"{kind}.json")]
    arguments += ["--picture", str(results / f"{kind}.png"), *options]
    return Job(kind, lambda seconds: arguments, 0.99, (run.name,), threads=4, shown=40)


def ordering(lab: Lab, runs: Path, results: Path) -> list[Job]:
    """CroCo, a masked autoencoder and no pretraining, a process for each seed, of as many steps as the first seed's
    trial finds time for; then the page."""
    plan = results / "ordering_steps.json"
    page = ["eval", "ordering", "--kind", "nano_rich", "--runs", str(runs), "--output", str(results / "ordering.md")]

    def seed_of(seed: int) -> Callable[[float], list[str]]:
        def work(seconds: float) -> list[str]:
            begun = time.monotonic()
            rate = steps_per_second(CROCO, ON_DEVICE)  # also of the other seeds: all measure among all
            if seed == 0:
                left = PRETRAINED / TUNED * seconds - START - (time.monotonic() - begun)
                write_json(plan, dict(steps=max(50, int(0.45 * left * rate)), rate=rate))  # of two trainings
            while not plan.exists() and time.monotonic() < begun + 60:
                time.sleep(0.1)
            steps = json.loads(plan.read_text("utf-8"))["steps"]
            return [*page, "--steps", str(steps), "--only", str(seed)]

        return work

    def whole(seconds: float) -> list[str]:
        steps = json.loads(plan.read_text("utf-8"))["steps"]
        return [*page, "--steps", str(steps), "--seeds", str(len(SEEDS))]

    names = tuple(f"ordering_{seed}" for seed in SEEDS)
    seeds = [Job(name, seed_of(seed), TUNED) for seed, name in zip(SEEDS, names)]
    return [*seeds, Job("ordering", whole, 1.0, names, shown=20)]


def stereo(lab: Lab, runs: Path, results: Path) -> list[Job]:
    """What pretraining is worth for stereo: three seeds of fine-tuning from the ordering's runs and from scratch."""
    starts = dict(croco="croco_nano", mae="mae_nano")  # as the ordering's folders and stereo's are called

    def pretrained() -> bool:
        return all((runs / f"{name}_{seed}" / "model.safetensors").exists() for name in starts for seed in SEEDS)

    def work(seconds: float) -> list[str]:
        for name, as_stereo in starts.items():
            for seed in SEEDS:
                (runs / f"{as_stereo}_{seed}").symlink_to(runs / f"{name}_{seed}")
        trial = results / "ordering_steps.json"
        rate = json.loads(trial.read_text("utf-8"))["rate"] if trial.exists() else UNMEASURED
        steps = max(50, int(BESIDE * rate * (seconds - START - MEASURING)))
        where = ["--output", str(results / "stereo.md"), "--runs", str(runs), "--render", "device"]
        sizes = ["--steps", str(steps), "--seeds", str(len(SEEDS)), "--jobs", str(3 * len(SEEDS))]
        return ["eval", "stereo-ordering", *where, *sizes]

    return [Job("stereo", work, 0.97, ready=pretrained, shown=20)]


def steps_per_second(recipe: str, changes: dict[str, Any]) -> float:
    """Of a recipe, among what else runs now."""
    fitted = fit_to_time(load_recipe(recipe, changes), 120.0, workers=1)
    return fitted.schedule.length / 120.0
