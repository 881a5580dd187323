"""Write the tables of all recipe settings into docs/train.md, from the classes that read them.

python tools/make_settings.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's zoo, installed or not

from zoo.settings import Declared, declared, described  # noqa: E402
from zoo.train.build import OBJECTIVES  # noqa: E402
from zoo.train.data.sources import SOURCES, source_settings  # noqa: E402
from zoo.train.recipe import describe_settings  # noqa: E402

PAGE = ROOT / "docs" / "train.md"
_TABLE = r"(<!-- {0}:begin -->\n).*?(<!-- {0}:end -->)"


def page_with_table() -> str:
    """docs/train.md with the tables as they should be."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("settings", _recipe_table()), ("parts", _parts_table())):
        page = re.sub(_TABLE.format(name), lambda found: f"{found[1]}{table}\n{found[2]}", page, flags=re.DOTALL)  # noqa: B023
    return page


def _parts_table() -> str:
    """What objectives and sources take; a source of several kinds of samples is listed once."""
    parts: dict[str, dict[str, Declared]] = {f"objective `{name}`": declared(cls) for name, cls in OBJECTIVES.items()}
    for kind, sample in SOURCES:
        parts.setdefault(f"data `{kind}`", source_settings(kind, sample))
    rows = []
    for part, settings in parts.items():
        for name, (hint, default) in ((name, (of.hint, of.default)) for name, of in settings.items()):
            endless = isinstance(default, int) and default >= 1 << 62
            written = "required" if default is inspect.Parameter.empty else f"`{'endless' if endless else default!r}`"
            kinds = described(hint).replace(f"to {1 << 62:,}", "up")
            rows.append(f"| {part} | `{name}` | {kinds} | {written} |")
    return "\n".join(["| Of | Setting | Kind | Default |", "| --- | --- | --- | --- |", *rows])


def _recipe_table() -> str:
    rows = []
    for setting in describe_settings():
        default = f"`{setting.default}`" if setting.default else "required"
        rows.append(f"| `{setting.name}` | {setting.type} | {default} | {setting.meaning} |")
    return "\n".join(["| Setting | Kind | Default | Meaning |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    PAGE.write_text(page_with_table(), encoding="utf-8")
