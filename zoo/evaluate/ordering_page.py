"""The result of zoo.evaluate.ordering as a page of the documentation, as a plot, and in the terminal."""

from __future__ import annotations

import statistics
import textwrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = {  # title, and whether more is better
    "matching": ("matching: patches matched", True),
    "depth": ("depth: R2 of a linear probe", True),
    "flow": ("flow: end-point error (pixels)", False),
    "shape": ("shape: k-NN accuracy", True),
}


def summary(result: dict[str, Any], task: str, name: str) -> tuple[float, float]:
    """Mean and spread (standard deviation, 0 of a single seed) over the seeds."""
    figures = [figures[task] for figures in result["figures"][name]]
    return statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else 0.0


def page(result: dict[str, Any], picture: str) -> str:
    """The result as a page of the documentation."""
    about, names = result["about"], list(result["figures"])
    seeds = len(about["seeds"])
    rows = ["| Task | " + " | ".join(names) + " | for comparison |", "| --- |" + " ---: |" * len(names) + " --- |"]
    for task, (title, more) in TASKS.items():
        cells = []
        for name in names:
            mean, spread = summary(result, task, name)
            cells.append(f"{mean:.3f}" + (f" ± {spread:.3f}" if seeds > 1 else ""))
        trivial = ", ".join(f"{key} {value:.3f}" for key, value in result["trivial"][task].items())
        rows.append(f"| {title}, {'more' if more else 'less'} is better | {' | '.join(cells)} | {trivial} |")
    seeds_say = (
        f"Means and standard deviations over {seeds} seeds."
        if seeds > 1
        else "One seed: differences of a few hundredths may be chance."
    )
    sizes = about["sizes"]
    precision = "bfloat16 (autocast)" if about["precision"] == "bf16" else "float32"
    of = "all training, fine-tuning included," if "finished" not in about else "the fine-tuning"
    text = f"""# The papers' ordering, in small

CroCo's published finding is that completing a hidden image with the help of a second view teaches more about 3D than
completing it alone (MAE), and that more than no pretraining; not so for the semantics of single images. Here the three
are compared at the size of `croco_nano`: one encoder, pretrained on pairs (CroCo), on single views of the same scenes
with as much arithmetic (MAE), and not at all.

This page is written by its command, and says what came out:

```bash
{about["command"]}
```

{_pretraining(about)} {seeds_say} The forward
passes of {of} were in {precision}; everything is measured in float32.

{chr(10).join(rows)}

![the figures as a plot]({picture})

- **matching**: {sizes["pairs"]} held-out pairs; the share of patches that both views show whose best match by cosine of
  the frozen encoder's tokens lies within a patch width of the truth.
- **depth**: a ridge regression from the frozen token to the patch's mean log depth, on {sizes["depth_scenes"]} scenes,
  scored on {sizes["depth_scenes"] // 2} others.
- **flow**: encoder, two-image decoder and a linear head, all fine-tuned for {sizes["flow_steps"]} steps of
  {sizes["flow_batch"]} pairs; mean end-point error of co-visible pixels of {sizes["flow_pairs"]} held-out pairs. MAE
  has no two-image decoder, so there it starts untrained, as the untrained network's does.
- **shape**: rooms that hold nothing, one box or one ball; 10 nearest neighbors by the frozen encoder's mean token among
  {sizes["shape_images"]} images, half as many to test. A check on single images, in which CroCo need not win.
"""
    return filled(text)


def filled(markdown: str) -> str:
    """Text in lines of 120 characters; tables, lists, pictures and commands as they are."""
    kept = ("|", "!", "#", "-", "`" * 3)
    paragraphs = (
        part if part.startswith(kept) else textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in markdown.strip().split("\n\n")
    )
    return "\n\n".join(paragraphs) + "\n"


def _pretraining(about: dict[str, Any]) -> str:
    hours = {name: f"{minutes:.0f} minutes" for name, minutes in about["training_minutes"].items()}
    if "finished" not in about:
        return f"""{about["steps"]} steps of each pretraining, CroCo's of {about["pairs_a_step"]} pairs
({", ".join(f"{name} {taken}" for name, taken in hours.items())}, {about["machine"]}, {about["date"]})."""
    runs = [
        f"{name} {run['steps']:,} steps of {run['batch']:,} by `{run['recipe']}` ({hours[name]})"
        for name, run in about["finished"].items()
    ]
    return f"""Pretraining: one finished run of each for all seeds, {"; ".join(runs)}.
A seed draws what no run has trained, and the scenes that probes and fine-tuning learn from
(measured on {about["machine"]}, {about["date"]})."""


def draw(result: dict[str, Any]) -> Figure:
    """A panel for each task: a point for each seed, a bar for their mean, a line for each trivial figure."""
    from matplotlib.figure import Figure

    names = list(result["figures"])
    colors = dict(zip(names, ("tab:blue", "tab:orange", "0.6")))
    figure = Figure((12, 3.6), layout="constrained")
    for ax, (task, (title, more)) in zip(figure.subplots(1, len(TASKS)), TASKS.items()):
        for x, name in enumerate(names):
            figures = [figures[task] for figures in result["figures"][name]]
            mean, _ = summary(result, task, name)
            ax.bar(x, mean, color=colors[name], width=0.65, alpha=0.75)
            ax.scatter([x] * len(figures), figures, color="black", s=14, zorder=3)
            top = (x, max(0, *figures))
            label = ax.annotate(f"{mean:.2f}", top, ha="center", va="bottom", xytext=(0, 4), textcoords="offset points")
            label.set_bbox(dict(facecolor="white", edgecolor="none", pad=1))  # over the trivial figures' lines
        for (name, value), style in zip(result["trivial"][task].items(), ("--", ":", "-.")):
            ax.axhline(value, color="0.3", linewidth=1, linestyle=style, label=name)
        ax.set_title(f"{title}\n{'more' if more else 'less'} is better", fontsize=10)
        ax.set_xticks(range(len(names)), names)
        ax.margins(y=0.15)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    return figure


def print_table(result: dict[str, Any]) -> None:
    table = Table("task", *result["figures"], "for comparison")
    for task, (title, _) in TASKS.items():
        cells = ["{:.3f} ± {:.3f}".format(*summary(result, task, name)) for name in result["figures"]]
        trivial = ", ".join(f"{key} {value:.3f}" for key, value in result["trivial"][task].items())
        table.add_row(title, *cells, trivial)
    Console().print(table)
