"""Hiding patches: drawing masks, keeping the visible tokens, putting mask tokens back.

A mask is a bool tensor (B, N), True = hidden. Where hidden patches are left out, it has the same number of them in
every row, so that all shapes are static: no step of a masked forward waits for the device.
"""

import torch
from torch import Tensor


def num_hidden(num_patches: int, ratio: float) -> int:
    """How many of `num_patches` a mask of this ratio hides: floor(ratio * N)."""
    return int(ratio * num_patches)


def random_order(batch: int, num_patches: int, generator: torch.Generator | None = None) -> Tensor:
    """Random orders (batch, num_patches), each sample its own, drawn on the CPU: `order < n` is a mask that hides n."""
    return torch.rand(batch, num_patches, generator=generator).argsort(dim=1)


def random_mask(batch: int, num_patches: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Uniformly random masks (batch, num_patches), each sample its own, drawn on the CPU."""
    return random_order(batch, num_patches, generator) < num_hidden(num_patches, ratio)


def block_mask(
    grid: tuple[int, int],
    target: int,
    generator: torch.Generator | None = None,
    smallest: int = 16,
    aspect: float = 0.3,
    tries: int = 10,
) -> Tensor:
    """One block-wise mask (rows * columns,) of a grid, drawn on the CPU: `target` patches at most, in rectangles.

    Rectangles of uniform area, from `smallest` to what is left, and log-uniform aspect ratio, from `aspect` to its
    inverse, are added one by one, each in up to `tries` tries, until `target` is reached or a round adds nothing.
    Patches that are hidden already count once, so the number of hidden patches varies (BEiT, algorithm 1; iTPN).
    """
    rows, columns = grid
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    hidden = 0
    while hidden < target:
        before = hidden
        for _ in range(tries):
            area, shape, top, left = torch.rand(4, generator=generator).tolist()
            area = smallest + area * (target - hidden - smallest)
            ratio = aspect ** (2 * shape - 1)
            height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if not (0 < height <= rows and 0 < width <= columns):
                continue
            top, left = int(top * (rows - height + 1)), int(left * (columns - width + 1))
            window = mask[top : top + height, left : left + width]
            added = height * width - int(window.sum())
            if 0 < added <= target - hidden:
                window.fill_(True)
                hidden += added
                break
        if hidden == before:
            break
    return mask.flatten()


def split_mask(mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Patch numbers (row-major) of the visible (B, N - hidden) and of the hidden patches (B, hidden).

    `hidden` is the count in each row: an argument, because reading it off the mask would wait for the device.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)  # visible first, each part in row-major order
    return order[:, : order.shape[1] - hidden], order[:, order.shape[1] - hidden :]


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens (B, N, C) at each sample's patch numbers index (B, n) -> B, n, C."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def add_mask_token(tokens: Tensor, visible: Tensor, mask_token: Tensor, num_patches: int) -> tuple[Tensor, Tensor]:
    """The full sequence, told in short: tokens with one `mask_token` behind them (B, n + 1, C), and which of those
    each of the N places is (B, N). `take_tokens` of the two is the sequence itself.

    visible: the tokens' places (B, n). mask_token: (1, 1, C), at all other places.
    """
    batch, count, dim = tokens.shape
    # under autocast the tokens may be of lower precision than the parameter
    short = torch.cat((tokens, mask_token.to(tokens.dtype).expand(batch, 1, dim)), dim=1)
    places = visible.new_full((batch, num_patches), count)
    return short, places.scatter(1, visible, torch.arange(count, device=visible.device).expand(batch, count))


def patch_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, averaged over the patches given (the hidden ones); in float32."""
    return (prediction.float() - target.float()).square().mean()
