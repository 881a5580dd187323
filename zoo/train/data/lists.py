"""Text files that list images: whatever editor and system they were written with."""

from __future__ import annotations

import codecs
import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import DataError
from zoo.weights.disk.files import open_regular, size_of

_MAX_BYTES = 1 << 29  # some ten million lines

_MARKS = {  # byte-order marks; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1, without white space around them.

    UTF-8 with or without a byte-order mark, UTF-16 with one; bytes that are no UTF-8 stay what file names make of them.
    Raises DataError (a ValueError).
    """
    try:
        with open_regular(path) as file:
            if size_of(file) > _MAX_BYTES:
                raise OSError(f"{size_of(file):,} bytes")
            content = file.read()
    except OSError as error:
        raise DataError(
            f"The list {path} can't be read ({error.strerror or error}); check its path and permissions."
        ) from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"The list {path} begins as {encoding} and is none; write it as UTF-8.") from error
    if "\0" in text:
        raise DataError(f"The list {path} holds zero bytes, so it is no text or UTF-16 without its mark; write UTF-8.")
    # \r alone ends lines, too; other separators of Unicode may be part of a name
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def split_fields(line: str, counts: Sequence[int]) -> list[str]:
    """A line's entries, between white space, tabs or commas, so that there are as many as `counts` allow.

    Names with spaces or commas are written in double quotes, or with tabs between them. What can't be split so comes as
    it is between white space.
    """
    spaced, tabbed = line.split(), line.split("\t") if "\t" in line else []
    quoted, listed = (_read_csv(line, mark) for mark in " ,")
    ways = [tabbed, quoted, spaced, listed] if '"' in line else [tabbed, spaced, listed]
    if all(field.endswith(",") for field in spaced[:-1]):  # "a, b, c": the commas are no part of the names
        ways.insert(0, listed)
    split = [[field.strip() for field in way if field.strip()] for way in ways]
    return next((fields for fields in split if len(fields) in counts), spaced)


def _read_csv(line: str, mark: str) -> list[str]:
    with contextlib.suppress(csv.Error):  # a quote that doesn't end
        return next(csv.reader([line], delimiter=mark, skipinitialspace=True, strict=True))
    return []
