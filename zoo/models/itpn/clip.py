"""iTPN that predicts a teacher's tokens. TorchScript reads the annotations."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.masking import block_mask
from zoo.layers.positions.relative import RelativeBias
from zoo.layers.positions.tables import Grid
from zoo.models.hivit import (
    Block,
    LayerNorm,
    trunk_rules,
)
from zoo.models.itpn.backbone import FPN_DIM, ITPN, pyramid_rules, size_of
from zoo.models.itpn.pixel import LevelEmbed, level_embed_rules
from zoo.models.shared.masked import check_images, check_mask
from zoo.models.shared.model import ZooModel, init_linear
from zoo.weights import Drop, KeyRules, Rename


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


ITPNClip.file_args = dict(fpn_dim=FPN_DIM, teacher_dim=size_of("lm_head.weight", "head.weight"))
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
