"""What the tests of publishing share: small models, and small runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

import zoo  # noqa: F401
from zoo.train import engine
from zoo.train.recipe import load_recipe

TINY = dict(embed_dim=48, depth=2, num_heads=3, img_size=16)
ENCODER, PAIR = "croco_nano_patch8_64", "croco_nano_patch8_64_dec128d4"
REPO = "owner/model"


def tiny(name: str = ENCODER, **more: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **more}).eval()


def same(left: Any, right: Any) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def train(recipe_file: Path, folder: Path, **overrides: Any) -> Path:
    engine.train(load_recipe(recipe_file, overrides), folder, workers=0, progress=False)
    return folder
