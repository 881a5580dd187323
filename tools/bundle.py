"""Put a finished training run into the package: weights, record, how it was trained, how it measures, pictures.

    zoo train croco_nano_far --workers 1 --output runs/far
    zoo train croco_nano_far --workers 1 --output runs/again --set schedule.stop=200
    python tools/bundle.py runs/far croco_nano_patch8_64_dec128d4.scenes_far --command "zoo train croco_nano_far" \
        --again runs/again

The second run shows that the first one can be had again: each of its losses must be the same to the last bit. It is
left out where that is not to be had: on a GPU.
Afterwards `python tools/make_cards.py` renders the cards from what this has written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open

from zoo.catalog import Variant
from zoo.demo import show_pair, stereo_pair
from zoo.evaluate import flow_scenes, stereo_ordering
from zoo.evaluate.pairs import HELD_OUT_SEED, load_subject
from zoo.evaluate.pictures import draw_learning
from zoo.lookup import find_variant
from zoo.matching import draw_stereo
from zoo.pictures import save_figure
from zoo.train.recipe import load_recipe
from zoo.train.run import read_log
from zoo.weights import sources
from zoo.weights.disk import files, records, safetensors_format

ROOT = Path(__file__).parents[1]
LAST_STEPS = 200  # whose mean is "the loss at the end": that of a single one is noise


def training_record(run: Path, command: str, machine: str) -> dict[str, Any]:
    """How a run was made: what the card shows, read from its recipe and log."""
    recipe, rows = load_recipe(run / "recipe.yaml"), read_log(run)
    last = [row["loss"] for row in rows if row["step"] > rows[-1]["step"] - LAST_STEPS]
    return dict(
        command=command,
        recipe=recipe.name,
        seed=recipe.seed,
        steps=rows[-1]["step"],
        samples=rows[-1]["step"] * recipe.batch_size,
        hours=round(rows[-1]["seconds"] / 3600, 2),
        machine=machine,
        torch=torch.__version__,
        date=date.today().isoformat(),
        first_losses=[round(row["loss"], 6) for row in rows[:10]],
        final_loss=round(statistics.fmean(last), 4),
    )


def reproduced_losses(run: Path, again: Path) -> list[float]:
    """The loss of each step of `again`, a shorter run of the same recipe, if they are those of `run`."""
    recipes = [load_recipe(folder / "recipe.yaml").to_dict() for folder in (run, again)]
    for recipe in recipes:
        del recipe["schedule"]["stop"]
    if recipes[0] != recipes[1] or recipes[0]["log_steps"] != 1:
        raise SystemExit(f"{again} must repeat the recipe of {run}, which must log every step; train it again so.")
    first, second = ([row["loss"] for row in read_log(folder)] for folder in (run, again))
    if first[: len(second)] != second:
        step = next(i for i, (a, b) in enumerate(zip(first, second)) if a != b)
        raise SystemExit(f"Step {step + 1} of {again} has another loss than that of {run}; find out why.")
    return second


def write_half(source: Path, target: Path) -> None:
    """A weights file with its numbers in half precision."""
    with safe_open(source, "pt") as file:
        about = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    safetensors_format.save_safetensors(state, target, about)


def write_stereo(variant: Variant, weights: Path, evaluation: Path, picture: Path, scenes: int = 200) -> None:
    """Measure a stereo model on the photo of the demo and on held-out scenes, and draw the former."""
    net = timm.create_model(variant.name, pretrained=True).eval()
    photo = stereo_pair()
    plan = stereo_ordering.Plan(0, 0, tuple(variant.input_size[1:]), scenes)
    disparity = net.predict(photo.left, photo.right, tile_batch=4).disparity
    compared = stereo_ordering.others(plan)
    result = dict(
        model=dict(name=variant.name, sha256=files.sha256(weights)),
        motorcycle=stereo_ordering.photo_figures(disparity),
        sgbm=compared["SGBM"]["photo"],
        constant=compared["the best constant"]["photo"],
        scenes=stereo_ordering.scene_figures(net, plan),
        settings=dict(date=date.today().isoformat(), torch=torch.__version__, scenes=scenes, scene_seed=HELD_OUT_SEED),
    )
    evaluation.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_figure(draw_stereo(photo.left, disparity, photo.disparity, title=variant.name), picture)


def write_flow(variant: Variant, weights: Path, evaluation: Path, picture: Path, count: int = 200) -> None:
    """Measure a flow model on held-out scenes and on the photo of the demo, and draw one of the former."""
    net = timm.create_model(variant.name, pretrained=True).eval()
    scenes = flow_scenes.held_out_scenes(variant.recipe, count)
    result = dict(
        model=dict(name=variant.name, sha256=files.sha256(weights)),
        flow=flow_scenes.evaluate(net, scenes),
        settings=dict(date=date.today().isoformat(), torch=torch.__version__, scenes=count, scene_seed=HELD_OUT_SEED),
    )
    evaluation.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_figure(flow_scenes.draw_median(net, scenes, variant.name), picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of `zoo train`")
    parser.add_argument("variant", help="the catalog's variant that it becomes; its first source names the file")
    parser.add_argument("--command", required=True, help="the command that made the run, for the card")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, {platform.machine()}", help="for the card")
    parser.add_argument("--again", type=Path, help="folder of a second run that stopped earlier")
    parser.add_argument("--half", action="store_true", help="in half precision, to halve the file")
    args = parser.parse_args()

    again = dict(reproduced_losses=reproduced_losses(args.run, args.again)) if args.again else {}
    variant = find_variant(args.variant)
    weights = sources.BUNDLED / variant.sources[0].location
    weights.parent.mkdir(exist_ok=True)
    (write_half if args.half else shutil.copyfile)(args.run / "model.safetensors", weights)
    records.write_record(
        weights,
        variant=variant.name,
        kind="package",
        location=weights.name,
        source_sha256=files.sha256(args.run / "model.safetensors"),
    )
    record = training_record(args.run, args.command, args.machine) | again
    weights.with_suffix(".training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    pictures = ROOT / "model_cards" / variant.architecture
    pictures.mkdir(exist_ok=True)
    if (args.run / "loss.png").exists():
        shutil.copyfile(args.run / "loss.png", pictures / "loss.png")
    evaluation = weights.with_suffix(".evaluation.json")
    if variant.form == "dense":
        if variant.args["out_chans"] == 2:
            write_stereo(variant, weights, evaluation, pictures / "motorcycle.png")
        else:
            write_flow(variant, weights, evaluation, pictures / "scene.png")
        return
    what, picture = ("points", "depths.png") if variant.form == "pointmaps" else ("pairs", "scenes.png")
    if variant.form != "pointmaps":
        show_pair(pictures, variant.name)
        draw_learning(load_subject(variant.name), pictures)
    command = [sys.executable, "-m", "zoo.cli", "eval", what, variant.name]
    subprocess.run([*command, "--output", str(evaluation), "--picture", str(pictures / picture)], check=True)


if __name__ == "__main__":
    main()
