"""Self- and cross-attention with rotary positions, on torch's fused kernels (timm's switch decides)."""

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn

from zoo.layers.masking import take_tokens
from zoo.layers.positions.rope import Rope, apply_rope


class _Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, shared by both kinds."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"An attention of width {dim} can't have {num_heads} heads; choose a divisor of {dim}.")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.fused_attn = use_fused_attn()
        self.attn_drop = nn.Dropout(attn_drop)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q (B, heads, N, d), k and v (B, heads, M, d) -> B, N, heads * d; bias is added before the softmax."""
        if self.fused_attn:
            x = fused_attention(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            if bias is not None:
                weights = weights + bias
            x = self.attn_drop(weights.softmax(dim=-1)) @ v
        return x.transpose(1, 2).flatten(2)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """torch's kernels, but for what they are slow at on the tensors' device."""
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
        # the CPU kernel's backward pass is slow in bfloat16: several times slower than the plain products
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if bias is not None:
            weights = weights + bias
        return F.dropout(weights.softmax(dim=-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, dropout)


torch.fx.wrap("fused_attention")  # traced whole: it asks for a tensor's type


class SelfAttention(_Attention):
    """The timm ViT's attention (packed qkv) with optional rotary positions."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        rope: Rope | None = None,
        places: Tensor | None = None,
        bias: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, C) -> B, N, C.

        bias: added to the attention's logits, broadcast against (B, heads, N, N).
        places: (B, N), if x (B, n, C) has each distinct token once: which one stands at each place. They are then
        projected once, not at each place.
        index: (B, m), the places whose output is wanted, B, m, C: the others answer, but do not ask.
        """
        x = self.qkv(x)
        if places is not None:
            x = take_tokens(x, places)
        x = x.unflatten(2, (3, self.num_heads, self.head_dim))  # B, N, 3, heads, d
        # taken apart at once: the gradients of single parts would each be filled up with zeros and then added
        if rope is not None:
            qk, v = x.split([2, 1], dim=2)
            q, k = apply_rope(qk.permute(2, 0, 3, 1, 4), rope).unbind(0)  # both in one pass
            v = v.squeeze(2).transpose(1, 2)
        else:
            q, k, v = x.unbind(2)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B, heads, N, d
        if index is not None:
            q = q.take_along_dim(index[:, None, :, None], dim=2)
        return self.proj_drop(self.proj(self._attend(q, k, v, bias)))


class CrossAttention(_Attention):
    """Tokens x ask, tokens of another image answer; each side has its own rotary positions."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop)
        dd = dict(device=device, dtype=dtype)
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, memory: Tensor, rope: Rope | None = None, memory_rope: Rope | None = None) -> Tensor:
        """x (B, N, C) and memory (B, M, C) -> B, N, C."""
        q, k, v = (
            tokens.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for tokens in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if rope is not None and memory_rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, memory_rope)
        return self.proj_drop(self.proj(self._attend(q, k, v)))
