"""Folders, shards and data sets that nobody would make on purpose, or somebody has."""

from __future__ import annotations

import io
import logging
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import DataError, ImageError
from zoo.train.data.folder import ImageFolder
from zoo.train.data.hub import HubImages
from zoo.train.data.shards import ImageShards
from zoo.weights import cache_dir, save_safetensors


def photo(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------- folders


def test_folders_with_links_to_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        (root / name / "x.png").write_bytes(photo())
    (root / "cats" / "self").symlink_to(".")
    (root / "dogs" / "up").symlink_to("..")
    (root / "dogs" / "cats").symlink_to("../cats")
    with caplog.at_level(logging.WARNING, "zoo"):
        images = ImageFolder(root)
    assert len(images) == 2 and images.classes == ("cats", "dogs") and [images[i]["label"] for i in (0, 1)] == [0, 1]
    assert "3 folders in" in caplog.text and "their images are taken once" in caplog.text


def test_folders_that_double(tmp_path: Path) -> None:
    """Two links at each of thirty levels: 2^30 ways to one photo."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "x.png").write_bytes(photo())
    for level in range(1, 31):
        (tmp_path / str(level)).mkdir()
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(tmp_path / str(level - 1))
    start = time.monotonic()
    assert len(ImageFolder(tmp_path / "30")) == 1
    assert time.monotonic() - start < 2


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "x.png").write_bytes(photo())
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / "disk" / name)
    assert ImageFolder(tmp_path / "set").classes == ("cats", "dogs")


def test_pipe_among_the_photos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="no regular file"):
        ImageFolder(tmp_path)[0]


# ----------------------------------------------------------------------------------------------- shards


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sparse_shard(path: Path) -> Path:
    """A member of 3 GB in the file's 2 kB, as old GNU tar stores holes."""
    info = tarfile.TarInfo("x.png")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386 : 386 + 24] = b"00000000000\0" + b"00000001000\0"  # 512 bytes at the start
    header[483 : 483 + 12] = b"%011o\0" % (3 << 30)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    path.write_bytes(bytes(header) + bytes(512) + bytes(1024))
    return path


def claimed(path: Path, size: int, name: str = "x.png") -> Path:
    """A member that claims a size."""
    info = tarfile.TarInfo(name)
    info.size = size
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + photo() + bytes(2048))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sparse_shard, "stored with holes"),
        (lambda path: claimed(path, 3 << 30), "3,221,225,472 bytes"),
        (lambda path: claimed(path, 1 << 62), "no tar shard"),
        (lambda path: claimed(path, 3 << 30, "x.cls"), "bytes"),
        (lambda path: write_shard(path, {"x.png": photo(), "x.cls": b"9" * 30}), "is beyond"),
        (lambda path: write_shard(path, {"x.png": photo(), "x.cls": b"9" * 5000}), "bytes"),
        (lambda path: write_shard(path, {"x.png": photo(), "x.cls": b"3000000"}), "is beyond 100,000 classes"),
        (lambda path: write_shard(path, {"x.png": photo(), "x.cls": b"-7"}), "is beyond"),
        (lambda path: write_shard(path, {"x.png": photo(), "x.cls": b"cat"}), "whole numbers"),
        (lambda path: (os.mkfifo(path), path)[1], "no regular file"),
    ],
)
def test_shards_beyond_measure(tmp_path: Path, make: Any, message: str) -> None:
    path = make(tmp_path / "a.tar")
    start = time.monotonic()
    with pytest.raises(DataError, match=message):
        ImageShards(str(path))
    assert time.monotonic() - start < 2


def test_pattern_of_too_many_shards() -> None:
    start = time.monotonic()
    for pattern in ("{0..99999999999}.tar", "{a,b}" * 40 + ".tar"):
        with pytest.raises(DataError, match="stands for more than"):
            ImageShards(pattern)
    assert time.monotonic() - start < 20


DAMAGES: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "text": lambda path: path.write_text("hello"),
    "foreign": lambda path: save_safetensors({"a": torch.ones(2)}, path, {}),
    "floats": lambda path: save_safetensors(dict(index=torch.ones(2, 3), ends=torch.tensor([2])), path, {}),
    "another shape": lambda path: index(path, [[512, 70]], [2]),
    "outside": lambda path: index(path, [[1 << 40, 70, 0]] * 2, [2]),
    "overflow": lambda path: index(path, [[(1 << 63) - 1, (1 << 63) - 1, 0]] * 2, [2]),
    "negative": lambda path: index(path, [[-5, 70, 0]] * 2, [2]),
    "other counts": lambda path: index(path, [[512, 70, 0]] * 2, [7]),
    "labels": lambda path: index(path, [[512, 70, 1 << 40]] * 2, [2]),
}


def index(path: Path, rows: list[list[int]], ends: list[int]) -> None:
    save_safetensors(dict(index=torch.tensor(rows), ends=torch.tensor(ends)), path, {})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shard(tmp_path / "a.tar", {"x.png": photo(), "x.cls": b"0", "y.png": photo(255), "y.cls": b"1"})
    ImageShards(str(path))
    (kept,) = (cache_dir() / "shards").glob("*.safetensors")
    whole = kept.read_bytes()
    DAMAGES[damage](kept)
    with caplog.at_level(logging.WARNING, "zoo"):
        images = ImageShards(str(path))
    assert [images[i]["label"] for i in (0, 1)] == [0, 1] and images[1]["image"].min() == 255
    assert "is damaged" in caplog.text and "made anew" in caplog.text and kept.read_bytes() == whole


def test_labels_of_a_data_set_beyond_measure(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [{"bytes": photo(), "path": None}] * 2, "label": [0, 3_000_000]})
    table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="go up to 3,000,000, and the most is 99,999"):
        _ = HubImages(str(tmp_path / "set")).num_classes
