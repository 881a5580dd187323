"""CroCo's two-image decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from zoo.layers.masking import add_mask_token, take_tokens
from zoo.layers.positions.rope import rope_on
from zoo.layers.positions.sincos import SincosPositions
from zoo.models.croco.blocks import Block, CrossBlock, LayerNorm, PosEmbed, check_head_dim
from zoo.models.shared.masked import Grid
from zoo.models.shared.model import init_linear


class Decoder(nn.Module):
    """The two-image decoder: image 1's tokens in the light of image 2's (CroCo, section 3.1).

    block: "cross" (self-attention within image 1, cross-attention to image 2) or "cat" (both images in one
    sequence under plain self-attention, told apart by a learned vector for each; more compute, less memory).
    A "cat" decoder reads out image 1's part.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: Grid,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        block: Literal["cross", "cat"] = "cross",
        norm_memory: bool = True,
        pos_embed: PosEmbed = "rope",
        rope_base: float = 100.0,
        pos_resample: Literal["compute", "bicubic"] = "compute",
        mask_token: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.dim = dim
        self.rope_base = rope_base
        self.grad_checkpointing = False
        self.embed = nn.Linear(encoder_dim, dim, **dd)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if mask_token else None
        self.pos_embed = SincosPositions(dim, grid, pos_resample, device) if pos_embed == "sincos" else None
        self.image_embed = nn.Parameter(torch.empty(2, dim, **dd)) if block == "cat" else None
        self.blocks = nn.ModuleList(
            CrossBlock(dim, num_heads, mlp_ratio, qkv_bias, norm_memory, **dd)
            if block == "cross"
            else Block(dim, num_heads, mlp_ratio, qkv_bias, **dd)
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim, **dd)
        self.num_heads = num_heads
        self.head_dim = check_head_dim(dim, num_heads, pos_embed)

    def init_weights(self) -> None:
        self.apply(init_linear)
        for token in (self.mask_token, self.image_embed):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        grid1: Grid,
        grid2: Grid,
        visible: Tensor | None = None,
        indices: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Encoder tokens x1 (B, n1, E), x2 (B, N2, E) -> normed tokens of image 1 (B, N1, D), and the outputs
        of blocks `indices` (the last block's normed).

        grid1, grid2: patch rows and columns of the whole images. visible: which of image 1's patches x1 has
        (B, n1); the mask token stands at the others.
        """
        x1, x2 = self.embed(x1), self.embed(x2)
        num1 = grid1[0] * grid1[1]
        places = None
        if visible is not None:
            if self.mask_token is None:
                raise ValueError("This model was made without a mask token, so nothing can be hidden; see `completes`.")
            x1, places = add_mask_token(x1, visible, self.mask_token, num1)
            # mask tokens with rotary positions are all alike until the first attention, so CrossBlock projects one
            if self.pos_embed is not None or self.image_embed is not None:
                x1, places = take_tokens(x1, places), None
        rope1 = rope2 = None
        if self.pos_embed is not None:
            x1 = x1 + self.pos_embed(grid1).to(x1.dtype)
            x2 = x2 + self.pos_embed(grid2).to(x2.dtype)
        else:
            rope1 = rope_on(self.head_dim, *grid1, self.rope_base, x1.device)
            rope2 = rope1 if grid2 == grid1 else rope_on(self.head_dim, *grid2, self.rope_base, x2.device)

        args: tuple[Any, ...]
        if self.image_embed is None:
            x, args = x1, (x2, rope1, rope2)
        else:
            x = torch.cat((x1 + self.image_embed[0], x2 + self.image_embed[1]), dim=1)  # B, N1 + N2, D
            both = None if rope1 is None or rope2 is None else tuple(map(torch.cat, zip(rope1, rope2, strict=True)))
            args = (both,)

        taken = []
        for i, block in enumerate(self.blocks):
            more = (places,) if places is not None and i == 0 else ()
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, *args, *more)
            else:
                x = block(x, *args, *more)
            if i in indices:
                taken.append(x[:, :num1])
        x = self.norm(x[:, :num1])
        if len(self.blocks) - 1 in indices:
            taken[-1] = x
        return x, taken
