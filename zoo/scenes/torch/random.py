"""Random numbers on a device, of each scene on its own: a pure function of (seed, index), whatever the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2 ** 64 divided by the golden ratio, as a signed number
_MIX1, _MIX2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Draws:
    """A stream of random numbers for each of B indices: splitmix64 (Steele, Lea and Flood, 2014) on a counter.

    index: int64 (B,). Each call takes the next numbers of every stream.
    """

    def __init__(self, seed: int, index: Tensor) -> None:
        self.key = mixed(seed, index)
        self.used = 0

    def unit(self, *shape: int) -> Tensor:
        """(B, *shape), uniform in 0 <= x < 1, float32."""
        count = math.prod(shape)
        steps = torch.arange(self.used + 1, self.used + count + 1, device=self.key.device) * _GOLDEN
        self.used += count
        bits = (_mix(self.key[:, None] + steps) >> 40) & 0xFFFFFF
        return (bits.float() * 2.0**-24).unflatten(1, shape) if shape else bits[:, 0].float() * 2.0**-24

    def uniform(self, low: Tensor | float, high: Tensor | float, *shape: int) -> Tensor:
        """(B, *shape), uniform between two numbers, or tensors that fit that shape."""
        return low + (high - low) * self.unit(*shape)

    def between(self, *ranges: tuple[float, float], count: int | None = None) -> Tensor:
        """(B, len(ranges)), or (B, count, len(ranges)): each column uniform in its range."""
        unit = self.unit(*(() if count is None else (count,)), len(ranges))
        columns = zip(unit.unbind(-1), ranges)
        return torch.stack([low + (high - low) * column for column, (low, high) in columns], dim=-1)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), normally distributed."""
        return math.sqrt(2) * torch.erfinv((2 * self.unit(*shape) - 1).clamp(min=2.0**-24 - 1))


def mixed(seed: int, index: Tensor) -> Tensor:
    """int64 (B,) -> as many that look random, others for another seed."""
    return _mix(index * _GOLDEN + _signed(seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019))


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shifted right, with zeros coming in, as of unsigned numbers."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The signed 64-bit number of the same lowest bits."""
    return (number + 2**63) % 2**64 - 2**63
