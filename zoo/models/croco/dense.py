"""CroCo-Stereo and CroCo-Flow: a dense map of image 1 from a pair of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ImageError
from zoo.layers.dpt import DPTHead
from zoo.models._masked import Grid
from zoo.models.croco.pair import PairModel, pair_rules
from zoo.weights import Alias, Drop, KeyRules, Rename


def dpt_hooks(encoder_depth: int, decoder_depth: int = 0) -> tuple[int, int, int, int]:
    """The four blocks of [encoder..., decoder...] that a DPT head reads by default (CroCo v2, section 4).

    They count back from the last in steps of a third of the decoder (or, without one, a quarter of the encoder).
    """
    step = math.ceil(decoder_depth / 3) if decoder_depth else encoder_depth // 4
    last = encoder_depth + decoder_depth - 1
    return last - 3 * step, last - 2 * step, last - step, last


class DensePairModel(PairModel):
    """Encoder, two-image decoder and a DPT head: a dense map of image 1 from a pair of images.

    out_chans: CroCo-Stereo has 2 (disparity in pixels, confidence), CroCo-Flow 3 (x and y in pixels,
    confidence). hooks: which four blocks of `forward_intermediates` the head reads. unit: pixels to a unit of the
    head's disparity or flow, 1 in the published models; a larger one lets a fresh head reach far displacements soon.
    A PairModel's weights load too, reference or ours: then the head starts at random, to be fine-tuned.
    """

    head_name = "dense"

    def __init__(
        self,
        out_chans: int,
        hooks: Sequence[int] | None = None,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        last_dim: int = 32,
        unit: float = 1.0,
        device=None,
        dtype=None,
        **pair_args: Any,
    ) -> None:
        super().__init__(completes=False, device=device, dtype=dtype, **pair_args)
        self.hooks = tuple(hooks or dpt_hooks(len(self.encoder.blocks), len(self.decoder.blocks)))
        dims = [self.feature_info[i]["num_chs"] for i in self.hooks]
        self.out_chans, self.unit = out_chans, unit
        # the head's maps have 8 times the patch grid's resolution: what is left to the images'
        upsample = 2 if self.patch_size % 8 else self.patch_size // 8
        self.dense = DPTHead(dims, out_chans, layer_dims, feature_dim, last_dim, device, dtype, upsample)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:  # type: ignore[override]
        """Two images (B, C, H, W) -> B, out_chans, H, W: the confidence is the last channel."""
        dense = self.dense(self.forward_intermediates(img1, img2, list(self.hooks)), self._grid(img1))
        size = img1.shape[-2:]
        if dense.shape[-2:] != size:  # a patch size that 8 doesn't divide
            dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=True)
        if self.unit != 1:
            dense = torch.cat((self.unit * dense[:, :-1], dense[:, -1:]), dim=1)
        return dense

    @torch.no_grad()
    def forward_tiled(
        self,
        img1: Tensor,
        img2: Tensor,
        tile: Grid = (352, 704),
        overlap: float = 0.7,
        beta: float = 30.0,
        scale: float | None = 10.0,
    ) -> Tensor:
        """Large images by overlapping tiles of `tile` pixels, averaged by confidence (CroCo v2, section 4).

        A pixel weighs exp(-2 beta (sigmoid(conf / scale) - 0.5)): the reference's conf_expsigmoid_<beta>_<scale>,
        30 and 10 for stereo, 10 and 5 for flow; with scale None exp(-beta conf), its conf_expbeta. The last
        channel of the result is the weighted mean of the confidences. Images (B, C, H, W), at least a tile large.
        """
        height, width = img1.shape[-2:]
        if height < tile[0] or width < tile[1]:
            raise ImageError(
                f"Images of {height}x{width} pixels are smaller than a tile of {tile[0]}x{tile[1]}; "
                "call the model itself, or choose a smaller tile."
            )
        total = weight_sum = None
        for top in _tile_starts(height, tile[0], overlap):
            for left in _tile_starts(width, tile[1], overlap):
                window = (..., slice(top, top + tile[0]), slice(left, left + tile[1]))
                dense = self(img1[window], img2[window]).float()
                conf = dense[:, -1:]
                weight = torch.exp(-2 * beta * ((conf / scale).sigmoid() - 0.5) if scale else -beta * conf)
                if total is None or weight_sum is None:
                    total = dense.new_zeros(len(dense), dense.shape[1], height, width)
                    weight_sum = dense.new_zeros(len(dense), 1, height, width)
                total[window] += weight * dense
                weight_sum[window] += weight
        assert total is not None and weight_sum is not None  # there is at least one tile
        return total / weight_sum


def _tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Evenly spread first pixels of tiles that cover `length` and overlap by at least the share `overlap`."""
    count = 1 + math.ceil((length - tile) / (tile * (1 - overlap)))
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]


DensePairModel.layouts = {
    "CroCo dense, reference": pair_rules(
        *(
            rule
            for i in range(4)
            for rule in (
                Rename(f"head.dpt.act_{i + 1}_postprocess.*", f"dense.reassemble.{i}.*"),
                Alias(f"head.dpt.act_postprocess.{i}.*", f"head.dpt.act_{i + 1}_postprocess.*"),
                Rename(f"head.dpt.scratch.layer{i + 1}_rn.weight", f"dense.project.{i}.weight"),
                Alias(f"head.dpt.scratch.layer_rn.{i}.weight", f"head.dpt.scratch.layer{i + 1}_rn.weight"),
                Rename(f"head.dpt.scratch.refinenet{i + 1}.resConfUnit1.*", f"dense.fusion.{i}.unit1.*"),
                Rename(f"head.dpt.scratch.refinenet{i + 1}.resConfUnit2.*", f"dense.fusion.{i}.unit2.*"),
                Rename(f"head.dpt.scratch.refinenet{i + 1}.out_conv.*", f"dense.fusion.{i}.out_conv.*"),
            )
        ),
        Rename("head.dpt.head.*", "dense.output.*"),
    ),
    "CroCo pair, the reference's": KeyRules(
        Drop("mask_token", "stands for hidden patches only"),
        Drop("prediction_head.*", "predicts pixels"),
        *pair_rules().rules,
    ),
    "CroCo pair": KeyRules(
        Drop("decoder.mask_token", "stands for hidden patches only"),
        Drop("head.*", "predicts pixels"),
        Rename("encoder.*", "encoder.*"),
        Rename("decoder.*", "decoder.*"),
    ),
}
