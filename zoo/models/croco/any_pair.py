"""A two-image model on any timm VisionTransformer."""

from __future__ import annotations

import re
import warnings
from typing import Any

import timm
import torch
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn

from zoo.layers.masking import take_tokens
from zoo.models.croco.blocks import PosEmbed
from zoo.models.croco.pair import PairModel


class TimmEncoder(nn.Module):
    """A timm VisionTransformer as the encoder of a PairModel.

    Class and register tokens take part in its blocks and are left out of what the decoder sees.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        vit.reset_classifier(0, "")  # what only a classifier uses would be left without gradients
        vit.fc_norm = nn.Identity()
        self.vit = vit
        self.pretrained_cfg = vit.pretrained_cfg
        self.embed_dim = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size[0]
        self.in_chans = vit.in_chans

    @property
    def patch_embed(self) -> nn.Module:
        return self.vit.patch_embed

    @property
    def blocks(self) -> nn.Module:
        return self.vit.blocks

    def forward_tokens(
        self, x: Tensor, visible: Tensor | None = None, indices: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.forward_tokens`; patches are dropped after the position embedding."""
        vit = self.vit
        prefix = vit.num_prefix_tokens
        x = vit._pos_embed(vit.patch_embed(x))
        if visible is not None:
            x = torch.cat((x[:, :prefix], take_tokens(x[:, prefix:], visible)), dim=1)
        x = vit.norm_pre(x)
        taken = []
        for i, block in enumerate(vit.blocks):
            x = checkpoint(block, x) if vit.grad_checkpointing and self.training else block(x)
            if i in indices:
                taken.append(x[:, prefix:])
        x = vit.norm(x)[:, prefix:]
        if len(vit.blocks) - 1 in indices:
            taken[-1] = x
        return x, taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.vit.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}


def create_pair_model(
    encoder: str | nn.Module,
    decoder: str = "cross512d8",
    pretrained: bool = False,
    freeze_encoder: bool = False,
    img_size: int | tuple[int, int] | None = None,
    pos_embed: PosEmbed = "rope",
    norm_memory: bool = True,
    decoder_num_heads: int | None = None,
    **encoder_args: Any,
) -> PairModel:
    """A two-image model on any timm VisionTransformer (DINOv2, MAE, CLIP...) or zoo encoder.

    encoder: a timm model name, created with `pretrained`, `img_size` and `encoder_args`, or a module.
    decoder: block kind, width and depth, such as "cross512d8" or "cat768d12"; it starts untrained.
    freeze_encoder: train the decoder only. pos_embed: the decoder's positions.
    decoder_num_heads: by default heads of 32 channels, as in CroCo's small decoder (64 from width 768 on).

    Raises ValueError when the decoder's name can't be read, TypeError when the encoder is no ViT.

    >>> pair = zoo.create_pair_model("vit_base_patch14_dinov2", pretrained=True, freeze_encoder=True)
    """
    match = re.fullmatch(r"(cross|cat)(\d+)d(\d+)", decoder)
    if not match:
        raise ValueError(f"A decoder called '{decoder}' is unknown; write block, width and depth, as in cross512d8.")
    block, dim, depth = match[1], int(match[2]), int(match[3])
    if isinstance(encoder, str):
        if img_size is not None:
            encoder_args["img_size"] = img_size
        if freeze_encoder and not pretrained:
            warnings.warn(
                f"The encoder {encoder} is frozen with random weights; pass pretrained=True to load its own.",
                stacklevel=2,
            )
        encoder_args = dict(num_classes=0, dynamic_img_size=True) | encoder_args
        encoder = timm.create_model(encoder, pretrained=pretrained, **encoder_args)
    if isinstance(encoder, VisionTransformer):
        encoder = TimmEncoder(encoder)
    if not hasattr(encoder, "forward_tokens"):
        raise TypeError(
            f"{type(encoder).__name__} is neither a timm VisionTransformer nor a zoo encoder; choose one of those."
        )
    pair = PairModel(
        decoder_dim=dim,
        decoder_depth=depth,
        decoder_num_heads=decoder_num_heads or max(1, dim // (64 if dim >= 768 else 32)),
        decoder_block=block,  # type: ignore[arg-type]
        norm_memory=norm_memory,
        pos_embed=pos_embed,
        encoder=encoder,
        freeze_encoder=freeze_encoder,
    )
    pair.pretrained_cfg = dict(getattr(encoder, "pretrained_cfg", {}))  # its input size and normalization
    return pair
