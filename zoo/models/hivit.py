"""HiViT: a hierarchical vision transformer whose patches stay apart until its main stage.

The first two stages are MLP blocks on a patch's own 4x4 and 2x2 sub-tokens, so a hidden patch can be left out from
the first layer on. Paper: arXiv 2205.14949. `HiViT` is the backbone and classifier, `HiViTMAE` its masked
autoencoder; iTPN (itpn.py) stands on the same backbone. TorchScript reads the annotations.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from zoo.layers.attention import SelfAttention
from zoo.layers.masking import take_tokens
from zoo.layers.positions.relative import Relative, RelativeBias, relative_index, relative_on
from zoo.layers.positions.sincos import sincos_table
from zoo.layers.positions.tables import Grid, LearnedPositions, stretch_table
from zoo.models.making.build import register_family
from zoo.models.shared.backbone import GlobalPool
from zoo.models.shared.hierarchical import FRESH_NORM, STAGES, HierarchicalBackbone, level_info
from zoo.models.shared.masked import MaskedAutoencoder, PixelDecoder
from zoo.models.shared.model import init_linear
from zoo.weights import Drop, Fresh, KeyRules, Rename

__all__ = ["HiViT", "HiViTMAE"]

LayerNorm = partial(nn.LayerNorm, eps=1e-6)

torch.fx.wrap("relative_on")  # of the traced image's size


class SubtokenEmbed(nn.Module):
    """Each 16x16 patch as 4x4 sub-tokens: a convolution of kernel = stride = 4, then a norm."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 4, 4, device=device, dtype=dtype)
        self.norm = LayerNorm(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> sub-tokens (B, N, 4, 4, dim), of the patches `visible` (B, n) alone if given."""
        x = x.unflatten(3, (-1, 4, 4)).unflatten(2, (-1, 4, 4))  # B, C, h, s, p, w, t, q
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5).flatten(1, 2)  # B, N, 4, 4, C * 4 * 4
        if visible is not None:  # hidden patches are not even embedded
            x = take_tokens(x.flatten(2), visible).unflatten(2, (4, 4, -1))
        return self.norm(F.linear(x, self.proj.weight.flatten(1), self.proj.bias))


class PatchMerging(nn.Module):
    """2x2 sub-tokens become one of twice the width, in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column)."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim, device=device, dtype=dtype)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, relative: Relative | None = None) -> Tensor:
        """B, N, 2s, 2t, C -> B, N, s, t, 2C. relative: of the main stage's blocks; all of the list are called alike."""
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B, N, s, i, t, j, C
        return self.reduction(self.norm(x.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)))


class MlpBlock(nn.Module):
    """Pre-norm MLP on tokens or sub-tokens (B, ..., C). init_values: start of its layer scale, None for none."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, relative: Relative | None = None) -> Tensor:
        """relative: of the main stage's blocks; all of the list are called alike."""
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Block(MlpBlock):
    """The main stage's transformer block. grid: the one its relative-position bias is learned on, None for none."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = True,
        grid: Grid | None = None,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        super().__init__(dim, mlp_ratio, init_values, proj_drop, drop_path, norm_eps, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, attn_drop, proj_drop, **dd)
        self.rel_pos = None if grid is None else RelativeBias(num_heads, grid, **dd)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, relative: Relative | None = None) -> Tensor:
        """x (B, N, C) -> B, N, C. relative: the grid's geometry, for a block with relative-position bias."""
        bias: Tensor | None = None
        if self.rel_pos is not None and relative is not None:
            bias = self.rel_pos(relative)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), bias=bias)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class HiViT(HierarchicalBackbone):
    """HiViT's backbone and classifier (HiViT, section 3.3).

    embed_dim: width of the main stage; the two before it have a quarter and half of it. depths: blocks of the three
    stages (the paper counts those of the first two in pairs). rel_pos: relative-position bias in the main blocks.
    init_values: start of all blocks' layer scale, None for none.
    dynamic_img_size: take any size that the patch divides at each call, not only `img_size`.
    """

    stretch_masked = False
    """Whether positions are resampled, if only to their own size, when patches are left out (a quirk of iTPN)."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "avg",
        embed_dim: int = 512,
        depths: tuple[int, int, int] = (4, 4, 20),
        num_heads: int = 8,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        rel_pos: bool = True,
        init_values: float | None = None,
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
        dims = (embed_dim // 4, embed_dim // 2, embed_dim)
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        options: dict[str, Any] = dict(init_values=init_values, proj_drop=proj_drop_rate, **dd)
        self.patch_embed = SubtokenEmbed(in_chans, dims[0], **dd)
        self.pos_embed = LearnedPositions(embed_dim, self.grid_size, "stretch", **dd)
        blocks: list[nn.Module] = []
        for dim, depth in zip(dims[:2], depths):
            blocks += [MlpBlock(dim, stem_mlp_ratio, drop_path=next(rates), **options) for _ in range(depth)]
            blocks += [PatchMerging(dim, **dd)]
        options |= dict(qkv_bias=qkv_bias, grid=self.grid_size if rel_pos else None, attn_drop=attn_drop_rate)
        blocks += [Block(embed_dim, num_heads, mlp_ratio, drop_path=rate, **options) for rate in rates]
        self.blocks = nn.ModuleList(blocks)
        self.mergings = depths[0], depths[0] + 1 + depths[1]  # their places in `blocks`
        self.rel_pos = rel_pos
        self._make_head(embed_dim, num_classes, drop_rate, LayerNorm, **dd)
        self.feature_info = level_info(dims, [f"blocks.{i - 1}" for i in (*self.mergings, len(blocks))])
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers, sin-cos positions; the embedding is drawn as the linear layer that it is."""
        self.apply(init_linear)
        proj = self.patch_embed.proj
        nn.init.xavier_uniform_(proj.weight.view(proj.weight.shape[0], -1))
        assert proj.bias is not None
        nn.init.zeros_(proj.bias)
        with torch.no_grad():
            self.pos_embed.table.copy_(sincos_table(self.embed_dim, *self.grid_size).unflatten(0, self.grid_size))
        for module in self.modules():
            if isinstance(module, RelativeBias):
                module.init_weights()

    def forward_stem(self, x: Tensor, visible: Tensor | None = None, last: int = STAGES - 1) -> list[Tensor]:
        """What stages up to `last` give before their mergings, of images (B, C, H, W).

        (B, N, 4, 4, C / 4), (B, N, 2, 2, C / 2), and as the third what enters the main stage, (B, N, C), still without
        positions. visible: patch numbers (B, n), row-major, to leave the others out.
        """
        x = self.patch_embed(x, visible)
        stages, start = [], 0
        for end in self.mergings[: last + 1]:
            for block in self.blocks[start:end]:
                x = self.run_block(block, x)
            stages.append(x)
            if len(stages) <= last:
                x = self.run_block(self.blocks[end], x)
            start = end + 1
        return stages if last < STAGES - 1 else [*stages, x.flatten(1, 3)]

    def forward_main(
        self, x: Tensor, grid: Grid, visible: Tensor | None = None, take: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The main stage, positions included, on tokens (B, N, C) of a grid or of its patches `visible` (B, n).

        Returns its output, and that of its block number `take`.
        """
        if self.stretch_masked and visible is not None and visible.shape[1] < grid[0] * grid[1]:
            positions = stretch_table(self.pos_embed.table.flatten(0, 1), self.pos_embed.grid, grid)
        else:
            positions = self.pos_embed(grid)
        x = taken = x + (positions if visible is None else positions[visible]).to(x.dtype)
        relative = self.relative(grid, visible)
        for i, block in enumerate(self.blocks[self.mergings[1] + 1 :]):
            x = self.run_block(block, x, relative)
            if i == take:
                taken = x
        return x, taken

    def relative(self, grid: Grid, visible: Tensor | None = None) -> Relative | None:
        """The geometry that the relative-position biases of all blocks share, None for a model without."""
        rel_pos: Any = self.blocks[-1].rel_pos
        relative = None if rel_pos is None else rel_pos.read_on(grid)
        return relative if visible is None or relative is None else relative.at(visible)

    def encode(self, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W) -> features of all stages: (B, N, 4, 4, C / 4), (B, N, 2, 2, C / 2), (B, N, C).

        visible: patch numbers (B, n), row-major, to leave the others out.
        """
        grid = self.grid_of(x)
        high, mid, tokens = self.forward_stem(x, visible)
        return high, mid, self.forward_main(tokens, grid, visible)[0]

    def forward_tokens(self, x: Tensor) -> Tensor:
        grid = self.grid_of(x)
        relative: Relative | None = None
        if self.rel_pos:
            relative = relative_on(self.grid_size, grid, x.device)
        x = self.patch_embed(x)
        for i, block in enumerate(self.blocks):
            if i == self.mergings[1] + 1:
                x = x.flatten(1, 3) + self.pos_embed(grid).to(x.dtype)  # B, N, C
            x = block(x, relative) if torch.jit.is_scripting() else self.run_block(block, x, relative)
        return x

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        grid = self.grid_of(x)
        stages = self.forward_stem(x, last=last)
        if last == STAGES - 1:
            tokens, _ = self.forward_main(stages[last], grid)
            stages[last] = tokens[:, :, None, None]  # B, N, 1, 1, C
        maps = {i: to_map(stages[i], grid) for i in {*take, last}}
        return maps[last].flatten(1, 2), {i: maps[i] for i in take}

    def _prune_stages(self, last: int) -> None:
        if last < STAGES - 1:
            self.blocks = self.blocks[: self.mergings[last]]
            del self.pos_embed

    def add_relative_index(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reference's checkpoints hold what follows from the grid too, if there is relative-position bias."""
        if self.rel_pos:
            state["relative_position_index"] = relative_index(*self.grid_size, self.pos_embed.table.device)
        return state

    def reference_state(self) -> dict[str, Tensor]:
        return self.add_relative_index(super().reference_state())

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay."""
        return dict(stem=r"^pos_embed|^patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^fc_norm", (99999,))])


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """Sub-tokens (B, N, s, s, C) -> a map (B, H, W, C)."""
    x = x.unflatten(1, grid).transpose(2, 3)  # B, h, s, w, s, C
    return x.flatten(3, 4).flatten(1, 2)


def trunk_rules(ours: str = "") -> tuple[Rename, ...]:
    """What the reference calls the backbone's tensors; ours: what stands before their names here."""
    return (
        Rename("absolute_pos_embed", f"{ours}pos_embed.table", squeeze=(0,), grid=True),
        Rename("patch_embed.*", f"{ours}patch_embed.*"),
        Rename("blocks.*.attn.relative_position_bias_table", f"{ours}blocks.*.rel_pos.table", grid=True),
        Rename("blocks.*.gamma_1", f"{ours}blocks.*.ls1.gamma"),
        Rename("blocks.*.gamma_2", f"{ours}blocks.*.ls2.gamma"),
        Rename("blocks.*", f"{ours}blocks.*"),
    )


def classifier_rules() -> tuple[Rename | Drop, ...]:
    """The reference's fine-tuned checkpoints."""
    return (
        *trunk_rules(),
        Rename("fc_norm.*", "fc_norm.*"),
        Rename("head.*", "head.*"),
        Drop("relative_position_index", "follows from the grid"),
    )


FRESH_BIAS = Fresh("blocks.*.rel_pos.table", 0.0, "relative-position bias, which this pretraining doesn't have")


def own_rules(*more: Rename | Drop) -> KeyRules:
    """A backbone's own names, of weights that may lack the relative-position bias that was asked for."""
    parts = ("pos_embed", "patch_embed", "blocks", "fc_norm", "head")
    return KeyRules(*(Rename(f"{part}.*", f"{part}.*") for part in parts), *more, FRESH_BIAS)


HiViT.layouts = {
    "HiViT classifier, reference": KeyRules(*classifier_rules()),
    "HiViT MAE, the reference's": KeyRules(
        *trunk_rules(),
        Drop("mask_token", "belongs to the decoder"),
        Drop("decoder_*", "belongs to the decoder"),
        Drop("norm.*", "the decoder's input"),
        *FRESH_NORM,
        FRESH_BIAS,
    ),
    "HiViT MAE": KeyRules(
        Rename("encoder.*", "*"),
        Drop("norm.*", "the decoder's input"),
        Drop("embed.*", "the decoder's input"),
        Drop("decoder.*", "belongs to the decoder"),
        *FRESH_NORM,
        FRESH_BIAS,
    ),
    "HiViT": own_rules(),
}


class HiViTMAE(MaskedAutoencoder):
    """HiViT as a masked autoencoder (HiViT, section 3.4): visible patches only, and features of all three stages.

    decoder_dim, decoder_depth, decoder_num_heads: the decoder's. norm_target: see `PatchPredictor`.
    Other arguments are HiViT's.
    """

    first_conv = "encoder.patch_embed.proj"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        embed_dim: int = 512,
        mlp_ratio: float = 4.0,
        decoder_dim: int = 512,
        decoder_depth: int = 6,
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
        self.encoder = HiViT(
            img_size,
            in_chans,
            embed_dim=embed_dim,
            mlp_ratio=mlp_ratio,
            rel_pos=rel_pos,
            dynamic_img_size=dynamic_img_size,
            **encoder_args,
            **dd,
        )
        self.encoder.fc_norm = nn.Identity()  # a classifier's
        self.patch_size = self.encoder.patch_size
        self.in_chans = in_chans
        self.num_features = self.encoder.num_features
        self.norm_target = norm_target
        self.norm = LayerNorm(7 * embed_dim, **dd)
        self.embed = nn.Linear(7 * embed_dim, decoder_dim, **dd)
        self.decoder = PixelDecoder(
            self.encoder.grid_size,
            self.patch_size,
            in_chans,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            mlp_ratio,
            **dd,
        )
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder and what leads to it (the encoder has drawn its own)."""
        init_linear(self.embed)
        self.decoder.init_weights()

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        stages = self.encoder.encode(image, visible)
        x = torch.cat([stage.flatten(2) for stage in stages], dim=2)  # B, n, 7C: 16 C/4, 4 C/2 and C
        return self.embed(self.norm(x))


def decoder_rules() -> tuple[Rename, ...]:
    """What the reference calls the tensors of `PixelDecoder`."""
    return (
        Rename("mask_token", "decoder.mask_token"),
        Rename("decoder_pos_embed", "decoder.pos_embed.table", squeeze=(0,), grid=True),
        Rename("decoder_blocks.*", "decoder.blocks.*"),
        Rename("decoder_norm.*", "decoder.norm.*"),
        Rename("decoder_pred.*", "decoder.head.*"),
    )


HiViTMAE.layouts = {
    "HiViT MAE, reference": KeyRules(
        *trunk_rules("encoder."), *decoder_rules(), Rename("norm.*", "norm.*"), Rename("decoder_embed.*", "embed.*")
    )
}

default_cfgs = register_family("hivit", dict(encoder=HiViT, pretraining=HiViTMAE), __name__)
