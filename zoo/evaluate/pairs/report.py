"""An evaluation to look at: tables on the terminal, and a picture of completions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from zoo.evaluate.pairs.sets import Pairs
from zoo.layers.patchify import patchify, unpatchify
from zoo.models.croco import PairModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_result(result: dict[str, Any]) -> None:
    """The tables and the verdict, on the terminal."""
    console = Console()
    scenes, photos = result["scenes"], result["photos"]
    step = f", step {result['model']['step']}" if result["model"]["step"] is not None else ""
    bins = list(scenes["share_of_patches_by_displacement"])
    table = Table(
        title=f"{result['model']['name']}{step}: {scenes['pairs']} scenes, {photos['pairs']} photo crops",
        caption=f"right < wrong in {scenes['share_right_below_wrong']:.1%} of the scenes, "
        f"{photos['share_right_below_wrong']:.1%} of the crops",
    )
    for column in ("prediction", "loss", "color", "structure", *(f"{name} px" for name in bins)):
        table.add_column(column, justify="left" if column == "prediction" else "right")
    for column in ("photos", "color", "structure"):
        table.add_column(column, justify="right", style="cyan")
    for name, row in scenes["losses"].items():
        real = photos["losses"][name]
        cells = [row["loss"], row["color"], row["structure"]]
        cells += [row["by_displacement"].get(key, {}).get("loss", math.nan) for key in bins]
        cells += [real["loss"], real["color"], real["structure"]]
        table.add_row(name.replace("_", " "), *(f"{cell:.3f}" for cell in cells))
    console.print(table)

    table = Table(title="Best match within a patch width of the truth, share of co-visible hidden patches")
    for column in ("by", "scenes", "moved farther", "photos", "moved farther"):
        table.add_column(column, justify="left" if column == "by" else "right")
    for name in scenes["matches"]["within_patch_width"]:
        shares = [
            part["matches"][key].get(name, math.nan)
            for part in (scenes, photos)
            for key in ("within_patch_width", "within_patch_width_moved")
        ]
        table.add_row(name.replace("_", " "), *(f"{share:.1%}" for share in shares))
    console.print(table)

    for claim, outcome in result["verdict"].items():
        table = Table(title=f"{claim.replace('_', ' ')}: {'holds' if outcome['holds'] else 'does not hold'}")
        for column in ("condition", "value", "bar", "holds"):
            table.add_column(column, justify="left" if column == "condition" else "right")
        for item in outcome["conditions"]:
            mark = "[green]yes" if item["holds"] else "[red]no"
            table.add_row(item["name"], f"{item['value']:.3f}", f"{item['relation']} {item['bar']:.3f}", mark)
        console.print(table)


def draw_completions(model: PairModel, sets: dict[str, Pairs], rows: int = 4) -> Figure:
    """A picture of completions of pairs spread over each set, with the right and the wrong reference."""
    from matplotlib.figure import Figure

    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    titles = ("image 1", "visible", "image 2", "completion", "a wrong image 2", "completion")
    height = len(sets) * rows
    figure = Figure((9, 1.6 * height), layout="constrained")
    axes = figure.subplots(height, len(titles))
    for place, (name, pairs) in enumerate(sets.items()):
        chosen = torch.arange(rows) * (len(pairs.mask) // rows)
        some = Pairs(*(x[chosen] for x in pairs))
        grid = some.image1.shape[-2] // model.patch_size, some.image1.shape[-1] // model.patch_size
        seen = patchify(some.image1, model.patch_size).masked_fill(some.mask[:, :, None], 0)
        completed = [model.complete(some.image1, x, mask=some.mask).image for x in (some.image2, some.wrong)]
        visible = unpatchify(seen, model.patch_size, grid)
        columns = (some.image1, visible, some.image2, completed[0], some.wrong, completed[1])
        for row in range(rows):
            line = axes[place * rows + row]
            for axis, images, title in zip(line, columns, titles):
                axis.imshow((images[row] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if place == row == 0:
                    axis.set_title(title, fontsize=9)
            line[0].set_ylabel(name, fontsize=9)
    if model.norm_target:
        figure.suptitle(
            "Hidden patches are drawn with their TRUE mean and deviation, so completions look better than they are.",
            fontsize=9,
        )
    return figure
