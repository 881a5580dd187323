"""What pretraining is worth for stereo matching: one small network from CroCo, from a masked autoencoder's encoder, and
from scratch, fine-tuned alike and measured on held-out scenes and on a real photo, over several seeds.

One command pretrains and fine-tunes what isn't done yet, several runs at a time, measures, and writes a table:

    zoo eval stereo-ordering --output docs/3d_ordering.md --jobs 9 --render device   # minutes of a GPU
    zoo eval stereo-ordering --steps 20 --pretraining-steps 20 --seeds 1 --output short.md
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.colors import disparity_colors, error_colors
from zoo.demo import stereo_pair
from zoo.evaluate.ordering_page import filled
from zoo.evaluate.pairs import HELD_OUT_SEED
from zoo.pictures import Panel, draw_panels
from zoo.sgbm import SETTINGS, semi_global_matching
from zoo.train.data.sources import make_source
from zoo.train.engine import train
from zoo.train.objectives.dense.metrics import SetMetrics
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import read_log
from zoo.weights import save_safetensors
from zoo.weights.disk.files import atomic_writer, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = "croco_nano_patch8_dec128d4_stereo"
RECIPE = "croco_nano_stereo"
STARTS = {"CroCo": "croco_nano", "MAE encoder": "mae_nano", "from scratch": ""}
"""What the network starts from, and the recipe that trains that."""

VIEWS = dict(displacement=[0.03, 0.25], texture_scale=[0.2, 1.5])
"""Of the scenes of both pretrainings: as far apart as those that croco_nano_far ends with."""

FITTED = 64, 5
"""Scenes that a fresh decoder's embedding is fitted to, and their seed."""

SCALES = (0.35, 0.5, 0.7, 1.0)
"""At which the photo is looked at; each start is judged at its best."""

FIGURES = ("L1err", "bad@1.0", "bad@2.0", "bad@3.0")
BATCH = 20
_BEGIN, _END = "<!-- stereo: begin -->", "<!-- stereo: end -->"


@dataclass(frozen=True)
class Plan:
    """pretraining_steps: of CroCo's 32 pairs and MAE's 80 images, which is as much arithmetic. steps: of fine-tuning.
    image_size: of the scenes that are fine-tuned on. pairs: held-out scenes to measure on. precision: of all training.
    render: who draws and renders its scenes, "workers" or "device"."""

    pretraining_steps: int
    steps: int
    image_size: tuple[int, int] = (96, 192)
    pairs: int = 200
    precision: str = "bf16"
    render: str = "workers"


# --- Runs ---------------------------------------------------------------------------------------------------


def compare(plan: Plan, seeds: list[int], runs: Path, jobs: int, workers: int, command: str) -> dict[str, Any]:
    """Train and measure what isn't yet, in `jobs` processes at a time; everything is kept in `runs`.

    command: what the page shall say that made it. Raises TrainingError (a RuntimeError), also when it was stopped: the
    next call goes on.
    """
    pretrainings = [(start, seed) for seed in seeds for start, recipe in STARTS.items() if recipe]
    tunings = [(start, seed) for seed in seeds for start in STARTS]
    context = multiprocessing.get_context("spawn")  # a process that has used a GPU can't be forked
    for job, work in ((_pretrain, pretrainings), (_tune, tunings)):
        if jobs == 1:
            for start, seed in work:
                job(plan, start, seed, runs, workers)
            continue
        with ProcessPoolExecutor(min(jobs, len(work)), mp_context=context) as pool:
            for future in [pool.submit(job, plan, start, seed, runs, workers) for start, seed in work]:
                future.result()
    folders = {start: [_tuned_folder(runs, start, seed) for seed in seeds] for start in STARTS}
    found = {
        start: [json.loads((folder / "stereo.json").read_text("utf-8")) for folder in of]
        for start, of in folders.items()
    }
    return dict(
        about=dict(
            command=command,
            plan=asdict(plan),
            seeds=seeds,
            pretraining={start: _pretraining(runs, start, seeds) for start, recipe in STARTS.items() if recipe},
            minutes=_minutes(runs, pretrainings) | {"fine-tuning": _mean_minutes([*chain(*folders.values())])},
            machine=machine(),
            torch=torch.__version__,
            date=datetime.now(timezone.utc).date().isoformat(),
        ),
        figures=found,
        others=others(plan),
    )


def machine() -> str:
    """What trained here, in words."""
    import platform

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} CPU"


def _pretrained_folder(runs: Path, start: str, seed: int) -> Path:
    return runs / f"{STARTS[start]}_{seed}"


def _tuned_folder(runs: Path, start: str, seed: int) -> Path:
    return runs / f"stereo_{start.lower().replace(' ', '_')}_{seed}"


def _pretrain(plan: Plan, start: str, seed: int, runs: Path, workers: int) -> None:
    """Train the recipe of a start, unless that is done."""
    folder = _pretrained_folder(runs, start, seed)
    if not (folder / "model.safetensors").exists():
        changes = _schedule(plan.pretraining_steps, seed, plan) | {f"data.{name}": of for name, of in VIEWS.items()}
        train(load_recipe(STARTS[start], changes), folder, workers=workers, progress=False)


def _schedule(steps: int, seed: int, plan: Plan) -> dict[str, Any]:
    # few checkpoints: short runs write one at the end, and Ctrl-C writes one too
    return {
        "seed": seed,
        "schedule.length": steps,
        "schedule.warmup": max(1, steps // 20),
        "precision": plan.precision,
        "checkpoint_steps": 1000,
        "data.render": plan.render,
        "data.draw": plan.render,
    }


def _tune(plan: Plan, start: str, seed: int, runs: Path, workers: int) -> None:
    """Fine-tune from a start and measure, unless that is done."""
    folder = _tuned_folder(runs, start, seed)
    if not (folder / "model.safetensors").exists():
        train(_tuning(plan, start, seed, runs), folder, workers=workers, progress=False)
    kept = folder / "stereo.json"
    done = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if done.get("plan") != json.loads(json.dumps(asdict(plan))):
        net: Any = timm.create_model(MODEL, img_size=plan.image_size)
        net.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        figures, photo_map = measure(net.eval().to(device), plan)
        np.savez_compressed(folder / "motorcycle.npz", disparity=photo_map.astype(np.float16))
        write_json(kept, dict(plan=asdict(plan), **figures))


def _tuning(plan: Plan, start: str, seed: int, runs: Path) -> Recipe:
    """The recipe of a fine-tuning, from a file of all weights that it starts with."""
    torch.manual_seed(seed)  # what no pretraining gives is drawn alike for all starts
    net: Any = timm.create_model(MODEL)
    state = net.state_dict()
    if STARTS[start]:
        trained = safetensors.torch.load_file(_pretrained_folder(runs, start, seed) / "model.safetensors")
        # of MAE only the encoder has a place here: its decoder knows one image
        parts = ("encoder.", "decoder.") if start == "CroCo" else ("encoder.",)
        taken = {key: value for key, value in trained.items() if key.startswith(parts) and key in state}
        if not taken or any(state[key].shape != value.shape for key, value in taken.items()):
            raise AssertionError(f"{STARTS[start]} no longer trains what {MODEL} is made of")
        state |= taken
    first = runs / f"{_tuned_folder(runs, start, seed).name}.start.safetensors"
    if not first.exists():
        if start != "CroCo":
            net.load_state_dict(state)
            state |= fitted_embedding(net, _scenes(plan, *FITTED))
        save_safetensors(state, first, {"architecture": MODEL})
    changes = _schedule(plan.steps, seed, plan) | {
        "init": str(first),
        "model_args": {"img_size": list(plan.image_size)},
        "data.image_size": list(plan.image_size),
        "validation": {},
    }
    return load_recipe(RECIPE, changes)


@torch.inference_mode()
def fitted_embedding(net: Any, scenes: Any) -> dict[str, Tensor]:
    """The embedding of a fresh decoder, so that the tokens of these scenes have mean 0 and deviation 1 in each channel
    behind it (data-dependent initialization, Krähenbühl et al., ICLR 2016, arXiv 1511.06856).

    A vector that all of an encoder's tokens share would else hide what tells them apart from the first attention.
    """
    embed, tokens = net.decoder.embed, []
    handle = embed.register_forward_hook(lambda module, given, out: tokens.append(out.flatten(0, 1).double()))
    for _, images in _batches(net.eval(), scenes):
        net(*images)
    handle.remove()
    mean, deviation = (fold(torch.cat(tokens), 0) for fold in (torch.mean, torch.std))
    return {
        "decoder.embed.weight": (embed.weight / deviation[:, None]).to(embed.weight.dtype),
        "decoder.embed.bias": ((embed.bias - mean) / deviation).to(embed.bias.dtype),
    }


def _pretraining(runs: Path, start: str, seeds: list[int]) -> dict[str, Any]:
    """How long a start was trained, as its first run says, which may have been there before; how many runs there are:
    the seeds' folders may be links to one."""
    folders = [_pretrained_folder(runs, start, seed) for seed in seeds]
    recipe = load_recipe(folders[0] / "recipe.yaml")
    different = len({folder.resolve() for folder in folders})
    return dict(recipe=recipe.name, steps=recipe.schedule.length, samples=recipe.batch_size, runs=different)


def _mean_minutes(folders: list[Path]) -> float:
    return statistics.fmean(read_log(folder)[-1]["seconds"] / 60 for folder in folders)


def _minutes(runs: Path, pretrainings: list[tuple[str, int]]) -> dict[str, float]:
    names = {start for start, _ in pretrainings}
    return {
        start: _mean_minutes([_pretrained_folder(runs, of, seed) for of, seed in pretrainings if of == start])
        for start in STARTS
        if start in names
    }


# --- Measures -----------------------------------------------------------------------------------------------


def held_out_scenes(plan: Plan) -> Any:
    """Rectified scenes of the fine-tuning's kind that no training saw."""
    return _scenes(plan, plan.pairs, HELD_OUT_SEED)


def _scenes(plan: Plan, count: int, seed: int) -> Any:
    data = load_recipe(RECIPE).data | dict(image_size=list(plan.image_size), samples=count)
    return make_source(data, seed, "stereo")


def _batches(net: Any, scenes: Any) -> Iterator[tuple[list[dict[str, Any]], list[Tensor]]]:
    """Scenes, and both images of them as the network takes them."""
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    device = next(net.parameters()).device
    for first in range(0, len(scenes), BATCH):
        samples = [scenes[i] for i in range(first, min(first + BATCH, len(scenes)))]
        both = (torch.from_numpy(np.stack([of[name] for of in samples])) for name in ("image1", "image2"))
        yield samples, [((image.movedim(-1, 1) / 255 - mean) / std).to(device) for image in both]


def _figures(metrics: SetMetrics) -> dict[str, float]:
    found = metrics.compute()
    return {name: found[name] for name in FIGURES}


def _maps(disparities: Any) -> Tensor:
    return torch.from_numpy(np.stack(disparities))[:, None]


def measure(net: Any, plan: Plan) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of the held-out scenes and, at each of `SCALES`, of the photo; and the photo's map at the best."""
    photo = stereo_pair()
    by_scale, maps = {}, {}
    for scale in SCALES:
        maps[scale] = net.predict(photo.left, photo.right, scale=scale, tile=plan.image_size, overlap=0.5).disparity
        by_scale[f"{scale:g}"] = photo_figures(maps[scale])
    best = min(SCALES, key=lambda scale: by_scale[f"{scale:g}"]["L1err"])
    return dict(scenes=scene_figures(net, plan), photo=by_scale), maps[best]


@torch.inference_mode()
def scene_figures(net: Any, plan: Plan) -> dict[str, float]:
    """Figures over all pixels of the held-out scenes."""
    metrics = SetMetrics(1)
    for samples, images in _batches(net, held_out_scenes(plan)):
        metrics.add(net(*images)[:, :1].float().cpu(), _maps([of["disparity"] for of in samples]))
    return _figures(metrics)


def photo_figures(disparity: np.ndarray) -> dict[str, float]:
    """Figures of a disparity (H, W) of the motorcycle."""
    metrics = SetMetrics(1)
    metrics.add(_maps([disparity]), _maps([stereo_pair().disparity]))
    return _figures(metrics)


def others(plan: Plan) -> dict[str, dict[str, Any]]:
    """What the networks are to be seen against: semi-global matching, and the best constant."""
    scenes = held_out_scenes(plan)
    samples = [scenes[i] for i in range(len(scenes))]
    truth = _maps([sample["disparity"] for sample in samples])
    photo = stereo_pair()
    found = {}
    for name, whole in (("SGBM", False), ("SGBM, left edge repeated", True)):
        metrics = SetMetrics(1)
        maps = [semi_global_matching(sample["image1"], sample["image2"], whole=whole) for sample in samples]
        metrics.add(_maps(maps), truth)
        on_photo = photo_figures(semi_global_matching(photo.left, photo.right, whole=whole))
        found[name] = dict(scenes=_figures(metrics), photo=on_photo)
    metrics = SetMetrics(1)
    metrics.add(torch.full_like(truth, truth.median().item()), truth)
    known = photo.disparity[np.isfinite(photo.disparity)]
    constant = photo_figures(np.full_like(photo.disparity, np.median(known)))
    return found | {"the best constant": dict(scenes=_figures(metrics), photo=constant)}


# --- The page -----------------------------------------------------------------------------------------------


def best_scale(figures: list[dict[str, Any]]) -> str:
    """The scale at which a start's seeds see the photo best, in the mean."""
    return min(figures[0]["photo"], key=lambda scale: statistics.fmean(of["photo"][scale]["L1err"] for of in figures))


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table: a row for each start and each comparison; average error, beyond 1, 2 and 3 pixels; twice."""
    table = []
    for start, figures in result["figures"].items():
        scale = best_scale(figures)
        scenes = [_cell([of["scenes"][name] for of in figures]) for name in FIGURES]
        photo = [_cell([of["photo"][scale][name] for of in figures]) for name in FIGURES]
        table.append([f"**{start}**", *scenes, *photo])
    for name, figures in result["others"].items():
        table.append([name, *(f"{figures[on][figure]:.2f}" for on in ("scenes", "photo") for figure in FIGURES)])
    return table


def section(result: dict[str, Any], picture: str) -> str:
    """The result as the first section of the page on the papers' ordering."""
    about, plan = result["about"], result["about"]["plan"]
    seeds, tuning = len(about["seeds"]), about["minutes"]["fine-tuning"]
    pretraining = "; ".join(
        f"{start} {of['steps']:,.0f} steps of {of['samples']:,} {'pairs' if start == 'CroCo' else 'single views'} by "
        f"`{of['recipe']}`, {about['minutes'][start]:.1f} minutes"
        for start, of in about["pretraining"].items()
    )
    one_run = seeds > 1 and all(of["runs"] == 1 for of in about["pretraining"].values())
    folders = " and ".join(f"`{STARTS[start]}_SEED`" for start in about["pretraining"])
    same = f"In `--runs` {folders} were links to one run each. " if one_run else ""
    scales = ", ".join(f"{start} {best_scale(figures)}" for start, figures in result["figures"].items())
    lines = ["| | " + " | ".join(("scenes: average error", "> 1 px (%)", "> 2 px", "> 3 px")) + " | "]
    lines[0] += " | ".join(("photo: average error", "> 1 px (%)", "> 2 px", "> 3 px")) + " |"
    lines.append("| --- |" + " ---: |" * (2 * len(FIGURES)))
    lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    height, width = plan["image_size"]
    means = {
        start: statistics.fmean(of["scenes"]["L1err"] for of in figures) for start, figures in result["figures"].items()
    }
    croco, scratch = means["CroCo"], means["from scratch"]
    by_seed = "; ".join(
        f"{start} " + ", ".join(f"{of['scenes']['L1err']:.2f}" for of in figures)
        for start, figures in result["figures"].items()
    )
    text = f"""## Stereo matching

One network (`{MODEL}`), fine-tuned for stereo matching by the recipe `{RECIPE}`: from CroCo's encoder and
decoder, from a masked autoencoder's encoder, and from scratch, {plan["steps"]:,} steps each. Errors of the disparity in
pixels, on {plan["pairs"]} held-out rectified scenes of {height}x{width} pixels and on a real photo, Middlebury's
motorcycle (741x500, the whole, unknown pixels left out); means and standard deviations over {seeds} seeds of
{"the fine-tuning" if one_run else "both trainings"}.

{chr(10).join(lines)}

On the scenes CroCo's average error is {100 * (1 - croco / scratch):.0f} % below that from scratch. By seed: {by_seed}.
Until a network begins to match it is no better than the best constant. On the photo each start is judged at the best of
the scales {", ".join(map(str, SCALES))}: {scales}. SGBM is OpenCV's semi-global matching: {SETTINGS}; its holes are
filled from the background. As it comes, it doesn't search the first 96 columns of the photo; with the left edge
repeated it does.

![the photo as each sees it]({picture})

A decoder that starts at random starts with its embedding fitted to the tokens that it will read: mean 0 and deviation 1
in each channel, on {FITTED[0]} scenes. Without that a vector that all tokens of the masked autoencoder share hides what
tells them apart, and its fine-tuning finds no matches for long ([the log](nano_log.md), 12).

```bash
{about["command"]}
```

Pretraining, as the runs' own logs say: {pretraining}. {same}Fine-tuning: {tuning:.0f} minutes a run on
{about["machine"]}, {about["date"]}.
"""
    return filled(text)


def read_section(path: Path) -> str:
    """The section on the page `path`; "" without one."""
    page = path.read_text("utf-8") if path.exists() else ""
    return page.partition(_BEGIN)[2].partition(_END)[0].strip("\n") + "\n" if _BEGIN in page else ""


def write_section(path: Path, text: str) -> None:
    """Put the section first on the page `path`, between its introduction and what `zoo eval ordering` writes, in place
    of an older one; a page that isn't there becomes one of it alone."""
    page = path.read_text("utf-8") if path.exists() else "# The papers' ordering, in small\n"
    start, end = page.find(_BEGIN), page.find(_END)
    if start < 0:
        first = page.find("\nThis page is written by its command")
        start = end = len(page) if first < 0 else first + 1
    else:
        end += len(_END)
    with atomic_writer(path) as file:
        file.write((page[:start] + f"{_BEGIN}\n\n{text}\n{_END}" + "\n\n" + page[end:].lstrip("\n")).encode())


def print_result(result: dict[str, Any]) -> None:
    """The table, in the terminal."""
    table = Table("", "scenes: error", "> 1", "> 2", "> 3", "photo: error", "> 1", "> 2", "> 3")
    for row in rows(result):
        table.add_row(*(cell.strip("*") for cell in row))
    Console().print(table)


def draw(result: dict[str, Any], runs: Path) -> Figure:
    """The photo, its truth, and each start's and SGBM's map and error."""
    photo = stereo_pair()
    limits = tuple(np.nanpercentile(np.where(np.isfinite(photo.disparity), photo.disparity, np.nan), (1, 99)))
    seed = result["about"]["seeds"][0]
    maps = {
        start: np.load(_tuned_folder(runs, start, seed) / "motorcycle.npz")["disparity"].astype(np.float32)
        for start in STARTS
    }
    maps["SGBM"] = semi_global_matching(photo.left, photo.right)
    top = [Panel(photo.left / 255, "left image")]
    bottom = [Panel(disparity_colors(photo.disparity, limits), "true disparity")]
    for name, disparity in maps.items():
        errors = np.where(np.isfinite(photo.disparity), np.abs(disparity - photo.disparity), np.nan)
        top.append(Panel(disparity_colors(disparity, limits), f"{name}: {np.nanmean(errors):.2f} px"))
        bottom.append(Panel(error_colors(errors, 10.0), "error"))
    caption = (
        f"Disparity from {limits[0]:.0f} (blue, far) to {limits[1]:.0f} pixels (red, near); black is unknown. Errors "
        f"from 0 (dark) to 10 pixels and more (bright); gray is unknown. Seed {seed}."
    )
    return draw_panels([top, bottom], "Stereo matching after three beginnings", caption, panel=3.4)
