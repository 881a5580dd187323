"""iTPN as a masked autoencoder on all levels: of pixels, or also of its own moving average's features.

TorchScript reads the annotations.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.masking import split_mask, take_tokens
from zoo.models.hivit import (
    LayerNorm,
    decoder_rules,
    trunk_rules,
)
from zoo.models.itpn.backbone import FPN_DIM, ITPN, pyramid_rules
from zoo.models.shared.masked import MaskedAutoencoder, PixelDecoder, check_mask
from zoo.models.shared.model import init_linear
from zoo.weights import KeyRules, Rename


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


ITPNPixel.file_args = dict(fpn_dim=FPN_DIM)
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
