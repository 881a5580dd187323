"""Write what runs of tools/gpu.py have measured into docs/gpu.md, and keep their numbers in docs/gpu.json.

python tools/gpu_page.py FOLDER/gpu.json [ANOTHER/gpu.json]    these runs, in place of those recorded before
python tools/gpu_page.py --check                               exit with 1 if the page is not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's tools

from tools.gpu import STAGES  # noqa: E402

PAGE, KEPT = ROOT / "docs" / "gpu.md", ROOT / "docs" / "gpu.json"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
HIDDEN = ("stage", "at")
NOTHING = """\
Nothing yet: no run of this command on a GPU is recorded. All of it has run on a CPU in tiny sizes only, which tells
nothing about speed."""

Rows = list[dict[str, Any]]


class Goal(NamedTuple):
    """What was aimed at. measured: the figure in a run's rows, or None. low: whether it is to be at most the bar."""

    what: str
    bar: float
    low: bool
    measured: Callable[[Rows], float | None]


def best(rows: Rows, figure: str, **where: Any) -> float | None:
    """The largest figure among the rows that are so."""
    found = [
        row[figure] for row in rows if figure in row and all(row.get(key) == value for key, value in where.items())
    ]
    return max(found, default=None)


def sparse_share(rows: Rows) -> float | None:
    """ConvMAE's sparse step's time as a share of the dense one's, both eager."""
    found = [best(rows, "per_second", stage="d", name="convmae_base", how=how) for how in ("dense", "eager")]
    return found[0] / found[1] if found[0] and found[1] else None


def exact_cases(rows: Rows) -> float | None:
    """The share of the golden cases that hold in float32."""
    cases = [row.get("holds", False) for row in rows if row["stage"] == "b" and row.get("precision") == "fp32"]
    return sum(cases) / len(cases) if cases else None


GOALS = [
    Goal("golden cases within the tests' bars in float32, share", 1.0, False, exact_cases),
    Goal(
        "CroCo v2 large pair, forward at batch 64: share of the matrix rate",
        0.45,
        False,
        lambda rows: best(rows, "share", stage="c", name="CroCo v2 large, pair", batch=64),
    ),
    Goal(
        "CroCo v2 large, pretraining step: share of the matrix rate",
        0.35,
        False,
        lambda rows: best(rows, "mfu", stage="d", name="crocov2_large"),
    ),
    Goal("ConvMAE's sparse step, share of the dense one's time", 0.62, True, sparse_share),
    Goal(
        "scenes rendered at 64x64, pairs a second",
        5000,
        False,
        lambda rows: best(rows, "pairs_per_second", stage="e", name="rendered, 64x64"),
    ),
]


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---" if i == 0 else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/")


def goals(rows: Rows) -> str:
    """The goals that the rows say something about, as a table."""
    lines = []
    for goal in GOALS:
        if (value := goal.measured(rows)) is not None:
            holds = value <= goal.bar if goal.low else value >= goal.bar
            lines.append(
                [goal.what, f"{'at most' if goal.low else 'at least'} {goal.bar:,g}", cell(value), cell(holds)]
            )
    return markdown_table(["goal", "bar", "measured", "holds"], lines) if lines else ""


def section(run: dict[str, Any]) -> str:
    """One run of tools/gpu.py."""
    about, rows = run["about"], run["rows"]
    card = about.get("card") or f"a CPU ({about['processor']}, {about['cores']} cores)"
    software = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "timm", "accelerate") if name in about)
    parts = [
        f"### {card}, {about['date']}",
        f"`{about['command']}`, commit {about['commit']}; {software}.",
        goals(rows),
    ]
    for key, stage in STAGES.items():
        of = [row for row in rows if row["stage"] == key]
        if not of:
            continue
        ended = next((row["ended"] for row in of if row["name"] == "the stage"), "cut off with the whole run")
        measures = [row for row in of if row["name"] != "the stage"]
        shown = [row for row in measures if not row.get("skipped", "").endswith("left")]
        columns = list(dict.fromkeys(name for row in shown for name in row if name not in HIDDEN))
        lines = [[cell(row.get(name, "")) for name in columns] for row in shown]
        parts.append(f"**{key}. {stage.title}** ({ended})")
        if lines:
            parts.append(markdown_table(columns, lines))
        if missed := len(measures) - len(shown):
            parts.append(f"Its time ended before {missed} of {len(measures)} rows, which docs/gpu.json names.")
    return "\n\n".join(part for part in parts if part)


def page(runs: list[dict[str, Any]]) -> str:
    """docs/gpu.md with what the runs have measured."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = "\n\n".join(map(section, runs)) if runs else NOTHING
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="files gpu.json of runs")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.results:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
    else:
        runs = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    new = page(runs)
    if args.check:
        sys.exit(0 if new == PAGE.read_text(encoding="utf-8") else f"{PAGE} is not what would be written")
    if args.results:
        KEPT.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
