"""Which photos are meant by files and folders, in which order, and what of them is left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from zoo.errors import ImageError, printable
from zoo.photos import SUFFIXES


@dataclass
class Listing:
    """Paths of photos, each once, and how many there were of what is left out."""

    photos: list[str] = field(default_factory=list)
    hidden_files: int = 0
    hidden_folders: int = 0
    other_files: int = 0
    repeated: int = 0

    def left_out(self) -> str:
        """What a user is told of it, such as "2 hidden files, 1 other file"; empty if there is nothing to tell."""
        counts = (
            (self.hidden_files, "hidden photo", "hidden photos"),
            (self.hidden_folders, "hidden folder", "hidden folders"),
            (self.other_files, "file that is no photo by its ending", "files that are no photos by their endings"),
            (self.repeated, "repetition", "repetitions"),
        )
        return ", ".join(f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count)


def find_photos(paths: Iterable[str | Path]) -> Listing:
    """Files as they are given, and of each folder all photos in it and below it, without hidden ones.

    Of a folder, its own photos come first, then those of its subfolders; names are sorted by their bytes. Links to
    folders are followed, each folder once. Raises ImageError (a ValueError) for a folder without photos or one that
    can't be read, and for names that would be the same in the output.
    """
    listing = Listing()
    found: dict[str, None] = {}
    for path in map(Path, paths):
        inside = list(_walk(path, listing)) if path.is_dir() else [path.as_posix()]
        if not inside:
            raise ImageError(
                f"The folder {printable(str(path))} holds no photos; they end in {', '.join(sorted(SUFFIXES))}."
            )
        before = len(found)
        found.update(dict.fromkeys(inside))
        listing.repeated += len(inside) - (len(found) - before)
    listing.photos = list(found)
    _check_names(listing.photos)
    return listing


def name_of(path: str) -> str:
    r"""A photo's name in the output: its path; bytes that are no UTF-8 are written as \xe9, since JSON has none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_names(photos: list[str]) -> None:
    odd = {name_of(path): path for path in photos if not is_unicode(path)}
    if odd and (same := odd.keys() & set(photos)):
        raise ImageError(
            f"Two photos would have the same name in the output, {printable(min(same))}, since one of them isn't "
            "UTF-8; rename it."
        )


def is_unicode(text: str) -> bool:
    """Whether a name is UTF-8: other bytes are lone surrogates in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(root: Path, listing: Listing) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, onerror=_raise_unreadable, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:  # a link may lead to where it lies
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        shown = [name for name in folders if not name.startswith(".")]
        listing.hidden_folders += len(folders) - len(shown)
        folders[:] = sorted(shown, key=os.fsencode)  # the order of the walk
        for name in sorted(files, key=os.fsencode):
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                listing.other_files += not name.startswith(".")
            elif name.startswith("."):
                listing.hidden_files += 1
            else:
                yield Path(place, name).as_posix()


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ImageError(
        f"{printable(str(error.filename))} can't be read ({error.strerror}); check its permissions."
    ) from error
