"""timm's model protocol for encoders with three stages, at strides 4, 8 and 16, written once.

Levels 0, 1, 2 of `forward_intermediates` and of `features_only` are the stages; level 3 is level 2 under a 2x2 max
pool, at stride 32, for detectors that want a fourth map.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from zoo.layers.positions.tables import Grid, GridTable
from zoo.layers.unused import with_unused
from zoo.models.shared.backbone import (
    GlobalPool,
    ImageEncoder,
    check_output_fmt,
    check_pool,
    image_grid,
    pack_intermediates,
)
from zoo.weights import Fresh

STAGES = 3
POOLED = 3  # the level behind the stages
PATCH = 16  # pixels a side of what the last stage has one token for

torch.fx.wrap("image_grid")  # of the traced image

FRESH_NORM = (
    Fresh("fc_norm.weight", 1.0, "the classifier's norm, which pretraining doesn't have"),
    Fresh("fc_norm.bias", 0.0, "the classifier's norm, which pretraining doesn't have"),
)
"""Rules for a backbone that is built from a pretraining checkpoint; fine-tuning starts like this in the papers."""


def halve(x: Tensor) -> Tensor:
    """B, C, h, w -> B, C, h / 2, w / 2, the larger of neighbors; a single row or column stays."""
    return F.max_pool2d(x, [min(2, x.shape[2]), min(2, x.shape[3])])


torch.fx.wrap("halve")


class Halve(nn.Module):
    """Gives the level behind the stages; a module, so that the level has a name of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """B, h, w, D -> B, h / 2, w / 2, D."""
        return halve(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class HierarchicalBackbone(ImageEncoder):
    """Base of encoders with stages, whose last one is a transformer on 16x16 patches.

    A subclass makes its stages, calls `_make_head` at last, sets `feature_info` with `level_info`, and writes
    `forward_tokens`, `forward_stages` and `_prune_stages`. Positions are GridTables, which follow the input size.

    forward_features gives the last stage's tokens as they leave its last block; the classifier's norm (`fc_norm`)
    comes behind the pooling, as in the references. So `norm`, what is applied to tokens, is none by default.
    """

    default_out_indices = (0, 1, 2)
    final_level = STAGES - 1

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        global_pool: GlobalPool,
        dynamic_img_size: bool,
    ) -> None:
        super().__init__()
        self.patch_size = PATCH
        self.pyramid: nn.Module | None = None  # that `forward` does without
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
        self.pool = Halve()
        self.fc_norm = norm_layer(dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes, **dd) if num_classes else nn.Identity()

    @property
    def grid_size(self) -> Grid:
        """Rows and columns of patches of the input size that the model was made for."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def grid_of(self, x: Tensor) -> Grid:
        """Rows and columns of the patches of images (B, C, H, W). Raises ImageError for a size it can't take."""
        return image_grid(x.shape[2], x.shape[3], self.patch_size, self.img_size, self.dynamic_img_size)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last stage's tokens (B, N, D)."""
        raise NotImplementedError

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
        if not torch.jit.is_scripting():
            if isinstance(x, torch.fx.Proxy):
                return self._forward_traced(x)
            if self.pyramid is not None:
                return self.norm(with_unused(self.forward_tokens(x), self.pyramid.parameters()))
        return self.norm(self.forward_tokens(x))

    def _forward_traced(self, x: Tensor) -> Tensor:
        """`forward_features` with all levels on the way, so that a graph has them for those who extract features;
        extractors leave out what isn't asked for."""
        x, maps = self.forward_stages(x, range(STAGES))
        self.pool(maps[STAGES - 1])
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
        """Maps of several levels, as timm's hierarchical backbones give them.

        indices: the last n levels if an int, all four if None, else those numbers (negative: from the end); 3 is the
        level at stride 32. norm: apply the final norm, if there is one, to the last stage.
        stop_early: run no stage behind the last one asked for.
        output_fmt: "NCHW" maps (B, D, h, w) or "NLC" tokens (B, h * w, D).
        Returns (tokens of the last stage that ran, maps), the maps alone, or a dict of both under timm's names.
        """
        check_output_fmt(output_fmt)
        take, last = self._take_levels(indices)
        if not (stop_early or intermediates_only):
            last = STAGES - 1
        x, maps = self.forward_stages(x, {min(i, STAGES - 1) for i in take}, last)
        if last == STAGES - 1:
            x = self.norm(x)
        if norm and STAGES - 1 in maps:
            maps[STAGES - 1] = self.norm(maps[STAGES - 1])
        taken = [self.pool(maps[STAGES - 1]) if i == POOLED else maps[i] for i in take]
        taken = [y.flatten(1, 2) if output_fmt == "NLC" else y.permute(0, 3, 1, 2).contiguous() for y in taken]
        return pack_intermediates(taken, x, intermediates_only, output_dict)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut away what the given levels don't need; returns their (absolute) indices."""
        take, last = self._take_levels(indices)
        self._prune_stages(last)
        if prune_norm:
            self.norm = nn.Identity()
        if last < STAGES - 1:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or last < STAGES - 1:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take

    def _take_levels(self, indices: int | list[int] | None) -> tuple[list[int], int]:
        """The absolute levels that `indices` mean, and the last stage that they need."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        return list(take), min(last, STAGES - 1)

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
    """timm's `feature_info` of levels with `dims` channels that the submodules named `modules` give, and of the pooled
    one, which has the channels of the last."""
    return [
        dict(module=module, num_chs=dim, reduction=4 * 2**i)
        for i, (dim, module) in enumerate(zip([*dims, dims[-1]], [*modules, "pool"], strict=True))
    ]


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    """A size that patches fill. Raises ImageError."""
    image_grid(*size, PATCH, size, True)
    return size
