"""CroCo-Stereo and CroCo-Flow: a dense map of image 1 from a pair of images."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ImageError
from zoo.layers.dpt import DPTHead
from zoo.models.croco.pair import PairModel, pair_rules
from zoo.models.croco.predict import FlowPrediction, StereoPrediction, predict_pair
from zoo.models.croco.tiles import (
    FLOW_CONFIDENCE,
    NO_CONFIDENCE,
    STEREO_CONFIDENCE,
    check_tiles,
    is_confidence,
    tile_starts,
    tile_weight,
)
from zoo.models.shared.masked import Grid
from zoo.weights import Alias, Checkpoint, Drop, KeyRules, Rename


def dpt_hooks(encoder_depth: int, decoder_depth: int = 0) -> tuple[int, int, int, int]:
    """The four blocks of [encoder..., decoder...] that a DPT head reads by default (CroCo v2, section 4).

    They count back from the last in steps of a third of the decoder (or, without one, a quarter of the encoder).
    """
    step = math.ceil(decoder_depth / 3) if decoder_depth else encoder_depth // 4
    last = encoder_depth + decoder_depth - 1
    return last - 3 * step, last - 2 * step, last - step, last


_logger = logging.getLogger("zoo")

_CONFIDENCES = {2: STEREO_CONFIDENCE, 3: FLOW_CONFIDENCE}


class DensePairModel(PairModel):
    """Encoder, two-image decoder and a DPT head: a dense map of image 1 from a pair of images.

    out_chans: CroCo-Stereo has 2 (disparity in pixels, confidence), CroCo-Flow 3 (x and y in pixels,
    confidence). hooks: which four blocks of `forward_intermediates` the head reads. unit: pixels to a unit of the
    head's disparity or flow, 1 in the published models; a larger one lets a fresh head reach far displacements soon.
    tile_size, tile_overlap, tile_confidence: what `forward_tiled` does by default: tiles of the training crop (by
    default `img_size`), overlapping by the 0.9 of the authors' published figures, weighed as CroCo-Stereo's with 2
    channels, CroCo-Flow's with 3, and plainly with other numbers, whose channels have no confidence among them.
    photo_scale: how much larger than photos the images are that it sees best: below 1 for models of small images.
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
        tile_size: Grid | None = None,
        tile_overlap: float = 0.9,
        tile_confidence: str | None = None,
        photo_scale: float = 1.0,
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
        height, width = tile_size or self.encoder.patch_embed.img_size
        self.tile_size: Grid = (height, width)
        self.tile_overlap = tile_overlap
        self.photo_scale = photo_scale
        self.tile_confidence = tile_confidence or _CONFIDENCES.get(out_chans, NO_CONFIDENCE)
        check_tiles(self.tile_size, self.tile_overlap, self.tile_confidence)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:  # type: ignore[override]
        """Two images (B, C, H, W) -> B, out_chans, H, W: the confidence is the last channel."""
        dense = self.dense(self.forward_intermediates(img1, img2, list(self.hooks)), self._grid(img1))
        size = img1.shape[-2:]
        if dense.shape[-2:] != size:  # a patch size that 8 doesn't divide
            dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=True)
        if self.unit != 1:
            values, confidence = dense.tensor_split([self.value_channels], dim=1)
            dense = torch.cat((self.unit * values, confidence), dim=1)
        return dense

    @property
    def value_channels(self) -> int:
        """How many of the channels are disparity (1) or flow (2): all but the confidence."""
        return self.out_chans - (self.tile_confidence != NO_CONFIDENCE)

    def predict(  # type: ignore[override]
        self, img1: Any, img2: Any, scale: float | None = None, overlap: float | None = None, **tiling: Any
    ) -> StereoPrediction | FlowPrediction:
        """The disparity or flow from image 1 to image 2, as arrays of their size, in its pixels.

        img1, img2: files, PIL images, uint8 arrays (H, W, 3) or (H, W), or tensors (3, H, W), uint8 or in 0..1; of any
        size.
        scale: work on images so many times as large, by default `photo_scale`. overlap, tiling: see `forward_tiled`.
        Raises ImageError (a ValueError) for what is no image and for images that differ in size.
        """
        if overlap is not None:
            tiling["overlap"] = overlap
        return predict_pair(self, img1, img2, self.photo_scale if scale is None else scale, **tiling)

    @torch.no_grad()
    def forward_tiled(
        self,
        img1: Tensor,
        img2: Tensor,
        tile: Grid | None = None,
        overlap: float | None = None,
        confidence: str | None = None,
        tile_batch: int = 1,
    ) -> Tensor:
        """Images of any size (B, C, H, W) by overlapping tiles, averaged by confidence (CroCo v2, section 4).

        tile: their height and width in pixels. overlap: the share of a tile that its neighbor repeats; more is slower
        and better. confidence: what a pixel weighs (see `tile_weight`). By default all three are the model's own,
        which for published weights are those that the authors evaluated them with. tile_batch: so many tiles go
        through the network at a time.
        Images with a side smaller than a tile are enlarged (bicubic), and the result is brought back: its size, and
        its values, which are distances in pixels. Returns B, out_chans, H, W; the last channel is the weighted mean of
        the confidences. Raises ImageError for settings or images that don't fit.
        """
        tile = tile or self.tile_size
        overlap = self.tile_overlap if overlap is None else overlap
        confidence = confidence or self.tile_confidence
        check_tiles(tile, overlap, confidence, tile_batch)
        if img1.shape != img2.shape:
            raise ImageError(
                f"Both images are cut into the same tiles, but one is {list(img1.shape)} and the other "
                f"{list(img2.shape)}; bring them to one size."
            )
        height, width = img1.shape[-2:]
        if height < tile[0] or width < tile[1]:
            return self._forward_enlarged(img1, img2, tile, overlap, confidence, tile_batch)
        windows = [
            (..., slice(top, top + tile[0]), slice(left, left + tile[1]))
            for top in tile_starts(height, tile[0], overlap)
            for left in tile_starts(width, tile[1], overlap)
        ]
        total = img1.new_zeros(len(img1), self.out_chans, height, width, dtype=torch.float32)
        weight_sum = total[:, :1].clone()
        for first in range(0, len(windows), tile_batch):
            some = windows[first : first + tile_batch]
            tiles = (torch.cat([image[window] for window in some]) for image in (img1, img2))
            for window, dense in zip(some, self(*tiles).float().chunk(len(some))):
                weight = tile_weight(dense, confidence)
                total[window] += weight * dense
                weight_sum[window] += weight
        return total / weight_sum

    def _forward_enlarged(
        self, img1: Tensor, img2: Tensor, tile: Grid, overlap: float, confidence: str, tile_batch: int
    ) -> Tensor:
        """`forward_tiled` of images with a side smaller than a tile.

        The reference's factor divides the tile's height by the image's WIDTH, which shrinks wide, low images and then
        fails; where it works, on images no wider than the tile's shape asks for, this is the same factor.
        """
        height, width = img1.shape[-2:]
        factor = max(tile[1] / width, tile[0] / height)
        size = max(round(height * factor), tile[0]), max(round(width * factor), tile[1])

        def resize(image: Tensor, size: Grid) -> Tensor:
            return F.interpolate(image, size=size, mode="bicubic", align_corners=False)

        dense = self.forward_tiled(resize(img1, size), resize(img2, size), tile, overlap, confidence, tile_batch)
        dense = resize(dense, (height, width))
        values = dense.shape[1] - (confidence != NO_CONFIDENCE)
        for channel, scale in zip(range(values), (width / size[1], height / size[0])):  # x, y
            dense[:, channel] *= scale
        return dense


def _reader(ours: str, theirs: str, check: Callable[[Any], Any]) -> Callable[[Checkpoint], Any]:
    """A reader of a setting that the zoo's files tell as `ours` and the reference's `args` as `theirs`."""

    def read(checkpoint: Checkpoint) -> Any:
        own, args = checkpoint.extra.get("model_args"), checkpoint.extra.get("args")
        if isinstance(own, str):
            told = _plain_dict(own).get(ours)
        else:
            told = (args if isinstance(args, dict) else getattr(args, "__dict__", {})).get(theirs)
        value = None if told is None else check(told)
        if told is not None and value is None:
            _logger.warning("%s has no usable %s; the catalog's is taken", checkpoint.path, theirs)
        return value

    return read


def _plain_dict(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_size(told: Any) -> Grid | None:
    if (
        not isinstance(told, (list, tuple))
        or len(told) != 2
        or not all(type(n) is int and 0 < n < 1 << 16 for n in told)
    ):
        return None
    return told[0], told[1]


def _as_overlap(told: Any) -> float | None:
    return float(told) if isinstance(told, (int, float)) and 0 <= told < 1 else None


def _as_confidence(told: Any) -> str | None:
    return told if isinstance(told, str) and is_confidence(told) else None


DensePairModel.file_args = dict(
    tile_size=_reader("tile_size", "crop", _as_size),
    tile_confidence=_reader("tile_confidence", "tile_conf_mode", _as_confidence),
    # The reference's args have the overlap of validations between epochs, not that of the published figures.
    tile_overlap=_reader("tile_overlap", "", _as_overlap),
)
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
