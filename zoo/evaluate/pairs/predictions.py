"""What a model predicts with several references, and where its cross-attention looks meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from zoo.evaluate.pairs.sets import Pairs
from zoo.layers.masking import take_tokens
from zoo.layers.patchify import patch_statistics, patchify, unpatchify
from zoo.layers.positions.rope import apply_rope
from zoo.models.croco import CrossBlock, PairModel


def model_predictions(model: PairModel, pairs: Pairs, hidden: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The model's predictions (P, n, Q * 3) with several images as its reference, normalized by patch, and the
    cross-attention (P, N, N) of every decoder block, averaged over the heads, with the right one."""
    height, width = pairs.image2.shape[-2:]
    grid = height // model.patch_size, width // model.patch_size
    shuffled = take_tokens(patchify(pairs.image2, model.patch_size), pairs.order)

    def predict(reference: Tensor) -> Tensor:
        prediction, index = model.predict(pairs.image1, reference, pairs.mask, hidden)
        if model.norm_target:
            return prediction
        mean, std = patch_statistics(take_tokens(patchify(pairs.image1, model.patch_size), index))
        return (prediction - mean) / std

    with recorded_attention(model) as attention:
        right = predict(pairs.image2)
    predictions = dict(
        right=right,
        wrong=predict(pairs.wrong),
        self=predict(pairs.image1),
        shuffled=predict(unpatchify(shuffled, model.patch_size, grid)),
    )
    return predictions, attention


@contextmanager
def recorded_attention(model: PairModel) -> Iterator[list[Tensor]]:
    """While open, each cross-attention of the decoder adds its weights (P, N1, N2), averaged over the heads.

    They are computed again, since the fused kernels don't give them. A "cat" decoder has no cross-attention.
    """
    maps: list[Tensor] = []

    def record(module: Any, args: tuple, output: Tensor) -> None:
        x, memory, rope, memory_rope = args
        q, k = (
            tokens.unflatten(2, (module.num_heads, module.head_dim)).transpose(1, 2)
            for tokens in (module.q_proj(x), module.k_proj(memory))
        )
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, memory_rope)
        maps.append((q @ k.transpose(-2, -1) * module.head_dim**-0.5).softmax(dim=-1).mean(dim=1))

    blocks = [block for block in model.decoder.blocks if isinstance(block, CrossBlock)]
    handles = [block.cross_attn.register_forward_hook(record) for block in blocks]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
