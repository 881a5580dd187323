"""Ground truth that can't be read: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py); other inputs of each kind
are in test_maps.py and test_posed.py.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from tests.train.data.test_posed import write as write_scene
from zoo.errors import DataError
from zoo.train.data.matching.maps import read_truth, write_map
from zoo.train.data.matching.pairs import MatchingPairs
from zoo.train.data.posed import PosedPairs

Reads = Callable[[object], None]
DISPARITY = np.linspace(1, 60, 77, dtype=np.float32).reshape(7, 11)


def refused(path: Path, task: str = "stereo", kind: str = "") -> DataError:
    with pytest.raises(DataError) as caught:
        read_truth(path, task, kind)
    return caught.value


def refused_view(folder: Path, **arrays: Any) -> DataError:
    """Of a scene's folder whose first view has other arrays."""
    write_scene(folder)
    path = folder / "view1.npz"
    with np.load(path) as kept:
        np.savez(path, **(dict(kept) | arrays))
    with pytest.raises(DataError) as caught:
        PosedPairs(folder, (48, 64))[0]
    return caught.value


def test_truth_that_is_not_there(tmp_path: Path, reads: Reads) -> None:
    for name in ("none.pfm", "none.png", "none.dsp5", "none.npy"):
        reads(refused(tmp_path / name))


def test_truth_of_an_unknown_kind(tmp_path: Path, reads: Reads) -> None:
    for name in ("x.tif", "x.flo", "x"):  # .flo is flow's
        reads(refused(tmp_path / name))


def test_truth_that_is_a_pipe(tmp_path: Path, reads: Reads) -> None:
    for name in ("x.pfm", "x.png", "x.npy", "x.dsp5"):
        os.mkfifo(tmp_path / name)
        reads(refused(tmp_path / name))
    (tmp_path / "folder.pfm").mkdir()
    reads(refused(tmp_path / "folder.pfm"))


def test_truth_cut_short(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.pfm"
    write_map(path, DISPARITY)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], whole + b"more"):
        path.write_bytes(content)
        reads(refused(path))
    path = tmp_path / "x.flo"
    path.write_bytes(struct.pack("<fii", 202021.25, 11, 7) + bytes(50))
    reads(refused(path, "flow"))


def test_truth_with_a_header_without_sense(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.pfm"
    for header in (b"Pf\n0 7\n-1.0\n", b"Pf\n7 9999999\n-1.0\n", b"Pf\n7 7\nnan\n", b"PF\n7\n"):
        path.write_bytes(header)
        reads(refused(path))


def test_truth_of_another_format(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.flo"
    for content in (b"", b"PIEH", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        path.write_bytes(content)
        reads(refused(path, "flow"))


def test_truth_png_damaged(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 1 << 16, (40, 50)).astype(np.uint16))
    whole = bytearray(path.read_bytes())
    for content in (whole[:-20], whole[:16], b"GIF89a", whole[:900] + b"\0\0" + whole[902:]):
        path.write_bytes(content)
        reads(refused(path))


def test_truth_png_of_8_bits(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.full((8, 8), 9, np.uint8))
    reads(refused(path, kind="kitti"))


def test_truth_png_in_color(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.png"
    for values in (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint16)):
        cv2.imwrite(str(path), values)
        reads(refused(path))


def test_flow_png_without_its_channels(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.png"
    for values in (np.zeros((8, 8), np.uint16), np.zeros((8, 8, 3), np.uint8)):
        cv2.imwrite(str(path), values)
        reads(refused(path, "flow"))


def test_truth_npy_with_objects(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    reads(refused(path))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
    for content in (b"", b"\x80\x04.", b"PK\x03\x04 no zip file", b"\x93NUMPY\x01\x00v\x00" + header):
        path.write_bytes(content)
        reads(refused(path))


def test_truth_npy_without_numbers(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.npy"
    for values in (np.array([["a"]]), np.zeros((3, 4), complex), np.zeros((3, 4), bool)):
        np.save(path, values)
        reads(refused(path))
    with zipfile.ZipFile(path, "w") as file:  # numpy.savez's
        file.writestr("arr_0.npy", b"")
    reads(refused(path))


def test_truth_of_another_shape(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.npy"
    for shape in ((7, 11, 2), (7,), (2, 7, 11)):
        np.save(path, np.ones(shape))
        reads(refused(path))


def test_truth_hdf5_that_claims_too_much(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "x.dsp5"
    with h5py.File(path, "w") as file:
        file.create_dataset("disparity", shape=(200_000, 200_000), chunks=(64, 64), dtype="f4", compression="gzip")
    assert path.stat().st_size < 10_000
    reads(refused(path))
    for other in (np.zeros((3, 4), complex), "text"):
        with h5py.File(path, "w") as file:
            file["disparity"] = other
        reads(refused(path))
    with h5py.File(path, "w") as file:
        file["depth"] = DISPARITY
    reads(refused(path))


def test_truth_of_another_size_than_its_image(tmp_path: Path, reads: Reads) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (11, 8)).save(tmp_path / name)
    write_map(tmp_path / "t.pfm", DISPARITY)
    (tmp_path / "list.txt").write_text("a.png b.png t.pfm")
    with pytest.raises(DataError) as caught:
        MatchingPairs("stereo", tmp_path / "list.txt")[0]
    reads(caught.value)


def test_view_with_a_damaged_file(tmp_path: Path, reads: Reads) -> None:
    write_scene(tmp_path)
    path = tmp_path / "view1.npz"
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], whole[:100] + b"\xff" * 3000 + whole[3100:]):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            PosedPairs(tmp_path, (48, 64))[0]
        reads(caught.value)


def test_view_with_depth_of_another_size(tmp_path: Path, reads: Reads) -> None:
    reads(refused_view(tmp_path, depth=np.ones((40, 64))))


def test_view_without_focal_length(tmp_path: Path, reads: Reads) -> None:
    reads(refused_view(tmp_path, intrinsics=np.zeros((3, 3))))
    reads(refused_view(tmp_path, intrinsics=-np.eye(3)))


def test_view_whose_camera_is_no_pose(tmp_path: Path, reads: Reads) -> None:
    for pose in (np.zeros((4, 4)), np.eye(4)[::-1], np.diag([2.0, 2, 2, 1])):
        reads(refused_view(tmp_path, camera_to_world=pose))
