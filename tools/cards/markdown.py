"""Tables."""

from __future__ import annotations

from typing import Any


def table(rows: dict[str, Any]) -> str:
    """Names and values; without titles, which Markdown can't leave out."""
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def grid(titles: list[str], lines: list[list[str]]) -> str:
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
