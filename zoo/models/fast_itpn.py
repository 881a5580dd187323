"""Fast-iTPN: iTPN's hierarchy in convolutional clothes, pretrained with a feature pyramid against a CLIP teacher.

Paper: Tian et al., "Fast-iTPN: Integrally Pre-Trained Transformer Pyramid Network with Token Migration", TPAMI 2024,
arXiv 2211.12735. Stages 1 and 2 are 1x1-convolutional MLP blocks at strides 4 and 8, stage 3 a transformer at stride
16. All maps are channels-last, so that a 1x1 convolution is a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, Mlp, PatchEmbed, calculate_drop_path_rates
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from zoo.layers.positions import LearnedPositions
from zoo.models._backbone import GlobalPool
from zoo.models._build import init_linear, register_family
from zoo.models._hierarchical import STAGES, HierarchicalBackbone, level_info
from zoo.weights import Drop, Fresh, KeyRules, Rename

__all__ = ["FastITPN"]

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class MlpBlock(nn.Module):
    """x + MLP(LN(x)) at every place, with a second norm behind the MLP's activation."""

    def __init__(
        self, dim: int, mlp_ratio: float = 3.0, proj_drop: float = 0.0, drop_path: float = 0.0, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, device=device, dtype=dtype)
        self.mlp = Mlp(
            dim, int(dim * mlp_ratio), norm_layer=LayerNorm, drop=proj_drop, device=device, dtype=dtype  # type: ignore[arg-type]
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm(x)))


class Merge(nn.Module):
    """LN and a 2x2 convolution of stride 2: half the places a side, twice the channels."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, device=device, dtype=dtype)
        self.reduction = nn.Conv2d(dim, 2 * dim, 2, 2, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> B, H / 2, W / 2, 2 C."""
        return self.reduction(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FastITPN(HierarchicalBackbone):
    """Fast-iTPN's backbone and classifier (paper, section 4).

    embed_dim: width of the last stage; the first two have a quarter and half of it. depth: blocks of each stage.
    mlp_ratio: of each stage. init_values: what the layer scale of the last stage's blocks starts at.
    dynamic_img_size: take any size divisible by 16 at each call, not only `img_size`.
    forward_features gives the tokens of the last block, not normed: the classifier norms behind the pooling.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "avg",
        embed_dim: int = 512,
        depth: Sequence[int] = (3, 3, 24),
        num_heads: int = 8,
        mlp_ratio: Sequence[float] = (3.0, 3.0, 3.0),
        qkv_bias: bool = True,
        init_values: float = 0.1,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(img_size, in_chans, num_classes, global_pool, dynamic_img_size)
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        dims = [embed_dim // 4, embed_dim // 2, embed_dim]
        self.patch_embed = PatchEmbed(
            None, 4, in_chans, dims[0], output_fmt="NHWC", strict_img_size=False, **dd
        )  # the base class knows the sizes
        rates = calculate_drop_path_rates(drop_path_rate, list(depth), stagewise=True)
        self.blocks = nn.ModuleList()  # one list with the mergings in it, as in the reference
        self.stage_ends: list[int] = []  # the last block of each stage
        for i, dim in enumerate(dims):
            if i:
                self.blocks.append(Merge(dims[i - 1], **dd))
            for rate in rates[i]:
                if i < STAGES - 1:
                    block: nn.Module = MlpBlock(dim, mlp_ratio[i], proj_drop_rate, rate, **dd)
                else:
                    block = EvaBlock(
                        dim,
                        num_heads,
                        qkv_bias,
                        qkv_fused=False,
                        mlp_ratio=mlp_ratio[i],
                        swiglu_mlp=True,
                        scale_mlp=True,
                        proj_drop=proj_drop_rate,
                        attn_drop=attn_drop_rate,
                        drop_path=rate,
                        init_values=init_values,
                        norm_layer=LayerNorm,
                        **dd,
                    )
                self.blocks.append(block)
            self.stage_ends.append(len(self.blocks) - 1)
        self.pos_embed: LearnedPositions | None = LearnedPositions(embed_dim, self.grid_size, "stretch", **dd)
        self._make_head(embed_dim, num_classes, drop_rate, LayerNorm, **dd)
        self.feature_info = level_info(dims, [f"blocks.{i}" for i in self.stage_ends])
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers; strided convolutions and positions keep their own start."""
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | EvaBlock):
                module.reset_parameters()
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed.table, std=0.02)

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        grid = self.grid_of(x)
        x = self.patch_embed(x)  # B, H / 4, W / 4, C / 4
        maps = {}
        start = 0
        for stage, end in enumerate(self.stage_ends[: last + 1]):
            for block in self.blocks[start : end + 1]:
                x = self.run_block(block, x)
                if stage == STAGES - 1 and isinstance(block, Merge):
                    assert self.pos_embed is not None
                    x = x.flatten(1, 2) + self.pos_embed(grid).to(x.dtype)  # B, N, C
            start = end + 1
            if stage in take:
                maps[stage] = x if stage < STAGES - 1 else x.unflatten(1, grid)
        return x if last == STAGES - 1 else x.flatten(1, 2), maps
