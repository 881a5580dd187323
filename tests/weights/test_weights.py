"""From a variant to a verified local file: safe reading, renaming, downloads, cache."""

from __future__ import annotations

import argparse
import builtins
import hashlib
import json
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub_constants
from safetensors.torch import load_file
from torch import Tensor

from tests.support.checkpoints import (
    RULES,
    FileServer,
    Reply,
    convert,
    foreign_object,
    reference_state,
    save_foreign,
    save_pickle_in_legacy,
    save_pickle_in_zip,
    save_training,
    tensor_pickle,
    torch_bytes,
    variant_of,
)
from zoo.catalog import Source
from zoo.errors import (
    CheckpointMismatchError,
    CorruptWeightsError,
    DownloadError,
    StorageError,
    UnsafeCheckpointError,
    WeightsUnavailableError,
)
from zoo.weights import (
    KeyRules,
    Rename,
    cache_dir,
    cached_path,
    check_state,
    fetch,
    files,
    read_checkpoint,
    save_safetensors,
    source_of,
    sources,
    verify,
)
from zoo.weights import download as download_module
from zoo.weights.download import download
from zoo.weights.pickles import Placeholder

ROOT = Path(__file__).parents[2]
LEGACY = {"_use_new_zipfile_serialization": False}
CONTAINERS = pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the test's own, no proxies, short waits."""
    for name in ("ZOO_WEIGHTS", "ZOO_HUB_ORG", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(download_module, "BACKOFF", 0.01)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


# ------------------------------------------------------------------------------------------ containers


@CONTAINERS
def test_training_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    state = reference_state()
    save_training(tmp_path / "c.pth", state, **options)
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert_same(checkpoint.tensors, state)
    args = checkpoint.extra["args"]
    assert isinstance(args, Placeholder) and not isinstance(args, argparse.Namespace)
    assert args.placeholder_of == "argparse.Namespace"
    assert vars(args)["model"] == "CroCoNet(enc_depth=12, dec_depth=8)" and vars(args)["lr"] is None
    assert checkpoint.extra["epoch"] == 3 and checkpoint.extra["scaler"]["_growth_tracker"] == 7
    assert checkpoint.extra["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert checkpoint.extra["optimizer"]["state"][0]["exp_avg"].shape == (1, 1, 8)


@CONTAINERS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"model": OrderedDict(state), "croco_kwargs": {"enc_depth": 12}},
        lambda state: {"state_dict": state, "epoch": 1},
        lambda state: {"module": state},
        lambda state: {"model_state_dict": state},
    ],
)
def test_state_dict_is_found(tmp_path: Path, options: dict[str, Any], wrap: Any) -> None:
    state = reference_state()
    torch.save(wrap(state), tmp_path / "c.pth", **options)
    assert_same(read_checkpoint(tmp_path / "c.pth").tensors, state)


@CONTAINERS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_vissl_checkpoint_with_absent_classes(tmp_path: Path, options: dict[str, Any], protocol: int) -> None:
    trunk = {"_feature_blocks.conv1.weight": torch.randn(4, 3, 7, 7)}
    heads = {"0.clf.0.weight": torch.randn(2, 4)}
    content = {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": trunk, "heads": heads}},
            "losses": [0.5, 0.25],
        },
        "config": foreign_object(steps=[1, 2], best=np.float64(0.75), seen={1, 2}, raw=b"\xff\x00", rng=np.arange(3)),
        "phase_idx": 199,
    }
    save_foreign(tmp_path / "m.torch", content, pickle_protocol=protocol, **options)
    checkpoint = read_checkpoint(tmp_path / "m.torch")
    expected = {f"trunk.{key}": value for key, value in trunk.items()}
    assert_same(checkpoint.tensors, expected | {f"heads.{key}": value for key, value in heads.items()})
    config = checkpoint.extra["config"]
    assert config.placeholder_of == "zoo_tests_absent_module.Meter"
    assert vars(config)["steps"] == [1, 2] and vars(config)["seen"] == {1, 2} and vars(config)["raw"] == b"\xff\x00"
    assert vars(config)["best"] == 0.75 and isinstance(vars(config)["rng"], Placeholder)
    assert checkpoint.extra["phase_idx"] == 199
    assert "zoo_tests_absent_module" not in sys.modules


@CONTAINERS
def test_views_ties_and_types(tmp_path: Path, options: dict[str, Any]) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "offset": base[1:, ::2, 1:4],
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "expanded": torch.arange(3.0)[:, None].expand(3, 9),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            str(dtype): torch.arange(-3, 4).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int16, torch.int32)
            + (torch.uint8, torch.bool, torch.complex64)
        },
    }
    if not options:  # types without a storage class are newer than the legacy format
        state |= {"u16": torch.arange(4).to(torch.uint16), "f8": torch.ones(3).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "c.pth", **options)
    tensors = read_checkpoint(tmp_path / "c.pth").tensors
    f8, tensors_f8 = state.pop("f8", torch.zeros(1)), tensors.pop("f8", torch.zeros(1))
    assert torch.equal(f8.view(torch.uint8), tensors_f8.view(torch.uint8))  # torch.equal knows no float8
    assert_same(tensors, state)
    assert tensors["offset"].stride() == state["offset"].stride()
    assert tensors["base"].data_ptr() == tensors["transposed"].data_ptr()


def test_zip_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4_000_000, dtype=torch.uint8)}, tmp_path / "c.pth")
    tensors = read_checkpoint(tmp_path / "c.pth").tensors
    tensors["w"].add_(1)  # private to this process
    assert read_checkpoint(tmp_path / "c.pth").tensors["w"].sum() == 0


def test_safetensors(tmp_path: Path) -> None:
    state = reference_state()
    save_safetensors(state, tmp_path / "a.safetensors", {"variant": "x"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert_same(checkpoint.tensors, state)
    assert checkpoint.extra == {"variant": "x"}


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(reference_state(), tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(tmp_path / "c.pth").tensors, reference_state())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs", "neither"),
        (pickle.dumps({"a": 1}), "not a torch checkpoint"),
        (torch_bytes({"epoch": 3, "best": 0.5}), "its top-level entries are epoch, best"),
        (torch_bytes([1, 2]), "not a dictionary"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=message):
        read_checkpoint(tmp_path / "c.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")


# -------------------------------------------------------------------------------------- hostile files


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


# ------------------------------------------------------------------------------------------------ rules


def test_rules_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    state = reference_state()
    alias = {"dec_blocks2.0.cross_attn.projq.weight": state["dec_blocks.0.cross_attn.projq.weight"].clone()}
    head = {"prediction_head.weight": torch.ones(1)}
    with caplog.at_level(logging.INFO, "zoo"):
        ours = RULES.to_zoo(state | alias | head, name="v")
    assert "the prediction head" in caplog.text
    assert sorted(ours) == [
        "decoder.blocks.0.cross_attn.q_proj.weight",
        "encoder.blocks.0.attn.qkv.bias",
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.1.attn.qkv.bias",
        "encoder.blocks.1.attn.qkv.weight",
        "mask_token",
    ]
    assert_same(RULES.to_reference(ours), state | alias)
    assert RULES.reference_name("encoder.blocks.11.norm1.weight") == "enc_blocks.11.norm1.weight"
    assert RULES.covers(state) and not RULES.covers([*state, "backbone.conv1.weight"])


def test_rules_are_strict() -> None:
    state = reference_state()
    with pytest.raises(CheckpointMismatchError, match=r"3 tensors \(of 9\).*other\.0, other\.1, other\.2"):
        RULES.to_zoo(state | {f"other.{i}": torch.ones(1) for i in range(3)}, name="v")
    with pytest.raises(CheckpointMismatchError, match="they differ"):
        RULES.to_zoo(state | {"dec_blocks2.0.cross_attn.projq.weight": torch.ones(8, 8)}, name="v")
    with pytest.raises(CheckpointMismatchError, match="no tensor that corresponds to head.weight"):
        RULES.to_reference({"head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="number of wildcards"):
        KeyRules(Rename("a.*.b", "c"))
    with pytest.raises(ValueError, match="ambiguous"):
        KeyRules(Rename("a.*", "x.*"), Rename("b.*", "x.*")).to_zoo({"b.w": torch.ones(1)}, name="v")
    # A wildcard in the middle is a part between dots.
    assert not KeyRules(Rename("blocks.*.w.*", "b.*.w.*")).covers(["blocks.0.attn.w.x"])


def test_any_header_length(tmp_path: Path) -> None:
    """The first bytes of a safetensors file are a length: some look like the beginning of a pickle or a zip."""
    for size in range(0, 256, 8):
        path = tmp_path / "a.safetensors"
        save_safetensors({"a": torch.ones(1)}, path, {"note": "x" * size})
        assert torch.equal(read_checkpoint(path).tensors["a"], torch.ones(1))


def test_check_state(tmp_path: Path) -> None:
    shapes = {"a.weight": (768, 768), "a.bias": (768,), "mlp.weight": (3072, 768), "head.weight": (10, 768)}
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    expected = {name: tensor.to("meta") for name, tensor in state.items()}
    check_state(state, expected, name="v", path="f.pth")
    headless = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    with pytest.raises(CheckpointMismatchError, match=r"f\.pth is no checkpoint of v: it lacks 1 of 4 .*head\.weight"):
        check_state(headless, expected, name="v", path="f.pth")
    large = {
        name: torch.empty([size if size == 10 else size * 4 // 3 for size in shape]) for name, shape in shapes.items()
    }
    with pytest.raises(CheckpointMismatchError, match=r"width 1024 where 768 .*large checkpoint in place of a base"):
        check_state(large | {"extra": torch.empty(1)}, expected, name="v", path="f.pth")


# ------------------------------------------------------------------------------------------------ files


def test_save_is_deterministic_and_atomic(tmp_path: Path) -> None:
    state = reference_state() | {"half": torch.ones(3, dtype=torch.bfloat16), "flag": torch.tensor(True)}
    state["tied"] = state["half"]
    save_safetensors(state, tmp_path / "a.safetensors", {f"key{i}": "v" for i in range(9)})
    backwards = dict(reversed(state.items()))
    save_safetensors(backwards, tmp_path / "b.safetensors", {f"key{i}": "v" for i in reversed(range(9))})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert_same(load_file(tmp_path / "a.safetensors"), state)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_safetensors(reference_state(), tmp_path / "a.safetensors", {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, '
        b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": 1}',
        b'{"a": {"dtype": [], "shape": [4], "data_offsets": [0, 16]}}',
    ],
)
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CorruptWeightsError):
        files.header_digest(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + header)
    with pytest.raises(CorruptWeightsError):
        read_checkpoint(path)


# --------------------------------------------------------------------------------------------- download

CONTENT = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Any:
    with FileServer({"/f.pth": CONTENT}) as server:
        yield server


def test_download(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.pth"
    assert download(server.url + "/f.pth", path, expected_sha256=SHA) == SHA
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["f.pth"]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_cut_transfers_are_resumed(server: FileServer, tmp_path: Path, validator: str) -> None:
    server.headers = lambda content: {validator: '"v1"' if validator == "ETag" else "Sat, 01 Jan 2022 00:00:00 GMT"}
    server.faults = [Reply(cut=70_000), Reply(cut=150_000), Reply(cut=0), Reply(cut=0)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    ranges = [headers.get("Range") for _, _, headers in server.requests]
    assert ranges == [None, "bytes=70000-", *["bytes=220000-"] * 3]  # every byte that arrived is kept


def test_resumed_by_the_next_call(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(cut=100_000)] + [Reply(cut=0)] * 4
    with pytest.raises(DownloadError, match="tried 5 times"):
        download(server.url + "/f.pth", tmp_path / "f.pth")
    assert not (tmp_path / "f.pth").exists()
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    assert server.requests[-1][2]["Range"] == "bytes=100000-"


def test_no_resumption_of_a_changed_file(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(cut=100_000)] + [Reply(cut=0)] * 4
    with pytest.raises(DownloadError):
        download(server.url + "/f.pth", tmp_path / "f.pth")
    server.files["/f.pth"] = changed = bytes(200_000)
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == hashlib.sha256(changed).hexdigest()


def test_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.faults = [Reply(cut=100_000)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    server.faults = [Reply(cut=100_000)] * 9
    with pytest.raises(DownloadError, match="tried 5 times"):
        download(server.url + "/f.pth", tmp_path / "g.pth")


def test_busy_server(server: FileServer, tmp_path: Path) -> None:
    server.faults = [Reply(503, {"Retry-After": "1"}), Reply(429)]
    start = time.monotonic()
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    assert 1.0 <= time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([Reply(404)], "no longer there"),
        ([Reply(403)], "HTTP 403"),
        ([Reply(headers={"Content-Type": "text/html; charset=utf-8"}, body=b"hello")], "web page"),
        ([Reply(body=b"\n <!DOCTYPE HTML><html>log in</html>")], "web page"),
        ([Reply(length=400_000)] * 9, "tried"),
        ([Reply(length=0, body=b"")], "isn't the file that was expected"),
        ([Reply(body=b"something else")], "isn't the file that was expected"),
    ],
)
def test_refused_downloads(server: FileServer, tmp_path: Path, faults: list[Reply], message: str) -> None:
    server.faults = faults
    server.ranges = False
    with pytest.raises(DownloadError, match=message) as caught:
        download(server.url + "/f.pth", tmp_path / "f.pth", expected_sha256=SHA)
    assert server.url + "/f.pth" in str(caught.value)
    assert not (tmp_path / "f.pth").exists()


def test_slow_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "READ_TIMEOUT", 0.2)
    server.faults = [Reply(pause=1.0)]
    assert download(server.url + "/f.pth", tmp_path / "f.pth") == SHA
    server.faults = [Reply(pause=1.0)] * 9
    start = time.monotonic()
    with pytest.raises(DownloadError):
        download(server.url + "/f.pth", tmp_path / "g.pth")
    assert time.monotonic() - start < 2.0


# ------------------------------------------------------------------------------------------------ fetch


@pytest.fixture
def checkpoint_server() -> Any:
    with FileServer({"/CroCo.pth": torch_bytes({"model": reference_state()})}) as server:
        yield server


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_fetch_downloads_converts_records(
    checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    with caplog.at_level(logging.INFO, "zoo"):
        path = fetch(variant, convert)
    assert checkpoint_server.url in caplog.text
    assert path == cached_path(variant) and path.parent == cache_dir()
    assert_same(load_file(path), RULES.to_zoo(reference_state(), name="v"))
    record = source_of(path)
    content = checkpoint_server.files["/CroCo.pth"]
    assert record["source"] == {"kind": "url", "location": checkpoint_server.url + "/CroCo.pth"}
    assert record["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["size"] == path.stat().st_size and record["variant"] == "croco_test.tag"
    assert record["created"].endswith("+00:00") and record["zoo_version"]
    # The other form of the same checkpoint costs no second download.
    fetch(variant_of(*variant.sources, name="croco_other"), convert)
    assert checkpoint_server.gets("/CroCo.pth") == 1


def test_cached_weights_need_no_network(checkpoint_server: FileServer, request: pytest.FixtureRequest) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    path = fetch(variant, convert)
    asked = len(checkpoint_server.requests)
    request.getfixturevalue("no_network")
    start = time.perf_counter()
    assert fetch(variant, convert) == path
    assert time.perf_counter() - start < 0.1
    assert len(checkpoint_server.requests) == asked


def test_damaged_cache_is_found(checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    path = fetch(variant, convert)
    good = path.read_bytes()
    assert [report.problem for report in verify(variant)] == [None, None]  # weights and download

    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit of a tensor
    assert fetch(variant, convert) == path
    assert "has changed since it was written" in str(verify(path)[0].problem)

    path.write_bytes(good[:-10])
    with caplog.at_level(logging.WARNING, "zoo"):
        assert fetch(variant, convert) == path
    assert "fetched again" in caplog.text and path.read_bytes() == good

    files.record_path(path).unlink()  # as if killed between the two
    assert fetch(variant, convert) == path and verify(path)[0].recorded
    assert checkpoint_server.gets("/CroCo.pth") == 1


def test_changed_download_is_refused(checkpoint_server: FileServer) -> None:
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    fetch(variant, convert)
    (downloaded,) = (path for path in (cache_dir() / "downloads").iterdir() if path.suffix == ".pth")
    checkpoint_server.files["/CroCo.pth"] = torch_bytes({"model": reference_state(seed=1)})
    downloaded.write_bytes(b"damaged")
    cached_path(variant).unlink()
    with pytest.raises(WeightsUnavailableError, match="isn't the file that was expected"):
        fetch(variant, convert)
    assert not cached_path(variant).exists()


def test_content_that_does_not_fit_is_an_error(checkpoint_server: FileServer) -> None:
    checkpoint_server.files["/CroCo.pth"] = torch_bytes({"model": {"layer1.weight": torch.ones(1)}})
    variant = variant_of(Source("url", checkpoint_server.url + "/CroCo.pth"))
    with pytest.raises(CheckpointMismatchError):
        fetch(variant, convert)
    assert not cached_path(variant).exists()


def test_next_source_is_tried(checkpoint_server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    url = checkpoint_server.url
    variant = variant_of(Source("url", url + "/gone.pth"), Source("gdrive", "1abc"), Source("url", url + "/CroCo.pth"))
    assert source_of(fetch(variant, convert))["source"]["location"] == url + "/CroCo.pth"


def test_no_network_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB_ORG", "someone")
    use_hub(monkeypatch, f"http://127.0.0.1:{free_port()}")
    variant = variant_of(Source("url", f"http://127.0.0.1:{free_port()}/CroCo.pth"), Source("gdrive", "1abc"))
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch(variant, convert)
    assert time.monotonic() - start < 1.0
    for part in (
        "croco_test.tag",
        "Hub someone/croco_test.tag",
        "refused",
        "drive.google.com",
        "ZOO_WEIGHTS",
    ):
        assert part in str(caught.value)


def test_variant_without_weights(no_network: None) -> None:
    with pytest.raises(WeightsUnavailableError, match="no published weights. Use pretrained=False"):
        fetch(variant_of(), convert)
    assert not cache_dir().exists()


def test_package_and_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    variant = variant_of(Source("package", "nano.safetensors", layout="zoo"))
    with pytest.raises(WeightsUnavailableError, match="not in this installation"):
        fetch(variant, convert)
    mirror = tmp_path / "mirror"
    mirrored = mirror / "croco_test.tag.safetensors"
    monkeypatch.setenv("ZOO_WEIGHTS", str(mirror))
    save_safetensors(reference_state(), mirrored, {})
    assert fetch(variant, convert) == mirrored
    assert [(report.problem, report.recorded) for report in verify(variant)] == [(None, False)]
    mirrored.write_bytes(mirrored.read_bytes()[:-1])
    with pytest.raises(CorruptWeightsError, match="damaged"):
        fetch(variant, convert)

    bundled = sources.BUNDLED / "nano.safetensors"
    save_safetensors(reference_state(), bundled, {})
    with pytest.raises(CorruptWeightsError, match="no record"):
        fetch(variant, convert)
    files.write_record(bundled, variant=variant.name, kind="package", location=bundled.name, source_sha256="")
    assert fetch(variant, convert) == bundled
    assert source_of(bundled)["source"]["kind"] == "package"


def hub_server(content: bytes) -> FileServer:
    server = FileServer({"/someone/croco_test.tag/resolve/main/model.safetensors": content})
    server.headers = lambda body: {
        "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
        "X-Repo-Commit": hashlib.sha1(body).hexdigest(),
    }
    return server


def test_hub_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(reference_state(), tmp_path / "a", {})
    save_safetensors(reference_state(seed=1), tmp_path / "b", {})
    variant = variant_of()
    monkeypatch.setenv("ZOO_HUB_ORG", "someone")
    with hub_server((tmp_path / "a").read_bytes()) as server:
        use_hub(monkeypatch, server.url)
        path = fetch(variant, convert)
        assert_same(load_file(path), reference_state())
        assert source_of(path)["source"]["location"] == "someone/croco_test.tag/model.safetensors"
        assert path.stat().st_nlink == 2  # shared with the Hub's own cache
        asked = len(server.requests)
        assert fetch(variant, convert) == path and len(server.requests) == asked
        # The digest that was seen first is demanded from then on.
        path.unlink()
        server.files = {name: (tmp_path / "b").read_bytes() for name in server.files}
        with pytest.raises(CorruptWeightsError, match="isn't the expected file"):
            fetch(variant, convert)
        # Nothing there: in the message, not as huggingface_hub's own error.
        with pytest.raises(WeightsUnavailableError, match="someone/other.tag can't be had from the Hub"):
            fetch(variant_of(name="other"), convert)


def test_pinned_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_safetensors(reference_state(), tmp_path / "a", {})
    content = (tmp_path / "a").read_bytes()
    revision = hashlib.sha1(content).hexdigest()
    pin = {"repo": "we/them", "revision": revision, "filename": "w.safetensors", "sha256": SHA}
    monkeypatch.setattr(sources, "LOCK_FILE", tmp_path / "weights.lock.json")
    with hub_server(content) as server:
        server.files = {f"/we/them/resolve/{revision}/w.safetensors": content}
        use_hub(monkeypatch, server.url)
        sources.LOCK_FILE.write_text(json.dumps({"croco_test.tag": pin}))
        with pytest.raises(CorruptWeightsError, match="isn't the expected file.*Don't use it"):
            fetch(variant_of(), convert)
        pin["sha256"] = hashlib.sha256(content).hexdigest()
        sources.LOCK_FILE.write_text(json.dumps({"croco_test.tag": pin}))
        path = fetch(variant_of(), convert)
        assert source_of(path)["source"]["location"] == f"we/them/w.safetensors@{revision}"
        assert sum(method == "GET" for method, _, _ in server.requests) == 1
