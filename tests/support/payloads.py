"""Files that ask for more than they are: of time, of memory, of the interpreter's stack, of the terminal."""

# ruff: noqa: E501 - a table of operations, which breaking lines would not make easier to read

from __future__ import annotations

import json
import pickle
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch

import zoo  # noqa: F401
from tests.support.checkpoints import save_pickle_in_legacy, save_pickle_in_zip

Build = Callable[[Path], object]
PAYLOADS: dict[str, Build] = {}

# ------------------------------------------------------------------------------------- pickles, by operations


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def literal(value: Any) -> bytes:
    pickled = pickle.dumps(value, 2)
    if not isinstance(value, (int, float)):  # which are many, and have no memo
        pickled = pickletools.optimize(pickled)
    return pickled[2:-1]


def call(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def instance(**attributes: bytes) -> bytes:
    """An object of a class that nobody has, with attributes of any kind."""
    items = b"".join(text(key) + value for key, value in attributes.items())
    return b"ca\nB\n)\x81}(" + items + b"ub"


def entry(key: str | bytes, value: bytes) -> bytes:
    """A dictionary with one entry."""
    return b"}" + (text(key) if isinstance(key, str) else key) + value + b"s"


def many(operations: bytes, times: int) -> bytes:
    """A list of what the operations leave on the stack."""
    return b"](" + operations * times + b"e"


def storage(elements: int, key: str = "0", kind: str = "FloatStorage", legacy: bool = False) -> bytes:
    named = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + named + literal(elements) + (b"N" if legacy else b"") + b"tQ"


def tensor(*size: int, stride: tuple[int, ...] | None = None, elements: int = 4, key: str = "0") -> bytes:
    """By default a broadcast one: all its elements are the first of the storage."""
    steps = (0,) * len(size) if stride is None else stride
    arguments = storage(elements, key) + literal(0) + literal(size) + literal(steps) + b"\x89N"
    return call("torch._utils._rebuild_tensor_v2", arguments)


DEEP = b"N" + b"\x85" * 200_000  # a tuple in a tuple in a tuple
LESS_DEEP = b"N" + b"\x85" * 20_000
GRAPH = b"N" + b"2\x86" * 40  # (x, x) of (x, x) of ...: 2^40 of them, if one counts
LISTS = b"]q\xc8" + b"0](h\xc8h\xc8eq\xc8" * 40  # the same of lists
NESTED = b"]" * 50_000 + b"a" * 49_999
FOREIGN = {"deep": DEEP, "less deep": LESS_DEEP, "graph": GRAPH, "lists": LISTS, "nested lists": NESTED}


def in_zip(pickled: bytes, **storages: bytes) -> Build:
    return lambda path: save_pickle_in_zip(path, b"\x80\x02" + pickled + b".", **(storages or {"_0": bytes(16)}))


def in_legacy(*pickles: bytes) -> Build:
    """All five pickles, or the fourth alone."""

    def build(path: Path) -> None:
        if len(pickles) == 1:
            save_pickle_in_legacy(path, b"\x80\x02" + pickles[0] + b".")
        else:
            path.write_bytes(b"".join(b"\x80\x02" + pickled + b"." for pickled in pickles))

    return build


MAGIC, PROTOCOL, MACHINE = literal(0x1950A86A20F9469CFC6C), literal(1001), literal({"little_endian": True})
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _foreign(name: str, value: bytes) -> dict[str, Build]:
    """An object that nobody may look into, wherever one stands."""
    places = {
        "name of a subclass's function": entry(
            "w", call("torch._tensor._rebuild_from_type_v2", instance(name=value), REBUILD, b")", b"N")
        ),
        "function of a subclass": entry("w", call("torch._tensor._rebuild_from_type_v2", value, REBUILD, b")", b"N")),
        "arguments of a subclass": entry(
            "w", call("torch._tensor._rebuild_from_type_v2", REBUILD, REBUILD, value, b"N")
        ),
        "name of a class": entry("w", call("copyreg._reconstructor", instance(name=value), REBUILD, b"N")),
        "class": entry("w", call("copyreg._reconstructor", value, value, value)),
        "type of a number": entry("w", call("numpy.core.multiarray.scalar", call("numpy.dtype", value), text("x"))),
        "state of a type": entry(
            "w",
            call("numpy.core.multiarray.scalar", call("numpy.dtype", text("f8")) + value + b"b", b"C\x08" + bytes(8)),
        ),
        "order of a type": entry(
            "w",
            call(
                "numpy.core.multiarray.scalar",
                call("numpy.dtype", text("f8")) + b"(K\x03" + value + b"tb",
                b"C\x08" + bytes(8),
            ),
        ),
        "size of a tensor": entry(
            "w", call("torch._utils._rebuild_tensor_v2", storage(4), b"K\0", value, value, b"\x89N")
        ),
        "metadata of a tensor": entry(
            "w", call("torch._utils._rebuild_tensor_v2", storage(4), b"K\0)", b")\x89N" + value)
        ),
        "type of a tensor": entry("w", call("torch._utils._rebuild_tensor_v3", storage(4), b"K\0)", b")\x89N" + value)),
        "persistent id": entry("w", b"(" + text("storage") + value + value + text("cpu") + value + b"tQ"),
        "key": entry(value, b"K\1"),
        "set": entry("w", b"\x8f(" + value + b"\x90"),
        "entries": entry("w", call("collections.OrderedDict", value)),
        "elements": entry("w", call("builtins.set", value)),
        "text to encode": entry("w", call("_codecs.encode", value, value)),
        "bytes": entry("w", call("builtins.bytearray", value)),
        "number": entry("w", call("builtins.complex", value, value)),
        "device": entry("w", call("torch.device", value, value)),
        "class to call": entry("w", value + b")R"),
        "state of what can't have one": entry("w", value + b"K\1b"),
        "name of a global": entry("w", value + value + b"\x93"),
        "state dict": entry("model", value),
        "entry of a state dict": entry("model", entry("enc_blocks.0.norm1.weight", value)),
        "whole content": value,
    }
    found = {f"{name} as {place}": in_zip(pickled) for place, pickled in places.items()}
    for key in ("license", "variant", "base_model", "recipe", "args", "architecture", "model_args"):
        about = b"}(" + text("license") + text("mit") + text(key) + value + text("w") + tensor(2) + b"u"
        found[f"{name} as {key}"] = in_zip(about)
    found[f"{name} as legacy magic"] = in_legacy(value, PROTOCOL, MACHINE, b"}", b"]")
    found[f"{name} as legacy protocol"] = in_legacy(MAGIC, value, MACHINE, b"}", b"]")
    found[f"{name} as legacy machine"] = in_legacy(MAGIC, PROTOCOL, value, b"}", b"]")
    found[f"{name} as legacy keys"] = in_legacy(MAGIC, PROTOCOL, MACHINE, b"}", value)
    return found


for _name in ("less deep", "graph"):
    PAYLOADS |= _foreign(_name, FOREIGN[_name])
for _name in ("deep", "lists", "nested lists"):
    found = _foreign(_name, FOREIGN[_name])
    PAYLOADS |= {key: found[key] for key in list(found)[::6]}

# --------------------------------------------------------------------------------------- time and memory

LONG = text("x" * 50_000) + b"q\x00"
BROADCAST = tensor(1 << 20, elements=4) + b"q\x00"


def _numbers_of_one_place(count: int) -> bytes:
    """A dictionary whose places 5 * i + 1 (mod 2^17) are taken, and numbers that have to walk along all of them."""
    size, place, taken = 1 << 17, 0, []
    for _ in range(count):
        taken.append(place)
        place = (5 * place + 1) % size
    stored = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in taken)
    asked = b"J" + struct.pack("<i", size << 8) + b"q\x02N"
    return b"}(" + stored + asked + b"h\x02N" * 200_000 + b"u"


def _spread_memo(count: int) -> bytes:
    size, place, puts = 1 << 17, 0, []
    for _ in range(count):
        puts.append(b"r" + struct.pack("<I", place))
        place = (5 * place + 1) % size
    return (
        b"N"
        + b"".join(puts)
        + b"r"
        + struct.pack("<I", size << 8)
        + (b"j" + struct.pack("<I", size << 8) + b"0") * 200_000
    )


def _colliding_tuples(count: int) -> Iterable[bytes]:
    """(a, b) of many a and each the b that makes the tuple's hash the same (CPython's xxHash of two lanes)."""
    one, two, five, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, (1 << 64) - 1
    inverse = pow(two, -1, 1 << 64)
    a = 0
    while count:
        a += 1
        lane = (five + a * two) & mask
        lane = ((lane << 31) | (lane >> 33)) & mask
        lane = lane * one & mask
        b = (0x1234567 - lane) * inverse & mask
        b = b - (1 << 64) if b >> 63 else b
        if abs(b) < (1 << 61) - 1 and b != -1:
            count -= 1
            yield literal(a) + literal(b) + b"\x86"


PAYLOADS |= {
    "large tuple as a key again and again": in_zip(
        b"(" + text("x" * 1000) + b"q\x00" + b"h\x00" * 2000 + b"tq\x01}(" + b"h\x01N" * 200_000 + b"u"
    ),
    "small tuple as a key again and again": in_zip(b"K\1K\2\x86q\x01}(" + b"h\x01N" * 200_000 + b"u"),
    "large number as a key again and again": in_zip(literal(1 << 1_000_000) + b"q\x01}(" + b"h\x01N" * 100_000 + b"u"),
    "equal long texts as keys": in_zip(LONG + text("x" * 50_000) + b"q\x01}(h\x00N" + b"h\x01N" * 200_000 + b"u"),
    "texts of the longest length as keys": in_zip(
        text("x" * 4096) + b"q\x00" + text("x" * 4096) + b"q\x01}(h\x00N" + b"h\x01N" * 200_000 + b"u"
    ),
    "numbers that collide": in_zip(_numbers_of_one_place(80_000)),
    "complex numbers that collide": in_zip(
        b"}(" + b"".join(call("builtins.complex", literal(1000003.0 * k), literal(float(-k))) + b"N" for k in range(20_000)) + b"u"
    ),
    "tuples that collide": in_zip(b"}(" + b"".join(key + b"N" for key in _colliding_tuples(20_000)) + b"u"),
    "set of tuples that collide": in_zip(b"\x8f(" + b"".join(_colliding_tuples(20_000)) + b"\x90"),
    "spread memo": in_zip(_spread_memo(80_000)),
    "memo far away": in_zip(b"Nr\xff\xff\xff\xff"),
    "memo far away in text": in_zip(b"Np" + b"9" * 4000 + b"\n"),
    "memo with gaps": in_zip(b"N" + b"".join(b"r" + struct.pack("<I", 900 * k) for k in range(100_000))),
    "OrderedDict of a broadcast tensor": in_zip(BROADCAST + many(call("collections.OrderedDict", b"h\x00"), 20)),
    "set of a broadcast tensor": in_zip(BROADCAST + many(call("builtins.set", b"h\x00"), 20)),
    "frozenset of a broadcast tensor": in_zip(BROADCAST + many(call("builtins.frozenset", b"h\x00"), 20)),
    "bytearray of a broadcast tensor": in_zip(BROADCAST + many(call("builtins.bytearray", b"h\x00"), 200)),
    "size that is a broadcast tensor": in_zip(BROADCAST + entry("w", call("torch._utils._rebuild_tensor_v2", storage(4), b"K\0h\0h\0\x89N"))),
    "OrderedDict of itself": in_zip(b"cbuiltins\nset\nq\0" + literal(list(range(5000))) + b"q\1" + many(b"h\0h\1\x85R", 20_000)),
    "pairs that are one": in_zip(b"]" + b"](K\1K\2eq\1" + b"0(" + b"h\1" * 1_000_000 + b"l\x85q\2" + many(b"ccollections\nOrderedDict\nh\2R", 100)),
    "empty lists": in_zip(many(b"]", 5_000_000)),
    "empty dictionaries": in_zip(many(b"}", 5_000_000)),
    "empty sets": in_zip(many(b"\x8f", 5_000_000)),
    "marks": in_zip(b"(" * 5_000_000),
    "nested dictionaries": in_zip(b"}" + b"K\1}" * 1_000_000 + b"s" * 1_000_000),
    "four pickles of empty lists": in_legacy(*[MAGIC, many(b"]", 1_250_000), many(b"}", 1_250_000), many(b"\x8f", 1_250_000), many(b"]", 1_250_000)]),
    "nothing again and again": in_zip(b"N0" * 5_000_000 + b"N"),
    "duplicates": in_zip(b"N" + b"2" * 10_000_000),
    "tuples of duplicates": in_zip(b"N" + b"2\x86" * 3_000_000),
    "objects": in_zip(b"ca\nB\nq\0)q\1" + many(b"h\0h\1\x81", 1_000_000)),
    "attributes of objects": in_zip(literal({str(k): None for k in range(5000)}) + b"q\0ca\nB\n)\x81q\1" + b"h\1h\0b0" * 100_000),
    "items of an object": in_zip(b"ca\nB\n)\x81(" + b"K\1" * 5_000_000 + b"e"),
    "globals": in_zip(many(b"ca\nB\n", 500_000)),
    "globals with long names": in_zip(LONG + many(b"h\0h\0\x93", 20_000)),
    "tensors": in_zip(REBUILD + b"q\0(" + storage(4) + b"K\0" + literal((2,)) + literal((1,)) + b"\x89Ntq\1" + many(b"h\0h\1R", 1_000_000)),
    "tensors thrown away": in_zip(REBUILD + b"q\0(" + storage(4) + b"K\0" + literal((2,)) + literal((1,)) + b"\x89Ntq\1" + b"h\0h\1R0" * 1_000_000 + b"N"),
    "tensors of many dimensions": in_zip(many(tensor(*[1] * 64), 5000)),
    "size of very many dimensions": in_zip(b"(" + b"K\1" * 1_000_000 + b"tq\0" + many(call("torch._utils._rebuild_tensor_v2", storage(4), b"K\0h\0h\0\x89N"), 100)),
    "empty storages": in_legacy(many(b"".join(storage(0, str(k), legacy=True) for k in range(100_000)), 1)),
    "storages as large as one likes": in_legacy(entry("w", storage(1 << 59, legacy=True))),
    "one wide character": in_zip(entry("w", text("x" * 20_000_000 + "\U0001f600"))),
    "one wide character each": in_zip(many(text("x" * 250 + "\U0001f600"), 100_000)),
    "escaped characters": in_zip(many(b"V" + b"x" * 500_000 + b"\\U0001f600\n", 40)),
    "number of a million digits": in_zip(b"I" + b"9" * 1_000_000 + b"\n"),
    "numbers of 4,000 digits": in_zip(many(b"I" + b"9" * 4000 + b"\n", 2000)),
    "float of a million digits": in_zip(b"F" + b"x" * 1_000_000 + b"\n"),
    "binary number of 10 MB": in_zip(b"\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000),
    "text without an end": in_zip(b"V" + b"x" * 10_000_000),
    "length that is negative": in_zip(b"T" + struct.pack("<i", -5)),
    "length beyond the end": in_zip(b"\x8d" + struct.pack("<Q", 1 << 63)),
    "encoded text again and again": in_zip(LONG + text("latin1") + b"q\1" + many(b"c_codecs\nencode\nh\0h\1\x86R", 20_000)),
    "bytearrays again and again": in_zip(literal(b"x" * 50_000) + b"q\0" + many(b"c__builtin__\nbytearray\nh\0\x85R", 20_000)),
    "names of devices": in_zip(LONG + many(b"ctorch\ndevice\nh\0K\0\x86R", 20_000)),
    "bytes of half the file": in_zip(entry("w", b"B" + struct.pack("<I", 30_000_000) + bytes(30_000_000))),
}  # fmt: skip

# --------------------------------------------------------------------------------------- state dicts of all kinds


def state_of(names: Iterable[str], size: tuple[int, ...] = (2,)) -> bytes:
    """A state dict whose tensors are one and the same."""
    return tensor(*size) + b"q\0" + b"0}(" + b"".join(text(name) + b"h\0" for name in names) + b"u"


BLOCKS = ("norm1.weight", "attn.qkv.weight", "mlp.fc1.bias")
PAYLOADS |= {
    "50,000 names": in_zip(entry("model", state_of(f"x{k}" for k in range(50_000)))),
    "50,000 names of the reference": in_zip(
        entry("model", state_of(f"enc_blocks.{k}.{part}" for k in range(17_000) for part in BLOCKS))
    ),
    "19,000 names of the reference": in_zip(
        entry("model", state_of(f"enc_blocks.{k}.{part}" for k in range(6_000) for part in BLOCKS))
    ),
    "1,900 names of the reference, large tensors": in_zip(
        entry("model", state_of((f"enc_blocks.{k}.{part}" for k in range(630) for part in BLOCKS), (1 << 14,)))
    ),
    "1,900 names of another": in_zip(
        entry("model", state_of((f"blocks.{k}.{part}" for k in range(630) for part in BLOCKS), (1 << 14,)))
    ),
    "names of a million characters": in_zip(entry("model", state_of(f"enc_blocks.{k}." + "a." * 500_000 for k in range(10)))),
    "names of 500 characters": in_zip(entry("model", state_of(f"{k:05}." + "a." * 240 for k in range(19_000)))),
    "second names that are large": in_zip(
        entry("model", state_of((f"{d}.{k}.norm1.weight" for k in range(900) for d in ("dec_blocks", "dec_blocks2")), (1 << 20,)))
    ),
    "20,000 broadcast tensors": in_zip(entry("model", state_of((f"x{k}" for k in range(19_000)), (1 << 20,)))),
    "branches that are one": in_zip(
        b"}" + b"".join(text(f"k{k}") + b"Ns" for k in range(5000)) + b"q\1"
        + b"0" + entry("classy_state_dict", entry("base_model", entry("model", b"}(" + b"".join(text(f"b{k}") + b"h\1" for k in range(5000)) + b"u")))
    ),
    "branches with long names": in_zip(
        entry("model", b"}" + LONG + literal(dict.fromkeys(map(str, range(20_000)), 0)) + b"s")
    ),
    "names for the terminal": in_zip(entry("model", state_of(f"\x1b]0;owned\x07\x1b[2J\nNothing is wrong.\r{k}\u202e" for k in range(9)))),
    "top entries for the terminal": in_zip(b"}" + b"".join(text(f"\x1b[2J\n{k}\u202e\x9b") + b"Ns" for k in range(9))),
    "class for the terminal": in_zip(b"cos\x1b[2J\x07.system\nx\n)R"),
    "quantized": lambda path: torch.save({"model": {"enc_norm.weight": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)}}, path),
    "sparse": lambda path: torch.save({"model": {"enc_norm.weight": torch.ones(4, 4).to_sparse()}}, path),
    "float4": in_zip(entry("model", entry("enc_norm.weight", call("torch._utils._rebuild_tensor_v3", storage(16, kind="UntypedStorage"), b"K\0", literal((2,)), literal((1,)), b"\x89Nctorch\nfloat4_e2m1fn_x2\n")))),
    "type that nobody knows": in_zip(entry("model", entry("enc_norm.weight", call("torch._utils._rebuild_tensor_v3", storage(16, kind="UntypedStorage"), b"K\0", literal((2,)), literal((1,)), b"\x89Nctorch\nfloat3_x\n")))),
    "on the meta device": lambda path: torch.save({"model": {"enc_norm.weight": torch.ones(4, device="meta")}}, path),
}  # fmt: skip


def _odd(shape: tuple[int, ...], dtype: torch.dtype) -> Build:
    """All of the small CroCo's own names, with tensors of a shape or type that none of them has."""

    def build(path: Path) -> None:
        names = timm.create_model("croco_nano_patch8_64", device="meta").state_dict()
        torch.save({name: torch.zeros(shape).to(dtype) for name in names}, path)

    return build


for _dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool, torch.uint16, torch.int8):
    PAYLOADS[f"{str(_dtype).removeprefix('torch.')} in place of floats"] = _odd((3, 3), _dtype)
for _shape in ((), (0,), (1,), (0, 0, 0), (1,) * 64, (2, 3, 0, 5), (1 << 19,)):
    PAYLOADS[f"shape {_shape[:5]} of {len(_shape)} axes"] = _odd(_shape, torch.float32)

# ------------------------------------------------------------------------------------------------- zip files


def _zip_of(names: Iterable[str], content: bytes = b"") -> Build:
    def build(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content)

    return build


def _directory_of(entries: int, size: int, apart: bool = False) -> Build:
    """A zip file whose directory lists many members over the same bytes."""

    def build(path: Path) -> None:
        data = bytes(size)
        checksum = zlib.crc32(data)
        local = b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, checksum, size, size, 1, 0) + b"x"
        listed = b"".join(
            b"PK\x01\x02"
            + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, checksum, size, size, 8, 0, 0, 0, 0, 0, 0)
            + b"%08x" % k
            for k in range(entries)
        )
        counted = entries if entries < 0xFFFF else 0xFFFF
        end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, counted, counted, len(listed), len(local) + size, 0)
        if entries >= 0xFFFF:
            place = len(local) + size
            large = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, entries, entries, len(listed), place)
            end = large + b"PK\x06\x07" + struct.pack("<LQL", 0, place + len(listed), 1) + end
        path.write_bytes(local + data + listed + end)

    return build


def _patched(build: Build, *patches: tuple[int, bytes]) -> Build:
    def patched(path: Path) -> None:
        build(path)
        content = bytearray(path.read_bytes())
        for position, patch in patches:
            start = position % len(content)
            content[start : start + len(patch)] = patch
        path.write_bytes(content)

    return patched


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))


SMALL = in_zip(entry("w", tensor(2)))
PAYLOADS |= {
    "zip: entries over the same bytes": _directory_of(5000, 4_000_000),
    "zip: a million entries": _directory_of(1_000_000, 10),
    "zip: 30,000 entries": _zip_of(f"archive/data/{k}" for k in range(30_000)),
    "zip: compressed": _compressed,
    "zip: no pickle": _zip_of(["archive/version"]),
    "zip: two pickles": _zip_of(["a/data.pkl", "b/data.pkl"]),
    "zip: names for the terminal": _patched(_zip_of(["archive/\x1b[2J\n"], b"x"), (40, b"\x07")),
    "zip: large byteorder": _zip_of(["archive/byteorder", "archive/data.pkl"], bytes(10_000_000)),
    "zip: directory beyond the end": _patched(SMALL, (-6, b"\xf0\xff\xff\x7f")),
    "zip: directory of another size": _patched(SMALL, (-10, b"\x01\0\0\0")),
    "zip: more entries than listed": _patched(SMALL, (-14, b"\xff\0\xff\0")),
    "zip: 64 without a record": _patched(SMALL, (-14, b"\xff" * 12)),
    "zip: a comment that is not there": _patched(SMALL, (-2, b"\xff\xff")),
    "zip: only its beginning": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(20_000_000)),
    "zip: only ends": lambda path: path.write_bytes(b"PK\x03\x04" + b"PK\x05\x06" * 2_000_000),
}

# ------------------------------------------------------------------------------------------------ safetensors


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Build:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    return lambda path: path.write_bytes(struct.pack("<Q", size) + raw + data)


def _entry(shape: list[Any], start: int = 0, end: int = 0, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _sparse(head: bytes, size: int) -> Build:
    def build(path: Path) -> None:
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)

    return build


PAYLOADS |= {
    "header: brackets": safetensors(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"),
    "header: braces": safetensors(b'{"a":[' + b"{}," * 1_300_000 + b"{}]}"),
    "header: numbers": safetensors(b'{"a":[' + b"1e9," * 950_000 + b"1]}"),
    "header: 8 MB of brackets": safetensors(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}"),
    "header: nested": safetensors(b'{"a":' + b"[" * 1_000_000),
    "header: nested objects": safetensors(b'{"a":' * 500_000),
    "header: digits": safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "header: 50,000 tensors": safetensors({f"t{k}": _entry([0]) for k in range(50_000)}),
    "header: name of 3 MB": safetensors({"\x1b[2J" * 300_000: _entry([1], 0, 5)}, bytes(5)),
    "header: type of 3 MB": safetensors({"a": _entry([1], 0, 4, "\x1b[2J" * 300_000)}, bytes(4)),
    "header: product of many": safetensors({"a": _entry([1 << 59] * 60, 0, 8)}, bytes(8)),
    "header: product of texts": safetensors({"a": _entry(["a", 10**9], 0, 8)}, bytes(8)),
    "header: shape of a million": safetensors({"a": _entry([1] * 1_000_000, 0, 4)}, bytes(4)),
    "header: places of a million": safetensors({f"a{k}": {"dtype": "F32", "shape": [], "data_offsets": [0] * 100_000} for k in range(10)}),
    "header: of 2 GB": _sparse(struct.pack("<Q", 1 << 31) + b"{", 100_000_000),
    "header: metadata is a list": safetensors({"__metadata__": [1], "a": _entry([1], 0, 4)}, bytes(4)),
    "header: float4": safetensors({"a": _entry([2], 0, 1, "F4")}, bytes(1)),
    "header: float8": safetensors({"encoder.norm.weight": _entry([4], 0, 4, "F8_E5M2")}, bytes(4)),
    "header: names for the terminal": safetensors({"\x1b[2J\nNothing is wrong.\u202e": _entry([1], 0, 4)}, bytes(4)),
    "header: metadata of any size": safetensors({"__metadata__": {"license": "x" * 3_000_000, "variant": "\x1b[2J" * 1000}, "a": _entry([1], 0, 4)}, bytes(4)),
    "sparse zip": _sparse(b"PK\x03\x04", 100_000_000),
    "sparse pickle": _sparse(b"\x80\x02", 100_000_000),
    "sparse nothing": _sparse(b"", 100_000_000),
    "random bytes": lambda path: path.write_bytes(b"\x80\x02" + random.Random(0).randbytes(1_000_000)),
    "empty": lambda path: path.write_bytes(b""),
    "web page": lambda path: path.write_bytes(b"<!doctype html>" + b"x" * 1_000_000),
}  # fmt: skip
