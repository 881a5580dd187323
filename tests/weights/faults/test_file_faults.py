"""What can be wrong with a file of weights: rows of docs/faults.md.

`reads` holds a message against the row of the test that calls it (see tests/conftest.py).
"""

from __future__ import annotations

import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import zoo  # noqa: F401
from tests.support.checkpoints import FileServer, convert, save_pickle_in_zip, torch_bytes, variant_of
from tests.support.fetching import ON_HUB, REPO, STATE, WEIGHTS, Reads, arrived, refused
from zoo.catalog import Source, Variant
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, UnsafeCheckpointError, ZooError
from zoo.weights import cached_path, fetch, save_safetensors, sources
from zoo.weights.disk import files

ENCODER = "croco_nano_patch8_64"


def nano_state() -> dict[str, torch.Tensor]:
    return dict(timm.create_model(ENCODER).state_dict())


def create(path: Path) -> torch.nn.Module:
    return timm.create_model(ENCODER, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def not_created(path: Path, kind: type[ZooError]) -> ZooError:
    with pytest.raises(kind) as caught:
        create(path)
    return caught.value


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def write_huge_header(path: Path) -> None:
    """A header that says 2 GB, and is as long: a file with a hole, that takes no space."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 << 30) + b'{"a": ')
        file.truncate((2 << 30) + 100)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(ON_HUB[:-1000]),
    "lying": lambda path: path.write_bytes(with_header({"a": entry([1000], 0, 8)}, bytes(8))),
    "huge": write_huge_header,
    "overlapping": lambda path: path.write_bytes(
        with_header({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}, bytes(16))
    ),
}


def damaged(tmp_path: Path, damage: str) -> Path:
    path = tmp_path / "own.safetensors"
    DAMAGES[damage](path)
    return path


def test_file_truncated(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "truncated"), CorruptWeightsError))


def test_file_with_a_lying_header(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "lying"), CorruptWeightsError))


def test_file_with_a_huge_header(tmp_path: Path, reads: Reads) -> None:
    start = time.monotonic()
    reads(not_created(damaged(tmp_path, "huge"), CorruptWeightsError))
    assert time.monotonic() - start < 1


def test_file_with_overlapping_tensors(tmp_path: Path, reads: Reads) -> None:
    reads(not_created(damaged(tmp_path, "overlapping"), CorruptWeightsError))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["bundled", "mirror", "cache", "hub", "url", "own"])
def test_no_place_is_trusted(
    place: str,
    damage: str,
    server: FileServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A damaged safetensors file is found wherever it lies, and replaced where it is the zoo's to replace."""
    path, variant = damaged(tmp_path, damage), variant_of()
    if place == "own":
        not_created(path, CorruptWeightsError)
        return
    if place == "bundled":
        variant = variant_of(Source("package", "nano.safetensors", layout="zoo"))
        sources.BUNDLED.mkdir()
        path.rename(sources.BUNDLED / "nano.safetensors")
        files.write_json(sources.BUNDLED / "nano.safetensors.json", {"size": 1})
    elif place == "mirror":
        monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "mirror"))
        (tmp_path / "mirror").mkdir()
        path.rename(tmp_path / "mirror" / "croco_test.tag.safetensors")
    elif place == "cache":
        variant = variant_of(Source("url", server.url + "/CroCo.pth"))
        fetch(variant, convert)
        path.rename(cached_path(variant))
        arrived(variant)
        return
    else:
        with path.open("rb") as file:
            content = file.read(1 << 20)  # the hole needs no sending
        if place == "url":
            server.files["/w.safetensors"] = content
            variant = variant_of(Source("url", server.url + "/w.safetensors", layout="zoo"))
        else:
            request.getfixturevalue("hub").add_files(REPO, {"model.safetensors": content})
    refused(variant, CorruptWeightsError)


def test_file_of_another_variant(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants may have the same keys and shapes, and nothing but the record tells them apart."""
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path))
    save_safetensors(WEIGHTS, tmp_path / "croco_test.tag.safetensors", {"variant": "croco_other.tag"})
    reads(refused(variant_of(), CheckpointMismatchError))


def test_file_of_another_size(tmp_path: Path, reads: Reads) -> None:
    large = {
        name: tensor if name.startswith("patch_embed") else torch.zeros([2 * size for size in tensor.shape])
        for name, tensor in nano_state().items()
    }
    save_safetensors(large, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_of_integers(tmp_path: Path, reads: Reads) -> None:
    save_safetensors({k: v.to(torch.int8) for k, v in nano_state().items()}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_of_other_floats(tmp_path: Path) -> None:
    state = nano_state()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        save_safetensors({key: value.to(dtype) for key, value in state.items()}, tmp_path / "own.safetensors", {})
        for key, value in create(tmp_path / "own.safetensors").state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, state[key].to(dtype).float())


def test_file_with_missing_tensors(tmp_path: Path, reads: Reads) -> None:
    state = {name: tensor for name, tensor in nano_state().items() if not name.startswith("norm.")}
    save_safetensors(state, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_with_extra_tensors(tmp_path: Path, reads: Reads) -> None:
    save_safetensors(nano_state() | {"backdoor": torch.ones(1)}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


def test_file_with_a_reshaped_tensor(tmp_path: Path, reads: Reads) -> None:
    state = nano_state()
    save_safetensors(state | {"norm.weight": state["norm.weight"][None]}, tmp_path / "own.safetensors", {})
    reads(not_created(tmp_path / "own.safetensors", CheckpointMismatchError))


class _Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_pickle_with_code(server: FileServer, variant: Variant, reads: Reads, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    server.files["/CroCo.pth"] = torch_bytes({"model": STATE, "args": _Command(f"touch {canary}")})
    reads(refused(variant, UnsafeCheckpointError))
    assert not canary.exists()


def test_zip_bomb(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "own.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    reads(not_created(path, CorruptWeightsError))


def test_pickle_bomb(tmp_path: Path, reads: Reads) -> None:
    """A small pickle whose calls would make a hundred thousand copies of its largest text."""
    text, copies = b"x" * 200_000, 100_000
    pickled = b"\x80\x02ctorch\ndevice\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01]"
    pickled += b"h\x00h\x01K\x00\x86Ra" * copies + b"."  # append(torch.device(text, 0))
    save_pickle_in_zip(tmp_path / "own.pth", pickled)
    reads(not_created(tmp_path / "own.pth", UnsafeCheckpointError))
