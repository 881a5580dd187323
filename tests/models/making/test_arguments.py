"""What a file may say of a model: arguments of its family, in measure, and nothing of other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from zoo.catalog import VARIANTS
from zoo.errors import ArgumentsError, RecipeError
from zoo.models.making.arguments import check_arguments
from zoo.train.build import make_model
from zoo.train.recipe import load_recipe
from zoo.weights import save_safetensors

ENCODER, PAIR = "croco_nano_patch8_64", "croco_nano_patch8_64_dec128d4"

REFUSED: dict[str, Any] = {
    "checkpoint_path": "/other/private.pth",
    "pretrained_cfg": {"file": "/other/private.pth"},
    "pretrained_cfg_overlay": {"file": "/other/private.pth"},
    "file": "/other/private.pth",
    "cache_dir": "/other",
    "pretrained_strict": False,
    "encoder": "vit_tiny_patch16_224",
    "norm_layer": "torch.nn.LayerNorm",
    "device": "cuda",
    "depth": 10**9,
    "num_classes": 3_000_000,
    "embed_dim": 10**7,
    "img_size": [1 << 20, 64],
    "in_chans": 0,
    "num_heads": -1,
    "patch_size": 8.0,
    "mlp_ratio": float("inf"),
    "drop_path_rate": float("nan"),
    "qkv_bias": "yes",
    "pos_embed": "whatever",
    "no_such_argument": 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_a_file(name: str) -> None:
    with pytest.raises(ArgumentsError, match=f"^The file .*{name}") as caught:
        check_arguments(ENCODER, {name: REFUSED[name]}, "The file")
    assert len(str(caught.value)) < 300


def test_arguments_that_fit_one_by_one_and_not_together() -> None:
    check_arguments(ENCODER, dict(embed_dim=48, depth=2, num_heads=3, img_size=[16, 24], num_classes=10), "it")
    for args, message in (
        (dict(embed_dim=16_384, depth=256, num_heads=128), "billion numbers"),
        (dict(img_size=4096, patch_size=1), "no attention can take"),
        (dict(embed_dim=50, num_heads=3), "don't fit croco_nano_patch8_64"),
        (dict(decoder_dim=64), "don't fit croco_nano_patch8_64"),  # of another form
        ([("depth", 2)], "no mapping"),
    ):
        with pytest.raises(ArgumentsError, match=message):
            check_arguments(ENCODER, args, "it")  # type: ignore[arg-type]


def test_catalog_arguments_pass() -> None:
    for variant in {variant.architecture: variant for variant in VARIANTS}.values():
        check_arguments(variant.architecture, variant.args, variant.name)


def test_timms_own_models() -> None:
    check_arguments("resnet18", dict(num_classes=7, stem_type="deep"), "it")
    for args in (
        dict(checkpoint_path="mine"),
        dict(stem_type="../x"),
        dict(stem_width=10**9),
        dict(pretrained_cfg="a"),
    ):
        with pytest.raises(ArgumentsError, match=next(iter(args))):
            check_arguments("resnet18", args, "it")


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "depth", "no_such_argument"])
def test_recipe_names_no_files(tmp_path: Path, name: str) -> None:
    """Not by any argument; and the model is never made of what a recipe of somebody else names."""
    other = tmp_path / "private.pth"
    torch.save(timm.create_model(PAIR).state_dict(), other)
    value = {"file": str(other)} if name.endswith("overlay") else str(other) if "path" in name else REFUSED[name]
    recipe = load_recipe("croco_nano", {f"model_args.{name}": value})
    with pytest.raises(RecipeError, match=name):
        make_model(recipe)


@pytest.mark.parametrize("model", ["hf-hub:owner/model", "local-dir:/other", "hf_hub:owner/model", "/other/model"])
def test_recipe_model_is_a_name(model: str) -> None:
    for args in ({}, {"encoder": model}):
        with pytest.raises(ValueError):
            make_model(load_recipe("croco_nano", {"model": "create_pair_model" if args else model, "model_args": args}))


@pytest.mark.parametrize(
    "args",
    ['{"checkpoint_path": "/other/private.pth"}', '{"depth": 1000000000}', "[1]", "{", "[" * 100_000, '{"depth": 9}'],
)
def test_export_takes_no_files_from_metadata(zoo: Any, tmp_path: Path, args: str) -> None:
    path = tmp_path / "mine.safetensors"
    about = {"architecture": PAIR, "model_args": args}
    save_safetensors(timm.create_model(PAIR).state_dict(), path, about)
    code, _, error = zoo("export", path, "-o", tmp_path / "out.pth")
    assert code == 2 and "Traceback" not in error and not (tmp_path / "out.pth").exists(), error
