"""Checkpoints that are made to run code, to fill the memory or to crash: nothing of them is run."""

from __future__ import annotations

import argparse
import builtins
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import (
    reference_state,
    save_pickle_in_legacy,
    save_pickle_in_zip,
    save_training,
    tensor_pickle,
)
from zoo.errors import CorruptWeightsError, UnsafeCheckpointError
from zoo.weights import read_checkpoint, save_safetensors

LEGACY = {"_use_new_zipfile_serialization": False}


class Reduced:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.value = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.value

    def __call__(self) -> None:
        """Pickle wants whatever is called to be callable."""


def hostile_objects(canary: Path) -> dict[str, Any]:
    touch = f"touch {canary}"
    return {
        "os.system": Reduced(os.system, touch),
        "eval": Reduced(builtins.eval, f"__import__('os').system({touch!r})"),
        "exec": Reduced(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "open": Reduced(builtins.open, str(canary), "w"),
        "getattr": Reduced(Reduced(builtins.getattr, Reduced(builtins.__import__, "os"), "system"), touch),
        "subprocess": Reduced(subprocess.Popen, ["touch", str(canary)]),
        "hub": Reduced(torch.hub.load, str(canary.parent), "touch", "local"),
        "torch.load": Reduced(torch.load, str(canary)),
        "state": Reduced(argparse.Namespace, state={"run": Reduced(os.system, touch)}),
        "key": {Reduced(os.system, touch): 1},
    }


@pytest.mark.parametrize("name", hostile_objects(Path("/")))
@pytest.mark.parametrize("container", ["zip", "legacy", "within extra"])
def test_hostile_pickles_run_nothing(tmp_path: Path, name: str, container: str) -> None:
    canary = tmp_path / "canary"
    hostile = hostile_objects(canary)[name]
    path = tmp_path / "c.pth"
    if container == "zip":
        save_pickle_in_zip(path, pickle.dumps(hostile, 4))
    elif container == "legacy":
        save_pickle_in_legacy(path, pickle.dumps(hostile, 2))
    else:
        torch.save({"model": reference_state(), "args": hostile}, path)
    with pytest.raises(UnsafeCheckpointError, match="Nothing was run") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not canary.exists()


RAW = {
    "INST": b"(S'touch CANARY'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch CANARY'\no.",
    "Python 2 module": b"c__builtin__\neval\n(S'1'\ntR.",
    "call of an instance": b"\x80\x04cargparse\nNamespace\n)R)R.",
    "call of a tensor type": b"\x80\x04ctorch\nFloatStorage\n)R.",
    "state of a function": b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.",
    "state of a class": b"\x80\x04cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",
    "extension registry": b"\x80\x02\x82\x01.",
    "named persistent id": b"Pos.system\n.",
}


@pytest.mark.parametrize("name", RAW)
def test_hostile_operations(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    save_pickle_in_zip(tmp_path / "c.pth", RAW[name].replace(b"CANARY", str(canary).encode()))
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(tmp_path / "c.pth")
    assert not canary.exists()


def test_dotted_name_is_refused(tmp_path: Path) -> None:
    save_pickle_in_zip(tmp_path / "c.pth", b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.")
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.hub\.load"):
        read_checkpoint(tmp_path / "c.pth")


def test_state_of_a_tensor_is_refused(tmp_path: Path) -> None:
    """Tensor.__setstate__ would be called by pickle: (storage, offset, size, stride), unchecked."""
    good = tensor_pickle("torch.FloatStorage", "0", 4, 0, (4,), (1,))
    save_pickle_in_zip(tmp_path / "c.pth", good[:-2] + b"(K\x00K\x00K\x00K\x00tbs.", _0=bytes(16))
    with pytest.raises(UnsafeCheckpointError, match="state of an object of type Tensor"):
        read_checkpoint(tmp_path / "c.pth")


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_tests_canary.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Meter: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    state = pickle.dumps({"a": 1}, 2)[2:-1]
    weights = tensor_pickle("torch.FloatStorage", "0", 1, 0, (1,), (1,))[2:-2]  # still open: {"w": tensor
    foreign = b"X\x01\x00\x00\x00xczoo_tests_canary\nMeter\n)\x81" + state + b"b"
    save_pickle_in_zip(tmp_path / "c.pth", b"\x80\x02" + weights + b"s" + foreign + b"s.", _0=bytes(4))
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert vars(checkpoint.extra["x"]) == {"a": 1}
    assert "zoo_tests_canary" not in sys.modules and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride"),
    [
        (4, 0, (5,), (1,)),  # longer than its storage
        (4, 1, (2, 2), (2, 1)),  # beyond its end
        (4, 0, (1 << 40,), (0,)),  # a terabyte, broadcast
        (4, 0, (2,), (-1,)),
        (4, -1, (2,), (1,)),
        (4, 0, (1 << 62, 4), (0, 1)),
        (1 << 50, 0, (4,), (1,)),  # a storage larger than the file
        (-4, 0, (4,), (1,)),
        (2, 0, (2,), (1,)),  # not the size of its entry
    ],
)
def test_impossible_tensors(tmp_path: Path, numel: int, offset: int, size: tuple, stride: tuple) -> None:
    pickled = tensor_pickle("torch.FloatStorage", "0", numel, offset, size, stride)
    save_pickle_in_zip(tmp_path / "c.pth", pickled, _0=bytes(16))
    with pytest.raises(CorruptWeightsError):
        read_checkpoint(tmp_path / "c.pth")
    save_pickle_in_legacy(tmp_path / "c.pth", pickled)
    with pytest.raises(CorruptWeightsError):
        read_checkpoint(tmp_path / "c.pth")


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CorruptWeightsError, match="compressed"):
        read_checkpoint(path)
    many = b")" + b"2\x86" * 64  # a tuple of 2^64 leaves
    deep = b")" + b"\x85" * 200_000
    for pickled in (
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a string of 2^63 bytes
        b"\x80\x02" + many + b".",
        b"\x80\x02" + deep + b".",
        b"\x80\x02}" + many + b"K\x01s.",  # as a key, to be hashed
        b"\x80\x02}" + deep + b"K\x01s.",
        b"\x80\x02" + many + b"Q.",
        b"\x80\x02ctorch\ndevice\n" + many + b"\x85R.",
        b"\x80\x02ctorch\nSize\n" + deep + b"\x85R.",
        b"\x80\x02c__builtin__\nset\n" + many + b"\x85R.",
    ):
        save_pickle_in_zip(path, pickled)
        with pytest.raises((CorruptWeightsError, UnsafeCheckpointError)):
            read_checkpoint(path)


def test_mutated_checkpoints_raise_our_errors_only(tmp_path: Path) -> None:
    generator = random.Random(0)
    path = tmp_path / "c.pth"
    outcomes = {"read": 0, "refused": 0}
    for options in ({}, LEGACY, None):
        if options is None:
            save_safetensors(reference_state(), path, {})
        else:
            save_training(path, reference_state(), **options)
        original = path.read_bytes()
        for _ in range(400):
            mutated = bytearray(original)
            for _ in range(generator.choice((1, 4, 64))):
                # The pickle is in front, the zip's directory at the end.
                position = generator.randrange(min(len(mutated), 4000))
                mutated[generator.choice((position, -1 - position))] = generator.randrange(256)
            if generator.random() < 0.2:
                del mutated[generator.randrange(len(mutated)) :]
            path.write_bytes(mutated)
            try:
                read_checkpoint(path)
                outcomes["read"] += 1
            except (CorruptWeightsError, UnsafeCheckpointError):
                outcomes["refused"] += 1
    for _ in range(500):  # without the zip's checksum in front, the pickle machine itself
        pickled = bytearray(pickle.dumps({"a": [1, (2.0, b"x")], "args": argparse.Namespace(a={1}, b=Path("x"))}, 4))
        for _ in range(generator.choice((1, 3, 20))):
            pickled[generator.randrange(len(pickled))] = generator.randrange(256)
        save_pickle_in_zip(path, bytes(pickled))
        with pytest.raises((CorruptWeightsError, UnsafeCheckpointError)):
            read_checkpoint(path)
    assert outcomes["refused"] > 500 and outcomes["read"] > 0
