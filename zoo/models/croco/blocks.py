"""Transformer blocks that CroCo's encoder and decoder are made of; TorchScript reads their annotations."""

from functools import partial
from typing import Literal

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from zoo.layers.attention import CrossAttention, SelfAttention
from zoo.layers.masking import take_tokens
from zoo.layers.positions.rope import Rope

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


def check_head_dim(dim: int, num_heads: int, pos_embed: PosEmbed) -> int:
    """Channels of a head. Raises ValueError unless rotary positions can turn them, in two axes and in pairs."""
    if dim % num_heads or (pos_embed == "rope" and dim // num_heads % 4):
        raise ValueError(
            f"A width of {dim} can't have {num_heads} heads with {pos_embed} positions; a head's width must be whole"
            f"{' and divisible by 4' if pos_embed == 'rope' else ''}."
        )
    return dim // num_heads
