"""Which models tools/bench.py measures, and how large: as published, or so small that all rows run in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch

import zoo  # noqa: F401  (registers the models)
from zoo.layers.masking import num_hidden, random_mask

STEREO = "crocov2_base_patch16_dec768d12_stereo"
VIT = "vit_base_patch16_224"
VIT_LARGE = "vit_large_patch16_224"
HIERA = "hiera_base_224"  # timm's closest hierarchical model

# each family's base model, whose forward is measured
BACKBONES = {
    "convmae": "convmae_base_patch16_224",
    "hivit": "hivit_base_patch16_224",
    "itpn": "itpn_base_patch16_224",
    "fast_itpn": "fast_itpn_base_patch16_224",
}
# one backbone of each family, which is measured compiled
COMPILED = {
    "croco": "crocov2_base_patch16_224",
    **BACKBONES,
    "pirl": "pirl_resnet50",
    "jigclu": "jigclu_resnet50",
    "jigsaw": "jigsaw_resnet50",
}
# the masked autoencoders whose pretraining step is measured: the model, and what it is compared with
MASKED = {
    "convmae": ("convmae_base_patch16_224_mae", "dense"),
    "hivit": ("hivit_base_patch16_224_mae", "unfused"),
    "itpn": ("itpn_base_patch16_224_pixel", "unfused"),
}

_SMALL: dict[str, Any] = dict(img_size=64, embed_dim=48, depth=1, num_heads=3)
_SMALL_DECODER: dict[str, Any] = dict(decoder_dim=48, decoder_depth=1, decoder_num_heads=3)
_SMALL_DENSE: dict[str, Any] = dict(
    embed_dim=48, depth=4, num_heads=3, decoder_dim=48, decoder_depth=4, decoder_num_heads=3, layer_dims=(8, 8, 8, 8)
) | dict(feature_dim=8, last_dim=8, img_size=(32, 64))
_SMALL_STAGES: dict[str, Any] = dict(img_size=64, embed_dim=48, depths=(1, 1, 1), num_heads=3)


@dataclass(frozen=True)
class Scale:
    """How large it is what is measured.

    args: of a model, by its name, in place of those that the name means. pixels: side of images, and of those of
    pointmaps, of stereo crops and of stereo files their height and width. pairs: of scenes. negatives: of PIRL's loss;
    banks_share: of its banks' images. compiled: how
    many of the families of `COMPILED`, and by which of torch's backends.
    """

    args: Mapping[str, Mapping[str, Any]]
    batch: int
    pixels: int
    pointmaps_pixels: tuple[int, int]
    stereo_pixels: tuple[int, int]
    stereo_files: tuple[int, int]
    pairs: int
    negatives: int
    banks_share: float
    compiled: tuple[int, str] = (len(COMPILED), "inductor")

    def create(self, name: str, **args: Any) -> Any:
        return timm.create_model(name, **(args | dict(self.args.get(name, {}))))

    def code(self, name: str, **args: Any) -> str:
        """`create` for a program that is run elsewhere."""
        return f"timm.create_model({name!r}, **{args | dict(self.args.get(name, {}))!r})"

    def images(self) -> torch.Tensor:
        return torch.randn(self.batch, 3, self.pixels, self.pixels)

    def mask(self, ratio: float) -> tuple[torch.Tensor, int]:
        """A random mask of patches of 16 pixels, and how many it hides."""
        patches = (self.pixels // 16) ** 2
        return random_mask(self.batch, patches, ratio, torch.Generator().manual_seed(0)), num_hidden(patches, ratio)


FULL = Scale({}, 4, 224, (288, 384), (352, 704), (540, 960), 32, 32_000, 1.0)
TINY = Scale(
    {
        "crocov2_base_patch16_224": _SMALL,
        "crocov2_base_patch16_224_dec768d12": _SMALL | _SMALL_DECODER,
        "crocov2_large_patch16_224_dec768d12": _SMALL | _SMALL_DECODER,
        "dust3r_large_patch16_512_dpt": _SMALL | _SMALL_DECODER | dict(head_type="linear"),
        STEREO: _SMALL_DENSE,
        VIT: _SMALL,
        VIT_LARGE: _SMALL,
        HIERA: dict(img_size=64, embed_dim=48, num_heads=1, stages=(1, 1, 1, 1)),
        BACKBONES["convmae"]: _SMALL_STAGES | dict(embed_dim=(12, 24, 48)),
        BACKBONES["hivit"]: _SMALL_STAGES,
        BACKBONES["itpn"]: _SMALL_STAGES | dict(fpn_dim=24),
        BACKBONES["fast_itpn"]: _SMALL_STAGES,
        MASKED["convmae"][0]: _SMALL_STAGES | dict(embed_dim=(12, 24, 48)) | _SMALL_DECODER,
        MASKED["hivit"][0]: _SMALL_STAGES | _SMALL_DECODER,
        MASKED["itpn"][0]: _SMALL_STAGES | dict(fpn_dim=24) | _SMALL_DECODER,
    },
    2,
    64,
    (64, 64),
    (32, 64),
    (40, 72),
    2,
    20,
    1e-3,
    (2, "aot_eager"),  # writing code takes minutes
)
