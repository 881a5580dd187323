"""What a published folder holds: the names of its files, their digests, and what its weights say of themselves."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from zoo.weights import files
from zoo.weights.hub import HUB_FILENAME

CONFIG, CARD, RECIPE, LOSS, SUMS = "config.json", "README.md", "recipe.yaml", "loss.png", "SHA256SUMS"
COMPLETION, FEATURES = "completion.png", "features.png"
PICTURES = {
    COMPLETION: "A photo rebuilt from a few of its patches",
    FEATURES: "What the patches look like to the model, as colors",
}
FILES = (CARD, CONFIG, HUB_FILENAME, RECIPE, LOSS, *PICTURES, "matches.png", "scenes.png", SUMS)
"""What a published folder may hold; nothing else of it is uploaded."""


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of what else is to be published, for `sha256sum -c`."""
    lines = [f"{files.sha256(folder / name)}  {name}\n" for name in listing(folder) if name != SUMS]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def listing(folder: Path) -> list[str]:
    """Names of what a folder has to publish."""
    return [name for name in FILES if (folder / name).is_file()]


def metadata_of(path: Path) -> dict[str, str]:
    files.header_digest(path)  # says what is wrong with a damaged file
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
