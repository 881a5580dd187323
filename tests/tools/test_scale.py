"""docs/scale.md: its tables are those of tools/scale.py, whose formulas are what two processes really send."""

from __future__ import annotations

import json
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from tests.support.two_processes import in_two_processes
from tools import scale
from zoo.train.engine import train
from zoo.train.recipe import load_recipe

SMALL = dict(layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), dim=8, norm_layer="groupnorm1")
RECIPES = {
    "pirl_nano": {
        "data": dict(source="scenes", samples=24, image_size=36),
        "objective": dict(name="pirl", loss="infonce", negatives=40, image_size=32, crop_size=36, patch_size=8),
        "model_args": SMALL,
    },
    "jigclu_nano": {
        "data": dict(source="scenes", image_size=32),
        "objective": dict(name="jigsaw_clustering", quarter=16),
        "model_args": SMALL,
    },
}


def count_received(name: str, folder: Path) -> None:
    """A step of two processes, 4 images each; writes how many bytes each received besides the gradients."""
    received = 0

    def counted(function, bytes_of):
        def call(tensors, *args, **kwargs):
            nonlocal received
            received += bytes_of(tensors)
            return function(tensors, *args, **kwargs)

        return call

    def size(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    # of what is gathered and reduced, half is one's own; what a process broadcasts to itself is counted too
    dist.all_gather = counted(dist.all_gather, lambda tensors: sum(map(size, tensors)) // 2)
    dist.all_reduce = counted(dist.all_reduce, lambda tensor: size(tensor) // 2)
    dist.broadcast = counted(dist.broadcast, size)
    recipe = {"batch_size": 8, "schedule": dict(unit="steps", warmup=0, length=1)} | RECIPES[name]
    train(load_recipe(name, recipe), folder / name, workers=0, progress=False)
    (folder / f"{name}{dist.get_rank()}.json").write_text(json.dumps(received))


def test_bytes_between_two_processes(tmp_path: Path) -> None:
    """To the byte; the engine's reports (two rows of four figures) are the only other thing that is sent."""
    program = f"""
from pathlib import Path
from tests.tools.test_scale import RECIPES, count_received
for name in RECIPES:
    count_received(name, Path({str(tmp_path)!r}))
"""
    in_two_processes(program)
    expected = {
        "pirl_nano": scale.pirl(24, 2, batch=4, dim=8, negatives=40).received,
        "jigclu_nano": scale.jigsaw_clustering(2, batch=4, quarter=16, dim=8).received,
    }
    for name, count in expected.items():
        for rank in range(2):
            received = json.loads((tmp_path / f"{name}{rank}.json").read_text())
            assert received == count + 2 * 4 * 4 // 2, name


def test_page_is_current() -> None:
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page()
