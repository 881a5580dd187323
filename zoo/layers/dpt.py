"""The dense prediction transformer head (Ranftl et al., ICCV 2021, arXiv 2103.13413) as CroCo-Stereo/Flow use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.precision import without_autocast
from zoo.layers.unused import with_unused


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))): the skip is x itself, before the relu."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Adds a level to the path coming from the coarser ones and doubles the resolution."""

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        # the coarsest level has no path to join, so its unit1 is never run; it stays because every public
        # checkpoint holds it and a conversion must be exact both ways
        self.unit1 = ResidualUnit(dim, device, dtype)
        self.unit2 = ResidualUnit(dim, device, dtype)
        self.out_conv = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, level: Tensor, path: Tensor | None = None) -> Tensor:
        if path is None:
            x = with_unused(level, self.unit1.parameters())
        else:
            # an odd grid makes the doubled path one row or column larger than the level it meets
            x = path[..., : level.shape[-2], : level.shape[-1]] + self.unit1(level)
        # a 1x1 convolution of enlarged maps is the enlarged convolution, at a quarter of the work
        return F.interpolate(self.out_conv(self.unit2(x)), scale_factor=2, mode="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """Four token maps of one grid -> a dense map at 8 * upsample times the grid's resolution.

    in_dims: width of each of the four token sequences. layer_dims: their widths after reassembling at
    4, 2, 1 and 1/2 times the grid. feature_dim: width of the fusion. last_dim: width before the output.
    upsample: of the fused map; 2 suits patches of 16.

    Under autocast the last layer stays in float32: bfloat16 knows pixels of disparity only to a quarter.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        out_chans: int,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        last_dim: int = 32,
        device=None,
        dtype=None,
        upsample: int = 2,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        a, b, _, d = layer_dims
        resize: tuple[list[nn.Module], ...] = (
            [nn.ConvTranspose2d(a, a, 4, stride=4, **dd)],
            [nn.ConvTranspose2d(b, b, 2, stride=2, **dd)],
            [],
            [nn.Conv2d(d, d, 3, stride=2, padding=1, **dd)],
        )
        self.reassemble = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1, **dd), *layers)
            for width, dim, layers in zip(in_dims, layer_dims, resize, strict=True)
        )
        self.project = nn.ModuleList(nn.Conv2d(dim, feature_dim, 3, padding=1, bias=False, **dd) for dim in layer_dims)
        self.fusion = nn.ModuleList(FusionBlock(feature_dim, **dd) for _ in layer_dims)
        self.output = nn.Sequential(
            nn.Conv2d(feature_dim, feature_dim // 2, 3, padding=1, **dd),
            nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=True) if upsample > 1 else nn.Identity(),
            nn.Conv2d(feature_dim // 2, last_dim, 3, padding=1, **dd),
            nn.ReLU(),
            nn.Conv2d(last_dim, out_chans, 1, **dd),
        )

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four sequences (B, h * w, C_i) of a grid (h, w) -> B, out_chans, and h and w times 8 * upsample."""
        maps = [x.transpose(1, 2).unflatten(2, grid) for x in tokens]
        levels = [
            project(reassemble(x)) for project, reassemble, x in zip(self.project, self.reassemble, maps, strict=True)
        ]
        path = self.fusion[3](levels[3])
        for i in (2, 1, 0):
            path = self.fusion[i](levels[i], path)
        path, last = self.output[:-1](path), self.output[-1]
        with without_autocast(path):
            return last(path.to(last.weight.dtype))
