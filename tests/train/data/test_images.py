"""Sources of single images: folders, Hugging Face data sets, WebDataset shards, patterns."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.errors import DataError, ImageError, RecipeError
from zoo.train.data import shards as shards_module
from zoo.train.data.folder import ImageFolder
from zoo.train.data.hub import HubImages
from zoo.train.data.loading import ENDLESS, EachOnce, StepSampler
from zoo.train.data.patterns import PatternImages
from zoo.train.data.shards import ImageShards
from zoo.train.data.sources import make_source


def gray(value: int) -> np.ndarray:
    """A picture that tells which one it is."""
    return np.full((6, 8, 3), value, np.uint8)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gray(value)).save(file, "PNG")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value, name in enumerate(["train/cat/b.png", "train/cat/a.PNG", "train/dog/deep/c.png", "val/cat/d.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/dog/._c.png").write_text("a Mac's")
    return tmp_path


def test_image_folder(folder: Path) -> None:
    source = ImageFolder(folder)  # its subfolder train
    assert source.classes == ("cat", "dog") and source.num_classes == 2 and len(source) == 3
    assert [(sample["label"], sample["image"][0, 0, 0]) for sample in (source[i] for i in range(3))] == [
        (0, 1),
        (0, 0),
        (1, 2),
    ]
    assert source[0]["image"].flags.writeable
    assert len(ImageFolder(folder, split="val")) == 1
    assert len(ImageFolder(folder / "train")) == 3, "the splits' folders may be named themselves"


def test_folder_without_classes(folder: Path) -> None:
    (folder / "train" / "e.png").write_bytes(png(9))
    source = ImageFolder(folder / "train")
    assert source.num_classes == 0 and source.classes == ()
    assert source[0].keys() == {"image"} and source[0]["image"][0, 0, 0] == 9


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of images"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no subfolder 'test'"):
        ImageFolder(folder, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        ImageFolder(tmp_path / "empty")
    (folder / "train/cat/a.PNG").write_bytes(png(1)[:40])
    with pytest.raises(ImageError, match=r"cat/a\.PNG is not an image that can be read"):
        ImageFolder(folder)[0]
    with pytest.raises(RecipeError, match="--data"):
        make_source(dict(source="images"), 0, "image")
    with pytest.raises(RecipeError, match="unknown settings data.splat; known are path, split"):
        make_source(dict(source="images", path=str(folder), splat=1), 0, "image")


# ---------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def table(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = [dict(image=dict(bytes=png(i), path=None), label=i % 2) for i in range(4)]
    return datasets.Dataset.from_list(rows, features=features)


def test_hub_images(table, tmp_path: Path) -> None:
    import datasets

    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    for name in ("one", "splits", "parquet"):
        source = make_source(dict(source="datasets", path=str(tmp_path / name)), 0, "image")
        assert len(source) == 4 and source.classes == ("cat", "dog") and source.num_classes == 2
        assert source[3]["label"] == 1 and (source[3]["image"] == gray(3)).all()

    table.rename_columns({"label": "species"}).save_to_disk(tmp_path / "unnamed")
    plain = HubImages(str(tmp_path / "unnamed"))
    assert plain.num_classes == 0 and plain[1].keys() == {"image"}
    with pytest.raises(DataError, match=r"no column 'photo'; set data\.image to one of image, label"):
        HubImages(str(tmp_path / "one"), image="photo")
    with pytest.raises(DataError, match="can't be loaded"):
        HubImages(str(tmp_path / "splits"), split="val")


def test_damaged_hub_image(table, tmp_path: Path) -> None:
    damaged = table.cast_column("image", table.features["image"].__class__(decode=False)).map(
        lambda row: dict(image=dict(bytes=b"no image", path=None))
    )
    damaged.save_to_disk(tmp_path / "damaged")
    with pytest.raises(ImageError, match="Image 2 of .*damaged is not an image"):
        HubImages(str(tmp_path / "damaged"))[2]


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pretext-zoo\[data\]"):
        HubImages("imagenet-1k")


# ---------------------------------------------------------------------------------------------------- shards


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six shards of four samples each, whose values are 0 to 23."""
    for shard in range(6):
        members = {}
        for value in range(4 * shard, 4 * shard + 4):
            members |= {f"x/{value:03}.png": png(value), f"x/{value:03}.cls": str(value % 3).encode()}
            members[f"x/{value:03}.json"] = b"{}"
        write_shard(tmp_path / f"train-{shard}.tar", members)
    return tmp_path


def test_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageShards(str(shards))
    assert len(source) == 24 and source.num_classes == 3
    for i in range(24):
        assert source[i]["label"] == i % 3 and (source[i]["image"] == gray(i)).all()
    pytest.importorskip("braceexpand")
    monkeypatch.setattr(shards_module, "_index_shard", None)  # the index is in the cache
    for pattern in ("train-*.tar", "train-{0..5}.tar"):
        assert len(ImageShards(str(shards / pattern))) == 24
    with pytest.raises(DataError, match=r"no shard .*train-6\.tar"):
        ImageShards(str(shards / "train-{5..6}.tar"))


def test_rewritten_shard_is_read_anew(shards: Path) -> None:
    assert len(ImageShards(str(shards / "train-0.tar"))) == 4
    write_shard(shards / "train-0.tar", {"a.png": png(7)})
    source = ImageShards(str(shards / "train-0.tar"))
    assert len(source) == 1 and source.num_classes == 0 and source[0].keys() == {"image"}


def test_damaged_shards(shards: Path) -> None:
    path = shards / "train-0.tar"
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(DataError, match=r"train-0\.tar is no tar shard"):
        ImageShards(str(path))
    path.write_bytes(content.replace(png(1), b"?" * len(png(1))))
    source = ImageShards(str(path))
    with pytest.raises(ImageError, match=r"The member at byte \d+ of .*train-0\.tar is not an image"):
        source[1]
    write_shard(path, {"a.txt": b"text"})
    with pytest.raises(DataError, match="no images"):
        ImageShards(str(path))
    write_shard(path, {"a.png": png(0), "a.cls": b"cat"})
    with pytest.raises(DataError, match="whole numbers"):
        ImageShards(str(path))


def test_shards_over_two_processes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample once an epoch, a few shards at a time, and the same when the run is resumed."""
    monkeypatch.setattr(shards_module, "WINDOW", 2)
    source = ImageShards(str(shards))

    def draws(start: int, world: int) -> list[list[int]]:
        """The places that each step from `start` on sees, over all processes."""
        ranks = [StepSampler(24, 4, 5, start, 12, 1, rank, world, source.order) for rank in range(world)]
        return [[place for batch in step for place, _ in batch] for step in zip(*ranks, strict=True)]

    steps = draws(0, 2)
    assert steps == draws(0, 1), "however many processes there are"
    assert steps[4:] == draws(4, 2)
    orders = [[place for step in epoch for place in step] for epoch in (steps[:6], steps[6:])]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(24))
        for window in range(0, 24, 8):
            assert len({place // 4 for place in order[window : window + 8]}) == 2, "two shards at a time"
        assert order[:8] != sorted(order[:8])


# ---------------------------------------------------------------------------------------------------- others


def test_patterns() -> None:
    source = make_source(dict(source="patterns", image_size=32), 1, "image")
    assert len(source) == ENDLESS and source.num_classes == 8 == len(source.classes)
    first, again = source[3], PatternImages(1, 10, 32)[3]
    assert first["image"].shape == (32, 32, 3) and first["image"].dtype == np.uint8
    assert (first["image"] == again["image"]).all() and first["label"] == again["label"]
    assert {source[i]["label"] for i in range(60)} == set(range(8))
    assert len(make_source(dict(source="patterns", samples=5), 0, "image")) == 5


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_once(world: int) -> None:
    places = [place for rank in range(world) for batch in EachOnce(10, 3, rank, world) for place, _ in batch]
    assert sorted(places) == list(range(10))


def test_keys_with_dots_and_what_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """WebDataset keys such as img.v2 are taken with their labels; what isn't used of a shard is counted and said."""
    members = {"img.v1.png": png(1), "img.v1.cls": b"0", "img.v2.png": png(2), "img.v2.cls": b"1", "a.png": png(3)}
    write_shard(tmp_path / "0.tar", members | {"a.json": b"{}", "b.json": b"{}", "README": b"", "lost.cls": b"1"})
    with caplog.at_level("INFO", "zoo"):
        source = ImageShards(str(tmp_path))
    assert len(source) == 3
    assert [int(label) for label in source.index[:, 2]] == [0, 1, -1]
    assert [int(source[i]["image"][0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert (
        "2 .json" in caplog.text and "1 without an ending" in caplog.text and "1 labels without an image" in caplog.text
    )


LABELS: dict[str, tuple[list, str]] = {
    "lists": ([[1], [2]], "holds no classes"),
    "floats": ([0.5, 1.0], "holds no classes"),
    "nulls": ([None, 1], "rows without a label"),
    "names with nulls": (["a", None], "rows without a label"),
    "minus one": ([-1, -1], "has the label -1"),
}


def hub_images(labels: list, tmp_path: Path) -> HubImages:
    datasets = pytest.importorskip("datasets")
    rows = dict(image=[dict(bytes=png(i), path=None) for i in range(len(labels))], label=labels)
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    return HubImages(str(tmp_path / "saved"))


@pytest.mark.parametrize("labels, problem", LABELS.values(), ids=LABELS.keys())
def test_labels_that_are_no_classes(labels: list, problem: str, tmp_path: Path) -> None:
    """They are an error in a sentence where classes are needed, and no trouble where they aren't."""
    source = hub_images(labels, tmp_path)
    assert source[1].keys() == {"image"}, "nobody asked for labels"
    with pytest.raises(DataError, match=problem):
        _ = source.num_classes


def test_labels_that_are_names(tmp_path: Path) -> None:
    source = hub_images(["dog", "cat", "dog"], tmp_path)
    assert source.num_classes == 2 and source.classes == ("cat", "dog")
    assert [source[i]["label"] for i in range(3)] == [1, 0, 1]
