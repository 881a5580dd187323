"""How good a stereo or flow model is on data sets with a truth: whole images by tiles, metrics over all known pixels.

What each pair gives is written as soon as it is known, so that an evaluation that was stopped goes on; several
processes (accelerate) share the pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from zoo.catalog import VARIANTS
from zoo.errors import DataError
from zoo.matching import draw_flow, draw_stereo
from zoo.pictures import save_figure
from zoo.train.data.matching.augment import TRUTHS
from zoo.train.data.matching.pairs import MatchingPairs
from zoo.train.objectives.dense.metrics import SetMetrics, batch_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 3
"""So many pairs of each set are drawn: those with the largest mean error."""


class Wish(NamedTuple):
    """A set to be judged on: its name in the zoo, or "list", its split, and where it lies."""

    name: str
    split: str
    path: Path

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name}:{self.split}" if self.split else self.path.name


def parse_wish(text: str) -> Wish:
    """ "sintel:subval_clean=PATH", or a list's "list=PATH" or PATH. Raises DataError (a ValueError)."""
    name, equals, path = text.partition("=")
    if not equals:
        name, path = "list", text
    name, _, split = name.partition(":")
    if not path or not name:
        raise DataError(
            f"'{text}' names no data; write it as middlebury_eval3:subval_full=PATH, or the path of a list."
        )
    return Wish(name, split, Path(path))


def evaluate(
    model: Any,
    name: str,
    task: str,
    wishes: list[Wish],
    output: Path,
    overlap: float | None = None,
    scale: float | None = None,
    limit: int | None = None,
    tile_batch: int = 4,
) -> dict[str, Any]:
    """Judge a dense two-image model on all sets; returns the result, which is also written into the folder `output`, as
    result.json, with pictures of each set's worst pairs.

    name: of the model, for the result. limit: the first so many pairs of each set only. For overlap, scale and
    tile_batch see `DensePairModel.predict`. Raises DataError, ImageError (ValueErrors).
    """
    state = PartialState()
    model = model.to(state.device)
    settings = dict(model=name, weights=_digest(model), overlap=overlap, scale=scale)
    sets = {}
    for wish in wishes:
        pairs = MatchingPairs(task, wish.path, f"{wish.name}:{wish.split}" if wish.split else wish.name, None, True)
        count = len(pairs) if limit is None else min(limit, len(pairs))
        options = dict(overlap=overlap, scale=scale, tile_batch=tile_batch)
        rows = _judge_set(model, task, pairs, count, output / _folder_name(wish), settings, options, wish.title)
        if state.is_main_process:
            sets[wish.title] = _summary(task, rows, count, wish)
            _draw_worst(model, task, pairs, rows, output / _folder_name(wish), options)
    result = dict(task=task, **settings, sets=sets)
    if state.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


def _folder_name(wish: Wish) -> str:
    return wish.title.replace(":", "_")


def _digest(model: Any) -> str:
    """Of the weights: rows that other weights gave are not taken over."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _judge_set(
    model: Any,
    task: str,
    pairs: MatchingPairs,
    count: int,
    folder: Path,
    settings: dict[str, Any],
    options: dict[str, Any],
    title: str,
) -> dict[int, dict[str, Any]]:
    """What each of the first `count` pairs gives, by its number; what is already in `folder` is kept."""
    state = PartialState()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "settings.json"
        if not about.exists() or json.loads(about.read_text("utf-8")) != json.loads(json.dumps(settings)):
            for old in folder.glob("pairs*.jsonl"):
                old.unlink()
            about.write_text(json.dumps(settings) + "\n", "utf-8")
    state.wait_for_everyone()
    done = _read_rows(folder)
    state.wait_for_everyone()  # before anybody writes more
    mine = [number for number in range(count) if number not in done][state.process_index :: state.num_processes]
    metrics = SetMetrics(1 if task == "stereo" else 2)
    with open(folder / f"pairs{state.process_index}.jsonl", "a", encoding="utf-8") as file:
        for number in tqdm(mine, desc=title, unit="pair", disable=None if state.is_main_process else True):
            sample = pairs[number]
            found = _predict(model, task, sample, options)
            truth, step = _truth(task, sample), pairs.steps[sample["set"]]
            sums = metrics.sums_of(found, truth, step)
            row = dict(number=number, image=str(pairs.entry(number)[1].image1), sums=sums.tolist())
            if step == 1:
                row["pair"] = {key: value.item() for key, value in batch_metrics(found, truth).items()}
            file.write(json.dumps(row) + "\n")
            file.flush()
    state.wait_for_everyone()
    rows = _read_rows(folder)
    return {number: rows[number] for number in range(count) if number in rows}


def _read_rows(folder: Path) -> dict[int, dict[str, Any]]:
    rows = {}
    for path in sorted(folder.glob("pairs*.jsonl")):
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a kill may have cut the last one short
                row = json.loads(line)
                rows[row["number"]] = row
    return rows


def _predict(model: Any, task: str, sample: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """(1, 1 or 2, H, W)."""
    found = model.predict(sample["image1"], sample["image2"], **options)[0]
    values = torch.from_numpy(found)
    return values[None, None] if task == "stereo" else values.movedim(-1, 0)[None]


def _truth(task: str, sample: dict[str, Any]) -> Tensor:
    truth = torch.from_numpy(sample[TRUTHS[task]])
    return truth[None, None] if task == "stereo" else truth.movedim(-1, 0)[None]


def _summary(task: str, rows: dict[int, dict[str, Any]], count: int, wish: Wish) -> dict[str, Any]:
    metrics = SetMetrics(1 if task == "stereo" else 2)
    for row in rows.values():
        metrics.add_sums(torch.tensor(row["sums"], dtype=torch.float64))
    known = [row["pair"] for row in rows.values() if "pair" in row and row["sums"][1][0]]
    pair_means = {name: float(np.mean([pair[name] for pair in known])) for name in (known[0] if known else {})}
    pixels = {name: None if math.isnan(value) else value for name, value in metrics.compute().items()}
    return dict(pairs=count, path=str(wish.path), pixels=pixels, pair_means=pair_means)


def _error(row: dict[str, Any]) -> float:
    """The mean error of a pair's known pixels; -1 without any."""
    total, known = row["sums"][0][0], row["sums"][1][0]
    return total / known if known else -1.0


def _draw_worst(
    model: Any, task: str, pairs: MatchingPairs, rows: dict[int, dict[str, Any]], folder: Path, options: dict[str, Any]
) -> None:
    for old in folder.glob("worst*.png"):
        old.unlink()
    for place, number in enumerate(sorted(rows, key=lambda number: -_error(rows[number]))[:WORST], start=1):
        sample = pairs[number]
        found = model.predict(sample["image1"], sample["image2"], **options)
        truth = sample[TRUTHS[task]]
        step = pairs.steps[sample["set"]]
        truth = truth[::step, ::step]
        title = f"worst pair {place}: {_error(rows[number]):.2f} pixels"
        draw = draw_stereo if task == "stereo" else draw_flow
        image1 = np.asarray(sample["image1"])
        figure: Figure = draw(image1, found[0], truth, found.confidence, title, rows[number]["image"])
        save_figure(figure, folder / f"worst{place}.png")


# --- Tables -------------------------------------------------------------------------------------------------

_PUBLISHED = {  # what data sets of the zoo are called in the catalog's figures
    "sintel:subval_clean": ("MPI-Sintel, clean pass", "temple_2"),
    "sintel:subval_final": ("MPI-Sintel, final pass", "temple_2"),
    "kitti_2012:train": ("KITTI 2012", "zero-shot"),
    "kitti_2015:train": ("KITTI 2015", "zero-shot"),
}


def published(name: str, title: str) -> list[str]:
    """The catalog's figures of a variant on the set `title`, in words."""
    wanted = _PUBLISHED.get(title)
    if wanted is None:
        return []
    metrics = [metric for variant in VARIANTS if variant.name == name for metric in variant.metrics]
    found = [metric for metric in metrics if metric.dataset.startswith(wanted[0]) and wanted[1] in metric.conditions]
    return [f"{metric.name} {metric.value:g} ({metric.conditions}; {metric.source})" for metric in found]


def print_result(result: dict[str, Any]) -> None:
    """A column for each set, and below them what is published of the model on it."""
    sets = list(result["sets"].values())
    table = Table("", *result["sets"], title=f"{result['model']}: over all known pixels")
    table.add_row("pairs", *(str(of["pairs"]) for of in sets))
    for name in sets[0]["pixels"] if sets else ():
        figures = [of["pixels"][name] for of in sets]
        table.add_row(name, *("-" if x is None else f"{x:.3f}" for x in figures))
    console = Console()
    console.print(table)
    for title in result["sets"]:
        for line in published(result["model"], title):
            console.print(f"published on {title}: {line}")
