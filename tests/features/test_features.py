"""`zoo.features`: what is written, in which order, and that a stopped extraction ends as one that was not."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import Run
from zoo.errors import FeaturesError, ImageError, StorageError
from zoo.features import extract, extract_features, open_features
from zoo.features.listing import find_photos, name_of
from zoo.photos import read_image
from zoo.pictures import to_input

ENCODER = "croco_nano_patch8_64.scenes_rich"


@pytest.fixture(scope="module")
def untrained() -> Any:
    torch.manual_seed(0)
    return timm.create_model(ENCODER).eval()


@pytest.fixture
def model(untrained: Any) -> Any:
    return copy.deepcopy(untrained)  # some tests set its size


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven photos, of which the fourth is cut, and what else lies in folders."""
    folder = tmp_path / "photos"
    (folder / "more" / ".ipynb_checkpoints").mkdir(parents=True)
    for i, name in enumerate(("a.jpg", "b.png", "c.JPEG", "d.jpg", "more/e.jpg", "more/f.jpg", "more/g.png")):
        noise = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "d.jpg").write_bytes((folder / "d.jpg").read_bytes()[:500])
    for name in ("._a.jpg", "more/.ipynb_checkpoints/e.jpg", "notes.txt", ".DS_Store"):
        (folder / name).write_bytes(b"no photo")
    return folder


READABLE = ["a.jpg", "b.png", "c.JPEG", "more/e.jpg", "more/f.jpg", "more/g.png"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith((".lock", ".tmp"))}


def test_shards_in_the_order_of_the_input(model: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = extract_features(model, "nano", [photos / "more/g.png", photos], out, 2, batch_size=3, workers=2)
    names = [(photos / name).as_posix() for name in ("more/g.png", *READABLE[:-1])]
    assert (done.photos, done.unreadable, done.shards, done.shape) == (6, 1, 4, (192,))
    features = open_features(out)
    assert (features.names, len(features), features.shape, features.finished) == (names, 6, (192,), True)
    with torch.inference_mode():
        for number, name in enumerate(names):
            torch.testing.assert_close(features[number], model(to_input(name, model))[0])
            assert torch.equal(features[number], features[name]) and torch.equal(features[number - 6], features[name])
    assert torch.equal(features.tensor(), torch.stack(list(features))) and name in features
    index = json.loads((out / "index.json").read_text())
    assert [shard["photos"] for shard in index["shards"]] == [2, 2, 1, 1] and index["shards"][2]["unreadable"] == 1
    ((name, reason),) = features.unreadable()
    assert name == (photos / "d.jpg").as_posix() and "is not an image that can be read" in reason
    with pytest.raises(IndexError):
        features[6]


def test_one_file(model: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.safetensors"
    done = extract_features(model, "nano", [photos], out, 2, maps=True, size=(48, 96), workers=0)
    assert done.unreadable_list == tmp_path / "features.unreadable.jsonl" and done.unreadable_list.is_file()
    found = load_file(out)
    assert set(found) == {(photos / name).as_posix() for name in READABLE} and not list(tmp_path.glob("*.parts"))
    features = open_features(out)
    assert features.shape == (192, 6, 12) and len(features.unreadable()) == 1
    assert torch.equal(features.tensor(), torch.stack([found[name] for name in features.names]))
    (photos / "d.jpg").unlink()
    assert extract_features(model, "nano", [photos], out, workers=0).unreadable_list is None
    assert not open_features(out).unreadable() and open_features(out)[0].shape == (192,)


def test_what_is_left_out_is_counted(photos: Path) -> None:
    (photos / "more" / "round").symlink_to(photos)
    listing = find_photos([photos, photos / "a.jpg", photos / "._a.jpg"])  # what is named is meant
    assert listing.photos == [(photos / name).as_posix() for name in (*READABLE[:3], "d.jpg", *READABLE[3:], "._a.jpg")]
    expected = "1 hidden photo, 1 hidden folder, 1 file that is no photo by its ending, 1 repetition"
    assert listing.left_out() == expected


def test_names_that_are_not_utf8(model: Any, photos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")
    os.link(photos / "b.png", odd)
    for out in (tmp_path / "out", tmp_path / "out.safetensors"):
        assert extract_features(model, "nano", [odd], out, workers=0).photos == 1
        features = open_features(out)
        assert features.names == [f"{photos.as_posix()}/caf\\xe9.png"] and features.names[0] in features
    os.link(photos / "b.png", name_of(odd))
    with pytest.raises(ImageError, match="the same name in the output"):
        find_photos([photos])


def test_what_is_done_is_kept(
    model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[str] = []
    stop = [False, False, True]

    def reading(path: str, **options: Any) -> np.ndarray:
        read.append(os.path.basename(path))
        if path.endswith("f.jpg") and stop.pop():
            raise KeyboardInterrupt
        return read_image(path, **options)

    monkeypatch.setattr("zoo.features.decoding.read_image", reading)

    def run(**options: Any) -> list[str]:
        read.clear()
        extract_features(model, "nano", [photos], tmp_path / "out", 2, workers=0, batch_size=1, **options)
        return list(read)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert "Stopped; 4 of 7 photos are done" in caplog.text
    stopped = open_features(tmp_path / "out")
    assert (len(stopped), stopped.finished) == (3, False) and len(stopped.unreadable()) == 1
    assert run() == ["e.jpg", "f.jpg", "g.png"]
    assert run() == []
    os.utime(photos / "b.png", (1, 1))  # as if it were another photo
    assert run() == ["a.jpg", "b.png"]
    (photos / "d.jpg").write_bytes((photos / "a.jpg").read_bytes())  # mended
    assert run() == ["c.JPEG", "d.jpg"] and not open_features(tmp_path / "out").unreadable()
    shard = tmp_path / "out" / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run() == ["c.JPEG", "d.jpg"] and "000001.safetensors is damaged" in caplog.text
    for name in ("e.jpg", "f.jpg", "g.png"):
        (photos / "more" / name).unlink()
    assert run() == [] and open_features(tmp_path / "out").names[-1].endswith("d.jpg")
    with pytest.raises(FeaturesError, match=r"holds features of other settings \(draft\)"):
        run(draft=False)


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_killed_at_any_moment(model: Any, photos: Path, tmp_path: Path, output: str) -> None:
    """kill -9 right before and right after each time that a file takes its name, until one run comes through."""

    def child(moment: int) -> bool:
        """Whether a process that is killed at that moment lived."""
        process = os.fork()
        if not process:
            replace, moments = os.replace, iter(range(1000))

            def killed(*args: Any) -> None:
                for step in (lambda: None, lambda: replace(*args)):
                    step()
                    if next(moments) == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            os.replace = killed
            try:
                extract_features(model, "nano", [photos], tmp_path / output, 3, workers=0)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0

    moment = 0
    while not child(moment):
        moment += 1
    extract_features(model, "nano", [photos], tmp_path / f"whole_{output}", 3, workers=0)
    if output == "out":
        assert content(tmp_path / output) == content(tmp_path / f"whole_{output}") and moment > 3
    else:
        assert (tmp_path / output).read_bytes() == (tmp_path / f"whole_{output}").read_bytes() and moment > 3
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".parts"))]


def test_strict_ends_at_the_first(model: Any, photos: Path, tmp_path: Path, reads: Callable[[object], None]) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # also when the shards of before have left it out
        with pytest.raises(ImageError, match=r"d\.jpg is not an image") as raised:
            extract_features(model, "nano", [photos], out, 1, workers=0, strict=True)
        assert len(open_features(out)) >= 3
        extract_features(model, "nano", [photos], out, 1, workers=0)
    reads(raised.value)
    with pytest.raises(ImageError):
        extract_features(model, "nano", [photos], tmp_path / "new", workers=0, strict=True)
    assert not (tmp_path / "new").exists()  # nothing to go on with


def test_no_photo_can_be_read(model: Any, photos: Path, tmp_path: Path, reads: Callable[[object], None]) -> None:
    for output in ("out", "out.safetensors"):
        with pytest.raises(ImageError) as raised:
            extract_features(model, "nano", [photos / "d.jpg", photos / "notes.txt"], tmp_path / output, workers=0)
        reads(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr("timm.create_model", refuse)


def test_output_that_cannot_be_written(
    zoo: Run, photos: Path, tmp_path: Path, no_model: None, reads: Callable[[object], None]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for output in (photos / "a.jpg" / "out", photos / "a.jpg" / "out.safetensors", photos / "notes.txt"):
        code, out, err = zoo("features", ENCODER, photos, "-o", output)
        assert (code, out) == (2, "")
        reads(err.splitlines()[-1])
    assert sorted(tmp_path.rglob("*")) == before


OUTPUTS = {
    "photos": "holds other files",
    "photos/more": "holds other files",
    "out.npz": "is no place for features",
    "out\udce9": "is not UTF-8",
    "folder.safetensors": "is no file that could be written",
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_of_something_else(zoo: Run, photos: Path, tmp_path: Path, no_model: None, output: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = zoo("features", ENCODER, photos, "-o", tmp_path / output)
    assert (code, out) == (2, "") and OUTPUTS[output] in err
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_for_one_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "MOST_IN_A_FILE", 3)
    with pytest.raises(FeaturesError, match="give a folder as --output"):
        extract.Job([photos], tmp_path / "out.safetensors")


def test_disk_full(
    model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[object], None]
) -> None:
    """Of the second shard: the first is whole, and the same command goes on."""
    from zoo.features import store

    save = store.save_safetensors

    def full(tensors: Any, path: Path, about: Any) -> None:
        if path.name == "000001.safetensors":
            monkeypatch.setattr(os, "fsync", _no_space)
        save(tensors, path, about)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_safetensors", full)
        with pytest.raises(StorageError) as raised:
            extract_features(model, "nano", [photos], tmp_path / "out", 2, workers=0)
    monkeypatch.undo()
    reads(raised.value)
    assert len(open_features(tmp_path / "out")) == 2
    assert extract_features(model, "nano", [photos], tmp_path / "out", 2, workers=0).photos == 6


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_device_memory_too_small(
    model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[object], None]
) -> None:
    forward = extract._forward

    def small(encoder: Any, images: torch.Tensor, maps: bool) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return forward(encoder, images, maps)

    monkeypatch.setattr(extract, "_forward", small)
    with pytest.raises(FeaturesError) as raised:
        extract_features(model, "nano", [photos], tmp_path / "out", 4, workers=0)
    reads(raised.value)
    assert extract_features(model, "nano", [photos], tmp_path / "out", 4, batch_size=2, workers=0).photos == 6


def test_two_into_one_folder(model: Any, photos: Path, tmp_path: Path, reads: Callable[[object], None]) -> None:
    from zoo.features.store import Store

    with Store(tmp_path / "out", [], 1, {}).held(), pytest.raises(FeaturesError) as raised:
        extract_features(model, "nano", [photos], tmp_path / "out", workers=0)
    reads(raised.value)


def test_decoding_worker_killed(
    model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Callable[[object], None]
) -> None:
    def killed(path: str, **options: Any) -> np.ndarray:
        if path.endswith("c.JPEG"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, **options)

    monkeypatch.setattr("zoo.features.decoding.read_image", killed)
    with pytest.raises(FeaturesError) as raised:
        extract_features(model, "nano", [photos], tmp_path / "out", 1, workers=1, batch_size=1)
    reads(raised.value)


def test_draft_reads_less_of_large_photos(model: Any, tmp_path: Path) -> None:
    """A photo of 1000 x 700 for an input of 64: decoded at a quarter, and features hardly change."""
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 10, 3), dtype=np.uint8))
    image = smooth.resize((1000, 700), Image.Resampling.BICUBIC)
    for width, height, scale in ((1000, 700, 4), (1600, 1200, 8), (1002, 700, 2), (1001, 700, 1), (1000, 400, 2)):
        smooth.resize((width, height)).save(tmp_path / "c.jpg")
        assert read_image(tmp_path / "c.jpg", enough=110).shape == (height // scale, width // scale, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", enough=110).shape == (250, 175, 3)
    assert read_image(tmp_path / "a.jpg", enough=700).shape == (1000, 700, 3)
    image.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", enough=110).shape == (700, 1000, 3)
    small, exact = (
        extract_features(model, "nano", [tmp_path / "a.jpg"], tmp_path / f"{draft}.safetensors", draft=draft)
        for draft in (True, False)
    )
    one, two = open_features(small.output)[0], open_features(exact.output)[0]
    assert 0 < (one - two).norm() < 0.01 * two.norm()
    with torch.inference_mode():
        torch.testing.assert_close(two, model(to_input(tmp_path / "a.jpg", model))[0])


def test_memory_of_a_shard(model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is made is a shard's."""
    sizes: list[Any] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: sizes.append(shape[:1]) or empty(*shape, **options))
    extract_features(model, "nano", [photos] * 3, tmp_path / "out", 2, workers=0)
    assert (2,) in sizes and max(size for size in sizes if isinstance(size[0], int)) == (2,)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "no such file": lambda path: path / "nowhere",
    "no features": lambda path: path,
    "other tensors": lambda path: save_file({"a": torch.zeros(1), "b": torch.zeros(2, 2)}, path / "x.safetensors"),
    "index of something else": lambda path: (path / "index.json").write_text("[]"),
    "index without shards": lambda path: (path / "index.json").write_text("{}"),
    "index of files elsewhere": lambda path: (path / "index.json").write_text(
        json.dumps({"shape": [1], "finished": True, "shards": [{"file": "../x", "photos": 1}]})
    ),
    "shards that are not there": lambda path: (path / "index.json").write_text(
        json.dumps({"shape": [1], "finished": True, "shards": [{"file": "000000.safetensors", "photos": 1}]})
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_reader_of_something_else(tmp_path: Path, case: str) -> None:
    made = DAMAGED[case](tmp_path)
    path = made if isinstance(made, Path) else tmp_path / "x.safetensors" if made is None else tmp_path
    with pytest.raises(FeaturesError, match="what `zoo features` wrote"):
        open_features(path).tensor()


def test_command_tells_of_unreadable_photos(
    zoo: Run, photos: Path, tmp_path: Path, reads: Callable[[object], None]
) -> None:
    code, out, err = zoo("features", ENCODER, photos, "-o", tmp_path / "out", "--shard-size", 4, "--batch-size", 2)
    assert code == 0, err
    assert out == f"{tmp_path}/out: 6 photos in 2 shards, of shape (192,)\n"
    assert "Left out: 1 hidden photo, 1 hidden folder, 1 file that is no photo by its ending." in err
    reads(err.splitlines()[-1])


def test_workers_end_with_the_command(
    model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of the command while a worker waits until its batch, larger than a pipe, is taken."""

    def reading(path: str, **options: Any) -> np.ndarray:
        (tmp_path / "x").write_text(str(os.getpid()))
        os.replace(tmp_path / "x", tmp_path / "worker")
        return read_image(path, **options)

    monkeypatch.setattr("zoo.features.decoding.read_image", reading)
    for number in range(48):
        os.link(photos / "b.png", photos / f"{number}.png")
    process = os.fork()
    if not process:
        monkeypatch.setattr(
            extract, "_forward", lambda *_: time.sleep(60) if (tmp_path / "worker").exists() else _row()
        )
        extract_features(model, "nano", [photos], tmp_path / "out", workers=1)
        os._exit(0)
    _wait_until((tmp_path / "worker").is_file)
    time.sleep(0.3)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    worker = int((tmp_path / "worker").read_text())
    try:
        _wait_until(lambda: not _lives(worker))
    finally:
        if _lives(worker):
            os.kill(worker, signal.SIGKILL)


def _row() -> torch.Tensor:
    return torch.zeros(1, 192)


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
