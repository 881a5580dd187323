"""timm's model protocol for encoders with three stages, at strides 4, 8 and 16, written once.

Levels 0, 1, 2 of `forward_intermediates` and of `features_only` are the stages; level 3, on request, is level 2
under a 2x2 max pool, at stride 32, for detectors that want a fourth map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.layers.positions import Grid, GridTable
from zoo.models._backbone import GlobalPool, ImageEncoder, check_output_fmt, check_pool, pack_intermediates
from zoo.weights import Fresh

STAGES = 3
POOLED = 3  # the level behind the stages
PATCH = 16  # pixels a side of what the last stage has one token for

FRESH_NORM = (
    Fresh("fc_norm.weight", 1.0, "the classifier's norm, which pretraining doesn't have"),
    Fresh("fc_norm.bias", 0.0, "the classifier's norm, which pretraining doesn't have"),
)
"""Rules for a backbone that is built from a pretraining checkpoint; fine-tuning starts like this in the papers."""


class HierarchicalBackbone(ImageEncoder):
    """Base of encoders with stages, whose last one is a transformer on 16x16 patches.

    A subclass makes its stages, calls `_make_head` at last, sets `feature_info` with `level_info`, and writes
    `forward_stages` and `_prune_stages`. Positions are GridTables, which follow the input size.

    forward_features gives the last stage's tokens as they leave its last block; the classifier's norm (`fc_norm`)
    comes behind the pooling, as in the references. So `norm`, what is applied to tokens, is none by default.
    """

    patch_size = PATCH
    default_out_indices = (0, 1, 2)

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        global_pool: GlobalPool,
        dynamic_img_size: bool,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = check_pool(global_pool)
        self.dynamic_img_size = dynamic_img_size
        self.img_size: tuple[int, int] = _check_size(to_2tuple(img_size))

    def _make_head(
        self, dim: int, num_classes: int, drop_rate: float, norm_layer: Callable[..., nn.Module], **dd: Any
    ) -> None:
        """Norm, dropout and classifier over features of width `dim`."""
        self.embed_dim = self.num_features = self.head_hidden_size = dim
        self.norm = nn.Identity()
        self.fc_norm = norm_layer(dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes, **dd) if num_classes else nn.Identity()

    @property
    def grid_size(self) -> Grid:
        """Rows and columns of patches of the input size that the model was made for."""
        return self.img_size[0] // PATCH, self.img_size[1] // PATCH

    def grid_of(self, x: Tensor) -> Grid:
        """Rows and columns of the patches of images (B, C, H, W). Raises ImageError for a size it can't take."""
        height, width = x.shape[-2:]
        if not self.dynamic_img_size and (height, width) != self.img_size:
            raise ImageError(
                f"Images of {height}x{width} pixels came to a model made for {self.img_size[0]}x{self.img_size[1]}; "
                "create it with this img_size or with dynamic_img_size=True, or call set_input_size."
            )
        _check_size((height, width))
        return height // PATCH, width // PATCH

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Images (B, C, H, W) -> what stage `last` gives, as tokens (B, N, D), and the levels `take` as maps
        (B, H / stride, W / stride, D)."""
        raise NotImplementedError

    def _prune_stages(self, last: int) -> None:
        """Cut away what levels up to `last` don't need."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.forward_stages(x)[0])

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
        """Maps of several levels, as timm's hierarchical backbones give them.

        indices: the last n stages if an int, all three if None, else those numbers (negative: from the last stage);
        3 is the level at stride 32. norm: apply the final norm, if there is one, to the last stage.
        stop_early: run no stage behind the last one asked for.
        output_fmt: "NCHW" maps (B, D, h, w) or "NLC" tokens (B, h * w, D).
        Returns (tokens of the last stage that ran, maps), the maps alone, or a dict of both under timm's names.
        """
        check_output_fmt(output_fmt)
        take, last = _take_levels(indices)
        if not (stop_early or intermediates_only):
            last = STAGES - 1
        x, maps = self.forward_stages(x, {min(i, STAGES - 1) for i in take}, last)
        if last == STAGES - 1:
            x = self.norm(x)
        if norm and STAGES - 1 in maps:
            maps[STAGES - 1] = self.norm(maps[STAGES - 1])
        taken = [_pool(maps[STAGES - 1]) if i == POOLED else maps[i] for i in take]
        taken = [y.flatten(1, 2) if output_fmt == "NLC" else y.permute(0, 3, 1, 2).contiguous() for y in taken]
        return pack_intermediates(taken, x, intermediates_only, output_dict)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut away what the given levels don't need; returns their (absolute) indices."""
        take, last = _take_levels(indices)
        self._prune_stages(last)
        if prune_norm:
            self.norm = nn.Identity()
        if last < STAGES - 1:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or last < STAGES - 1:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take

    def no_weight_decay(self) -> set[str]:
        """Tables of positions, as in the references."""
        return {f"{name}.table" for name, module in self.named_modules() if isinstance(module, GridTable)}

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the input size (height, width) that the model was made for; positions are resampled."""
        self.img_size = _check_size(to_2tuple(img_size))
        for module in self.modules():
            if isinstance(module, GridTable):
                module.set_grid(self.grid_size)
        update_model_input_size(self, self.img_size)


def level_info(dims: Sequence[int], modules: Sequence[str]) -> list[dict[str, Any]]:
    """timm's `feature_info` of levels with `dims` channels that the submodules named `modules` give; the pooled one
    has those of the last."""
    return [
        dict(module=module, num_chs=dim, reduction=4 * 2**i)
        for i, (dim, module) in enumerate(zip([*dims, dims[-1]], [*modules, modules[-1]], strict=True))
    ]


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] % PATCH or size[1] % PATCH or not min(size):
        raise ImageError(
            f"Patches of {PATCH} pixels don't fill images of {size[0]}x{size[1]}; choose sides that are multiples of "
            f"{PATCH}."
        )
    return size


def _take_levels(indices: int | list[int] | None) -> tuple[list[int], int]:
    """The absolute levels that `indices` mean, and the last stage that they need."""
    if indices is None or isinstance(indices, int):
        take, last = feature_take_indices(STAGES, indices)
        return list(take), last
    take = [i if i == POOLED else feature_take_indices(STAGES, [i])[1] for i in indices]
    return take, min(max(take), STAGES - 1)


def _pool(x: Tensor) -> Tensor:
    """B, h, w, D -> B, h / 2, w / 2, D."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
