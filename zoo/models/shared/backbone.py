"""timm's model protocol for one-image encoders, written once: what all share, and those that are a patch embedding and
a flat list of blocks. Those with stages are in hierarchical.py.

What `forward` calls can be read by TorchScript (annotations are objects here, not texts; a branch for it stands alone
under `torch.jit.is_scripting()`) and traced by torch.fx (what depends on an image's size is in functions of its own).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from timm.layers import PatchEmbed
from timm.layers.helpers import to_2tuple
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.layers.positions.rope import Rope
from zoo.layers.positions.tables import Grid
from zoo.models.shared.model import ZooModel, init_linear

GlobalPool = Literal["", "avg", "max", "avgmax"]


def check_pool(global_pool: GlobalPool) -> GlobalPool:
    """`global_pool`, if it is one that needs no class token. Raises ValueError."""
    if global_pool not in get_args(GlobalPool):
        raise ValueError(f"global_pool '{global_pool}' is unknown here; choose avg, max, avgmax or ''.")
    return global_pool


def image_grid(height: int, width: int, patch: int, img_size: Grid, dynamic: bool) -> Grid:
    """Rows and columns of the patches of an image. img_size: what the model was made for; dynamic: and others.

    Raises ImageError for a size that the model can't take.
    """
    if height % patch != 0 or width % patch != 0 or height < patch or width < patch:
        raise ImageError(
            f"Patches of {patch} pixels don't fill images of {height}x{width}; choose sides that are multiples of "
            f"{patch}."
        )
    if not dynamic and (height != img_size[0] or width != img_size[1]):
        raise ImageError(
            f"Images of {height}x{width} pixels came to a model made for {img_size[0]}x{img_size[1]}; "
            f"create it with img_size=({height}, {width}) or with dynamic_img_size=True, or call set_input_size."
        )
    return height // patch, width // patch


torch.fx.wrap("image_grid")


class ImageEncoder(ZooModel):
    """Base of one-image encoders without class token: the classifier and whatever else is common to them.

    A subclass makes `norm`, `fc_norm`, `head_drop`, `head`, `feature_info`, and writes `forward_features`.
    """

    head_name = "head"

    norm: nn.Module
    fc_norm: nn.Module
    head_drop: nn.Module
    head: nn.Module
    global_pool: GlobalPool
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    grad_checkpointing = False
    num_prefix_tokens = 0
    final_level = -1
    """Number of the intermediate that `forward_features` ends in."""

    def run_block(self, block: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
        """A block's output; with gradient checkpointing it is computed again in the backward pass, not kept."""
        return checkpoint(block, x, *args) if self.grad_checkpointing and self.training else block(x, *args)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> tokens (B, N, D), row-major, behind the final norm if there is one."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, D) -> logits (B, num_classes), or pooled features (B, D)."""
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        elif self.global_pool == "max":
            x = x.amax(dim=1)
        elif self.global_pool == "avgmax":
            x = 0.5 * (x.amax(dim=1) + x.mean(dim=1))
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """A new classifier for `num_classes` (0: none, forward gives features), and another pooling if named."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = check_pool(global_pool)
        like = next(self.parameters())
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self.head.apply(init_linear)
        else:
            self.head = nn.Identity()
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return set()


def check_output_fmt(output_fmt: str) -> None:
    """Raises ValueError for a format of intermediates that no encoder here gives."""
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt '{output_fmt}' is unknown; choose NCHW or NLC.")


def pack_intermediates(taken: list[Tensor], final: Tensor, intermediates_only: bool, output_dict: bool) -> Any:
    """What `forward_intermediates` returns: (final, taken), taken alone, or a dict of both under timm's names."""
    if output_dict:
        result: dict[str, Any] = {"image_intermediates": taken}
        return result if intermediates_only else {**result, "image_features": final}
    return taken if intermediates_only else (final, taken)


class Backbone(ImageEncoder):
    """Base of encoders that are a patch embedding and a flat list of blocks.

    A subclass makes `patch_embed` and `blocks` too, and writes `embed`: images to tokens, and the rotation of queries
    and keys that every block is called with, if it has one.
    """

    patch_embed: PatchEmbed
    blocks: nn.ModuleList
    embed_dim: int
    dynamic_img_size: bool

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was made for."""
        return self.patch_embed.img_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of their patches."""
        return self.patch_embed.grid_size

    def grid_of(self, x: Tensor) -> Grid:
        """Rows and columns of the patches of images (B, C, H, W). Raises ImageError for a size it can't take."""
        return image_grid(x.shape[2], x.shape[3], self.patch_size, self.img_size, self.dynamic_img_size)

    def embed(self, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Rope | None]:
        """Images (B, C, H, W) -> tokens (B, N, D), of the patches `visible` (B, n) only if given, and the rotation."""
        raise NotImplementedError

    def _run_blocks(self, x: Tensor, rope: Rope | None, take: set[int], last: int) -> tuple[Tensor, list[Tensor]]:
        taken = []
        for i, block in enumerate(self.blocks[: last + 1]):
            x = self.run_block(block, x, rope)
            if i in take:
                taken.append(x)
        return x, taken

    def forward_tokens(
        self, x: Tensor, visible: Tensor | None = None, indices: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Normed tokens (B, N, D) and the outputs of blocks `indices`, of which the last block's is normed too.

        visible: patch numbers (B, n), row-major; hidden patches are dropped before the first block.
        """
        x, rope = self.embed(x, visible)
        last = len(self.blocks) - 1
        x, taken = self._run_blocks(x, rope, set(indices), last)
        x = self.norm(x)
        if last in indices:
            taken[-1] = x
        return x, taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normed tokens (B, N, D), row-major."""
        x, rope = self.embed(x)
        for block in self.blocks:
            x = block(x, rope) if torch.jit.is_scripting() else self.run_block(block, x, rope)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of several blocks, as every timm backbone gives them.

        indices: the last n blocks if an int, all if None, else those numbers (negative: from the end).
        norm: apply the final norm to each. stop_early: run no block behind the last one asked for.
        output_fmt: "NCHW" maps (B, D, h, w) or "NLC" tokens (B, h * w, D).
        Returns (normed tokens, intermediates), the intermediates alone, or a dict of both under timm's names.
        """
        check_output_fmt(output_fmt)
        take, last = feature_take_indices(len(self.blocks), indices)
        grid = self.grid_of(x)
        x, rope = self.embed(x)
        x, taken = self._run_blocks(x, rope, set(take), last if stop_early else len(self.blocks) - 1)
        if norm:
            taken = [self.norm(y) for y in taken]
        if output_fmt == "NCHW":
            taken = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in taken]
        return pack_intermediates(taken, self.norm(x), intermediates_only, output_dict)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut away what the given intermediates don't need; returns their (absolute) indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the input size (height, width) that the model was made for."""
        self.patch_embed.set_input_size(img_size=to_2tuple(img_size))
        update_model_input_size(self, self.patch_embed.img_size)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay."""
        return dict(stem=r"^pos_embed|patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])
