"""The directory of a torch checkpoint's zip file, checked before anything of its content is looked at.

Python's zipfile makes an object of every entry, of millions too, and trusts the directory where it lies about places
and sizes. torch writes a simple form of zip: nothing is compressed, encrypted or spread over several files.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from itertools import pairwise

from zoo.errors import printable

MAGIC = b"PK\x03\x04"
_MAX_ENTRIES = 100_000  # one for each storage of a checkpoint; large training checkpoints have 10^4
_END = struct.Struct("<4s4H2LH")  # signature, disks (2), entries (2), size and place of the directory, comment's length
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_CHUNK = 1 << 20


def zip_members(buffer: mmap.mmap, checked: bool = True) -> dict[str, tuple[int, int]]:
    """Where each member's bytes are in the file: (start, end). Members must be stored, whole and apart.

    checked: compare the checksums of tensors' data too, which reads all of the file; else only those of the rest.
    Raises ValueError that says what is wrong.
    """
    count, start, end = _directory(buffer)
    if count > _MAX_ENTRIES or (end - start) // _ENTRY.size < count:
        raise ValueError(f"its directory lists {count} entries")
    members: dict[str, tuple[int, int]] = {}
    checksums: dict[str, int] = {}
    position = start
    for _ in range(count):
        name, span, checksum, position = _entry(buffer, position, end)
        if name in members:
            raise ValueError(f"{printable(name)} is there twice")
        members[name], checksums[name] = span, checksum
    if position != end:
        raise ValueError("its directory has another size than it says")
    if any(end > following for (_, end), (following, _) in pairwise([*sorted(members.values()), (start, start)])):
        raise ValueError("its entries overlap")
    for name, span in members.items():
        if not checked and "/data/" in name:
            continue
        # torch writes 0 where it was told not to compute checksums.
        if checksums[name] and _checksum(buffer, *span) != checksums[name]:
            raise ValueError(f"the checksum of {printable(name)} is wrong")
    return members


def _directory(buffer: mmap.mmap) -> tuple[int, int, int]:
    """How many entries there are, and where their list starts and ends."""
    size = len(buffer)
    last = buffer.rfind(b"PK\x05\x06", max(0, size - _END.size - 0xFFFF))
    if last < 0 or last + _END.size > size:
        raise ValueError("its end is missing, where a zip file lists what is in it")
    _, disk, first_disk, _, count, length, start, comment = _END.unpack_from(buffer, last)
    if disk or first_disk or last + _END.size + comment != size:
        raise ValueError("the end of its list of entries is wrong")
    end = last
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):  # they are in a record for larger numbers
        locator = last - _END64_LOCATOR.size
        if locator < 0 or buffer[locator : locator + 4] != b"PK\x06\x07":
            raise ValueError("the end of its list of entries is wrong")
        end = _END64_LOCATOR.unpack_from(buffer, locator)[2]
        if end > locator - _END64.size or buffer[end : end + 4] != b"PK\x06\x06":
            raise ValueError("the end of its list of entries is wrong")
        _, _, _, _, disk, first_disk, _, count, length, start = _END64.unpack_from(buffer, end)
        if disk or first_disk:
            raise ValueError("it is a part of several")
    if start + length > end:
        raise ValueError("its list of entries ends after its end")
    return count, start, start + length


def _entry(buffer: mmap.mmap, position: int, end: int) -> tuple[str, tuple[int, int], int, int]:
    """Name, place, checksum of the entry whose description is at `position`, and where the next one's is."""
    if position + _ENTRY.size > end:
        raise ValueError("its directory ends early")
    fields = _ENTRY.unpack_from(buffer, position)
    magic, _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size, comment_size, *_ = fields
    header = fields[-1]
    after = position + _ENTRY.size + name_size + extra_size + comment_size
    if magic != b"PK\x01\x02" or after > end:
        raise ValueError("its directory is damaged")
    at = position + _ENTRY.size
    name = buffer[at : at + name_size].decode("utf-8", "replace")
    extra = buffer[at + name_size : at + name_size + extra_size]
    size, packed, header = _large_numbers(extra, size, packed, header)
    if method != 0 or packed != size or flags & 1:
        raise ValueError(f"{printable(name)} is compressed, which torch.save never does")
    if buffer[header : header + 4] != MAGIC or header + 30 > len(buffer):
        raise ValueError(f"{printable(name)} has no header")
    local_name, local_extra = struct.unpack_from("<HH", buffer, header + 26)
    start = header + 30 + local_name + local_extra
    if start + size > len(buffer):
        raise ValueError(f"{printable(name)} is longer than the file")
    return name, (start, start + size), checksum, after


def _large_numbers(extra: bytes, *numbers: int) -> list[int]:
    """Sizes and place of an entry: those that need more than 4 bytes are in its extra field number 1, in order."""
    found = list(numbers)
    missing = [index for index, number in enumerate(numbers) if number == 0xFFFFFFFF]
    position = 0
    while missing and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1:
            if length < 8 * len(missing) or position + length > len(extra):
                break
            for index, number in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, position)):
                found[index] = number
            return found
        position += length
    if missing:
        raise ValueError("its directory is damaged")
    return found


def _checksum(buffer: mmap.mmap, start: int, end: int) -> int:
    checksum = 0
    with memoryview(buffer) as whole:
        for position in range(start, end, _CHUNK):
            with whole[position : min(position + _CHUNK, end)] as part:
                checksum = zlib.crc32(part, checksum)
    return checksum
