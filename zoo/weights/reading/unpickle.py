"""Reading checkpoint files of any container without running anything in them.

Safetensors, torch's zip files and torch's files from before 1.6 come out as one `Checkpoint`. The pickles in
them are read as data (see zoo/weights/reading/pickles.py). Tensors of the first two are views of the file in memory.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zoo.errors import CorruptWeightsError, UnsafeCheckpointError, WeightsUnavailableError, ZooError, printable
from zoo.weights.disk import files, safetensors_format
from zoo.weights.reading import zips
from zoo.weights.reading.pickles import Grammar, Placeholder, read_pickle
from zoo.weights.reading.rebuild import FUNCTIONS, MAX_NUMBER, PRICES, READABLE, VALUES, Storage, unreadable_kind
from zoo.weights.reading.tape import Budget

_logger = logging.getLogger("zoo")

# Both are written by torch.save(..., _use_new_zipfile_serialization=False), in front of the checkpoint.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# Bytes that the pickles of a file may cost besides those that they have themselves (see zoo/weights/reading/tape.py).
_BUDGET = 100_000_000

_MAX_NAME = 500  # characters of a tensor's name
_MAX_STORAGE_KEY = 100  # characters; torch counts storages, or takes their addresses
# Tensors may share storages, such as the two names of a tied weight. All in all they may be this much larger than
# the file, or a small file could keep whoever compares or copies them busy for ever. A model of nothing but zeros, each
# tensor one number repeated, may be as large as any that is published.
_MAX_SHARED = 4
_SHARED_AT_LEAST = 1 << 32
_AVERAGES = ("state_dict_ema", "model_ema")  # timm takes them in place of the weights that they are averages of

_ALIGNMENT = 16  # bytes of the widest element
_CHUNK = 1 << 24


@dataclass(repr=False, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    tensors: the model's state dict, name by name as in the file.
    extra: everything else, as plain data; other classes' objects are `Placeholder`s (`vars(extra["args"])`). Any of
        it may be of any type, size and depth.
    path: where it was read from. size: of that file in bytes; all of it stays in memory as long as a tensor does.
    mapped: the tensors' data is still on disk. entry: the file's entry that the tensors are of, such as "model"; "" for
        the file itself.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    path: Path
    size: int = 0
    mapped: bool = False
    entry: str = ""

    def __repr__(self) -> str:
        return f"<{printable(str(self.path))}: {len(self.tensors)} tensors>"


def read_checkpoint(path: str | Path, *, mapped: bool = False, checked: bool = True) -> Checkpoint:
    """Read a .safetensors file, a torch checkpoint or a torch checkpoint in the format from before 1.6.

    mapped: leave the tensors' data on disk until it is used. For files that nobody ever writes over: whoever has
    such tensors sees what is written there, and dies of SIGBUS when the file gets shorter. checked: compare the
    checksums of the tensors' data, where the file has them; without it a mapped file is hardly read.

    Raises WeightsUnavailableError if there is no such file, UnsafeCheckpointError if it tries to run code or would
    take more time or memory than one of its size can need, and CorruptWeightsError if it is damaged, of another
    format, without tensors, or if those are of a kind that can't be read (quantized, sparse).
    """
    path = Path(path)
    try:
        with files.open_regular(path) as file:
            read = _container(path, file.read(64))
            if read is _read_safetensors:
                safetensors_format.read_header(path)  # before all the rest is read
            file.seek(0)
            buffer = _in_memory(file, mapped)
    except FileNotFoundError as error:
        raise WeightsUnavailableError(f"There is no checkpoint {path}. Check the path.") from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, ZooError):
            raise
        raise CorruptWeightsError(
            f"{path} can't be read ({files.reason_of(error)}). Check that it is a checkpoint file."
        ) from error
    data = _read_zip(path, buffer, checked) if read is _read_zip else read(path, buffer)
    if isinstance(data, Checkpoint):
        data.mapped = mapped
        return data
    try:
        tensors, extra, entry = find_state_dict(data)
    except UnreadableTensorError as error:
        raise CorruptWeightsError(
            f"{path} holds tensors of a kind that the zoo doesn't read: {error.args[0]}. "
            "Save the model's state dict in a plain type such as float32."
        ) from error
    except LookupError as error:
        raise CorruptWeightsError(
            f"{path} holds no state dict that the zoo knows: {error.args[0]}. "
            "Save the state dict alone, or under 'model' or 'state_dict'."
        ) from error
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _MAX_SHARED * len(buffer) + _SHARED_AT_LEAST:
        raise UnsafeCheckpointError(
            f"{path} holds {len(buffer)} bytes, and its tensors say that they are {claimed}. Don't use this file."
        )
    return Checkpoint(tensors, extra, path, len(buffer), mapped, entry)


def _container(path: Path, head: bytes) -> Callable[[Path, mmap.mmap], Any]:
    """What reads a file that begins like this."""
    if not head:
        raise ValueError("it is empty")
    if head.startswith(zips.MAGIC):
        return _read_zip
    if head[8:9] == b"{":  # before pickles: the length in front of it may begin with any byte
        return _read_safetensors
    if head.startswith(b"\x80"):
        return _read_legacy
    page = head.lstrip()[:1] == b"<"
    raise CorruptWeightsError(
        f"{path} is {'a web page' if page else 'neither a safetensors file nor a torch checkpoint'}. "
        "Get the file again, and open its link in a browser if that keeps happening."
    )


def _in_memory(file: BinaryIO, mapped: bool) -> mmap.mmap:
    if mapped:
        # A private writable mapping: torch wants writable memory, and the file itself never changes.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    buffer = mmap.mmap(-1, files.size_of(file))
    with memoryview(buffer) as whole:
        position = 0
        while position < len(whole):
            with whole[position : position + _CHUNK] as part:
                read = file.readinto(part)  # type: ignore[attr-defined]
            if not read:
                raise ValueError("it got shorter meanwhile")
            position += read
    return buffer


class UnreadableTensorError(LookupError):
    """A state dict holds a tensor that isn't plain numbers."""


def find_state_dict(data: Any) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Split what a checkpoint holds into the model's tensors and everything else, and tell whose entry the tensors are.

    Raises LookupError that says what there was if no tensors are found, UnreadableTensorError (a LookupError) for
    quantized and sparse ones.
    """
    if type(data) is not dict:
        raise LookupError(f"its content is of type {type(data).__name__}, not a dictionary")
    if type(data.get("classy_state_dict")) is dict:  # VISSL
        branches = data["classy_state_dict"]
        for key in ("base_model", "model"):
            branches = branches.get(key) if type(branches) is dict else None
        if type(branches) is dict:
            tensors, _ = _split_branches(branches)
            if tensors:
                rest = {_label(key): value for key, value in data.items() if key != "classy_state_dict"}
                return tensors, rest, "classy_state_dict.base_model.model"
    for name in ("state_dict_ema", "model_ema", "model", "state_dict", "module", "model_state_dict"):
        if type(data.get(name)) is dict:
            tensors, rest = _split_branches(data[name])
            if tensors:
                if name in _AVERAGES and len(data) > 1:
                    _logger.info("took %s, the moving average of the weights, as timm does", name)
                return tensors, {_label(key): value for key, value in data.items() if key != name} | rest, name
    tensors, rest = _split(data)
    if tensors:
        return tensors, rest, ""
    keys = ", ".join(printable(_label(key), 60) for key in list(data)[:10])
    raise LookupError(f"its top-level entries are {keys[:300]}" if data else "it is empty")


def _split(entries: dict[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in entries.items():
        if type(key) is not str or not isinstance(value, (Tensor, Placeholder)):
            rest[_label(key)] = value
        elif isinstance(value, Tensor):
            tensors[key] = value
        elif kind := unreadable_kind(value):
            raise UnreadableTensorError(f"{printable(key)} ({printable(kind)})")
        else:
            rest[key] = value
    if len(tensors) > safetensors_format.MAX_TENSORS or any(len(name) > _MAX_NAME for name in tensors):
        raise LookupError("it has more tensors, or longer names, than any model")
    return tensors, rest


def _label(key: Any) -> str:
    """A dictionary's key as text; those that no checkpoint has are not spelled out, since they may be of any length."""
    return key if type(key) is str else printable(key)


def _split_branches(entries: dict[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same, where a state dict may have branches (VISSL's trunk and heads): their tensors as "branch.name"."""
    tensors, rest = _split(entries)
    if tensors:
        return tensors, rest
    branches = {_label(branch): inner for branch, inner in entries.items() if type(inner) is dict}
    # Many branches may be one and the same dictionary.
    if sum(map(len, branches.values())) > safetensors_format.MAX_TENSORS or any(
        len(branch) > _MAX_NAME for branch in branches
    ):
        raise LookupError("its branches have more entries, or longer names, than any model")
    return _split(
        {f"{branch}.{_label(key)}": value for branch, inner in branches.items() for key, value in inner.items()}
    )


# ----------------------------------------------------------------------------------------- containers


def _read_safetensors(path: Path, buffer: mmap.mmap) -> Checkpoint:
    header = safetensors_format.parse_header(path, buffer)
    tensors: dict[str, Tensor] = {}
    for entry in header.entries:
        start, end, dtype = header.data + entry.start, header.data + entry.end, entry.dtype
        if start == end:
            tensors[entry.name] = torch.empty(entry.shape, dtype=dtype)
            continue
        flat = torch.frombuffer(buffer, dtype=torch.uint8, offset=start, count=end - start)
        if start % dtype.itemsize:  # of another writer, whose header has any length
            flat = flat.clone()
        tensors[entry.name] = flat.view(dtype).reshape(entry.shape)
    return Checkpoint(tensors, dict(header.metadata), path, len(buffer))


def _read_zip(path: Path, buffer: mmap.mmap, checked: bool = True) -> Any:
    try:
        members = zips.zip_members(buffer, checked)
    except ValueError as error:
        raise CorruptWeightsError(f"{path} is damaged: {error}. Get the file again.") from error
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
    start, end = members.get(root + "byteorder", (0, 0))
    if start < end and buffer[start : min(end, start + 10)] != b"little":
        raise CorruptWeightsError(f"{path} was written on a big-endian machine. Convert it on one.")
    storages: dict[str, torch.UntypedStorage] = {}

    def persistent(pid: Any) -> Storage:
        key, dtype, numel = _storage_id(pid, fields=5)
        if key not in storages:
            if f"{root}data/{key}" not in members:
                raise ValueError(f"the data of storage {key} is missing")
            start, end = members[f"{root}data/{key}"]
            storages[key] = _view(buffer, start, end)
        if storages[key].nbytes() != numel * dtype.itemsize:
            raise ValueError(f"storage {key} doesn't have the size that it should have")
        return Storage(storages[key], dtype)

    start, end = members[pickles[0]]
    budget = Budget(_BUDGET + len(buffer))
    return read_pickle(buffer, start, end, _grammar(path, persistent), budget)[0]


def _read_legacy(path: Path, buffer: mmap.mmap) -> Any:
    """A magic number, a protocol version, a description of the machine, the checkpoint, the storages' keys
    (each a pickle of its own), then each storage: its number of elements in 8 bytes, and its data."""
    storages: dict[str, torch.UntypedStorage] = {}
    sizes: dict[str, int] = {}
    total = 0

    def persistent(pid: Any) -> Storage:
        nonlocal total
        key, dtype, numel = _storage_id(pid, fields=6)
        if key not in storages:
            total += numel * dtype.itemsize
            if total > len(buffer):
                raise ValueError("its storages are larger than the file")
            storages[key] = torch.UntypedStorage(numel * dtype.itemsize)
            sizes[key] = numel
        if storages[key].nbytes() != numel * dtype.itemsize:
            raise ValueError(f"storage {key} doesn't have the size that it should have")
        return Storage(storages[key], dtype)

    position, end = 0, len(buffer)
    grammar, budget = _grammar(path, persistent), Budget(_BUDGET + len(buffer))
    parts: list[Any] = []
    for _ in range(5):
        part, position = read_pickle(buffer, position, end, grammar, budget)
        if not parts and (type(part) is not int or part != _LEGACY_MAGIC):
            raise CorruptWeightsError(
                f"{path} is a pickle but not a torch checkpoint. Load it where it was made and save its tensors "
                "with torch.save."
            )
        parts.append(part)
    _, protocol, machine, data, keys = parts
    try:
        if type(protocol) is not int or protocol != _LEGACY_PROTOCOL or type(machine) is not dict:
            raise ValueError("its protocol isn't known here")
        if machine.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        if (
            type(keys) is not list
            or len(keys) != len(storages)
            or not all(type(key) is str and key in storages for key in keys)
            or len(set(keys)) != len(keys)
        ):
            raise ValueError("the list of its storages is wrong")
        for key in keys:
            if end - position < 8 + storages[key].nbytes():
                raise ValueError("it ends early")
            if int.from_bytes(buffer[position : position + 8], "little", signed=True) != sizes[key]:
                raise ValueError(f"storage {key} doesn't have the size that it should have")
            start, position = position + 8, position + 8 + storages[key].nbytes()
            if start < position:
                raw = torch.frombuffer(buffer, dtype=torch.uint8, offset=start, count=position - start)
                torch.empty(0, dtype=torch.uint8).set_(storages[key]).copy_(raw)
    except ValueError as error:
        raise CorruptWeightsError(f"{path} is damaged: {error}. Get the file again.") from error
    return data


def _storage_id(pid: Any, fields: int) -> tuple[str, torch.dtype, int]:
    """Key, element type and number of elements of a storage, from what stands for it in the pickle."""
    if type(pid) is not tuple or len(pid) != fields or any(part is not None for part in pid[5:]):
        raise ValueError("a persistent id that torch.save doesn't write")
    kind, dtype, key, _, numel = pid[:5]
    if [type(part) for part in (kind, dtype, key, numel)] != [str, torch.dtype, str, int] or dtype not in READABLE:
        raise ValueError("a persistent id that torch.save doesn't write")
    if not 0 <= numel < MAX_NUMBER or len(key) > _MAX_STORAGE_KEY:
        raise ValueError("a storage of an impossible size or name")
    return key, dtype, numel


def _view(buffer: mmap.mmap, start: int, end: int) -> torch.UntypedStorage:
    """Bytes of the file as a storage, without a copy where they are aligned, as torch aligns them."""
    if start == end:
        return torch.UntypedStorage(0)
    raw = torch.frombuffer(buffer, dtype=torch.uint8, offset=start, count=end - start)
    return (raw if start % _ALIGNMENT == 0 else raw.clone()).untyped_storage()


def _grammar(path: Path, persistent: Callable[[Any], Storage]) -> Grammar:
    return Grammar(str(path), FUNCTIONS, PRICES, VALUES, persistent)
