"""Reading checkpoint files of any container without running anything in them.

Safetensors, torch's zip files and torch's files from before 1.6 come out as one `Checkpoint`. The pickles in
them are read as data (see zoo/weights/pickles.py). Tensors of the first two are views of the mapped file.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open
from torch import Tensor

from zoo.errors import CorruptWeightsError, UnsafeCheckpointError, WeightsUnavailableError
from zoo.weights.files import header_digest
from zoo.weights.pickles import Placeholder, Reference, read_pickle

_ZIP_MAGIC = b"PK\x03\x04"
# Both are written by torch.save(..., _use_new_zipfile_serialization=False), in front of the checkpoint.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# A broadcast tensor may be larger than what is stored of it, up to this many elements.
_MAX_BROADCAST = 1 << 20

_MAX_BRANCH = 100  # characters of a branch's name, which is put in front of every key

_ALIGNMENT = 16  # bytes of the widest element
_MAX_DIMENSIONS = 64  # torch's own limit


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    tensors: the model's state dict, name by name as in the file.
    extra: everything else, as plain data; other classes' objects are `Placeholder`s (`vars(extra["args"])`).
    path: where it was read from.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    path: Path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors file, a torch checkpoint or a torch checkpoint in the format from before 1.6.

    Raises WeightsUnavailableError if there is no such file, UnsafeCheckpointError if it tries to run code,
    and CorruptWeightsError if it is damaged, of another format, or without tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # A private writable mapping: torch wants writable memory, and the file itself never changes.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise WeightsUnavailableError(f"There is no checkpoint {path}. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
        raise CorruptWeightsError(f"{path} can't be read ({error}). Check that it is a checkpoint file.") from error

    head = mapped[:64]
    if head.startswith(_ZIP_MAGIC):
        data = _read_zip(path, mapped)
    elif head[8:9] == b"{":  # before pickles: the length in front of it may begin with any byte
        mapped.close()
        return _read_safetensors(path)
    elif head.startswith(b"\x80"):
        data = _read_legacy(path, mapped)
    else:
        page = head.lstrip()[:1] == b"<"
        raise CorruptWeightsError(
            f"{path} is {'a web page' if page else 'neither a safetensors file nor a torch checkpoint'}. "
            "Get the file again, and open its link in a browser if that keeps happening."
        )
    try:
        tensors, extra = find_state_dict(data)
    except LookupError as error:
        raise CorruptWeightsError(
            f"{path} holds no state dict that the zoo knows: {error.args[0]}. "
            "Save the state dict alone, or under 'model' or 'state_dict'."
        ) from error
    return Checkpoint(tensors, extra, path)


def find_state_dict(data: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split what a checkpoint holds into the model's tensors and everything else.

    Raises LookupError that says what there was if no tensors are found.
    """
    if not isinstance(data, dict):
        raise LookupError(f"its content is of type {type(data).__name__}, not a dictionary")
    if isinstance(data.get("classy_state_dict"), dict):  # VISSL
        branches = data["classy_state_dict"]
        for key in ("base_model", "model"):
            branches = branches.get(key) if isinstance(branches, dict) else None
        if isinstance(branches, dict):
            tensors, _ = _split_branches(branches)
            if tensors:
                return tensors, {_label(key): value for key, value in data.items() if key != "classy_state_dict"}
    for name in ("model", "state_dict", "module", "model_state_dict"):
        if isinstance(data.get(name), dict):
            tensors, rest = _split_branches(data[name])
            if tensors:
                return tensors, {_label(key): value for key, value in data.items() if key != name} | rest
    tensors, rest = _split(data)
    if tensors:
        return tensors, rest
    keys = ", ".join(_label(key) for key in list(data)[:10])
    raise LookupError(f"its top-level entries are {keys[:300]}" if data else "it is empty")


def _split(entries: dict[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return tensors, {_label(key): value for key, value in entries.items() if key not in tensors}


def _label(key: Any) -> str:
    """A dictionary's key as text; those that no checkpoint has are not spelled out, since they may be of any length."""
    if isinstance(key, str):
        return key
    short = isinstance(key, (float, type(None))) or (isinstance(key, int) and abs(key) < 1 << 63)
    return str(key) if short else f"<{type(key).__name__}>"


def _split_branches(entries: dict[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same, where a state dict may have branches (VISSL's trunk and heads): their tensors as "branch.name"."""
    tensors, rest = _split(entries)
    if tensors:
        return tensors, rest
    branches = {_label(branch): inner for branch, inner in entries.items() if isinstance(inner, dict)}
    if any(len(branch) > _MAX_BRANCH for branch in branches):
        raise LookupError("its branches have names of any length")
    return _split(
        {f"{branch}.{_label(key)}": value for branch, inner in branches.items() for key, value in inner.items()}
    )


# ----------------------------------------------------------------------------------------- containers


def _read_safetensors(path: Path) -> Checkpoint:
    header_digest(path)  # says what is wrong with a damaged header
    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}), path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CorruptWeightsError(f"{path} can't be read as safetensors ({error}). Get the file again.") from error


def _read_zip(path: Path, mapped: mmap.mmap) -> Any:
    members = _zip_members(path, mapped)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CorruptWeightsError(
            f"{path} is a zip file but not a torch checkpoint: it has no data.pkl. Check that it is the right file."
        )
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in members:
        raise UnsafeCheckpointError(
            f"{path} is a TorchScript program, not a checkpoint. Save the model's state dict from it instead."
        )
    if root + "byteorder" in members and mapped[slice(*members[root + "byteorder"])] != b"little":
        raise CorruptWeightsError(f"{path} was written on a big-endian machine. Convert it on one.")
    storages: dict[str, torch.UntypedStorage] = {}

    def persistent(pid: Any) -> _Storage:
        key, dtype, numel = _storage_id(pid, fields=5)
        if key not in storages:
            start, end = members[f"{root}data/{key}"]
            storages[key] = _view(mapped, start, end)
        if storages[key].nbytes() != numel * dtype.itemsize:
            raise ValueError(f"storage {key} doesn't have the size that it should have")
        return _Storage(storages[key], dtype)

    start, end = members[pickles[0]]
    mapped.seek(start)
    return _read_object(path, _Window(mapped, end), persistent)


def _zip_members(path: Path, mapped: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where each member's bytes are in the file: (start, end). Members must be stored, whole and apart."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise ValueError(f"{info.filename} is compressed, which torch.save never does")
                if info.header_offset < 0 or mapped[info.header_offset : info.header_offset + 4] != _ZIP_MAGIC:
                    raise ValueError(f"{info.filename} has no header")
                name_size, extra_size = struct.unpack_from("<HH", mapped, info.header_offset + 26)
                start = info.header_offset + 30 + name_size + extra_size
                end = start + info.file_size
                if end > len(mapped):
                    raise ValueError(f"{info.filename} is longer than the file")
                if info.filename in members:
                    raise ValueError(f"{info.filename} is there twice")
                # torch writes 0 where it was told not to compute checksums.
                if info.CRC and zlib.crc32(memoryview(mapped)[start:end]) != info.CRC:
                    raise ValueError(f"the checksum of {info.filename} is wrong")
                members[info.filename] = (start, end)
    # zipfile's own errors, and those of numbers that are too large
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, OverflowError, struct.error) as bad:
        raise CorruptWeightsError(f"{path} is damaged: {bad}. Get the file again.") from bad
    spans = sorted(members.values())
    if any(end > following for (_, end), (following, _) in pairwise(spans)):
        raise CorruptWeightsError(f"{path} is damaged: its entries overlap. Get the file again.")
    return members


def _read_legacy(path: Path, mapped: mmap.mmap) -> Any:
    """A magic number, a protocol version, a description of the machine, the checkpoint, the storages' keys
    (each a pickle of its own), then each storage: its number of elements in 8 bytes, and its data."""
    storages: dict[str, torch.UntypedStorage] = {}
    sizes: dict[str, int] = {}
    total = 0

    def persistent(pid: Any) -> _Storage:
        nonlocal total
        key, dtype, numel = _storage_id(pid, fields=6)
        if key not in storages:
            total += numel * dtype.itemsize
            if total > len(mapped):
                raise ValueError("its storages are larger than the file")
            storages[key] = torch.UntypedStorage(numel * dtype.itemsize)
            sizes[key] = numel
        if storages[key].nbytes() != numel * dtype.itemsize:
            raise ValueError(f"storage {key} doesn't have the size that it should have")
        return _Storage(storages[key], dtype)

    stream = _Window(mapped, len(mapped))
    magic = _read_object(path, stream, persistent)
    if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
        raise CorruptWeightsError(
            f"{path} is a pickle but not a torch checkpoint. Load it where it was made and save its tensors "
            "with torch.save."
        )
    protocol = _read_object(path, stream, persistent)
    machine = _read_object(path, stream, persistent)
    data = _read_object(path, stream, persistent)
    keys = _read_object(path, stream, persistent)
    try:
        if protocol != _LEGACY_PROTOCOL or machine["little_endian"] is not True:
            raise ValueError("its protocol isn't known here")
        if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
            raise ValueError("the list of its storages is wrong")
        position = mapped.tell()
        for key in keys:
            (numel,) = struct.unpack_from("<q", mapped, position)
            start, end = position + 8, position + 8 + storages[key].nbytes()
            if numel != sizes[key] or end > len(mapped):
                raise ValueError("it ends early")
            storages[key].copy_(_view(mapped, start, end), False)
            position = end
    except (ValueError, TypeError, LookupError, RuntimeError, struct.error) as error:
        raise CorruptWeightsError(f"{path} is damaged: {error}. Get the file again.") from error
    return data


def _storage_id(pid: Any, fields: int) -> tuple[str, torch.dtype, int]:
    """Key, element type and number of elements of a storage, from what stands for it in the pickle."""
    if not isinstance(pid, tuple) or len(pid) != fields or any(part is not None for part in pid[5:]):
        raise ValueError("a persistent id that torch.save doesn't write")
    kind, dtype, key, _, numel = pid[:5]
    if [type(part) for part in (kind, dtype, key, numel)] != [str, torch.dtype, str, int] or numel < 0:
        raise ValueError("a persistent id that torch.save doesn't write")
    return key, dtype, numel


def _view(mapped: mmap.mmap, start: int, end: int) -> torch.UntypedStorage:
    """Bytes of the file as a storage, without a copy where they are aligned, as torch aligns them."""
    if start == end:
        return torch.UntypedStorage(0)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, offset=start, count=end - start)
    return (raw if start % _ALIGNMENT == 0 else raw.clone()).untyped_storage()


class _Window:
    """A mapped file from its position up to `end`, as a stream."""

    def __init__(self, mapped: mmap.mmap, end: int) -> None:
        self.mapped = mapped
        self.end = end
        self.tell = mapped.tell

    def read(self, size: int) -> bytes:
        return self.mapped.read(min(size, self.end - self.mapped.tell()))

    def readline(self) -> bytes:
        start = self.mapped.tell()
        newline = self.mapped.find(b"\n", start, self.end)
        return self.read((newline if newline >= 0 else self.end) + 1 - start)


def _read_object(path: Path, stream: Any, persistent: Callable[[Any], _Storage]) -> Any:
    return read_pickle(stream, file=str(path), functions=_FUNCTIONS, values=_VALUES, persistent=persistent)


# ------------------------------------------------------------------------ what the pickles may name


@dataclass(frozen=True)
class _Storage:
    """A storage and the element type that the pickle gives to it."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype, metadata: Any = None) -> Tensor:
    """A strided view of a storage that is known to lie within: `Tensor.set_` would enlarge the storage."""
    if (
        not isinstance(storage, _Storage)
        or not isinstance(size, (tuple, list))
        or not isinstance(stride, (tuple, list))
    ):
        raise TypeError("a tensor that isn't made from storage, size and stride")
    numbers = (offset, *size, *stride)
    if not len(size) == len(stride) <= _MAX_DIMENSIONS or any(
        type(number) is not int or not 0 <= number < 1 << 60 for number in numbers
    ):
        raise ValueError("a tensor of an impossible size")
    if not isinstance(dtype, torch.dtype) or (metadata is not None and metadata != {}):
        raise ValueError("a tensor with a lazy conjugate or sign")
    stored = storage.untyped.nbytes() // dtype.itemsize
    numel = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride))
    if numel and (last >= stored or numel > max(stored, _MAX_BROADCAST)):
        raise ValueError(f"a tensor of size {tuple(size)} in a storage of {stored} elements")
    # An empty tensor's offset and strides may be anything.
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset if numel else 0, tuple(size), tuple(stride))


def _tensor_v1(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return _tensor(storage, offset, size, stride, storage.dtype)


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> Tensor:
    return _tensor(storage, offset, size, stride, storage.dtype, metadata)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _tensor_of_subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A tensor of another class, or with attributes of its own: the plain tensor."""
    return _REBUILDERS[function.name](*args)


def _numpy_scalar(dtype: Any, raw: Any) -> int | float | bool | complex:
    """A numpy number as a Python one; `dtype` is the placeholder of numpy.dtype("f8", False, True)."""
    code = dtype.placeholder_args[0]
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"):
        raise ValueError("a numpy number of an unknown type")
    if isinstance(dtype.placeholder_state, tuple) and dtype.placeholder_state[1:2] == (">",):
        code = ">" + code
    (number,) = np.frombuffer(raw, dtype=code).tolist()
    return number


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are written in pickles of protocol 2, torch's default."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError("an encoding that isn't of bytes")
    return text.encode("latin-1")


def _bytearray(content: Any = b"", encoding: Any = None) -> bytearray:
    return bytearray(_encode(content, encoding) if encoding is not None else memoryview(content))


def _mapping(entries: Any = ()) -> dict[Any, Any]:
    """An OrderedDict with entries of its own in protocol 0 and 1 (later ones set them afterwards)."""
    return {key: value for key, value in entries if isinstance(key, (str, int))}


def _elements(entries: Any = ()) -> set[Any]:
    return {
        entry for entry in entries if isinstance(entry, (str, int, float, bytes, type(None), Placeholder, Reference))
    }


_REBUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type": _tensor_of_subclass,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_subclass,
    "torch.Size": lambda size: size,
    "torch.device": lambda kind, *index: kind + "".join(f":{number:d}" for number in index),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_factory: {},
    "builtins.set": _elements,
    "builtins.frozenset": lambda entries=(): frozenset(_elements(entries)),
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": lambda kind, _base, _state: Placeholder(kind.name),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_VALUES: dict[str, Any] = {
    **{f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGE_TYPES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
