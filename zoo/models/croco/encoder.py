"""CroCo's encoder, a one-image timm backbone; TorchScript reads its annotations."""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, calculate_drop_path_rates
from torch import Tensor, nn

from zoo.errors import ImageError
from zoo.layers.masking import take_tokens
from zoo.layers.positions.rope import Rope, gather_rope, rope_on
from zoo.layers.positions.sincos import SincosPositions
from zoo.models.croco.blocks import Block, LayerNorm, PosEmbed, check_head_dim
from zoo.models.shared.backbone import Backbone, GlobalPool, check_pool
from zoo.models.shared.model import init_linear
from zoo.weights import Drop, KeyRules, Rename

torch.fx.wrap("rope_on")  # of the traced image's size


class CrocoEncoder(Backbone):
    """CroCo's image encoder as a timm backbone: a ViT without class token.

    pos_embed: "sincos" (v1: a fixed table, added once) or "rope" (v2: rotary, in every attention).
    pos_resample: how a v1 checkpoint's saved table serves another image size: "compute" the table of that
    size (the default, exact), or "bicubic" resampling of the saved one.
    dynamic_img_size: take any size that the patch divides at each call, not only `img_size`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pos_embed: PosEmbed = "rope",
        rope_base: float = 100.0,
        pos_resample: Literal["compute", "bicubic"] = "compute",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = check_pool(global_pool)
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.patch_size = patch_size
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, output_fmt="NHWC", strict_img_size=not dynamic_img_size, **dd
        )
        self.rope_base = rope_base
        self.head_dim = check_head_dim(embed_dim, num_heads, pos_embed)
        grid = self.patch_embed.grid_size
        if self.patch_embed.img_size != tuple(side * patch_size for side in grid):
            raise ImageError(
                f"Patches of {patch_size} pixels don't fill images of {self.patch_embed.img_size}; choose an img_size "
                f"whose sides are multiples of {patch_size}."
            )
        self.pos_embed = SincosPositions(embed_dim, grid, pos_resample, device) if pos_embed == "sincos" else None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, proj_drop_rate, attn_drop_rate, rate, **dd)  # type: ignore[arg-type]
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
        )
        self.norm = LayerNorm(embed_dim, **dd)
        self.fc_norm = nn.Identity()  # forward_features ends with the norm already
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes else nn.Identity()
        self.feature_info = [dict(module=f"blocks.{i}", num_chs=embed_dim, reduction=patch_size) for i in range(depth)]
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers; the patch embedding is drawn as the linear layer that it is (MAE)."""
        self.apply(init_linear)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)

    def embed(self, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Rope | None]:
        grid = self.grid_of(x)
        if visible is None:
            # B, h, w, D; the convolution's memory order (channels before places) would stay with all blocks' sums
            x = self.patch_embed(x).flatten(1, 2).contiguous()
        else:  # hidden patches are not even embedded
            patches = x.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))  # B, C, h, p, w, p
            patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B, N, C * p * p
            proj = self.patch_embed.proj
            x = F.linear(take_tokens(patches, visible), proj.weight.flatten(1), proj.bias)
        if self.pos_embed is None:
            rope = rope_on(self.head_dim, grid[0], grid[1], self.rope_base, x.device)
            return x, rope if visible is None else gather_rope(rope, visible)
        table = self.pos_embed(grid).to(x.dtype)
        return x + (table if visible is None else table[visible]), None

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        super().set_input_size(img_size)
        if self.pos_embed is not None:
            self.pos_embed.set_grid(self.patch_embed.grid_size)


CrocoEncoder.layouts = {
    "CroCo pair, reference": KeyRules(
        Rename("enc_pos_embed", "pos_embed.table", grid=True),
        Rename("patch_embed.*", "patch_embed.*"),
        Rename("enc_blocks.*", "blocks.*"),
        Rename("enc_norm.*", "norm.*"),
        Drop("mask_token", "belongs to the decoder"),
        Drop("decoder_embed.*", "belongs to the decoder"),
        Drop("dec_pos_embed", "belongs to the decoder"),
        Drop("dec_blocks.*", "belongs to the decoder"),
        Drop("dec_blocks2.*", "belongs to DUSt3R's second decoder"),
        Drop("dec_norm.*", "belongs to the decoder"),
        Drop("prediction_head.*", "predicts pixels from the decoder"),
        Drop("head.dpt.*", "the dense head of CroCo-Stereo and CroCo-Flow"),
        Drop("downstream_head1.*", "DUSt3R's head for image 1"),
        Drop("downstream_head2.*", "DUSt3R's head for image 2"),
    ),
    "CroCo pair": KeyRules(
        Rename("encoder.*", "*"),
        Drop("decoder.*", "the two-image decoder"),
        Drop("head.*", "predicts pixels from the decoder"),
        Drop("dense.*", "the dense head"),
        Drop("heads.*", "the pointmap heads"),
    ),
    "CroCo masked autoencoder": KeyRules(
        Rename("encoder.*", "*"),
        Drop("decoder_embed.*", "belongs to the decoder"),
        Drop("decoder.*", "predicts pixels"),
    ),
}
