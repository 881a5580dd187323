"""Put what a finished run of a small recipe shows into its model's card: how it was made, its curve, pictures.

    python tools/record_run.py runs/convmae_nano --command "zoo train convmae_nano --output runs/convmae_nano"

Afterwards `python tools/make_cards.py` renders the card. The weights stay where they are; tools/bundle.py is for those
that come with the package.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bundle import training_record
from safetensors.torch import load_file

from zoo import pictures
from zoo.models.shared.masked import MaskedAutoencoder
from zoo.train import build
from zoo.train.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]


def draw_reconstructions(recipe: Recipe, model: MaskedAutoencoder, images: int = 4) -> Any:
    """Images that the run has not seen, with three quarters of their patches hidden, and rebuilt."""
    source = build.make_source(replace(recipe, seed=recipe.seed + 1))
    rows = []
    for i in range(images):
        image = pictures.to_input(source[i]["image"], model)
        result = model.complete(image, generator=torch.Generator().manual_seed(i))
        truth = pictures.to_pixels(image, model)
        hidden = pictures.hide(truth, result.mask, model.patch_size)
        rows.append((hidden[0], pictures.to_pixels(result.image, model)[0], truth[0]))
    names = ("input", "rebuilt", "truth")
    return pictures.draw_images(rows, names, "", pictures.completion_caption(model), panel=2.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of `zoo train`")
    parser.add_argument("--command", required=True, help="the command that made the run, for the card")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, {platform.machine()}", help="for the card")
    args = parser.parse_args()

    recipe = load_recipe(args.run / "recipe.yaml")
    folder = ROOT / "model_cards" / recipe.model
    folder.mkdir(exist_ok=True)
    record = training_record(args.run, args.command, args.machine)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(args.run / "loss.png", folder / "loss.png")
    if (evaluation := args.run / "evaluation.json").exists():
        shutil.copyfile(evaluation, folder / "evaluation.json")
    model: Any = build.make_model(recipe).eval()
    if isinstance(model, MaskedAutoencoder):
        model.load_state_dict(load_file(args.run / "model.safetensors"))
        pictures.save_figure(draw_reconstructions(recipe, model), folder / "completion.png")


if __name__ == "__main__":
    main()
