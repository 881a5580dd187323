"""Write the table of all recipe settings into docs/train.md, from the classes that read them.

python tools/make_settings.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone's zoo, installed or not

from zoo.train.recipe import describe_settings  # noqa: E402

PAGE = ROOT / "docs" / "train.md"
_TABLE = re.compile("(<!-- settings:begin -->\n).*?(<!-- settings:end -->)", re.DOTALL)


def page_with_table() -> str:
    """docs/train.md with the table as it should be."""
    rows = []
    for setting in describe_settings():
        default = f"`{setting.default}`" if setting.default else "required"
        rows.append(f"| `{setting.name}` | {setting.type.replace('|', 'or')} | {default} | {setting.meaning} |")
    table = "\n".join(["| Setting | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows])
    return _TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page_with_table(), encoding="utf-8")
