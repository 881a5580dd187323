"""Files of disparity and flow, written by independent code, and broken ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from zoo.errors import DataError
from zoo.train.data.matching.maps import read_truth, write_map

RNG = np.random.default_rng(0)
DISPARITY = (RNG.random((7, 11)) * 60 + 1).astype(np.float32)
FLOW = (RNG.standard_normal((7, 11, 2)) * 20).astype(np.float32)


def hole(values: np.ndarray) -> np.ndarray:
    """`values` with an unknown pixel."""
    values = values.copy()
    values[2, 3] = np.inf
    return values


def test_pfm_by_opencv(tmp_path: Path) -> None:
    path = tmp_path / "a.pfm"
    cv2.imwrite(str(path), hole(DISPARITY))
    np.testing.assert_array_equal(read_truth(path, "stereo"), hole(DISPARITY))
    cv2.imwrite(str(path), np.dstack([np.zeros((7, 11), np.float32), FLOW[..., 1], FLOW[..., 0]]))  # BGR
    np.testing.assert_array_equal(read_truth(path, "flow"), FLOW)


def test_big_endian_pfm(tmp_path: Path) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n11 7\n1.0\n" + DISPARITY[::-1].astype(">f4").tobytes())
    np.testing.assert_array_equal(read_truth(path, "stereo"), DISPARITY)


def test_flo_by_opencv(tmp_path: Path) -> None:
    path = tmp_path / "a.flo"
    cv2.writeOpticalFlow(str(path), FLOW)
    np.testing.assert_array_equal(read_truth(path, "flow"), FLOW)
    unknown = FLOW.copy()
    unknown[1, 1] = 1.7e9  # Middlebury's mark
    cv2.writeOpticalFlow(str(path), unknown)
    assert np.isinf(read_truth(path, "flow")[1, 1]).all() and np.isfinite(read_truth(path, "flow")).sum() == 2 * 76


def test_kitti_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    levels = np.round(DISPARITY * 256).astype(np.uint16)
    levels[2, 3] = 0
    cv2.imwrite(str(path), levels)
    expected = np.where(levels == 0, np.inf, levels / 256)
    np.testing.assert_array_equal(read_truth(path, "stereo", "kitti"), expected)
    np.testing.assert_array_equal(read_truth(path, "stereo"), expected)
    coded = np.round(FLOW * 64 + 2**15).astype(np.uint16)
    known = np.ones((7, 11), np.uint16)
    known[0] = 0
    cv2.imwrite(str(path), np.dstack([known, coded[..., 1], coded[..., 0]]))
    flow = read_truth(path, "flow")
    assert np.isinf(flow[0]).all()
    np.testing.assert_allclose(flow[1:], FLOW[1:], atol=1 / 127)


def test_png_of_middlebury_and_crestereo(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    levels = RNG.integers(0, 255, (7, 11)).astype(np.uint8)
    cv2.imwrite(str(path), levels)
    np.testing.assert_array_equal(read_truth(path, "stereo", "middlebury"), np.where(levels == 0, np.inf, levels))
    cv2.imwrite(str(path), 32 * levels.astype(np.uint16))
    np.testing.assert_array_equal(read_truth(path, "stereo", "crestereo"), levels)


def test_npy_and_spring(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", DISPARITY.astype(np.float64))
    np.testing.assert_array_equal(read_truth(tmp_path / "a.npy", "stereo"), DISPARITY)
    for name, key, values, task in (("a.dsp5", "disparity", DISPARITY, "stereo"), ("a.flo5", "flow", FLOW, "flow")):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset(key, data=values, compression="gzip")
        np.testing.assert_array_equal(read_truth(tmp_path / name, task), values)


@pytest.mark.parametrize(
    ("name", "values"), [("a.pfm", DISPARITY), ("a.npy", DISPARITY), ("b.flo", FLOW), ("b.npy", FLOW)]
)
def test_written_files_are_read_back(tmp_path: Path, name: str, values: np.ndarray) -> None:
    write_map(tmp_path / name, hole(values))
    np.testing.assert_array_equal(read_truth(tmp_path / name, "stereo" if values.ndim == 2 else "flow"), hole(values))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("pfm"):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED), hole(values))
    if name.endswith("flo"):
        np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / name)), hole(values))


def test_endings_that_cannot_be_written(tmp_path: Path) -> None:
    for name, values in (("a.flo", DISPARITY), ("a.pfm", FLOW), ("a.tif", DISPARITY)):
        with pytest.raises(DataError, match="end it with"):
            write_map(tmp_path / name, values)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"12345")


def noise(path: Path) -> None:
    path.write_bytes(b"\x93\x00\x01" * 50)


def empty(path: Path) -> None:
    path.write_bytes(b"")


WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a.pfm": ("stereo", lambda path: write_map(path, DISPARITY)),
    "a.flo": ("flow", lambda path: write_map(path, FLOW)),
    "a.npy": ("stereo", lambda path: np.save(path, DISPARITY)),
    "a.png": ("stereo", lambda path: cv2.imwrite(str(path), np.full((64, 64), 3, np.uint16))),
    "f.png": ("flow", lambda path: cv2.imwrite(str(path), np.full((64, 64, 3), 3, np.uint16))),
    "a.dsp5": ("stereo", lambda path: h5py.File(path, "w").create_dataset("disparity", data=DISPARITY).file.close()),
    "a.flo5": ("flow", lambda path: h5py.File(path, "w").create_dataset("flow", data=FLOW).file.close()),
}


@pytest.mark.parametrize("damage", [cut, noise, empty])
@pytest.mark.parametrize("name", WRITERS)
def test_broken_files_are_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    task, write = WRITERS[name]
    path = tmp_path / name
    write(path)
    read_truth(path, task)
    damage(path)
    with pytest.raises(DataError, match=name):
        read_truth(path, task)


@pytest.mark.parametrize("name", ["a.pfm", "a.flo"])
def test_files_with_more_than_they_promise(tmp_path: Path, name: str) -> None:
    task, write = WRITERS[name]
    write(tmp_path / name)
    longer(tmp_path / name)
    with pytest.raises(DataError, match="header promises"):
        read_truth(tmp_path / name, task)


def test_impossible_sizes(tmp_path: Path) -> None:
    flo, npy = tmp_path / "x.flo", tmp_path / "x.npy"
    for size in ((-1, 2**30), (0, 4), (2**20, 2**20)):
        flo.write_bytes(struct.pack("<fii", 202021.25, *size))
        with pytest.raises(DataError, match="says that it is"):
            read_truth(flo, "flow")
    np.save(npy, np.zeros((0, 4)))
    with pytest.raises(DataError, match="x.npy"):
        read_truth(npy, "stereo")
