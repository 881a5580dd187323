"""The bytes of a pickle, read from front to back: what stands behind each opcode.

`pickletools.genops` does the same, at three times the time, and makes a text of four bytes a character of any
length out of bytes that hold one wide character. Here every argument's length is known before it is read.
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

# Of a line in a pickle of protocol 0. Python itself refuses numbers of more than 4300 digits.
_MAX_LINE = 5000
_MAX_TEXT_LINE = 1 << 20
_SMALL = 8  # bytes of an argument that the price of its operation covers
_LONG_TEXT = 4096  # bytes, from where on it is worth looking first how much memory a text would take


class Tape:
    """A part of a file in memory, its current position, and what is left for reading it (see `Budget`)."""

    def __init__(self, buffer: mmap.mmap, start: int, end: int, budget: Budget) -> None:
        self.buffer = buffer
        self.position = start
        self.end = end
        self.budget = budget

    def byte(self) -> int:
        position = self.position
        if position >= self.end:
            raise ValueError("it ends early")
        self.position = position + 1
        return self.buffer[position]

    def number(self, size: int) -> int:
        """An unsigned one of `size` bytes, the lowest first."""
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little", signed=True)

    def double(self) -> float:
        return struct.unpack(">d", self.take(8))[0]

    def take(self, size: int) -> bytes:
        start = self.skip(size)
        return self.buffer[start : start + size]

    def view(self, size: int) -> memoryview:
        """The same without a copy."""
        start = self.skip(size)
        return memoryview(self.buffer)[start : start + size]

    def skip(self, size: int) -> int:
        """Go on behind the next `size` bytes; where they start."""
        start = self.position
        if not 0 <= size <= self.end - start:
            raise ValueError("it ends early")
        if size > _SMALL:
            self.budget.spend(size)
        self.position = start + size
        return start

    def text(self, size: int) -> str:
        """UTF-8, as Python writes it: single surrogates may be in it."""
        view = self.view(size)
        # All characters take as much memory as the widest does.
        if size > _LONG_TEXT:
            widest = int(np.frombuffer(view, np.uint8).max())
            self.budget.spend(size * (3 if widest >= 0xF0 else 1 if widest >= 0xC4 else 0))
        text = str(view, "utf-8", "surrogatepass")
        if size <= _LONG_TEXT and not text.isascii():
            self.budget.spend(3 * size)
        return text

    def line(self, longest: int = _MAX_LINE) -> bytes:
        """Up to the next line break, without it."""
        end = self.buffer.find(b"\n", self.position, min(self.end, self.position + longest + 1))
        if end < 0:
            raise ValueError("a line without an end, or a very long one")
        line = self.take(end - self.position)
        self.position = end + 1
        return line


class Budget:
    """How much a file may still ask for; shared by all of its pickles. In bytes of memory, roughly.

    Time is bounded by it too, since every operation costs something, whether or not it makes an object that stays.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise OverBudgetError


class OverBudgetError(Exception):
    """A file asks for more time and memory than one of its size can need."""


# ------------------------------------------------------------------------------- what stands for a value


def _integer(tape: Tape) -> int | bool:
    line = tape.line()
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


def _quoted(tape: Tape) -> str:
    line = tape.line(_MAX_TEXT_LINE).strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a text without quotes")
    raw: bytes = codecs.escape_decode(line[1:-1])[0]
    return raw.decode("ascii")


def _escaped(tape: Tape) -> str:
    text = str(tape.line(_MAX_TEXT_LINE), "raw-unicode-escape")
    tape.budget.spend(0 if text.isascii() else 3 * len(text))
    return text


LITERALS: dict[int, Callable[[Tape], Any]] = {
    # numbers
    ord("I"): _integer,
    ord("L"): lambda tape: int(tape.line().removesuffix(b"L")),
    ord("F"): lambda tape: float(tape.line()),
    ord("J"): lambda tape: tape.signed(4),
    ord("K"): Tape.byte,
    ord("M"): lambda tape: tape.number(2),
    ord("G"): Tape.double,
    0x8A: lambda tape: tape.signed(tape.byte()),
    0x8B: lambda tape: tape.signed(tape.signed(4)),
    # text, of Python 2 too
    ord("S"): _quoted,
    ord("T"): lambda tape: str(tape.view(tape.signed(4)), "latin-1"),
    ord("U"): lambda tape: str(tape.view(tape.byte()), "latin-1"),
    ord("V"): _escaped,
    ord("X"): lambda tape: tape.text(tape.number(4)),
    0x8C: lambda tape: tape.text(tape.byte()),
    0x8D: lambda tape: tape.text(tape.number(8)),
    # bytes
    ord("B"): lambda tape: tape.take(tape.number(4)),
    ord("C"): lambda tape: tape.take(tape.byte()),
    0x8E: lambda tape: tape.take(tape.number(8)),
    0x96: lambda tape: bytearray(tape.view(tape.number(8))),
    # constants
    ord("N"): lambda tape: None,
    0x88: lambda tape: True,
    0x89: lambda tape: False,
    ord(")"): lambda tape: (),
    ord("]"): lambda tape: [],
    ord("}"): lambda tape: {},
    0x8F: lambda tape: set(),
}
"""By opcode: the value that it puts onto the stack."""
