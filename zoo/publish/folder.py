"""What a published folder holds: the names of its files, their digests, and what its weights say of themselves."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from safetensors import safe_open

from zoo.errors import PublishError
from zoo.weights.disk import files, safetensors_format
from zoo.weights.network.hub import HUB_FILENAME

CONFIG, CARD, RECIPE, LOSS, SUMS = "config.json", "README.md", "recipe.yaml", "loss.png", "SHA256SUMS"
COMPLETION, FEATURES = "completion.png", "features.png"
PICTURES = {
    COMPLETION: "A photo rebuilt from a few of its patches",
    FEATURES: "What the patches look like to the model, as colors",
}
FILES = (CARD, CONFIG, HUB_FILENAME, RECIPE, LOSS, *PICTURES, "matches.png", "scenes.png", SUMS)
"""What a published folder may hold; nothing else of it is uploaded."""


def own_file(folder: Path, name: str) -> Path | None:
    """A file of a folder, or None if it isn't there.

    Raises PublishError for what stands there under this name without being a file of the folder: a link, a pipe, a
    folder. Whoever gave one the folder would choose what else of this machine is published.
    """
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PublishError(f"{path} can't be read ({error.strerror}); check its permissions.") from error
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        raise PublishError(f"{path} is {kind}, which is not published; put the file itself there, or remove it.")
    return path


def listing(folder: Path) -> list[str]:
    """Names of what a folder has to publish. Raises PublishError for links under these names."""
    return [name for name in FILES if own_file(folder, name) is not None]


def copy_published(source: Path, folder: Path) -> None:
    """Copy what `source` has to publish, each file whole or not at all. Raises PublishError or StorageError."""
    for name in listing(source):
        with _open(source / name) as file, files.atomic_writer(folder / name) as target:
            shutil.copyfileobj(file, target)


def _open(path: Path) -> BinaryIO:
    """A file that no link leads to, even if somebody has put one there since it was looked at."""
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")
    except OSError as error:
        raise PublishError(f"{path} can't be read ({error.strerror}); check it.") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, over a link and not through it. Raises StorageError."""
    with files.atomic_writer(path) as file:
        file.write(text.encode())


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of what else is to be published, for `sha256sum -c`."""
    lines = [f"{files.sha256(folder / name)}  {name}\n" for name in listing(folder) if name != SUMS]
    write_text(folder / SUMS, "".join(lines))


def metadata_of(path: Path) -> dict[str, str]:
    safetensors_format.header_digest(path)  # says what is wrong with a damaged file
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
