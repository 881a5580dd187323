"""Rows of tools/bench.py about stereo matching: a step of fine-tuning, tiles, and what data workers do."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from timm.layers import set_fused_attn
from torch.utils.data import DataLoader

from tools.bench_compare import compare, gflop, seconds
from tools.bench_scale import STEREO, Scale
from zoo.scenes import SceneConfig, ScenePairs
from zoo.train.data.matching.augment import MatchingTransform
from zoo.train.data.matching.maps import write_map
from zoo.train.data.matching.pairs import MatchingPairs
from zoo.train.objectives.dense.stereo_flow import Stereo

_BATCH = 2
_PUBLISHED_BATCH = 6  # recipe crocostereo
_TILES = 3  # side by side, each overlapping half of the one before
_WORKERS = 2


def bench_stereo_step(repeats: int, scale: Scale) -> dict[str, Any]:
    """A fine-tuning step (forward + backward) of the base/base stereo model, against the same with unfused attention
    and each image encoded by itself: at most 0.85 of its time."""
    height, width = scale.stereo_pixels
    img1, img2 = torch.randn(2, _BATCH, 3, height, width)
    truth = 50 * torch.rand(_BATCH, 1, height, width)

    def step_of(model: Any) -> Callable[[], object]:
        objective = Stereo(model, [])

        def step() -> None:
            model.zero_grad(set_to_none=True)
            objective.loss_of(img1, img2, truth)[0].backward()

        return step

    ours = step_of(scale.create(STEREO, img_size=scale.stereo_pixels))
    set_fused_attn(False)
    plain = scale.create(STEREO, img_size=scale.stereo_pixels)
    set_fused_attn(True)

    def encode_each(one: torch.Tensor, two: torch.Tensor, indices: tuple[int, ...] = ()) -> tuple[Any, ...]:
        tokens, taken = plain._encode(one, indices=indices)
        return tokens, plain._encode(two)[0], taken

    plain._encode_both = encode_each
    result = compare(ours, step_of(plain), max(1, repeats // 3))
    return result | dict(gflop=gflop(ours), bar="ratio <= 0.85", holds=result["ratio"] <= 0.85)


def bench_stereo_tiles(repeats: int, scale: Scale) -> dict[str, Any]:
    """The base/base stereo model over an image of three tiles, all of them at once against one by one: at most 0.95 of
    its time."""
    height, width = scale.stereo_pixels
    model = scale.create(STEREO, img_size=scale.stereo_pixels).eval()
    img1, img2 = torch.randn(2, 1, 3, height, width * (_TILES + 1) // 2)
    tiled = partial(model.forward_tiled, img1, img2, tile=scale.stereo_pixels, overlap=0.5)
    result = compare(lambda: tiled(tile_batch=_TILES), lambda: tiled(tile_batch=1), max(1, repeats // 3))
    return result | dict(bar="ratio <= 0.95", holds=result["ratio"] <= 0.95)


def bench_stereo_reading(repeats: int, scale: Scale) -> dict[str, Any]:
    """Reading stereo pairs as SceneFlow has them (PNG and PFM, 540x960 pixels) and augmenting them, by two workers: at
    least 60 a second. Beside them the same pairs as CREStereo has its images, JPEG."""
    height, width = scale.stereo_files
    config = SceneConfig((height, width), rectified=True, textures="scikit-image", texture_scale=(0.05, 1.0))
    scenes = ScenePairs(config, 0, scale.pairs, truths=("disparity",))
    passes: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = [scenes[index] for index in range(min(8, scale.pairs))]
        for index, sample in enumerate(samples):
            write_map(folder / f"{index}.pfm", sample["disparity"])
        for ending in ("png", "jpg"):
            lines = []
            for index, sample in enumerate(samples):
                for i in (1, 2):
                    Image.fromarray(sample[f"image{i}"]).save(folder / f"{index}_{i}.{ending}", quality=95)
                lines.append(f"{index}_1.{ending} {index}_2.{ending} {index}.pfm")
            (folder / f"{ending}.txt").write_text("\n".join(lines))
            pairs = _Augmented(folder / f"{ending}.txt", scale.stereo_pixels, 10 * scale.pairs)
            loader = DataLoader(pairs, batch_size=_PUBLISHED_BATCH, num_workers=_WORKERS, persistent_workers=True)
            deque(loader, maxlen=0)  # starts the workers
            passes[ending] = [seconds(lambda of=loader: deque(of, maxlen=0)) for _ in range(repeats)]
            del loader  # and its workers
    rates = {ending: len(pairs) / median(of) for ending, of in passes.items()}
    return dict(
        pairs_per_second=rates["png"],
        best_pairs_per_second=len(pairs) / min(passes["png"]),
        jpeg_pairs_per_second=rates["jpg"],
        bar="pairs_per_second >= 60",
        holds=rates["png"] >= 60,
    )


class _Augmented(torch.utils.data.Dataset):
    """`length` augmentations of the pairs of a list."""

    def __init__(self, path: Path, crop: tuple[int, int], length: int) -> None:
        self.pairs, self.transform, self.length = (
            MatchingPairs("stereo", path),
            MatchingTransform("stereo", crop),
            length,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform(self.pairs[index % len(self.pairs)], index)
