"""Put a finished training run into the package: weights, record, how it was trained, how it measures, pictures.

    python tools/bundle.py runs/croco_nano croco_nano_patch8_64_dec128d4.scenes --command "zoo train croco_nano"

Afterwards `python tools/make_cards.py` renders the cards from what this has written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from zoo.demo import run_demo
from zoo.lookup import find_variant
from zoo.pretrain.engine import read_log
from zoo.pretrain.recipe import load_recipe
from zoo.weights import files, sources

ROOT = Path(__file__).parents[1]


def training_record(run: Path, command: str, machine: str) -> dict[str, Any]:
    """How a run was made: what the card shows, read from its recipe and log."""
    recipe, rows = load_recipe(run / "recipe.yaml"), read_log(run)
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
        final_loss=round(sum(row["loss"] for row in rows[-10:]) / len(rows[-10:]), 4),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of `zoo train`")
    parser.add_argument("variant", help="the catalog's variant that it becomes; its first source names the file")
    parser.add_argument("--command", required=True, help="the command that made the run, for the card")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, {platform.machine()}", help="for the card")
    args = parser.parse_args()

    variant = find_variant(args.variant)
    weights = sources.BUNDLED / variant.sources[0].location
    weights.parent.mkdir(exist_ok=True)
    shutil.copyfile(args.run / "model.safetensors", weights)
    files.write_record(
        weights,
        variant=variant.name,
        kind="package",
        location=weights.name,
        source_sha256=files.sha256(args.run / "model.safetensors"),
    )
    record = training_record(args.run, args.command, args.machine)
    weights.with_suffix(".training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    pictures = ROOT / "model_cards" / variant.architecture
    pictures.mkdir(exist_ok=True)
    shutil.copyfile(args.run / "loss.png", pictures / "loss.png")
    run_demo(pictures, variant.name)
    evaluation = weights.with_suffix(".evaluation.json")
    command = [sys.executable, "-m", "zoo.cli", "eval", "pairs", variant.name]
    subprocess.run([*command, "--output", str(evaluation), "--picture", str(pictures / "scenes.png")], check=True)


if __name__ == "__main__":
    main()
