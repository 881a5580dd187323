"""Predicting hidden patches: the loss, the picture and the pixel decoder that all masked families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp
from timm.models import checkpoint
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.layers.attention import SelfAttention
from zoo.layers.masking import add_mask_token, patch_loss, random_mask, split_mask, take_tokens
from zoo.layers.patchify import TARGETS, normalize_patches, patch_statistics, patchify, unpatchify
from zoo.layers.positions.sincos import SincosPositions
from zoo.models.shared.model import ZooModel, init_linear

Grid = tuple[int, int]  # rows, columns of patches


class Completion(NamedTuple):
    """What `complete` gives, to look at.

    image: (B, C, H, W), normalized like the input: the image's visible patches, the prediction elsewhere.
    With normalized targets (the published recipes) the prediction is brought back to pixels with the TRUE mean
    and deviation of each hidden patch, as in the references' demos, which flatters it: say so where you show it.
    mask: (B, N) bool, True = hidden. loss: mean squared error over the hidden patches, of the training target.
    """

    image: Tensor
    mask: Tensor
    loss: Tensor


def check_mask(mask: Tensor, grid: Grid, batch: int) -> None:
    """Raises ImageError for a mask (B, N) of another grid or for another number of images."""
    if mask.shape[1] != grid[0] * grid[1]:
        raise ImageError(
            f"The mask has {mask.shape[1]} patches, but image 1 has {grid[0]} x {grid[1]}; make it for this size."
        )
    if len(mask) != batch:
        raise ImageError(f"There are masks for {len(mask)} images, but {batch} images; give one for each.")


def check_pair(img1: Tensor, img2: Tensor) -> None:
    """Raises ImageError for two batches (B, C, H, W) that are no pairs; their heights and widths may differ."""
    if img1.ndim != 4 or img2.ndim != 4 or img1.shape[:2] != img2.shape[:2]:
        raise ImageError(
            f"Images of shapes {list(img1.shape)} and {list(img2.shape)} are no pairs; give as many second images as "
            "first ones, of as many channels, each batch as (batch, channels, height, width)."
        )


def check_images(images: Tensor) -> None:
    """Raises ImageError for what is no batch (B, C, H, W) of at least one image."""
    if images.ndim != 4 or not len(images):
        raise ImageError(
            f"There is nothing to complete in images of shape {list(images.shape)}; give a batch as (batch, channels, "
            "height, width), of at least one."
        )


class PatchPredictor(ZooModel):
    """Base of models that predict the pixels of an image's hidden patches.

    norm_target: the target is each patch normalized by its own mean and deviation (MAE, section 4.1).
    """

    norm_target: bool
    num_classes = 0

    def _grid(self, x: Tensor) -> Grid:
        """Rows and columns of the patches of images (B, C, H, W)."""
        raise NotImplementedError

    def _target_loss(self, image: Tensor, prediction: Tensor, index: Tensor, target: str | None = None) -> Tensor:
        """Mean squared error of the predicted patches `index` (B, hidden) of `image`, a scalar.

        target: one of `zoo.layers.patchify.TARGETS`, by default the one that `norm_target` says.
        """
        patches = take_tokens(patchify(image.float(), self.patch_size), index)
        make_target = TARGETS[target or ("normalized" if self.norm_target else "pixels")]
        return patch_loss(prediction, make_target(patches, self.in_chans))

    @torch.no_grad()
    def _complete(
        self,
        image: Tensor,
        predict: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        mask_ratio: float,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Completion:
        """predict: from a mask and its count of hidden patches to the prediction and the patches' numbers."""
        check_images(image)
        grid = self._grid(image)
        if mask is None:
            mask = random_mask(len(image), grid[0] * grid[1], mask_ratio, generator)
        counts = mask.sum(dim=1).tolist()
        if mask.shape != (len(image), grid[0] * grid[1]) or len(set(counts)) > 1 or not 0 < counts[0] < mask.shape[1]:
            raise ValueError(
                f"A mask of shape {tuple(mask.shape)} hiding {sorted(set(counts))} patches does not fit "
                f"{len(image)} images of {grid[0]} x {grid[1]} patches; hide the same number in each, some and not all."
            )
        mask = mask.to(image.device)
        prediction, index = predict(mask, counts[0])
        patches = patchify(image.float(), self.patch_size)
        truth = take_tokens(patches, index)
        prediction = prediction.float()
        loss = patch_loss(prediction, normalize_patches(truth) if self.norm_target else truth)
        if self.norm_target:
            mean, std = patch_statistics(truth)
            prediction = prediction * std + mean
        patches = patches.scatter(1, index.unsqueeze(-1).expand_as(prediction), prediction)
        return Completion(unpatchify(patches, self.patch_size, grid), mask, loss)


def adapt_pixel_head(state: dict[str, Tensor], head: str, patch_size: int, in_chans: int) -> None:
    """Fit the pixel head `head` of an RGB checkpoint to other input channels, in place."""
    for key in (f"{head}.weight", f"{head}.bias"):  # pixel (row, column), channel
        rgb = state[key].unflatten(0, (patch_size**2, 3))
        # grey is the mean of the colors; further channels repeat them, as in timm's input convolution
        picked = rgb.mean(1, keepdim=True) if in_chans == 1 else rgb[:, torch.arange(in_chans) % 3]
        state[key] = picked.flatten(0, 1)


class DecoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = SelfAttention(dim, num_heads, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """x (B, N, C) -> B, N, C, or B, m, C at places `index` (B, m) only."""
        y = self.attn(self.norm1(x), index=index)
        x = y + (x if index is None else take_tokens(x, index))
        return x + self.mlp(self.norm2(x))


class PixelDecoder(nn.Module):
    """A masked autoencoder's decoder: mask tokens, fixed sin-cos positions, transformer blocks, pixels.

    The encoder's tokens come already projected to `dim`. mask_tokens: how often the mask token counts at a
    hidden place (iTPN puts it in at each of its three levels).
    """

    def __init__(
        self,
        grid: Grid,
        patch_size: int,
        in_chans: int = 3,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        mask_tokens: int = 1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.mask_tokens = mask_tokens
        self.grad_checkpointing = False
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.pos_embed = SincosPositions(dim, grid, device=device)
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, mlp_ratio, **dd) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.head = nn.Linear(dim, patch_size**2 * in_chans, **dd)

    def init_weights(self) -> None:
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward_tokens(self, x: Tensor, visible: Tensor, grid: Grid, index: Tensor | None = None) -> Tensor:
        """Visible tokens x (B, n, dim) at patches `visible` (B, n) -> normed tokens (B, N, dim), or those of patches
        `index` (B, m) only."""
        x, places = add_mask_token(x, visible, self.mask_tokens * self.mask_token, grid[0] * grid[1])
        x = take_tokens(x, places) + self.pos_embed(grid).to(x.dtype)  # B, N, dim
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            wanted = index if i == last else None  # behind the last attention the other places are not needed
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, wanted)
            else:
                x = block(x, wanted)
        return self.norm(x)

    def forward(self, x: Tensor, visible: Tensor, grid: Grid, index: Tensor | None = None) -> Tensor:
        """Visible tokens x (B, n, dim) at patches `visible` (B, n) -> pixels (B, N, patch * patch * C), or those
        of patches `index` (B, m) only."""
        return self.head(self.forward_tokens(x, visible, grid, index))


class MaskedAutoencoder(PatchPredictor):
    """Base of one-image masked autoencoders: `encoder`, then what a family writes into `embed_visible`, `decoder`.

    A subclass makes `encoder`, a `HierarchicalBackbone` or `Backbone`, and `decoder`, `patch_size`, `in_chans`.
    """

    encoder: Any
    decoder: PixelDecoder

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was made for."""
        return self.encoder.img_size

    def _grid(self, x: Tensor) -> Grid:
        return self.encoder.grid_of(x)

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the decoder's tokens (B, n, dim) of the patches `visible` (B, n)."""
        raise NotImplementedError

    def predict(self, image: Tensor, mask: Tensor, hidden: int, all_patches: bool = False) -> tuple[Tensor, Tensor]:
        """Predict an image's hidden patches from its visible ones.

        mask: (B, N) bool, True = hidden; hidden: how many each row hides. Returns the prediction
        (B, hidden, patch * patch * C) with the patches' numbers (B, hidden); with all_patches the prediction
        is (B, N, patch * patch * C). Pixels are normalized by patch if `norm_target`.
        """
        grid = self._grid(image)
        check_mask(mask, grid, len(image))
        visible, index = split_mask(mask, hidden)
        tokens = self.embed_visible(image, visible)
        return self.decoder(tokens, visible, grid, None if all_patches else index), index

    def forward(self, image: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """Pixels (B, N, patch * patch * C) of all patches, predicted from the visible ones; see `predict`."""
        return self.predict(image, mask, hidden, all_patches=True)[0]

    def completion_loss(self, image: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """The pretraining loss: mean squared error of the hidden patches' target, a scalar."""
        return self._target_loss(image, *self.predict(image, mask, hidden))

    def complete(
        self,
        image: Tensor,
        mask_ratio: float = 0.75,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Hide patches of an image and rebuild them, to look at.

        mask: (B, N) bool, True = hidden, the same number in each row; else drawn with `mask_ratio` and the
        CPU `generator`.
        """
        return self._complete(
            image, lambda mask, hidden: self.predict(image, mask, hidden), mask_ratio, mask, generator
        )

    def _adapt_in_chans(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        super()._adapt_in_chans(state, own)
        if self.in_chans != 3 and "decoder.head.weight" in state:
            adapt_pixel_head(state, "decoder.head", self.patch_size, self.in_chans)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
