"""A hook of mkdocs: puts the model cards, the recipes, the notebooks and the tables of all models into the site."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_cards  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/ under its path in the repository, so that relative links hold."""
    for path in sorted([*ROOT.glob("model_cards/**/*"), *ROOT.glob("zoo/train/recipes/*/*.yaml")]):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted(ROOT.glob("examples/*.ipynb")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
        files.append(File.generated(config, _page_of(name), content=_notebook(path)))
    tables = (f"## {family}\n\n{about.capitalize()}.\n\n{table}" for family, about, table in make_cards.tables())
    files.append(File.generated(config, "models.md", content="\n\n".join(("# All models", *tables)) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links from docs/ to what lies beside it hold, as they do in the repository, and those to notebooks lead to their
    pages; a page without sections has the room of their list; a card is found by its name, which the search takes for
    one word, and by the parts of it."""
    if not re.search("^## ", markdown, re.MULTILINE):
        page.meta.setdefault("hide", ["toc"])
    if page.file.src_uri.startswith("model_cards/") and page.file.name != "README":
        page.meta["tags"] = re.split(r"[._]", page.file.name)
    if (ROOT / "docs" / page.file.src_uri).is_file():  # one step up is one too many: docs/ is the site's own root
        out = "../" * (page.file.src_uri.count("/") + 1)
        markdown = markdown.replace(f"]({out}", f"]({out[3:]}")
    return re.sub(r"(?<=\]\()\S*examples/\w+\.ipynb(?=\))", lambda found: _page_of(found[0]), markdown)


def _page_of(notebook: str) -> str:
    return notebook.removesuffix(".ipynb") + ".md"


def _notebook(path: Path) -> str:
    """A notebook's text and code as a page, with a link to itself behind its title."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    parts = [text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```" for cell, text in zip(cells, texts)]
    title, _, rest = parts[0].partition("\n")
    link = f'<a href="../{path.name}" download>Download the notebook</a>, or open it in `examples/`.'
    return "\n\n".join((title, link, rest.strip(), *parts[1:])) + "\n"
