"""Lists of images as editors and systems write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.errors import DataError
from zoo.train.data.lists import read_lines, split_fields
from zoo.train.data.pairs import ImagePairs

LINES = ["a.jpg b.jpg", "Bäume/c.jpg d.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "  \t\n\n"])
def test_encodings_and_ends(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes("".join(line + end for line in LINES).encode(encoding))
    assert [line for _, line in read_lines(path)] == LINES
    assert ImagePairs(path).paths(1) == (tmp_path / "Bäume" / "c.jpg", tmp_path / "d.jpg")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"\xe4.jpg b.jpg\n")
    first, _ = ImagePairs(path).paths(0)
    assert bytes(first).endswith(b"\xe4.jpg")


@pytest.mark.parametrize("content", ["a.jpg b.jpg".encode("utf-16-le"), b"\xff\xfea"])
def test_texts_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(content)
    with pytest.raises(DataError, match="UTF-8"):
        ImagePairs(tmp_path)


@pytest.mark.parametrize(
    "line, fields",
    [
        ("a.jpg b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg   b.jpg", ["a.jpg", "b.jpg"]),
        ("a 1.jpg\tb 1.jpg", ["a 1.jpg", "b 1.jpg"]),
        ('"a 1.jpg" "b 1.jpg"', ["a 1.jpg", "b 1.jpg"]),
        ('"a 1.jpg" b.jpg', ["a 1.jpg", "b.jpg"]),
        ("a 1.jpg, b 1.jpg", ["a 1.jpg", "b 1.jpg"]),
        ("a,1.jpg b.jpg", ["a,1.jpg", "b.jpg"]),
        ("a.jpg", ["a.jpg"]),
        ("a b c", ["a", "b", "c"]),
        ('"a.jpg b.jpg', ['"a.jpg', "b.jpg"]),
    ],
)
def test_fields(line: str, fields: list[str]) -> None:
    assert split_fields(line, (2,)) == fields


def test_line_with_too_many_names(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n\nmy photo.jpg b.jpg\n")
    with pytest.raises(DataError, match=r"Line 3 of .* names 3 images.*double quotes"):
        ImagePairs(tmp_path)


def test_list_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pairs.txt")
    with pytest.raises(DataError, match="is no regular file"):
        read_lines(tmp_path / "pairs.txt")
