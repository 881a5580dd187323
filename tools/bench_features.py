"""What `zoo features` does before the model: reading and preparing photos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.bench_compare import compare
from tools.bench_scale import Scale
from zoo.features.decoding import decoded

_WORKERS = 2
_BATCH = 8


def bench_decoding(repeats: int, scale: Scale) -> dict[str, Any]:
    """JPEG photos of 3 megapixels for an input of 224x224, by two workers at a quarter of their size, against one
    process that decodes them in full: at most 0.2 of its time."""
    config = dict(input_size=(3, scale.pixels, scale.pixels), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9)
    config["interpolation"] = "bicubic"
    height = 1536 * scale.pixels // 224 // 8 * 8
    with tempfile.TemporaryDirectory() as name:
        paths = [_photo(Path(name, f"{number}.jpg"), (height * 4 // 3, height), number) for number in range(4)]
        batches = [(paths * _BATCH)[:_BATCH]] * max(1, 2 * scale.pairs // _BATCH)

        def decode(workers: int, draft: bool) -> None:
            with decoded(batches, config, draft, workers) as pixels:
                assert sum(len(batch.paths) for batch in pixels) == _BATCH * len(batches)

        result = compare(lambda: decode(_WORKERS, True), lambda: decode(0, False), repeats)
    photos = _BATCH * len(batches)
    rates = dict(
        photos_per_second=photos / result["seconds"], reference_photos_per_second=photos / result["reference_seconds"]
    )
    return result | rates | dict(bar="ratio <= 0.2", holds=result["ratio"] <= 0.2)


def _photo(path: Path, size: tuple[int, int], seed: int) -> str:
    """Soft shapes under a little noise, as large in bytes as photos are."""
    generator = np.random.default_rng(seed)
    shapes = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    noisy = np.asarray(shapes) + generator.normal(0, 3, (size[1], size[0], 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return str(path)
