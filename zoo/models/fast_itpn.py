"""Fast-iTPN: iTPN's hierarchy in convolutional clothes, pretrained with a feature pyramid against a CLIP teacher.

Paper: Tian et al., "Fast-iTPN: Integrally Pre-Trained Transformer Pyramid Network with Token Migration", TPAMI 2024,
arXiv 2211.12735. Stages 1 and 2 are 1x1-convolutional MLP blocks at strides 4 and 8, stage 3 a transformer at stride
16. All maps are channels-last, so that a 1x1 convolution is a linear layer. TorchScript reads the annotations.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, PatchEmbed, calculate_drop_path_rates
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from zoo.layers.patchify import patch_linear
from zoo.layers.positions.tables import LearnedPositions
from zoo.models.making.build import register_family
from zoo.models.shared.backbone import GlobalPool
from zoo.models.shared.hierarchical import FRESH_NORM, STAGES, HierarchicalBackbone, level_info
from zoo.models.shared.model import init_linear
from zoo.weights import Checkpoint, Drop, KeyRules, Rename

__all__ = ["FastITPN"]

_logger = logging.getLogger("zoo")

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class MlpBlock(nn.Module):
    """x + MLP(LN(x)) at every place, with a second norm behind the MLP's activation."""

    def __init__(
        self, dim: int, mlp_ratio: float = 3.0, proj_drop: float = 0.0, drop_path: float = 0.0, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.norm2 = LayerNorm(dim, **dd)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(  # timm's Mlp, but its layers' names would not tell them from the main stage's in a checkpoint
                expand=nn.Linear(dim, hidden, **dd),
                act=nn.GELU(),
                drop1=nn.Dropout(proj_drop),
                norm=LayerNorm(hidden, **dd),
                reduce=nn.Linear(hidden, dim, **dd),
                drop2=nn.Dropout(proj_drop),
            )
        )
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """LN and a 2x2 convolution of stride 2: half the places a side, twice the channels."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, device=device, dtype=dtype)
        self.reduction = nn.Conv2d(dim, 2 * dim, 2, 2, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> B, H / 2, W / 2, 2C."""
        return patch_linear(self.norm(x), self.reduction.weight, self.reduction.bias)


class FastITPN(HierarchicalBackbone):
    """Fast-iTPN's backbone and classifier (paper, section 4).

    embed_dim: width of the last stage; the first two have a quarter and half of it. depths: blocks of each stage.
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
        depths: Sequence[int] = (3, 3, 24),
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
        self.patch_embed = PatchEmbed(None, 4, in_chans, dims[0], output_fmt="NHWC", **dd)  # sizes: see grid_of
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []  # the last block of each stage; behind it in the list follows a merging
        for dim, ratio, stage_rates in zip(dims[:-1], mlp_ratio, rates):
            blocks += [MlpBlock(dim, ratio, proj_drop_rate, rate, **dd) for rate in stage_rates]
            self.stage_ends.append(len(blocks) - 1)
            blocks.append(PatchMerging(dim, **dd))
        options: dict[str, Any] = dict(
            qkv_fused=False, swiglu_mlp=True, scale_mlp=True, init_values=init_values, norm_layer=LayerNorm
        )
        options |= dict(mlp_ratio=mlp_ratio[-1], proj_drop=proj_drop_rate, attn_drop=attn_drop_rate)
        blocks += [EvaBlock(embed_dim, num_heads, qkv_bias, drop_path=rate, **options, **dd) for rate in rates[-1]]
        self.stage_ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.pos_embed: LearnedPositions | None = LearnedPositions(embed_dim, self.grid_size, "stretch", **dd)
        self._make_head(embed_dim, num_classes, drop_rate, LayerNorm, **dd)
        self.feature_info = level_info(dims, [f"blocks.{i}" for i in self.stage_ends])
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers; strided convolutions and positions keep their own start."""
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, EvaBlock)):
                module.reset_parameters()
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed.table, std=0.02)

    def forward_tokens(self, x: Tensor) -> Tensor:
        grid = self.grid_of(x)
        x = self.patch_embed(x)
        for i, block in enumerate(self.blocks):
            if i == self.stage_ends[1] + 2:
                assert self.pos_embed is not None
                x = x.flatten(1, 2) + self.pos_embed(grid).to(x.dtype)  # B, N, C
            x = block(x) if torch.jit.is_scripting() else self.run_block(block, x)
        return x

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        grid = self.grid_of(x)
        x = self.patch_embed(x)  # B, H / 4, W / 4, C / 4
        maps = {}
        start = 0
        for stage, end in enumerate(self.stage_ends[: last + 1]):
            if stage > 0:
                x = self.blocks[start - 1](x)  # the merging
            if stage == STAGES - 1:
                assert self.pos_embed is not None
                x = x.flatten(1, 2) + self.pos_embed(grid).to(x.dtype)  # B, N, C
            for block in self.blocks[start : end + 1]:
                x = self.run_block(block, x)
            start = end + 2
            if stage in take:
                maps[stage] = x if stage < STAGES - 1 else x.unflatten(1, grid)
        return x if last == STAGES - 1 else x.flatten(1, 2), maps

    def _prune_stages(self, last: int) -> None:
        self.blocks = self.blocks[: self.stage_ends[last] + 1]
        if last < STAGES - 1:
            self.pos_embed = None

    def convert(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """See `ZooModel.convert`; a classifier that this model was made without is left out."""
        state = super().convert(checkpoint)
        classifier = [key for key in state if key.startswith("head.")]
        if self.num_classes or not classifier:
            return state
        _logger.info("%s: left out the classifier, %d tensors", checkpoint.path, len(classifier))
        return {key: value for key, value in state.items() if key not in classifier}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay; mergings are layers of their own."""
        return dict(stem=r"^pos_embed|^patch_embed", blocks=r"^blocks\.(\d+)")


_TRUNK = (
    Rename("pos_embed", "pos_embed.table", squeeze=(0,), grid=True),
    Rename("patch_embed.*", "patch_embed.*"),
    Rename("blocks.*.attn.q_bias", "blocks.*.attn.q_proj.bias"),
    Rename("blocks.*.attn.v_bias", "blocks.*.attn.v_proj.bias"),
    Rename("blocks.*.mlp.fc1.weight", "blocks.*.mlp.expand.weight", squeeze=(-2, -1)),
    Rename("blocks.*.mlp.fc1.bias", "blocks.*.mlp.expand.bias"),
    Rename("blocks.*.mlp.fc2.weight", "blocks.*.mlp.reduce.weight", squeeze=(-2, -1)),
    Rename("blocks.*.mlp.fc2.bias", "blocks.*.mlp.reduce.bias"),
    Rename("blocks.*.mlp.w1.*", "blocks.*.mlp.fc1_g.*"),
    Rename("blocks.*.mlp.w2.*", "blocks.*.mlp.fc1_x.*"),
    Rename("blocks.*.mlp.w3.*", "blocks.*.mlp.fc2.*"),
    Rename("blocks.*.mlp.ffn_ln.*", "blocks.*.mlp.norm.*"),
    Rename("blocks.*", "blocks.*"),
)
_HEAD = Rename("fc_norm.*", "fc_norm.*"), Rename("head.*", "head.*")

# The published files have such names (iTPN's issues 17 and 18 quote some); a list of all is not recorded anywhere.
_PRETRAINING_PARTS = (
    ("mask_token", "the token of hidden patches"),
    ("align_dim*", "the pyramid's projections"),
    ("split_*", "the pyramid's splits"),
    ("block_*", "the pyramid's blocks"),
    ("fpn*", "the pyramid's outputs"),
    ("decoder*", "the decoder"),
    ("norm.*", "the norm before the prediction"),
    ("lm_*", "the predictions of the teacher's tokens"),
    ("cls_pt_layers*", "the auxiliary branch's blocks"),
    ("norm_cls*", "the auxiliary branch's norm"),
)

FastITPN.layouts = {
    "Fast-iTPN classifier, reference": KeyRules(*_TRUNK, *_HEAD),
    "Fast-iTPN pretraining, the reference's": KeyRules(
        *_TRUNK,
        *(Drop(pattern, f"{what}, which only pretraining uses") for pattern, what in _PRETRAINING_PARTS),
        *FRESH_NORM,
    ),
}

default_cfgs = register_family("fast_itpn", dict(encoder=FastITPN), __name__)
