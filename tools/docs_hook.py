"""A hook of mkdocs: puts the model cards, the recipes and the table of all models into the documentation site."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_cards  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/ under its path in the repository, so that relative links hold."""
    for path in sorted([*ROOT.glob("model_cards/**/*"), *ROOT.glob("zoo/train/recipes/*/*.yaml")]):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    table = f"# All models\n\n{make_cards.variants_table()}\n"
    files.append(File.generated(config, "models.md", content=table))
    return files
