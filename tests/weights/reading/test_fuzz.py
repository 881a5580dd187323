"""Random and mutated files for the checkpoint readers: only the zoo's errors come out, nothing is imported, run,
written or connected to, and memory stays in proportion to the file."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.checkpoints import reference_state, save_pickle_in_legacy, save_pickle_in_zip, save_training
from zoo.errors import ZooError
from zoo.weights import read_checkpoint, save_safetensors
from zoo.weights.disk import safetensors_format
from zoo.weights.reading.rebuild import FUNCTIONS, VALUES

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, about mutated text

quick = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What reading a file comes to, in the interpreter's own words (sys.addaudithook). Whatever else happens is an escape.
HARMLESS = {"open", "mmap.__new__", "object.__getattr__", "sys._getframe", "array.__new__", "torch.tensor"}

_watching: list[str] | None = None
_thread = threading.get_ident()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None or threading.get_ident() != _thread:
        return
    if event not in HARMLESS or (event == "open" and arguments[1] not in ("r", "rb", None)):
        _watching.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_watch)  # for good: there is no way to remove it


def read_harmlessly(path: Path, read: Callable[[Path], object] = read_checkpoint) -> str:
    """Read a file and check what that did; returns "read" or the error's class."""
    global _watching
    modules = set(sys.modules)
    _watching = events = []
    tracemalloc.start()
    try:
        try:
            read(path)
            outcome = "read"
        except ZooError as error:
            outcome = type(error).__name__
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        _watching = None
        tracemalloc.stop()
    assert not events and set(sys.modules) == modules
    assert peak < 200e6 + 2 * path.stat().st_size, f"{peak} bytes for a file of {path.stat().st_size}"
    return outcome


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where each example is written; what is only imported at the first use has been by now."""
    path = tmp_path_factory.mktemp("fuzz") / "c.pth"
    b"x".decode("cp437")  # names in zip files
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        save_training(path, reference_state(), **options)
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(ZooError):
        read_checkpoint(path)
    save_safetensors(reference_state(), path, {})
    read_checkpoint(path)
    yield path


# ---------------------------------------------------------------------------------------------- pickles


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def literal(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def call(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


NAMES = (*FUNCTIONS, *VALUES, "os.system", "builtins.eval", "builtins.getattr", "argparse.Namespace", "a.B")
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)
values = st.recursive(
    scalars.map(literal) | st.just(STORAGE) | st.just(call("a.B")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: b"(" + b"".join(items) + b"t"),
        st.lists(inner, max_size=4).map(lambda items: b"](" + b"".join(items) + b"e"),
        st.lists(st.tuples(scalars.map(literal), inner), max_size=3).map(
            lambda items: b"}(" + b"".join(key + value for key, value in items) + b"u"
        ),
        st.tuples(st.sampled_from(NAMES), st.lists(inner, max_size=6)).map(lambda made: call(made[0], *made[1])),
    ),
    max_leaves=12,
)
operations = st.one_of(
    st.sampled_from([bytes([code]) for code in range(256)]),
    st.sampled_from(b"q\0 h\0 q\1 h\1 K\3 M\xff\xff \x85 \x86 \x87 0 2 ( t l d e u s a b R \x81 \x93 o Q".split()),
    values,
    st.binary(max_size=6),
)


@quick
@given(st.lists(operations, max_size=30).map(b"".join))
@example(b"}" + literal(1 << 20000) + b"K\x01s")  # a key of more digits than Python prints
@example(b"}" + b"(" + text("x" * 1000) + b"q\x00" + b"h\x00" * 2000 + b"tK\x01s")
def test_any_pickle(path: Path, pickled: bytes) -> None:
    save_pickle_in_zip(path, b"\x80\x02" + pickled + b".", _0=bytes(16))
    read_harmlessly(path)
    save_pickle_in_legacy(path, b"\x80\x02" + pickled + b".")
    read_harmlessly(path)


@quick
@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(values, max_size=7))
def test_any_arguments(path: Path, name: str, arguments: list[bytes]) -> None:
    """Of the functions that pickles may call."""
    save_pickle_in_zip(path, b"\x80\x02}" + text("w") + call(name, *arguments) + b"s.", _0=bytes(16))
    read_harmlessly(path)


LONG = text("x" * 50_000) + b"q\x00"
MANY = 20_000  # times as much is a gigabyte


def repeated(*operations: bytes) -> bytes:
    """A list that gets what the operations leave on the stack, again and again."""
    return b"](" + b"".join(operations) * MANY + b"e"


BOMBS = {
    "encoded text": LONG + text("latin1") + b"q\x01" + repeated(b"c_codecs\nencode\nh\x00h\x01\x86R"),
    "names of devices": LONG + repeated(b"ctorch\ndevice\nh\x00K\x00\x86R"),
    "bytearrays": literal(b"x" * 50_000) + b"q\x00" + repeated(b"c__builtin__\nbytearray\nh\x00\x85R"),
    "sets": literal(list(range(5000))) + b"q\x00" + repeated(b"cbuiltins\nset\nh\x00\x85R"),
    "attributes": literal({str(key): None for key in range(5000)}) + b"q\x00" + repeated(b"ca\nB\n)\x81h\x00b"),
    "names of globals": LONG + repeated(b"h\x00h\x00\x93"),
    "long keys": LONG + b"}(" + b"h\x00" * MANY + b"tK\x00s",
    # {"classy_state_dict": {"base_model": {"model": {"xx...": {"0": 0, "1": 0, ...}}}}} makes "xx....0", "xx....1", ...
    "branches": b"}" + text("classy_state_dict") + b"}" + text("base_model") + b"}" + text("model") + b"}" + LONG
    + literal(dict.fromkeys(map(str, range(MANY)), 0)) + b"ssss",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_bombs(path: Path, name: str) -> None:
    save_pickle_in_zip(path, b"\x80\x04" + BOMBS[name] + b".")
    assert read_harmlessly(path) != "read"


# ------------------------------------------------------------------------------------------- whole files


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The three containers."""
    folder, state = tmp_path_factory.mktemp("originals"), reference_state()
    save_training(folder / "zip", state)
    save_training(folder / "legacy", state, _use_new_zipfile_serialization=False)
    save_safetensors(state, folder / "safetensors", {"variant": "x"})
    return [(folder / name).read_bytes() for name in ("zip", "legacy", "safetensors")]


@quick
@given(
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(-3000, 3000), st.binary(min_size=1, max_size=8)), max_size=8),
    st.none() | st.floats(0, 1),
    st.binary(max_size=40),
)
def test_mutated_files(
    path: Path, originals: list[bytes], which: int, patches: list[tuple[int, bytes]], cut: float | None, tail: bytes
) -> None:
    """Where the structure is: in front for pickles and headers, at the end for the zip's directory."""
    content = bytearray(originals[which])
    for position, patch in patches:
        start = position % len(content)
        content[start : start + len(patch)] = patch
    if cut is not None:
        del content[int(cut * len(content)) :]
    path.write_bytes(content + tail)
    read_harmlessly(path)
    read_harmlessly(path, safetensors_format.header_digest)


@quick
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"<"]), st.binary())
def test_random_files(path: Path, head: bytes, body: bytes) -> None:
    path.write_bytes(head + body)
    assert read_harmlessly(path) != "read"
    read_harmlessly(path, safetensors_format.header_digest)


# ------------------------------------------------------------------------------------------- safetensors

numbers = st.integers(0, 20) | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.booleans() | st.text(max_size=3)
junk = st.recursive(
    numbers | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E4M3", "F4", "C128"]) | junk,
        "shape": st.lists(numbers, max_size=4) | junk,
        "data_offsets": st.tuples(numbers, numbers) | st.lists(numbers, max_size=3) | junk,
        "more": junk,
    },
)
headers = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | junk, max_size=4) | junk


def write_safetensors(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@quick
@given(headers, st.integers(0, 64))
@example({"a": {"dtype": "F32", "shape": ["a", 10**9], "data_offsets": [0, 8]}}, 8)  # a gigabyte of the letter a
@example({"a": {"dtype": "F32", "shape": [[0], 10**9], "data_offsets": [0, 8]}}, 8)
@example({"a": {"dtype": "F32", "shape": [1 << 59] * 2000, "data_offsets": [0, 8]}}, 8)
@example({"a": {"dtype": "F32", "shape": [1 << 59, 0, 1 << 59], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [0] * 65, "data_offsets": [0, 0]}}, 0)
def test_any_header(path: Path, header: Any, size: int) -> None:
    write_safetensors(path, json.dumps(header).encode(), bytes(size))
    read_harmlessly(path)
    read_harmlessly(path, safetensors_format.header_digest)
    read_harmlessly(path, safetensors_format.read_metadata)


@quick
@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.sampled_from(["F32", "U8", "BF16"]), st.lists(st.integers(0, 4), max_size=3)),
        unique_by=lambda entry: entry[0],
        max_size=5,
    )
)
def test_sound_headers_are_read(path: Path, tensors: list[tuple[str, str, list[int]]]) -> None:
    """So that the tests around this one don't pass by refusing everything."""
    header, position = {}, 0
    for name, dtype, shape in tensors:
        size = torch.Size(shape).numel() * {"F32": 4, "U8": 1, "BF16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    write_safetensors(path, json.dumps(header).encode(), bytes(position))
    assert {name: list(value.shape) for name, value in read_checkpoint(path).tensors.items()} == {
        name: shape for name, _, shape in tensors
    }


@quick
@given(st.binary(max_size=60))
def test_headers_that_are_no_json(path: Path, header: bytes) -> None:
    write_safetensors(path, b"{" + header, bytes(8))
    assert read_harmlessly(path) != "read"


def test_a_name_twice(path: Path) -> None:
    """Two readers would take two different ones."""
    one, two = (f'"a": {{"dtype": "U8", "shape": [{size}], "data_offsets": [0, {size}]}}' for size in (4, 8))
    write_safetensors(path, f"{{{one}, {two}}}".encode(), bytes(8))
    assert read_harmlessly(path) != "read"
