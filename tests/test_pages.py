"""What README, docs/ and the site say, as a reader meets it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKING = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]  # cards have tests of their own
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "model_cards").glob("*.md"))]


def code_of(page: Path) -> Iterator[ast.Module]:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        yield ast.parse(block)


def loads(call: ast.AST) -> bool:
    """Whether a node is a call that gives a model with its weights, as it is."""
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith(("create_model", "hub.load", "AutoModel")):
        return False
    return "num_classes" not in {word.arg for word in call.keywords}  # else it has a head to be trained


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_models_of_snippets_are_ready_for_use(page: Path) -> None:
    """None keeps dropping paths at random, or counts the statistics of what it is shown."""
    for block in code_of(page):
        evaluated = {
            id(node.value) for node in ast.walk(block) if isinstance(node, ast.Attribute) and node.attr == "eval"
        }
        for node in ast.walk(block):
            assert not loads(node) or id(node) in evaluated, ast.unparse(node)


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
        generated = page == ROOT / "docs" / "index.md" and target == "models.md"  # by the site
        assert generated or (page.parent / target).exists(), target
