"""iTPN's backbone, whose feature pyramid is pretrained with it. TorchScript reads the annotations."""

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.models.hivit import (
    FRESH_BIAS,
    HiViT,
    LayerNorm,
    MlpBlock,
    classifier_rules,
    own_rules,
    to_map,
    trunk_rules,
)
from zoo.models.shared.hierarchical import FRESH_NORM, STAGES, level_info
from zoo.models.shared.model import init_linear
from zoo.weights import Checkpoint, Drop, KeyRules, Rename

Features = Literal["pyramid", "dense", "stages"]


class PatchSplit(nn.Module):
    """Each (sub-)token becomes 2x2 of width `out_dim`, row-major."""

    def __init__(self, dim: int, out_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, device=device, dtype=dtype)
        self.expansion = nn.Linear(dim, 4 * out_dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """B, N, s, t, C -> B, N, 2s, 2t, out_dim."""
        x = self.expansion(self.norm(x)).unflatten(4, (2, 2, -1))  # B, N, s, t, i, j, C
        return x.transpose(3, 4).flatten(4, 5).flatten(2, 3)


class Pyramid(nn.Module):
    """iTPN's neck: three levels of width `dim`, top down, of MLP blocks alone (iTPN, section 3.2).

    Without convolutions every patch has a pyramid of its own, so nothing leaks between visible and hidden ones.
    backbone_dim: width of the main stage. depth: blocks of each of the two finer levels.
    """

    def __init__(self, backbone_dim: int, dim: int, depth: int, mlp_ratio: float, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        same = backbone_dim == dim
        self.lateral16 = nn.Identity() if same else nn.Linear(backbone_dim, dim, **dd)
        self.lateral8 = nn.Linear(backbone_dim // 2, dim, bias=False, **dd)
        self.lateral4 = nn.Linear(backbone_dim // 4, dim, bias=False, **dd)
        self.split8 = PatchSplit(backbone_dim, dim, **dd)
        self.split4 = PatchSplit(dim, dim, **dd)
        self.blocks8 = nn.Sequential(*(MlpBlock(dim, mlp_ratio, **dd) for _ in range(depth)))
        self.blocks4 = nn.Sequential(*(MlpBlock(dim, mlp_ratio, **dd) for _ in range(depth)))
        self.out4, self.out8, self.out16 = (MlpBlock(dim, mlp_ratio, **dd) for _ in range(3))

    def forward(self, stages: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """`HiViT.encode`'s stages -> levels of strides 4, 8, 16: (B, N, s, s, dim) with s = 4, 2, 1."""
        high, mid, main = stages
        main = main[:, :, None, None]  # B, N, 1, 1, C
        level8 = self.blocks8(self.split8(main) + self.lateral8(mid))
        level4 = self.blocks4(self.split4(level8) + self.lateral4(high))
        return [self.out4(level4), self.out8(level8), self.out16(self.lateral16(main))]


class Join(nn.Module):
    """A level of the pyramid with the backbone's own feature behind it; a module, so that the level has a name."""

    def forward(self, level: Tensor, own: Tensor) -> Tensor:
        """B, H, W, C and B, H, W, D -> B, H, W, C + D."""
        return torch.cat((level, own), dim=-1)


class ITPN(HiViT):
    """iTPN's backbone (iTPN, section 3).

    features: what `forward_intermediates` and features_only give. "pyramid": its levels, of fpn_dim channels;
    "dense": each level with the backbone's own feature of its stride behind it, as the reference's detectors take
    them; "stages": the backbone's alone, of a model that has no pyramid. By default a model with a classifier, which
    never needs the pyramid, has none, and other models give it.
    fpn_depth: blocks of each of the pyramid's finer levels: 2, but 1 in the CLIP form.
    stretch_masked: shift positions a little when patches are left out, as the reference does on a CPU (on a GPU its
    library leaves them where they are, see `stretch_table`).
    Other arguments are HiViT's.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 512,
        depths: tuple[int, int, int] = (3, 3, 24),
        mlp_ratio: float = 4.0,
        features: Features | None = None,
        fpn_dim: int = 256,
        fpn_depth: int = 2,
        stretch_masked: bool = True,
        device=None,
        dtype=None,
        **backbone_args: Any,
    ) -> None:
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        super().__init__(
            img_size,
            in_chans,
            num_classes,
            embed_dim=embed_dim,
            depths=depths,
            mlp_ratio=mlp_ratio,
            **backbone_args,
            **dd,
        )
        self.features = features or ("stages" if num_classes else "pyramid")
        if self.features not in ("pyramid", "dense", "stages"):
            raise ValueError(f"Features '{features}' are unknown; choose pyramid, dense or stages.")
        self.stretch_masked = stretch_masked
        self.pyramid = self.dense = None
        if self.features == "stages":
            self.layouts = _layouts(pyramid=False)
            return
        self.pyramid = Pyramid(embed_dim, fpn_dim, fpn_depth, mlp_ratio, **dd)
        dims, modules = [fpn_dim] * STAGES, [f"pyramid.out{stride}" for stride in (4, 8, 16)]
        if self.features == "dense":
            self.dense = nn.ModuleList(Join() for _ in range(STAGES))
            dims = [fpn_dim + info["num_chs"] for info in self.feature_info[:STAGES]]
            modules = [f"dense.{i}" for i in range(STAGES)]
        self.feature_info = level_info(dims, modules)
        if not next(self.parameters()).is_meta:
            self.pyramid.apply(init_linear)

    def forward_pyramid(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Images (B, C, H, W) -> the pyramid's levels of strides 4, 8, 16: (B, N, s, s, fpn_dim) with s = 4, 2, 1.

        visible: patch numbers (B, n), row-major, to leave the others out.
        """
        assert self.pyramid is not None
        return self.pyramid(self.encode(x, visible))

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        if self.pyramid is None or not take:
            return super().forward_stages(x, take, last)
        stages = self.encode(x)
        grid = self.grid_of(x)
        maps = {}
        levels = self.pyramid(stages)
        for i in take:
            maps[i] = to_map(levels[i], grid)
            if self.dense is not None:
                own = stages[i] if i < STAGES - 1 else stages[i][:, :, None, None]
                maps[i] = self.dense[i](maps[i], to_map(own, grid))
        return stages[2], maps

    def _prune_stages(self, last: int) -> None:
        if self.pyramid is None:  # every level of the pyramid needs the whole backbone
            super()._prune_stages(last)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay; the pyramid belongs to the last block."""
        groups = super().group_matcher(coarse)
        return groups | dict(blocks=[*groups["blocks"], (r"^pyramid", (99999,))])


def pyramid_rules(ours: str = "") -> tuple[Rename, ...]:
    """What the reference calls the pyramid's tensors; ours: what stands before their names here."""
    ours += "pyramid."
    return (
        Rename("align_dim_16tofpn.*", f"{ours}lateral16.*"),
        Rename("align_dim_16to8.*", f"{ours}lateral8.*"),
        Rename("align_dim_8to4.*", f"{ours}lateral4.*"),
        Rename("split_16to8.reduction.*", f"{ours}split8.expansion.*"),
        Rename("split_16to8.*", f"{ours}split8.*"),
        Rename("split_8to4.reduction.*", f"{ours}split4.expansion.*"),
        Rename("split_8to4.*", f"{ours}split4.*"),
        Rename("block_16to8.*", f"{ours}blocks8.*"),
        Rename("block_8to4.*", f"{ours}blocks4.*"),
        Rename("fpn_modules.0.*", f"{ours}out16.*"),
        Rename("fpn_modules.1.*", f"{ours}out8.*"),
        Rename("fpn_modules.2.*", f"{ours}out4.*"),
    )


def size_of(*keys: str) -> Callable[[Checkpoint], int | None]:
    """A reader of the first axis of the first of these tensors that a checkpoint has."""

    def read(checkpoint: Checkpoint) -> int | None:
        found = next((checkpoint.tensors[key] for key in keys if key in checkpoint.tensors), None)
        return len(found) if found is not None and found.ndim else None

    return read


# One published file may have a pyramid as wide as its backbone, another a teacher of 768 instead of 512 channels.
FPN_DIM = size_of("fpn_modules.0.norm2.weight", "pyramid.out16.norm2.weight", "encoder.pyramid.out16.norm2.weight")


def _layouts(pyramid: bool) -> dict[str, KeyRules]:
    """What a backbone with or without pyramid can read."""
    dropped = "the pyramid, which a model with a classifier or with features='stages' doesn't have"
    patterns = ("align_dim_*", "split_*", "block_16to8.*", "block_8to4.*", "fpn_modules.*")
    neck: tuple[Rename | Drop, ...] = tuple(Drop(pattern, dropped) for pattern in patterns)
    own_neck: Rename | Drop = Drop("pyramid.*", dropped)
    encoder: tuple[Rename | Drop, ...] = (Drop("encoder.pyramid.*", dropped), Rename("encoder.*", "*"))
    if pyramid:
        neck, own_neck, encoder = pyramid_rules(), Rename("pyramid.*", "pyramid.*"), encoder[1:]
    whole = KeyRules(*classifier_rules())
    if pyramid:
        whole = KeyRules(*neck, *classifier_rules(), *FRESH_NORM)
    return {
        "iTPN backbone, reference": whole,
        "iTPN pixel form, the reference's": KeyRules(
            *trunk_rules(),
            *neck,
            Drop("mask_token", "belongs to the decoder"),
            Drop("decoder_*", "belongs to the decoder"),
            *FRESH_NORM,
            FRESH_BIAS,
        ),
        "iTPN CLIP form, the reference's": KeyRules(
            *trunk_rules(),
            *neck,
            Drop("relative_position_index", "follows from the grid"),
            Drop("mask_token", "stands for hidden patches only"),
            Drop("decoder_embed.*", "predicts the teacher's tokens"),
            Drop("norm.*", "predicts the teacher's tokens"),
            Drop("lm_head.*", "predicts the teacher's tokens"),
            Drop("cls_pt_layers.*", "the auxiliary branch"),
            Drop("norm_cls.*", "the auxiliary branch"),
            Drop("lm_cls_head.*", "the auxiliary branch"),
            *FRESH_NORM,
        ),
        "iTPN pixel form": KeyRules(
            *encoder,
            Drop("level_embed.*", "leads to the decoder"),
            Drop("decoder.*", "belongs to the decoder"),
            Drop("teacher.*", "the moving average of the model"),
            Drop("predictors.*", "predict the teacher's features"),
            *FRESH_NORM,
            FRESH_BIAS,
        ),
        "iTPN CLIP form": KeyRules(
            *encoder,
            Drop("mask_token", "stands for hidden patches only"),
            Drop("level_embed.*", "predicts the teacher's tokens"),
            Drop("norm.*", "predicts the teacher's tokens"),
            Drop("head.*", "predicts the teacher's tokens"),
            Drop("aux_*", "the auxiliary branch"),
            *FRESH_NORM,
        ),
        "iTPN backbone": own_rules(own_neck),
    }


ITPN.layouts = _layouts(pyramid=True)
ITPN.file_args = dict(fpn_dim=FPN_DIM)
