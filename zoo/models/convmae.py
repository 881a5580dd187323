"""ConvMAE: two convolutional stages under a transformer, pretrained as a masked autoencoder.

Paper: Gao et al., "MCMAE: Masked Convolution Meets Masked Autoencoders", NeurIPS 2022, arXiv 2205.03892.
What is hidden must not leak through the convolutions, so they see visible patches only; `VisiblePatches` computes
them on nothing else. All maps are channels-last, so that a 1x1 convolution is a linear layer. TorchScript reads the
annotations.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.layers.masking import take_tokens
from zoo.layers.patchify import patch_linear, patchify
from zoo.layers.positions.sincos import SincosPositions
from zoo.layers.positions.tables import LearnedPositions
from zoo.models.making.build import register_family
from zoo.models.shared.backbone import GlobalPool
from zoo.models.shared.hierarchical import FRESH_NORM, PATCH, STAGES, HierarchicalBackbone, level_info
from zoo.models.shared.masked import Grid, MaskedAutoencoder, PixelDecoder
from zoo.models.shared.model import init_linear
from zoo.weights import Drop, KeyRules, Rename

__all__ = ["ConvMAE", "ConvMAEPretraining", "VisiblePatches"]

KERNEL = 5  # of the depthwise convolutions
HALO = KERNEL // 2  # places that a convolution sees beyond a patch's border
_CACHED = 2**20  # numbers that a CPU's cache holds, about
ConvNorm = partial(nn.LayerNorm, eps=1e-5)
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class VisiblePatches:
    """The sparse identity: the masked convolutions (paper, section 3.1) computed on visible patches alone.

    A visible place depends on visible places only, so hidden ones are left out of everything, and are zeros around
    the visible ones under a convolution. A stage's tokens are (B, n, p, p, C): p x p places to a patch, 4, then 2. A
    convolution needs a halo of 2 more around each patch: windows of p + 4 places a side, filled from the up to 9
    visible patches around.
    """

    def __init__(self, visible: Tensor, grid: Grid) -> None:
        """visible: patch numbers (B, n), row-major, in any order; grid: rows and columns of all patches."""
        columns = grid[1] + 2  # with a border of hidden patches
        place = (visible // grid[1] + 1) * columns + visible % grid[1] + 1  # B, n
        # at each place the number of the visible patch, of all B * n; number B * n means a hidden one
        board = visible.new_full((len(visible), (grid[0] + 2) * columns), visible.numel())
        board = board.scatter(1, place, torch.arange(visible.numel(), device=visible.device).view_as(visible))
        step = torch.arange(-1, 2, device=visible.device)
        around = place[..., None] + (step[:, None] * columns + step).flatten()  # B, n, 9
        self.around = board.gather(1, around.flatten(1)).view(-1, 3, 3)  # B * n, 3, 3

    def windows(self, p: int) -> Tensor:
        """Which of the B * n * p * p places stands where in each window, (B * n, p + 4, p + 4); number
        B * n * p * p means a hidden one."""
        along = torch.arange(-HALO, p + HALO, device=self.around.device)
        step, inside = along.div(p, rounding_mode="floor") + 1, along % p
        patch = self.around[:, step[:, None], step]  # B * n, p + 4, p + 4
        return (patch * p**2 + inside[:, None] * p + inside).clamp(max=len(self.around) * p**2)


class WindowConv(torch.autograd.Function):
    """Depthwise convolution over windows cut out of x; nothing of a window's size is kept for the backward pass.

    Patches see each other mutually, so the gradient of x is the same operation on the output's gradient, with the
    kernel turned by 180 degrees: nothing is scattered.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: Tensor) -> Tensor:
        """x (m, p, p, C), weight (C, 1, 5, 5), windows (m, p + 4, p + 4) -> m, p, p, C."""
        ctx.save_for_backward(x, weight, windows)
        return _join([_convolve(cut, weight) for cut in _cut(x, windows)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, windows = ctx.saved_tensors
        turned = weight.flip(2, 3)
        grad_x = _join([_convolve(cut, turned) for cut in _cut(grad, windows)])
        # in float32 at least: the parts are many, and a sum of them in bfloat16 would lose the small ones
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        done, p = 0, x.shape[1]
        for cut in _cut(x, windows):
            part = grad[done : done + len(cut)]
            # place by place of the kernel: quicker than a grouped convolution, which needs other memory layouts
            places = [
                (cut[:, i : i + p, j : j + p] * part).sum((0, 1, 2)) for i in range(KERNEL) for j in range(KERNEL)
            ]
            grad_weight += torch.stack(places, dim=1).view_as(weight)
            done += len(cut)
        return grad_x, grad_weight.to(weight.dtype), None


def _cut(x: Tensor, windows: Tensor) -> Iterator[Tensor]:
    """x (m, p, p, C) at the places `windows` (m, q, q), so many patches at once as a CPU's cache holds: k, q, q, C of
    all m in turn. The number behind the last place gives zeros."""
    places = F.pad(x.reshape(-1, x.shape[-1]), (0, 0, 0, 1))
    count = max(1, _CACHED // (windows.shape[1:].numel() * x.shape[-1])) if x.device.type == "cpu" else len(windows)
    for part in windows.split(count):
        yield places.index_select(0, part.flatten()).unflatten(0, part.shape)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """m, p + 4, p + 4, C -> m, p, p, C."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, groups=len(weight)).permute(0, 2, 3, 1)


class Embed(nn.Module):
    """Entrance of a stage: strided convolution, norm, GELU."""

    def __init__(self, in_chans: int, dim: int, stride: int, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, stride, stride, device=device, dtype=dtype)
        self.norm = ConvNorm(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """..., H, W, C -> ..., H / stride, W / stride, D."""
        return F.gelu(self.norm(patch_linear(x, self.proj.weight, self.proj.bias)))

    def forward_masked(self, x: Tensor) -> Tensor:
        """The plain way: B, C, H, W -> B, D, H / stride, W / stride."""
        return F.gelu(_norm(self.proj(x), self.norm))


class ConvBlock(nn.Module):
    """Transformer block with a masked depthwise convolution in place of attention (paper, section 3.1)."""

    def __init__(
        self, dim: int, mlp_ratio: float = 4.0, proj_drop: float = 0.0, drop_path: float = 0.0, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.norm1 = ConvNorm(dim, **dd)
        self.conv1 = nn.Linear(dim, dim, **dd)
        self.conv = nn.Conv2d(dim, dim, KERNEL, padding=HALO, groups=dim, **dd)
        self.conv2 = nn.Linear(dim, dim, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = ConvNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, H, W, C)."""
        y = self.conv1(self.norm1(x))
        return self._add(x, self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def forward_visible(self, x: Tensor, windows: Tensor) -> Tensor:
        """Visible patches only, x (B, n, p, p, C), with their `windows`."""
        y = self.conv1(self.norm1(x))
        y = WindowConv.apply(y.flatten(0, 1), self.conv.weight.to(y.dtype), windows).view_as(y)
        return self._add(x, y + self.conv.bias)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes behind the convolution's output y."""
        x = x + self.drop_path1(self.conv2(y))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def forward_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """The plain way, as it stands in the paper: x (B, C, H, W), and a mask (B, 1, H, W) that is 0 at hidden
        places, of which nothing is left out."""
        y = _pointwise(_norm(x, self.norm1), self.conv1)
        x = x + _pointwise(self.conv(y * mask), self.conv2)
        y = F.gelu(_pointwise(_norm(x, self.norm2), self.mlp.fc1))
        return x + _pointwise(y, self.mlp.fc2)


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    """A norm over the channels of B, C, H, W."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _pointwise(x: Tensor, linear: Any) -> Tensor:
    """A linear layer as a 1x1 convolution of B, C, H, W."""
    return F.conv2d(x, linear.weight[..., None, None], linear.bias)


class Stage(nn.Module):
    """A stage's entrance and blocks; a linear layer `proj` between them is in the transformer stage only."""

    def __init__(self, embed: Embed, proj: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.proj = proj
        self.blocks = nn.ModuleList(blocks)


class ConvMAE(HierarchicalBackbone):
    """ConvMAE's encoder as a timm backbone: convolutional stages at strides 4 and 8, a transformer at stride 16.

    embed_dim, depths, mlp_ratio: of the three stages. num_heads: of the transformer.
    pos_embed: "learned" (classifiers), or "sincos" (fixed, in pretraining).
    dynamic_img_size: take any size divisible by 16 at each call, not only `img_size`.
    forward_features gives the tokens of the last block, not normed: pretraining norms its fused stages only, and
    the classifier norms behind the pooling (`fc_norm`, which starts as 1 and 0 where a checkpoint has none).
    """

    first_conv = "stages.0.embed.proj"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "avg",
        embed_dim: Sequence[int] = (256, 384, 768),
        depths: Sequence[int] = (2, 2, 11),
        num_heads: int = 12,
        mlp_ratio: Sequence[float] = (4.0, 4.0, 4.0),
        qkv_bias: bool = True,
        pos_embed: Literal["learned", "sincos"] = "learned",
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
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        drops: dict[str, Any] = dict(proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, norm_layer=LayerNorm)
        stages: list[Stage] = []
        for i, (dim, ratio) in enumerate(zip(embed_dim, mlp_ratio, strict=True)):
            embed = Embed(embed_dim[i - 1] if i else in_chans, dim, 2 if i else 4, **dd)
            if i < STAGES - 1:
                convs = [ConvBlock(dim, ratio, proj_drop_rate, rate, **dd) for rate in rates[i]]
                stages.append(Stage(embed, nn.Identity(), convs))
            else:
                blocks = [Block(dim, num_heads, ratio, qkv_bias, drop_path=rate, **drops, **dd) for rate in rates[i]]
                stages.append(Stage(embed, nn.Linear(dim, dim, **dd), blocks))
        self.stages: Any = nn.ModuleList(stages)  # of Stage, which mypy does not see in a ModuleList
        self.pos_embed: LearnedPositions | SincosPositions | None = (
            LearnedPositions(embed_dim[-1], self.grid_size, **dd)
            if pos_embed == "learned"
            else SincosPositions(embed_dim[-1], self.grid_size, device=device)
        )
        self._make_head(embed_dim[-1], num_classes, drop_rate, LayerNorm, **dd)
        self.feature_info = level_info(embed_dim, [f"stages.{i}" for i in range(STAGES)])
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers; strided convolutions are drawn as the linear layers that they are (MAE)."""
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, Embed):
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))
                nn.init.zeros_(module.proj.bias)  # type: ignore[arg-type]
            elif isinstance(module, ConvBlock):
                module.conv.reset_parameters()
        if isinstance(self.pos_embed, LearnedPositions):
            nn.init.trunc_normal_(self.pos_embed.table, std=0.02)

    def _run_convolutions(self, i: int, x: Tensor, windows: Tensor | None = None) -> Tensor:
        """What stage i (0 or 1) makes of ..., H, W, C; windows: see `ConvBlock`."""
        x = self.stages[i].embed(x)
        for block in self.stages[i].blocks:
            x = self.run_block(block, x) if windows is None else self.run_block(block.forward_visible, x, windows)
        return x

    def _run_transformer(self, x: Tensor, positions: Tensor) -> Tensor:
        """Tokens x (B, n, D), as they leave the last stage's projection, and their positions -> B, n, D."""
        x = x + positions.to(x.dtype)
        for block in self.stages[-1].blocks:
            x = self.run_block(block, x)
        return x

    def forward_tokens(self, x: Tensor) -> Tensor:
        grid = self.grid_of(x)
        x = x.permute(0, 2, 3, 1)  # B, H, W, C
        for i, stage in enumerate(self.stages):
            x = stage.proj(stage.embed(x))
            if i == len(self.stages) - 1:
                assert self.pos_embed is not None
                x = x.flatten(1, 2) + self.pos_embed(grid).to(x.dtype)  # B, N, D
            for block in stage.blocks:
                x = block(x) if torch.jit.is_scripting() else self.run_block(block, x)
        return x

    def forward_stages(
        self, x: Tensor, take: Collection[int] = (), last: int = STAGES - 1
    ) -> tuple[Tensor, dict[int, Tensor]]:
        grid = self.grid_of(x)
        x = x.permute(0, 2, 3, 1)  # B, H, W, C
        maps = {}
        for i in range(min(last + 1, STAGES - 1)):
            x = self._run_convolutions(i, x)
            if i in take:
                maps[i] = x
        if last < STAGES - 1:
            return x.flatten(1, 2), maps
        stage = self.stages[-1]
        x = self._run_transformer(stage.proj(stage.embed(x)).flatten(1, 2), self._positions(grid))
        if last in take:
            maps[last] = x.unflatten(1, grid)
        return x, maps

    def forward_visible(self, x: Tensor, visible: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, C, H, W), of which only the patches `visible` (B, n) may be seen -> their tokens (B, n, D), and
        the outputs of the two convolutional stages for them, (B, n, 4, 4, D0) and (B, n, 2, 2, D1)."""
        grid = self.grid_of(x)
        patches = VisiblePatches(visible, grid)
        x = take_tokens(patchify(x, PATCH), visible).unflatten(2, (PATCH, PATCH, -1))
        outputs = []
        for i, p in enumerate((4, 2)):  # places to a side of a patch
            x = self._run_convolutions(i, x, patches.windows(p))
            outputs.append(x)
        stage = self.stages[-1]
        x = stage.proj(stage.embed(x)).flatten(1, 3)  # B, n, D
        return self._run_transformer(x, self._positions(grid)[visible]), outputs

    def forward_masked(self, x: Tensor, visible: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`forward_visible` the plain way, to compare with: everything is computed everywhere, under a mask.

        The outputs of the convolutional stages come as whole maps, (B, D0, H / 4, W / 4) and (B, D1, H / 8, W / 8).
        """
        grid = self.grid_of(x)
        seen = x.new_zeros(len(x), grid[0] * grid[1]).scatter(1, visible, 1.0).unflatten(1, (1, *grid))
        outputs = []
        for i, p in enumerate((4, 2)):
            mask = seen.repeat_interleave(p, 2).repeat_interleave(p, 3)  # B, 1, H / stride, W / stride
            x = self.stages[i].embed.forward_masked(x)
            for block in self.stages[i].blocks:
                x = block.forward_masked(x, mask)
            outputs.append(x)
        x = self.stages[-1].embed.forward_masked(x).flatten(2).transpose(1, 2)
        x = self.stages[-1].proj(x)  # B, N, D
        return self._run_transformer(take_tokens(x, visible), self._positions(grid)[visible]), outputs

    def _positions(self, grid: Grid) -> Tensor:
        assert self.pos_embed is not None  # only a pruned model has none, and it ends before
        return self.pos_embed(grid)

    def _prune_stages(self, last: int) -> None:
        self.stages = self.stages[: last + 1]
        if last < STAGES - 1:
            self.pos_embed = None

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: the convolutional stages are one layer, as in the
        paper's fine-tuning."""
        return dict(
            stem=r"^pos_embed|^stages\.[01]\.|^stages\.2\.(?:embed|proj)\.",
            blocks=r"^stages\.2\.blocks\.(\d+)",
        )


class ConvMAEPretraining(MaskedAutoencoder):
    """ConvMAE with its multi-scale decoder (paper, section 3.2): hidden patches from visible ones.

    encoder_args: see `ConvMAE`. norm_target: predict patches normalized by their own mean and deviation.
    """

    first_conv = "encoder." + ConvMAE.first_conv
    sparse = True
    """Whether the convolutional stages run on visible patches only; else everywhere, under a mask, for comparison."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_mlp_ratio: float = 4.0,
        norm_target: bool = True,
        dynamic_img_size: bool = True,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.encoder = ConvMAE(
            img_size, in_chans, pos_embed="sincos", dynamic_img_size=dynamic_img_size, **encoder_args, **dd
        )
        self.encoder.fc_norm = nn.Identity()  # of classifiers only
        self.patch_size = PATCH
        self.in_chans = in_chans
        self.norm_target = norm_target
        *dims, dim = (stage.embed.proj.out_channels for stage in self.encoder.stages)
        self.fuse: Any = nn.ModuleList(nn.Conv2d(d, dim, p, p, **dd) for d, p in zip(dims, (4, 2), strict=True))
        self.norm = LayerNorm(dim, **dd)
        self.embed = nn.Linear(dim, decoder_dim, **dd)
        self.decoder = PixelDecoder(
            self.encoder.grid_size,
            PATCH,
            in_chans,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            decoder_mlp_ratio,
            **dd,
        )
        self.num_features = self.head_hidden_size = dim
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw everything behind the encoder, which has drawn its own."""
        for module in (*self.fuse, self.norm, self.embed):
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
            else:
                init_linear(module)
        self.decoder.init_weights()

    def encode(self, image: Tensor, visible: Tensor) -> Tensor:
        """Images (B, C, H, W) -> latents (B, n, D) of the patches `visible` (B, n): all stages, fused and normed."""
        if self.sparse:
            x, outputs = self.encoder.forward_visible(image, visible)
            fused = [
                patch_linear(output, conv.weight, conv.bias).flatten(1, 3) for output, conv in zip(outputs, self.fuse)
            ]
        else:
            x, outputs = self.encoder.forward_masked(image, visible)
            fused = [
                take_tokens(conv(output).flatten(2).transpose(1, 2), visible)
                for output, conv in zip(outputs, self.fuse)
            ]
        for y in fused:
            x = x + y
        return self.norm(x)

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        return self.embed(self.encode(image, visible))


def _encoder_rules(positions: Rename, prefix: str = "") -> list[Rename]:
    """What the reference calls the encoder's tensors, which are under `prefix` here."""
    rules = [positions, Rename("patch_embed4.*", f"{prefix}stages.2.proj.*")]
    for i in range(STAGES):
        theirs, ours = f"blocks{i + 1}.*", f"{prefix}stages.{i}.blocks.*"
        if i < STAGES - 1:
            for name in ("conv1", "conv2", "mlp.fc1", "mlp.fc2"):  # 1x1 convolutions there
                rules.append(Rename(f"{theirs}.{name}.weight", f"{ours}.{name}.weight", squeeze=(-2, -1)))
            rules.append(Rename(f"{theirs}.attn.*", f"{ours}.conv.*"))
        rules += [Rename(theirs, ours), Rename(f"patch_embed{i + 1}.*", f"{prefix}stages.{i}.embed.*")]
    return rules


_LEARNED = Rename("pos_embed", "pos_embed.table", squeeze=(0,), grid=True)
ConvMAE.layouts = {
    "ConvMAE classifier, reference": KeyRules(
        *_encoder_rules(_LEARNED), Rename("fc_norm.*", "fc_norm.*"), Rename("head.*", "head.*")
    ),
    "ConvMAE pretraining, the reference's": KeyRules(
        *_encoder_rules(_LEARNED),
        Drop("stage*_output_decode.*", "fuses the stages for the decoder"),
        Drop("norm.*", "norms the fused stages"),
        Drop("mask_token", "belongs to the decoder"),
        Drop("decoder_*", "belongs to the decoder"),
        *FRESH_NORM,
    ),
    "ConvMAE pretraining": KeyRules(
        Rename("encoder.pos_embed.table", "pos_embed.table"),
        Rename("encoder.*", "*"),
        Drop("fuse.*", "fuses the stages for the decoder"),
        Drop("norm.*", "norms the fused stages"),
        Drop("embed.*", "leads to the decoder"),
        Drop("decoder.*", "the decoder"),
        *FRESH_NORM,
    ),
}

ConvMAEPretraining.layouts = {
    "ConvMAE pretraining, reference": KeyRules(
        *_encoder_rules(Rename("pos_embed", "encoder.pos_embed.table", squeeze=(0,), grid=True), "encoder."),
        Rename("stage1_output_decode.*", "fuse.0.*"),
        Rename("stage2_output_decode.*", "fuse.1.*"),
        Rename("norm.*", "norm.*"),
        Rename("mask_token", "decoder.mask_token"),
        Rename("decoder_embed.*", "embed.*"),
        Rename("decoder_pos_embed", "decoder.pos_embed.table", squeeze=(0,), grid=True),
        Rename("decoder_blocks.*", "decoder.blocks.*"),
        Rename("decoder_norm.*", "decoder.norm.*"),
        Rename("decoder_pred.*", "decoder.head.*"),
    ),
}

default_cfgs = register_family("convmae", dict(encoder=ConvMAE, pretraining=ConvMAEPretraining), __name__)
