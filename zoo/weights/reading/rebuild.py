"""What the pickles of checkpoints may name: functions of ours that stand for torch's, numpy's and Python's own.

A pickle hands them anything. Each looks at the types of what it is handed before it does anything else with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.weights.reading.pickles import Placeholder, Reference

MAX_NUMBER = 1 << 60  # of elements, or of steps from one to the next

# A broadcast tensor may be larger than what is stored of it, up to this many elements: those of the largest tensor in a
# published model are 46 million.
_MAX_BROADCAST = 1 << 26
_MAX_DIMENSIONS = 64  # torch's own limit

_REBUILD = "torch._utils._rebuild_"

# Plain numbers, which torch can convert into one another.
READABLE = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.complex64, torch.complex128),
    )
)


@dataclass(frozen=True)
class Storage:
    """A storage and the element type that the pickle gives to it."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype


def unreadable_kind(value: Placeholder) -> str | None:
    """What stands for a tensor that isn't plain numbers: its kind, such as "qtensor"; None for other objects."""
    return value.placeholder_of.removeprefix(_REBUILD) if value.placeholder_of.startswith(_REBUILD) else None


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any = None
) -> Tensor | Placeholder:
    """A strided view of a storage that is known to lie within: `Tensor.set_` would enlarge the storage."""
    if type(storage) is not Storage or type(size) not in (tuple, list) or type(stride) not in (tuple, list):
        raise TypeError("a tensor that isn't made from storage, size and stride")
    if not len(size) == len(stride) <= _MAX_DIMENSIONS:
        raise ValueError("a tensor of impossibly many dimensions")
    if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in (offset, *size, *stride)):
        raise ValueError("a tensor of an impossible size")
    if metadata is not None and (type(metadata) is not dict or metadata):
        raise ValueError("a tensor with a lazy conjugate or sign")
    if type(dtype) is Reference:  # of a torch that is newer than this one
        return Placeholder(_REBUILD + dtype.name.removeprefix("torch."))
    if type(dtype) is not torch.dtype:
        raise TypeError("a tensor of a type that is none")
    if dtype not in READABLE:
        return Placeholder(_REBUILD + str(dtype).removeprefix("torch."))
    stored = storage.untyped.nbytes() // dtype.itemsize
    numel = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride))
    if numel and (last >= stored or numel > max(stored, _MAX_BROADCAST)):
        raise ValueError(f"a tensor of {numel} elements in a storage of {stored}")
    # An empty tensor's offset and strides may be anything.
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset if numel else 0, tuple(size), tuple(stride))


def _tensor_v1(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    return _tensor(storage, offset, size, stride, storage.dtype if type(storage) is Storage else None)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None) -> Any:
    return _tensor(storage, offset, size, stride, storage.dtype if type(storage) is Storage else None, metadata)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Any:
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _tensor_of_subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A tensor of another class, or with attributes of its own: the plain tensor."""
    if type(function) is not Reference or type(args) is not tuple:
        raise TypeError("a tensor of a class of its own that isn't made by a function")
    rebuild = _REBUILDERS.get(function.name)
    return rebuild(*args) if rebuild else Placeholder(function.name, args)


def _reconstructor(kind: Any, _base: Any, _state: Any) -> Placeholder:
    """How objects are made in pickles of protocol 0 and 1."""
    if type(kind) is not Reference:
        raise TypeError("an object that is of no class")
    return Placeholder(kind.name)


_NUMBERS = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))


def _numpy_scalar(dtype: Any, raw: Any) -> int | float | bool | complex:
    """A numpy number as a Python one; `dtype` is the placeholder of numpy.dtype("f8", False, True)."""
    if type(dtype) is not Placeholder or dtype.placeholder_of != "numpy.dtype" or type(raw) is not bytes:
        raise TypeError("a numpy number that isn't made from a type and bytes")
    code = dtype.placeholder_args[0] if dtype.placeholder_args else None
    if type(code) is not str or code not in _NUMBERS or len(raw) > 16:
        raise ValueError("a numpy number of an unknown type")
    state = dtype.placeholder_state
    order = state[1] if type(state) is tuple and len(state) > 1 else None
    (number,) = np.frombuffer(raw, dtype=(">" if type(order) is str and order == ">" else "<") + code).tolist()
    return number


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are written in pickles of protocol 2, torch's default."""
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("an encoding that isn't of bytes")
    return text.encode("latin-1")


def _bytearray(content: Any = b"", encoding: Any = None) -> bytearray:
    if type(content) is str:
        return bytearray(_encode(content, encoding))
    if type(content) not in (bytes, bytearray):
        raise TypeError("a bytearray that isn't made from bytes")
    return bytearray(content)


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("a complex number that isn't made from two numbers")
    return complex(real, imaginary)


def _size(size: Any = ()) -> Any:
    if type(size) is not tuple:
        raise TypeError("a size that is no tuple")
    return size


def _layout(name: Any) -> str:
    """Of a sparse tensor, which isn't read; its file may hold others."""
    if type(name) is not str:
        raise TypeError("a layout without a name")
    return name


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or not (index is None or (type(index) is int and 0 <= index < 1 << 16)):
        raise TypeError("a device that isn't made from a name and a number")
    return kind if index is None else f"{kind}:{index}"


_REBUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type": _tensor_of_subclass,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_subclass,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "collections.defaultdict": lambda *_factory: {},
    "builtins.complex": _complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

_TENSOR = 1200  # bytes that a tensor takes besides its data
PRICES = {name: _TENSOR for name in FUNCTIONS if name.startswith("torch._")}

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
    # of quantized tensors, which aren't read; their file may hold others
    "QUInt8Storage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
VALUES: dict[str, Any] = {
    **{f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGE_TYPES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
