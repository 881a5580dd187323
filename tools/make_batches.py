"""Draw what the jigsaw families' networks see, for their cards: model_cards/<architecture>/batch.png.

    python tools/make_batches.py [ARCHITECTURE...]

One picture for every architecture with a pretext head, by its recipe (`zoo show-batch` draws the same). Recipes on
photos are drawn on procedural scenes of 256 pixels here, since no photos come with the zoo.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's zoo, installed or not

from zoo.catalog import VARIANTS
from zoo.pictures import save_figure
from zoo.train.preview import show_batch
from zoo.train.recipe import load_recipe

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
SCENES = dict(source="scenes", image_size=256, texture_scale=[2.0, 6.0], samples=64)


def main(wanted: list[str]) -> None:
    for variant in VARIANTS:
        if variant.family not in ("pirl", "jigsaw", "jigclu") or variant.form != "pretraining":
            continue
        if wanted and variant.architecture not in wanted:
            continue
        recipe, samples = load_recipe(variant.recipe), 3
        if recipe.data["source"] == "images":
            recipe, samples = load_recipe(variant.recipe, {"data": SCENES}), 2  # large enough a file
        path = save_figure(show_batch(recipe, samples), CARDS / variant.architecture / "batch.png")
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
