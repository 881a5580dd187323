"""iTPN: HiViT with a feature pyramid that is pretrained together with it.

Paper: arXiv 2211.12735. `ITPN` is the backbone, whose neck comes with it; the pretraining forms are `ITPNPixel` (a
masked autoencoder on all levels), `ITPNClip` (predicts a teacher's tokens) and `ITPNEma` (pixels, and the features
that a moving average of the model itself has on every level). TorchScript reads the annotations.
"""

import copy
import math
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.masking import block_mask, split_mask, take_tokens
from zoo.layers.positions import Grid
from zoo.layers.relative import RelativeBias
from zoo.models._build import register_family
from zoo.models._hierarchical import FRESH_NORM, STAGES, level_info
from zoo.models._masked import MaskedAutoencoder, PixelDecoder, check_images, check_mask
from zoo.models._model import ZooModel, init_linear
from zoo.models.hivit import (
    FRESH_BIAS,
    Block,
    HiViT,
    LayerNorm,
    MlpBlock,
    classifier_rules,
    decoder_rules,
    own_rules,
    to_map,
    trunk_rules,
)
from zoo.weights import Checkpoint, Drop, KeyRules, Rename

__all__ = ["ITPN", "ITPNClip", "ITPNEma", "ITPNPixel", "Pyramid", "TokenPrediction"]

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
    stretch_masked: shift positions a little when patches are left out, as the published pixel weights were trained.
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


def _size_of(*keys: str) -> Callable[[Checkpoint], int | None]:
    """A reader of the first axis of the first of these tensors that a checkpoint has."""

    def read(checkpoint: Checkpoint) -> int | None:
        found = next((checkpoint.tensors[key] for key in keys if key in checkpoint.tensors), None)
        return len(found) if found is not None and found.ndim else None

    return read


# One published file may have a pyramid as wide as its backbone, another a teacher of 768 instead of 512 channels.
_FPN_DIM = _size_of("fpn_modules.0.norm2.weight", "pyramid.out16.norm2.weight", "encoder.pyramid.out16.norm2.weight")
_TEACHER_DIM = _size_of("lm_head.weight", "head.weight")


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
ITPN.file_args = dict(fpn_dim=_FPN_DIM)


class LevelEmbed(nn.Module):
    """One token a patch from its pyramid: each level normed and projected to an equal share of `dim` channels a
    sub-token, flattened as (row, column, channel); the levels are summed."""

    def __init__(self, fpn_dim: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.levels = nn.ModuleList(
            nn.Sequential(LayerNorm(fpn_dim, **dd), nn.Linear(fpn_dim, dim // side**2, **dd)) for side in (4, 2, 1)
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels (B, N, s, s, fpn_dim) with s = 4, 2, 1 -> B, N, dim."""
        high, mid, main = (embed(level).flatten(2) for embed, level in zip(self.levels, levels, strict=True))
        return high + mid + main


def level_embed_rules() -> tuple[Rename, ...]:
    """What the reference, coarsest first, calls the tensors of `LevelEmbed`."""
    return tuple(Rename(f"decoder_embed.{i}.*", f"level_embed.levels.{2 - i}.*") for i in range(3))


class ITPNPixel(MaskedAutoencoder):
    """iTPN as a masked autoencoder: all levels of the visible patches' pyramid feed one decoder (iTPN, section 3.3).

    decoder_dim, decoder_depth, decoder_num_heads: the decoder's. norm_target: see `PatchPredictor`.
    Other arguments are ITPN's.
    """

    first_conv = "encoder.patch_embed.proj"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        fpn_dim: int = 256,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_target: bool = True,
        rel_pos: bool = False,
        dynamic_img_size: bool = True,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        options: dict[str, Any] = dict(rel_pos=rel_pos, dynamic_img_size=dynamic_img_size, **encoder_args)
        self.encoder = ITPN(img_size, in_chans, mlp_ratio=mlp_ratio, fpn_dim=fpn_dim, **options, **dd)
        self.encoder.fc_norm = nn.Identity()  # a classifier's
        self.patch_size = self.encoder.patch_size
        self.in_chans = in_chans
        self.num_features = self.encoder.num_features
        self.norm_target = norm_target
        self.level_embed = LevelEmbed(fpn_dim, decoder_dim, **dd)
        self.decoder = PixelDecoder(
            self.encoder.grid_size,
            self.patch_size,
            in_chans,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            mlp_ratio,
            mask_tokens=3,  # it was put in at each level
            **dd,
        )
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder and what leads to it (the encoder has drawn its own)."""
        self.level_embed.apply(init_linear)
        self.decoder.init_weights()

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        return self.level_embed(self.encoder.forward_pyramid(image, visible))


ITPNPixel.file_args = dict(fpn_dim=_FPN_DIM)
ITPNPixel.layouts = {
    "iTPN pixel form, reference": KeyRules(
        *trunk_rules("encoder."), *pyramid_rules("encoder."), *decoder_rules(), *level_embed_rules()
    )
}


class ITPNEma(ITPNPixel):
    """iTPN with a moving average of itself as the teacher: it predicts hidden pixels, and hidden features.

    The paper describes masked feature modeling against such a teacher (iTPN, section 3.3) but no code of it was
    released: this form is our own. The teacher, a backbone with pyramid like the student's, sees the whole image.
    From the decoder's tokens at hidden patches, which all levels of the student feed, one linear predictor for each
    level tells the teacher's features of that level, normed without affine parameters.
    feature_weight: weight of the features' loss, SmoothL1 summed over the levels, against that of the pixels.
    After each optimizer step call `update_teacher`. Other arguments are ITPNPixel's.
    """

    def __init__(
        self,
        fpn_dim: int = 256,
        decoder_dim: int = 512,
        feature_weight: float = 1.0,
        momentum: float = 0.996,
        stretch_masked: bool = False,  # the teacher, which sees everything, would have other positions
        device=None,
        dtype=None,
        **pixel_args: Any,
    ) -> None:
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        super().__init__(fpn_dim=fpn_dim, decoder_dim=decoder_dim, stretch_masked=stretch_masked, **pixel_args, **dd)
        self.fpn_dim = fpn_dim
        self.feature_weight = feature_weight
        self.momentum = momentum
        self.predictors = nn.ModuleList(nn.Linear(decoder_dim, side**2 * fpn_dim, **dd) for side in (4, 2, 1))
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        if not next(self.parameters()).is_meta:
            self.predictors.apply(init_linear)

    def train(self, mode: bool = True) -> "ITPNEma":
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teacher_features(self, image: Tensor, index: Tensor) -> list[Tensor]:
        """What is to be predicted at patches `index` (B, m): (B, m, s * s * fpn_dim) with s = 4, 2, 1."""
        stages = self.teacher.encode(image)
        # a patch's pyramid depends on that patch alone, so it is not computed for others
        taken = [take_tokens(stage.flatten(2), index).unflatten(2, stage.shape[2:]) for stage in stages]
        assert self.teacher.pyramid is not None
        levels = self.teacher.pyramid((taken[0], taken[1], taken[2]))
        return [F.layer_norm(level.float(), (self.fpn_dim,), eps=1e-6).flatten(2) for level in levels]

    def losses(self, image: Tensor, mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
        """The two parts of `completion_loss`, of pixels and of features, without the latter's weight."""
        grid = self._grid(image)
        check_mask(mask, grid, len(image))
        visible, index = split_mask(mask, hidden)
        tokens = self.decoder.forward_tokens(self.embed_visible(image, visible), visible, grid, index)
        pixels = self._target_loss(image, self.decoder.head(tokens), index)
        features = torch.stack(
            [
                F.smooth_l1_loss(predict(tokens).float(), target)
                for predict, target in zip(self.predictors, self.teacher_features(image, index), strict=True)
            ]
        ).sum()
        return pixels, features

    def completion_loss(self, image: Tensor, mask: Tensor, hidden: int) -> Tensor:
        """The pretraining loss: squared error of hidden pixels plus weighted SmoothL1 of hidden features, a scalar."""
        pixels, features = self.losses(image, mask, hidden)
        return pixels + self.feature_weight * features

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        """Move the teacher towards the student; progress: the share of the training that is done, 0 to 1.

        Its momentum rises from 0.996 to 1 by a cosine (BYOL's schedule).
        """
        momentum = 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum)


ITPNEma.layouts = {}


class TokenPrediction(NamedTuple):
    """What `ITPNClip.complete` gives, to look at.

    The form predicts a teacher's tokens, not pixels, so its picture is one of tokens: prediction and target
    (B, N, D), for colors of a common PCA, and similarity (B, N), the cosine of the two at each patch.
    mask: (B, N) bool, True = hidden. loss: the main branch's.
    """

    prediction: Tensor
    target: Tensor
    similarity: Tensor
    mask: Tensor
    loss: Tensor


class ITPNClip(ZooModel):
    """iTPN that predicts a teacher's tokens of the whole image, of CLIP in the published weights (iTPN, section 4.1).

    All patches pass the first two stages; then a mask token takes the place of the hidden ones. One prediction comes
    from the pyramid, an auxiliary one from main block `int(0.75 * depth)` through two blocks of its own.
    teacher_dim: channels of the teacher's tokens. Other arguments are ITPN's.
    """

    first_conv = "encoder.patch_embed.proj"
    num_classes = 0

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        embed_dim: int = 512,
        depths: tuple[int, int, int] = (3, 3, 24),
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        rel_pos: bool = True,
        init_values: float | None = 0.1,
        fpn_dim: int = 256,
        fpn_depth: int = 1,
        teacher_dim: int = 512,
        dynamic_img_size: bool = True,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        blocks: dict[str, Any] = dict(num_heads=num_heads, mlp_ratio=mlp_ratio, init_values=init_values)
        options: dict[str, Any] = dict(rel_pos=rel_pos, dynamic_img_size=dynamic_img_size, **blocks, **encoder_args)
        self.encoder = ITPN(
            img_size,
            in_chans,
            embed_dim=embed_dim,
            depths=depths,
            fpn_dim=fpn_dim,
            fpn_depth=fpn_depth,
            **options,
            **dd,
        )
        self.encoder.fc_norm = nn.Identity()  # a classifier's
        self.patch_size = self.encoder.patch_size
        self.in_chans = in_chans
        self.num_features = self.encoder.num_features
        self.mask_token = nn.Parameter(torch.empty(embed_dim, **dd))
        self.level_embed = LevelEmbed(fpn_dim, embed_dim, **dd)
        self.norm = LayerNorm(embed_dim, **dd)
        self.head = nn.Linear(embed_dim, teacher_dim, **dd)
        grid = self.encoder.grid_size if rel_pos else None
        self.aux_start = int(0.75 * depths[2])
        self.aux_blocks = nn.ModuleList(Block(embed_dim, grid=grid, norm_eps=1e-5, **blocks, **dd) for _ in range(2))
        self.aux_norm = LayerNorm(embed_dim, **dd)
        self.aux_head = nn.Linear(embed_dim, teacher_dim, **dd)
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw all but the encoder, which has drawn its own."""
        for part in (self.level_embed, self.head, self.aux_blocks, self.aux_head):
            part.apply(init_linear)
        for module in self.aux_blocks.modules():
            if isinstance(module, RelativeBias):
                module.init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def img_size(self) -> Grid:
        """Height and width of the images that the model was made for."""
        return self.encoder.img_size

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and a mask (B, N) bool, True = hidden, any number in each row.

        Returns the teacher's tokens (B, N, teacher_dim) as the main and the auxiliary branch predict them.
        """
        encoder, grid = self.encoder, self.encoder.grid_of(image)
        check_mask(mask, grid, len(image))
        high, mid, x = encoder.forward_stem(image)
        x = torch.where(mask.unsqueeze(2), self.mask_token.to(x.dtype), x)
        x, aux = encoder.forward_main(x, grid, take=self.aux_start)
        assert encoder.pyramid is not None
        prediction = self.head(self.norm(self.level_embed(encoder.pyramid((high, mid, x)))))
        relative = encoder.relative(grid)
        for block in self.aux_blocks:
            aux = encoder.run_block(block, aux, relative)
        return prediction, self.aux_head(self.aux_norm(aux))

    def token_loss(self, image: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """The pretraining loss: SmoothL1 of both branches over all tokens, summed, a scalar.

        targets: the teacher's tokens (B, N, teacher_dim) of the whole image, as they are to be predicted (layer-normed
        by the teacher's side).
        """
        return sum(F.smooth_l1_loss(tokens.float(), targets.float()) for tokens in self(image, mask))  # type: ignore[return-value]

    @torch.no_grad()
    def complete(
        self,
        image: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenPrediction:
        """Hide patches of an image and predict the teacher's tokens, to look at.

        targets: see `token_loss`. mask: (B, N) bool, True = hidden; else drawn block-wise, with the CPU `generator`,
        as in pretraining: up to 75 of 196 patches.
        """
        check_images(image)
        if mask is None:
            grid = self.encoder.grid_of(image)
            hidden = round(75 / 196 * grid[0] * grid[1])
            mask = torch.stack([block_mask(grid, hidden, generator) for _ in image])
        mask = mask.to(image.device)
        prediction = self(image, mask)[0].float()
        targets = targets.float()
        similarity = F.cosine_similarity(prediction, targets, dim=2)
        return TokenPrediction(prediction, targets, similarity, mask, F.smooth_l1_loss(prediction, targets))

    def reference_state(self) -> dict[str, Tensor]:
        return self.encoder.add_relative_index(super().reference_state())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".table")} | {"mask_token"}


ITPNClip.file_args = dict(fpn_dim=_FPN_DIM, teacher_dim=_TEACHER_DIM)
ITPNClip.layouts = {
    "iTPN CLIP form, reference": KeyRules(
        *trunk_rules("encoder."),
        *pyramid_rules("encoder."),
        *level_embed_rules(),
        Drop("relative_position_index", "follows from the grid"),
        Rename("mask_token", "mask_token", squeeze=(0, 1)),
        Rename("norm.*", "norm.*"),
        Rename("lm_head.*", "head.*"),
        Rename("cls_pt_layers.*.attn.relative_position_bias_table", "aux_blocks.*.rel_pos.table", grid=True),
        Rename("cls_pt_layers.*.gamma_1", "aux_blocks.*.ls1.gamma"),
        Rename("cls_pt_layers.*.gamma_2", "aux_blocks.*.ls2.gamma"),
        Rename("cls_pt_layers.*", "aux_blocks.*"),
        Rename("norm_cls.*", "aux_norm.*"),
        Rename("lm_cls_head.*", "aux_head.*"),
    )
}

default_cfgs = register_family("itpn", dict(encoder=ITPN, pixel=ITPNPixel, clip=ITPNClip, ema=ITPNEma), __name__)
