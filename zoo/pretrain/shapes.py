"""Procedural images with labels: a shape of one of eight kinds before a mottled ground, to classify offline."""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = ("disk", "ring", "square", "frame", "triangle", "hexagon", "star", "cross")


class ShapeImages:
    """Map-style dataset of `length` shapes: "image", uint8 (size, size, 3), and "label", a place in `classes`.

    Position, size, turn and colors are drawn anew for each.
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
        radius, turn = rng.uniform(0.3, 0.6), rng.uniform(0, 2 * np.pi)
        left, top = rng.uniform(radius - 1, 1 - radius, 2)
        y, x = _places(2 * self.image_size)  # two by two samples a pixel: smooth edges
        inside = _inside(KINDS[label], (x - left) / radius, (y - top) / radius, turn)
        share = inside.reshape(self.image_size, 2, self.image_size, 2).mean(axis=(1, 3))[..., None]
        shape, ground = (color + _mottle(rng, *_places(self.image_size)) for color in _two_colors(rng))
        image = share * shape + (1 - share) * ground
        noise = rng.normal(0, 0.03, image.shape)
        return dict(image=(255 * np.clip(image + noise, 0, 1)).round().astype(np.uint8), label=label)


def _places(side: int) -> np.ndarray:
    """y and x of a picture's pixels, -1 to 1."""
    return (np.mgrid[:side, :side] + 0.5) / side * 2 - 1


def _inside(kind: str, x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    """Where a shape within the unit circle is, bool."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + turn
    if kind == "disk":
        return radius < 0.9
    if kind == "ring":
        return abs(radius - 0.75) < 0.2
    if kind == "square":
        return radius < _polygon(angle, 4)
    if kind == "frame":
        return abs(radius / _polygon(angle, 4) - 0.8) < 0.2
    if kind == "triangle":
        return radius < _polygon(angle, 3)
    if kind == "hexagon":
        return radius < _polygon(angle, 6)
    if kind == "star":
        return radius < 0.7 + 0.3 * np.cos(5 * angle)
    u, v = abs(radius * np.cos(angle)), abs(radius * np.sin(angle))
    return (np.maximum(u, v) < 0.9) & (np.minimum(u, v) < 0.25)  # a cross


def _polygon(angle: np.ndarray, sides: int) -> np.ndarray:
    """Distance from the middle to the edge of a regular polygon of circumradius 1."""
    half = np.pi / sides
    return np.cos(half) / np.cos(angle % (2 * half) - half)


def _two_colors(rng: np.random.Generator) -> np.ndarray:
    while True:
        colors = rng.uniform(0.1, 0.9, (2, 3))
        if np.abs(colors[0] - colors[1]).max() > 0.3:  # else the shape could hardly be seen
            return colors


def _mottle(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A few waves of random direction and color, (H, W, 3)."""
    waves = np.zeros((*x.shape, 3))
    for _ in range(3):
        across, down = rng.normal(0, 6, 2)
        waves += 0.05 * np.sin(across * x + down * y + rng.uniform(0, 2 * np.pi))[..., None] * rng.normal(0, 1, 3)
    return waves
