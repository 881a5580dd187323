"""Procedural images with labels: a pattern of one of eight kinds in two colors, to classify offline."""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = ("stripes", "zigzag", "checks", "grid", "bricks", "dots", "rings", "blots")


class PatternImages:
    """Map-style dataset of `length` patterns: "image", uint8 (size, size, 3), and "label", a place in `classes`.

    Scale, place, colors and a slight turn are drawn anew for each, and a mottling and noise that say nothing.
    """

    classes = KINDS
    num_classes = len(KINDS)

    def __init__(self, seed: int, length: int, image_size: int = 64) -> None:
        self.seed, self.length, self.image_size = seed, length, image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(len(KINDS)))
        size = self.image_size
        y, x = (np.mgrid[: 2 * size, : 2 * size] + 0.5) / 2  # pixels, two by two samples each: smooth edges
        turn, period = rng.uniform(-0.3, 0.3), rng.uniform(10, 16)
        u = (np.cos(turn) * x + np.sin(turn) * y) / period + rng.random()
        v = (np.cos(turn) * y - np.sin(turn) * x) / period + rng.random()
        share = _pattern(KINDS[label], u, v, rng).reshape(size, 2, size, 2).mean(axis=(1, 3))[..., None]
        first, second = _two_colors(rng)
        image = share * first + (1 - share) * second
        across, down = rng.normal(0, 2 * np.pi / size, 2)
        mottling = 0.1 * np.sin(across * x[::2, ::2] + down * y[::2, ::2] + rng.uniform(0, 2 * np.pi))
        image += mottling[..., None] + rng.normal(0, 0.02, image.shape)
        return dict(image=(255 * np.clip(image, 0, 1)).round().astype(np.uint8), label=label)


def _pattern(kind: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the first color is, bool; u, v: coordinates in periods."""
    from_middle = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    if kind == "stripes":
        return u % 1 < 0.5
    if kind == "zigzag":
        return (u + abs(v % 1 - 0.5)) % 1 < 0.5
    if kind == "checks":
        return (u % 1 < 0.5) ^ (v % 1 < 0.5)
    if kind == "grid":
        return (u % 1 < 0.2) | (v % 1 < 0.2)
    if kind == "bricks":
        row = 2 * v // 1
        return (2 * v % 1 < 0.3) | ((u + row / 2) % 1 < 0.15)
    if kind == "dots":
        return from_middle < 0.3
    if kind == "rings":
        return abs(from_middle - 0.35) < 0.12
    waves = np.zeros(u.shape)  # blots: where random waves of about this period add up
    for angle, phase in rng.uniform(0, 2 * np.pi, (8, 2)):
        waves += np.sin(2 * np.pi * (np.cos(angle) * u + np.sin(angle) * v) + phase)
    return waves > 0


def _two_colors(rng: np.random.Generator) -> np.ndarray:
    while True:
        colors = rng.uniform(0.1, 0.9, (2, 3))
        if np.abs(colors[0] - colors[1]).max() > 0.3:  # else the pattern could hardly be seen
            return colors
