"""`zoo stereo` and `zoo flow` over pairs, folders and lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models.croco.test_tiles import Ramp
from zoo.cli import matching
from zoo.colors import flow_colors
from zoo.train.data.matching.maps import read_truth, write_map


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Models that find 5 pixels of disparity, and a flow of 3 and -4, everywhere."""
    values = {"stereo": (5.0, 0.0), "flow": (3.0, -4.0, 0.0)}
    monkeypatch.setattr(matching, "load_matcher", lambda model, task: (Ramp(values[task]).eval(), model))
    monkeypatch.chdir(tmp_path)
    for folder in ("left", "right"):
        Path(folder).mkdir()
        for i, name in enumerate(("a.png", "b.jpg")):
            image = np.random.default_rng(i).integers(0, 256, (32 + 8 * i, 40, 3)).astype(np.uint8)
            Image.fromarray(image).save(Path(folder, name))
    for i, name in enumerate("ab"):
        write_map(Path("truth", f"{name}.pfm"), np.full((32 + 8 * i, 40), 5 + i, np.float32))
        write_map(Path("truth_flow", f"{name}.flo"), np.zeros((32 + 8 * i, 40, 2), np.float32))


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; `test_one_pair` does it."""

    def save(figure: None, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    for name in ("draw_stereo", "draw_flow"):
        monkeypatch.setattr(f"zoo.matching.{name}", lambda *shown: None)
    monkeypatch.setattr("zoo.pictures.save_figure", save)


def written(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_folders(zoo: Any, blank_pictures: None) -> None:
    more = ("--truth", "truth", "--points", "clouds", "--depth", "depths", "--focal", "20", "--confidence")
    code, out, err = zoo("stereo", "left", "right", "-o", "out", "--save", "pfm", *more)
    assert code == 0, err
    assert out.split() == ["out", "depths", "clouds"]
    assert written("out") == ["a.pfm", "a.png", "b.pfm", "b.png"]
    assert written("clouds") == ["a.ply", "b.ply"] and written("depths") == ["a.npy", "b.npy"]
    assert (read_truth("out/b.pfm", "stereo") == 5).all() and np.allclose(np.load("depths/a.npy"), 4)
    code, _, err = zoo("flow", "left", "right", "--save", "x.flo", "--truth", "truth_flow")
    assert code == 0, err
    assert written("flow") == ["a.flo", "a.png", "b.flo", "b.png"]
    assert (read_truth("flow/a.flo", "flow") == (3, -4)).all()


def test_lists(zoo: Any, blank_pictures: None) -> None:
    Path("list.txt").write_text(
        "left,right,disparity\nleft/a.png,right/a.png,truth/a.pfm\nright/a.png,left/a.png,truth/a.pfm\n"
    )
    code, _, err = zoo("stereo", "list.txt", "--save", ".npy")
    assert code == 0, err
    assert written("disparity") == ["00000_a.npy", "00000_a.png", "00001_a.npy", "00001_a.png"]  # one name twice
    Path("pairs.txt").write_text("left/a.png right/a.png\nleft/b.jpg right/b.jpg\n")
    assert zoo("flow", "pairs.txt", "-o", "flows")[0] == 0 and written("flows") == ["a.png", "b.png"]


def test_one_pair(zoo: Any) -> None:
    code, out, err = zoo("stereo", "left/a.png", "right/a.png", "--save", "d/disparity.npy", "--truth", "truth/a.pfm")
    assert code == 0, err
    assert "disparity.png" in out and Path("disparity.png").is_file() and (np.load("d/disparity.npy") == 5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("left", "right/a.png"), "is a folder and the other isn't"),
        (("left/a.png",), "alone is no pair"),
        (("left",), "alone is no pair"),
        (("none.txt",), "alone is no pair"),
        (("left", "truth"), "holds 2 photos and truth 0"),
        (("left/a.png", "right/b.jpg"), "differ in size"),
        (("left", "right", "--save", "tif"), "end it with .pfm or .npy"),
        (("left", "right", "--truth", "truth_flow/a.flo"), "no folder with a map"),
        (("left", "right", "--truth", "right"), "a disparity has one, in gray levels"),
        (("left/a.png", "right/a.png", "--truth", "truth/b.pfm"), "give the one that belongs to it"),
        (("left/a.png", "right/a.png", "--points", "x.ply"), "--focal in pixels or --fov"),
        (("left/a.png", "right/a.png", "--points", "x.ply", "--focal", "9", "--fov", "60"), "give one of"),
        (("left/a.png", "right/a.png", "--points", "x.ply", "--fov", "180"), "impossible"),
        (("left/a.png", "right/a.png", "--depth", "x.npy", "--focal", "9", "--baseline", "-1"), "positive one"),
        (("left/a.png", "right/none.png"), "There is no image"),
    ],
)
def test_what_is_refused(zoo: Any, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = zoo("stereo", *arguments)
    assert code == 2 and message in " ".join(err.split())


@pytest.mark.parametrize("command", ["stereo", "flow"])
def test_a_folder_is_no_picture(command: str, zoo: Any) -> None:
    code, _, err = zoo(command, "left/a.png", "right/a.png", "-o", "truth")
    assert code == 2 and "truth is a folder; name the picture in it" in err


def test_a_picture_without_an_ending_is_told_as_it_is_called(zoo: Any) -> None:
    code, out, err = zoo("flow", "left/a.png", "right/a.png", "-o", "here")
    assert code == 0, err
    assert out.split() == ["here.png"] and Path("here.png").is_file()


def test_longer_flow_has_the_color_of_the_longest() -> None:
    """Darker, it would look like an object."""
    flow = np.array([[[3.0, -4.0], [6.0, -8.0], [np.inf, 0.0]]])
    color, longer, unknown = flow_colors(flow, longest=5.0)[0]
    assert np.allclose(color, longer) and color.max() > 0.9 and not unknown.any()
