"""CroCo: cross-view completion pretraining, versions 1 and 2, and its stereo and flow models.

One encoder sees both photos of a scene; a decoder rebuilds the hidden patches of the first with the help of
the second. Papers: arXiv 2210.10716 (v1: sin-cos positions), arXiv 2211.10408 (v2: rotary positions).
The encoder is a one-image timm backbone; `PairModel` is encoder + two-image decoder, also over any timm
VisionTransformer; `DensePairModel` adds a DPT head.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath, Mlp, PatchEmbed, calculate_drop_path_rates
from timm.models import VisionTransformer, checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.layers.attention import CrossAttention, SelfAttention
from zoo.layers.dpt import DPTHead
from zoo.layers.masking import add_mask_token, split_mask, take_tokens
from zoo.layers.rope import Rope, gather_rope, rope_table
from zoo.layers.sincos import SincosPositions
from zoo.models._backbone import Backbone, GlobalPool, check_pool
from zoo.models._build import init_linear, register_family
from zoo.models._masked import (
    Completion,
    Grid,
    MaskedAutoencoder,
    PatchPredictor,
    PixelDecoder,
    adapt_pixel_head,
    check_mask,
)
from zoo.weights import Alias, Drop, KeyRules, Rename

__all__ = ["Completion", "CrocoEncoder", "CrocoMAE", "DensePairModel", "PairModel", "create_pair_model"]

PosEmbed = Literal["sincos", "rope"]
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Block(nn.Module):
    """Pre-norm transformer block; its arithmetic is the timm ViT block's, plus rotary positions."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), rope))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class CrossBlock(nn.Module):
    """Block of the two-image decoder: self-attention, cross-attention to image 2, MLP.

    Image 2's tokens `memory` pass through all blocks unchanged; each block norms them for itself.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_memory: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        self.norm_memory = LayerNorm(dim, **dd) if norm_memory else nn.Identity()
        self.cross_attn = CrossAttention(dim, num_heads, qkv_bias, **dd)
        self.norm3 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        rope: Rope | None = None,
        memory_rope: Rope | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, C), or in short (see `SelfAttention`), and memory (B, M, C) -> B, N, C."""
        y = self.attn(self.norm1(x), rope, places)
        x = (x if places is None else take_tokens(x, places)) + y
        x = x + self.cross_attn(self.norm2(x), self.norm_memory(memory), rope, memory_rope)
        return x + self.mlp(self.norm3(x))


def _check_head_dim(dim: int, num_heads: int, pos_embed: PosEmbed) -> int:
    """Channels of a head. Raises ValueError unless rotary positions can turn them, in two axes and in pairs."""
    if dim % num_heads or (pos_embed == "rope" and dim // num_heads % 4):
        raise ValueError(
            f"A width of {dim} can't have {num_heads} heads with {pos_embed} positions; a head's width must be whole"
            f"{' and divisible by 4' if pos_embed == 'rope' else ''}."
        )
    return dim // num_heads


class CrocoEncoder(Backbone):
    """CroCo's image encoder as a timm backbone: a ViT without class token.

    pos_embed: "sincos" (v1: a fixed table, added once) or "rope" (v2: rotary, in every attention).
    pos_resample: how a v1 checkpoint's saved table serves another image size: "compute" the table of that
    size (the default, exact), or "bicubic" resampling of the saved one.
    dynamic_img_size: take any size that the patch divides at each call, not only `img_size`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pos_embed: PosEmbed = "rope",
        rope_base: float = 100.0,
        pos_resample: Literal["compute", "bicubic"] = "compute",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = check_pool(global_pool)
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.patch_size = patch_size
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, output_fmt="NHWC", strict_img_size=not dynamic_img_size, **dd
        )
        self.rope_base = rope_base
        self.head_dim = _check_head_dim(embed_dim, num_heads, pos_embed)
        grid = self.patch_embed.grid_size
        if self.patch_embed.img_size != tuple(side * patch_size for side in grid):
            raise ImageError(
                f"Patches of {patch_size} pixels don't fill images of {self.patch_embed.img_size}; choose an img_size "
                f"whose sides are multiples of {patch_size}."
            )
        self.pos_embed = SincosPositions(embed_dim, grid, pos_resample, device) if pos_embed == "sincos" else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, proj_drop_rate, attn_drop_rate, rate, **dd)  # type: ignore[arg-type]
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
        )
        self.norm = LayerNorm(embed_dim, **dd)
        self.fc_norm = nn.Identity()  # forward_features ends with the norm already
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes else nn.Identity()
        self.feature_info = [dict(module=f"blocks.{i}", num_chs=embed_dim, reduction=patch_size) for i in range(depth)]
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers; the patch embedding is drawn as the linear layer that it is (MAE)."""
        self.apply(init_linear)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)

    def embed(self, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, tuple[Rope | None]]:
        grid = self.grid_of(x)
        if visible is None:
            # B, h, w, D; the convolution's memory order (channels before places) would stay with all blocks' sums
            x = self.patch_embed(x).flatten(1, 2).contiguous()
        else:  # hidden patches are not even embedded
            p, proj = self.patch_size, self.patch_embed.proj
            patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
            x = F.linear(take_tokens(patches, visible), proj.weight.flatten(1), proj.bias)
        if self.pos_embed is None:
            rope = rope_table(self.head_dim, *grid, self.rope_base, x.device)
            return x, (rope if visible is None else gather_rope(rope, visible),)
        table = self.pos_embed(grid).to(x.dtype)
        return x + (table if visible is None else table[visible]), (None,)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        super().set_input_size(img_size)
        if self.pos_embed is not None:
            self.pos_embed.set_grid(self.patch_embed.grid_size)


CrocoEncoder.layouts = {
    "CroCo pair, reference": KeyRules(
        Rename("enc_pos_embed", "pos_embed.table"),
        Rename("patch_embed.*", "patch_embed.*"),
        Rename("enc_blocks.*", "blocks.*"),
        Rename("enc_norm.*", "norm.*"),
        Drop("mask_token", "belongs to the decoder"),
        Drop("decoder_embed.*", "belongs to the decoder"),
        Drop("dec_pos_embed", "belongs to the decoder"),
        Drop("dec_blocks.*", "belongs to the decoder"),
        Drop("dec_norm.*", "belongs to the decoder"),
        Drop("prediction_head.*", "predicts pixels from the decoder"),
        Drop("head.dpt.*", "the dense head of CroCo-Stereo and CroCo-Flow"),
    ),
    "CroCo pair": KeyRules(
        Rename("encoder.*", "*"),
        Drop("decoder.*", "the two-image decoder"),
        Drop("head.*", "predicts pixels from the decoder"),
        Drop("dense.*", "the dense head"),
    ),
    "CroCo masked autoencoder": KeyRules(
        Rename("encoder.*", "*"),
        Drop("decoder_embed.*", "belongs to the decoder"),
        Drop("decoder.*", "predicts pixels"),
    ),
}


class CrocoMAE(MaskedAutoencoder):
    """CroCo's encoder under a masked autoencoder's one-image decoder: what CroCo is without its second view.

    For comparison: the same encoder, pretrained on single images as in MAE (arXiv 2111.06377). The encoder's
    arguments are CrocoEncoder's.
    """

    first_conv = "encoder.patch_embed.proj"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_target: bool = True,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.encoder = CrocoEncoder(img_size, patch_size, in_chans, **encoder_args, **dd)
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.norm_target = norm_target
        self.decoder_embed = nn.Linear(self.encoder.embed_dim, decoder_dim, **dd)
        grid = self.encoder.grid_size
        self.decoder = PixelDecoder(grid, patch_size, in_chans, decoder_dim, decoder_depth, decoder_num_heads, **dd)
        self.num_features = self.head_hidden_size = self.embed_dim = self.encoder.embed_dim
        self.feature_info = [dict(info, module="encoder." + info["module"]) for info in self.encoder.feature_info]
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder (the encoder has drawn its own)."""
        init_linear(self.decoder_embed)
        self.decoder.init_weights()

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        return self.decoder_embed(self.encoder.forward_tokens(image, visible)[0])


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
        self.head_dim = _check_head_dim(dim, num_heads, pos_embed)

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
            rope1 = rope_table(self.head_dim, *grid1, self.rope_base, x1.device)
            rope2 = rope1 if grid2 == grid1 else rope_table(self.head_dim, *grid2, self.rope_base, x2.device)

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


class PairModel(PatchPredictor):
    """Encoder and two-image decoder: `forward(img1, img2)` gives image 1's tokens in the light of image 2.

    encoder: any module with CrocoEncoder's `forward_tokens`, `patch_embed`, `blocks` and sizes; by default a
    CrocoEncoder made from the other arguments. freeze_encoder: keep it as it is, in eval mode, without gradients.
    decoder_block, norm_memory: see `Decoder` and `CrossBlock`. norm_target: the completion predicts patches
    normalized by their own mean and deviation. completes: have the mask token and the pixel head at all.
    """

    first_conv = "encoder.patch_embed.proj"
    features_only_advice = (
        "{} takes two images, so features_only does not apply; call its forward_intermediates(img1, img2), or create "
        "the encoder's architecture with features_only=True."
    )

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_block: Literal["cross", "cat"] = "cross",
        norm_memory: bool = True,
        pos_embed: PosEmbed = "rope",
        rope_base: float = 100.0,
        pos_resample: Literal["compute", "bicubic"] = "compute",
        norm_target: bool = True,
        completes: bool = True,
        dynamic_img_size: bool = True,
        encoder: Any = None,
        freeze_encoder: bool = False,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        positions: dict[str, Any] = dict(pos_embed=pos_embed, rope_base=rope_base, pos_resample=pos_resample)
        if encoder is None:
            encoder = CrocoEncoder(
                img_size, patch_size, in_chans, dynamic_img_size=dynamic_img_size, **positions, **encoder_args, **dd
            )
        elif encoder_args:
            raise TypeError(f"An encoder was given, so {', '.join(encoder_args)} would go unused; leave them out.")
        self.encoder = encoder
        self.decoder = Decoder(
            encoder.embed_dim,
            encoder.patch_embed.grid_size,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            block=decoder_block,
            norm_memory=norm_memory,
            mask_token=completes,
            **positions,
            **dd,
        )
        self.patch_size = encoder.patch_size
        self.in_chans = encoder.in_chans
        self.norm_target = norm_target
        pixels = self.patch_size**2 * self.in_chans
        self.head = nn.Linear(decoder_dim, pixels, **dd) if completes else None
        self.num_features = self.head_hidden_size = self.embed_dim = decoder_dim
        depth = len(encoder.blocks)
        self.feature_info: list[dict[str, Any]] = [
            dict(module=f"encoder.blocks.{i}", num_chs=encoder.embed_dim, reduction=self.patch_size)
            for i in range(depth)
        ] + [
            dict(module=f"decoder.blocks.{i}", num_chs=decoder_dim, reduction=self.patch_size)
            for i in range(decoder_depth)
        ]
        self.encoder_frozen = freeze_encoder
        if freeze_encoder:
            self.encoder.requires_grad_(False).eval()
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder and the pixel head (the encoder has drawn its own)."""
        self.decoder.init_weights()
        if self.head is not None:
            init_linear(self.head)

    def train(self, mode: bool = True) -> PairModel:
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def _grid(self, x: Tensor) -> Grid:
        return self.encoder.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))

    def _encode(
        self, x: Tensor, visible: Tensor | None = None, indices: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        if self.encoder_frozen:
            with torch.no_grad():
                return self.encoder.forward_tokens(x, visible, indices)
        return self.encoder.forward_tokens(x, visible, indices)

    def _encode_both(self, img1: Tensor, img2: Tensor, indices: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, list]:
        """Tokens of both images and blocks `indices` of image 1; images of equal size go as one batch."""
        if img1.shape == img2.shape:
            tokens, taken = self._encode(torch.cat((img1, img2)), indices=indices)
            x1, x2 = tokens.unflatten(0, (2, -1)).unbind()
            return x1, x2, [y[: len(img1)] for y in taken]
        x1, taken = self._encode(img1, indices=indices)
        return x1, self._encode(img2)[0], taken

    def forward(self, img1: Tensor, img2: Tensor, symmetric: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C, H, W), of equal size or not -> tokens of image 1 in the light of image 2 (B, N1, D).

        symmetric: give also image 2 in the light of image 1; each image is encoded once.
        """
        x1, x2, _ = self._encode_both(img1, img2)
        grid1, grid2 = self._grid(img1), self._grid(img2)
        if not symmetric:
            return self.decoder(x1, x2, grid1, grid2)[0]
        if grid1 == grid2:
            both, _ = self.decoder(torch.cat((x1, x2)), torch.cat((x2, x1)), grid1, grid2)
            y1, y2 = both.unflatten(0, (2, -1)).unbind()
            return y1, y2
        return self.decoder(x1, x2, grid1, grid2)[0], self.decoder(x2, x1, grid2, grid1)[0]

    def forward_intermediates(
        self,
        img1: Tensor,
        img2: Tensor,
        indices: int | list[int] | None = None,
        output_fmt: str = "NLC",
        intermediates_only: bool = True,
    ) -> Any:
        """Blocks of the list [encoder blocks of image 1..., decoder blocks...], for dense heads.

        indices: the last n if an int, all if None, else those numbers (negative: from the end). The last
        encoder block and the last decoder block are the normed ones. output_fmt: "NLC" tokens (B, N1, C) or
        "NCHW" maps (B, C, h, w). With intermediates_only off: (tokens of forward, intermediates).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt '{output_fmt}' is unknown; choose NCHW or NLC.")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        depth = len(self.encoder.blocks)
        encoder_take = sorted({i for i in take if i < depth})
        decoder_take = sorted({i for i in take if i >= depth})
        grid1, grid2 = self._grid(img1), self._grid(img2)
        tokens = None
        if intermediates_only and not decoder_take:  # then image 2 plays no part
            by_index = dict(zip(encoder_take, self._encode(img1, indices=tuple(encoder_take))[1], strict=True))
        else:
            x1, x2, encoder_blocks = self._encode_both(img1, img2, tuple(encoder_take))
            tokens, decoder_blocks = self.decoder(x1, x2, grid1, grid2, indices=[i - depth for i in decoder_take])
            by_index = dict(zip(encoder_take + decoder_take, encoder_blocks + decoder_blocks, strict=True))
        blocks = [by_index[i] for i in take]
        if output_fmt == "NCHW":
            blocks = [x.transpose(1, 2).unflatten(2, grid1).contiguous() for x in blocks]
        return blocks if intermediates_only else (tokens, blocks)

    def predict(
        self, img1: Tensor, img2: Tensor, mask: Tensor, hidden: int, all_patches: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict image 1's hidden patches from its visible ones and the whole of image 2.

        mask: (B, N) bool, True = hidden; hidden: how many each row hides. Returns the prediction
        (B, hidden, patch * patch * C) with the patches' numbers (B, hidden); with all_patches the prediction
        is (B, N, patch * patch * C). Pixels are normalized by patch if `norm_target`.
        """
        if self.head is None:
            raise ValueError("This model was made without a pixel head, so it can't complete; choose a binocular one.")
        check_mask(mask, self._grid(img1))
        visible, hidden_index = split_mask(mask, hidden)
        x1, _ = self._encode(img1, visible)
        x2, _ = self._encode(img2)
        tokens, _ = self.decoder(x1, x2, self._grid(img1), self._grid(img2), visible)
        if not all_patches:
            tokens = take_tokens(tokens, hidden_index)
        return self.head(tokens), hidden_index

    def completion_loss(
        self, img1: Tensor, img2: Tensor, mask: Tensor, hidden: int, target: str | None = None
    ) -> Tensor:
        """The pretraining loss (CroCo, section 3.2): squared error of the hidden patches' target, a scalar.

        target: one of `zoo.layers.patchify.TARGETS`, by default the one that `norm_target` says.
        """
        return self._target_loss(img1, *self.predict(img1, img2, mask, hidden), target)

    def complete(
        self,
        img1: Tensor,
        img2: Tensor,
        mask_ratio: float = 0.9,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Hide patches of image 1 and rebuild them with the help of image 2, to look at.

        mask: (B, N) bool, True = hidden, the same number in each row; else drawn with `mask_ratio` and the
        CPU `generator`.
        """
        return self._complete(
            img1, lambda mask, hidden: self.predict(img1, img2, mask, hidden), mask_ratio, mask, generator
        )

    def reference_settings(self) -> dict[str, Any]:
        """The reference's own constructor arguments, under the name that its v2 checkpoints hold them."""
        encoder, decoder = self.encoder, self.decoder
        height, width = encoder.patch_embed.img_size
        rope = decoder.pos_embed is None
        return dict(
            croco_kwargs=dict(
                img_size=height if height == width else (height, width),
                patch_size=self.patch_size,
                enc_embed_dim=encoder.embed_dim,
                enc_depth=len(encoder.blocks),
                enc_num_heads=encoder.blocks[0].attn.num_heads,
                dec_embed_dim=decoder.dim,
                dec_depth=len(decoder.blocks),
                dec_num_heads=decoder.num_heads,
                norm_im2_in_dec=not isinstance(getattr(decoder.blocks[0], "norm_memory", None), nn.Identity),
                pos_embed=f"RoPE{decoder.rope_base:g}" if rope else "cosine",
            )
        )

    def _adapt_in_chans(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        super()._adapt_in_chans(state, own)
        if "head.weight" in state and self.in_chans != 3 and "head.weight" in own:
            adapt_pixel_head(state, "head", self.patch_size, self.in_chans)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: encoder first, then decoder."""
        return dict(
            stem=r"^encoder\.(?:vit\.)?(?:patch_embed|pos_embed|cls_token|reg_token|norm_pre)",
            encoder=[(r"^encoder\.(?:vit\.)?blocks\.(\d+)", None), (r"^encoder\.(?:vit\.)?norm", (99999,))],
            decoder=[
                (r"^decoder\.(?:embed|mask_token|image_embed)", (-1,)),
                (r"^decoder\.blocks\.(\d+)", None),
                (r"^decoder\.norm|^head|^dense", (99999,)),
            ],
        )


def _pair_rules(*more: Rename | Alias | Drop) -> KeyRules:
    return KeyRules(
        Rename("mask_token", "decoder.mask_token"),
        Rename("enc_pos_embed", "encoder.pos_embed.table"),
        Rename("dec_pos_embed", "decoder.pos_embed.table"),
        Rename("patch_embed.*", "encoder.patch_embed.*"),
        Rename("enc_blocks.*", "encoder.blocks.*"),
        Rename("enc_norm.*", "encoder.norm.*"),
        Rename("decoder_embed.*", "decoder.embed.*"),
        Rename("dec_blocks.*.cross_attn.projq.*", "decoder.blocks.*.cross_attn.q_proj.*"),
        Rename("dec_blocks.*.cross_attn.projk.*", "decoder.blocks.*.cross_attn.k_proj.*"),
        Rename("dec_blocks.*.cross_attn.projv.*", "decoder.blocks.*.cross_attn.v_proj.*"),
        Rename("dec_blocks.*.norm_y.*", "decoder.blocks.*.norm_memory.*"),
        Rename("dec_blocks.*", "decoder.blocks.*"),
        Rename("dec_norm.*", "decoder.norm.*"),
        *more,
    )


PairModel.layouts = {"CroCo pair, reference": _pair_rules(Rename("prediction_head.*", "head.*"))}


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
    confidence). hooks: which four blocks of `forward_intermediates` the head reads.
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
        device=None,
        dtype=None,
        **pair_args: Any,
    ) -> None:
        super().__init__(completes=False, device=device, dtype=dtype, **pair_args)
        self.hooks = tuple(hooks or dpt_hooks(len(self.encoder.blocks), len(self.decoder.blocks)))
        dims = [self.feature_info[i]["num_chs"] for i in self.hooks]
        self.dense = DPTHead(dims, out_chans, layer_dims, feature_dim, last_dim, device, dtype)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:  # type: ignore[override]
        """Two images (B, C, H, W) -> B, out_chans, H, W: the confidence is the last channel."""
        dense = self.dense(self.forward_intermediates(img1, img2, list(self.hooks)), self._grid(img1))
        size = img1.shape[-2:]
        if dense.shape[-2:] != size:  # a patch size other than 16
            dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=True)
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
    "CroCo dense, reference": _pair_rules(
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
        *_pair_rules().rules,
    ),
    "CroCo pair": KeyRules(
        Drop("decoder.mask_token", "stands for hidden patches only"),
        Drop("head.*", "predicts pixels"),
        Rename("encoder.*", "encoder.*"),
        Rename("decoder.*", "decoder.*"),
    ),
}


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


default_cfgs = register_family(
    "croco", dict(encoder=CrocoEncoder, pretraining=CrocoMAE, binocular=PairModel, dense=DensePairModel), __name__
)
