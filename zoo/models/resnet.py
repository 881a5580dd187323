"""timm's ResNet with the weights of the jigsaw families, and the heads that their pretext tasks put on it.

PIRL (Misra & van der Maaten, CVPR 2020), Jigsaw Clustering (Chen, Liu & Jia, CVPR 2021) and Jigsaw (Noroozi &
Favaro, ECCV 2016) all train the same plain ResNet-50; they differ in the heads, and in zoo/train/objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from zoo.layers.unused import with_unused
from zoo.models.making.build import register_family
from zoo.models.shared.model import ZooModel
from zoo.weights import Drop, Fresh, KeyRules, Rename

_CFG = dict(fixed_input_size=False, pool_size=(7, 7), interpolation="bilinear", crop_pct=0.875)
_UNCOUNTED = Fresh("*.num_batches_tracked", 0, "checkpoints of older torch don't count the batches")
_VISSL_HEADS = Drop("heads.*", "the head of the pretext task, under names that the zoo doesn't know")


class PretextResNet(ResNet, ZooModel):
    """timm's ResNet of bottleneck blocks, with the zoo's strict loading; no layer is its own.

    layers: blocks of each stage. channels: narrow channels of each stage's blocks, a fourth of what they give.
    width: factor of all channels, the stem's 64 included. kwargs: timm's (num_classes, output_stride, ...).
    """

    head_name = "fc"
    first_conv = "conv1"
    default_out_indices = (0, 1, 2, 3, 4)
    cfg = _CFG
    conv1: Any

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        width: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(Bottleneck, tuple(layers), channels=tuple(width * c for c in channels), **kwargs)  # type: ignore[arg-type]
        if width > 1:
            self._widen_stem(width * 64)

    def _widen_stem(self, stem: int) -> None:
        """Give the stem, which timm fixes at 64 channels, `stem` of them, and the first block that many inputs."""
        block: Any = self.get_submodule("layer1.0")
        self.conv1 = _resized(self.conv1, self.in_chans, stem)
        self.bn1 = type(self.bn1)(stem, device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        block.conv1 = _resized(block.conv1, stem, block.conv1.out_channels)
        block.downsample[0] = _resized(block.downsample[0], stem, block.downsample[0].out_channels)
        self.feature_info[0]["num_chs"] = stem


def _resized(conv: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    """A convolution like `conv` with other numbers of channels, drawn as timm draws a ResNet's."""
    like: dict[str, Any] = dict(device=conv.weight.device, dtype=conv.weight.dtype)
    size: dict[str, Any] = dict(kernel_size=conv.kernel_size, stride=conv.stride, padding=conv.padding)
    wide = nn.Conv2d(in_channels, out_channels, bias=False, **size, **like)
    nn.init.kaiming_normal_(wide.weight, mode="fan_out", nonlinearity="relu")
    return wide


PretextResNet.layouts = {
    "VISSL": KeyRules(Rename("trunk._feature_blocks.*", "*"), _VISSL_HEADS, _UNCOUNTED),
    "VISSL, older": KeyRules(Rename("_feature_blocks.*", "*"), _VISSL_HEADS, _UNCOUNTED),
    "Jigsaw Clustering": KeyRules(
        Drop("module.encoder.fc_clu.*", "tells which quarters are of one image"),
        Drop("module.encoder.fc_loc.*", "tells where a quarter was"),
        Rename("module.encoder.*", "*"),
        _UNCOUNTED,
    ),
    "pretraining": KeyRules(Drop("heads.*", "the heads of the pretext task"), Rename("encoder.*", "*")),
    "uncounted": KeyRules(Rename("*", "*"), _UNCOUNTED),
}


class PretextModel(ZooModel):
    """A ResNet (`encoder`) with what a pretext task puts on its features (`heads`).

    A checkpoint of the encoder alone loads too, VISSL's included: then the heads start at random, with a warning.
    """

    head_name = "heads"
    first_conv = "encoder.conv1"
    cfg = _CFG
    features_only_advice = "{} has the heads of its pretext task; create {} with features_only."
    num_classes = 0
    heads: Any

    def __init__(self, **encoder_args: Any) -> None:
        super().__init__()
        self.encoder = PretextResNet(num_classes=0, **encoder_args)
        self.in_chans = self.encoder.in_chans
        self.num_features = self.encoder.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return set()


PretextModel.layouts = {
    "VISSL": KeyRules(Rename("trunk._feature_blocks.*", "encoder.*"), _VISSL_HEADS, _UNCOUNTED),
    "VISSL, older": KeyRules(Rename("_feature_blocks.*", "encoder.*"), _VISSL_HEADS, _UNCOUNTED),
}


# ----------------------------------------------------------------------------------------------- PIRL


class PirlHeads(nn.Module):
    """Embeddings of an image and of its patches (PIRL, section 3.2); `mlp`: with a hidden layer, as in its later
    recipe. patches: how many make one embedding; with 1 there is nothing to merge."""

    def __init__(self, features: int, dim: int, patches: int, mlp: bool, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)

        def projection() -> list[nn.Module]:
            hidden = [nn.Linear(features, features, **dd), nn.ReLU()] if mlp else []
            return [*hidden, nn.Linear(features, dim, **dd)]

        self.image = nn.Sequential(*projection())
        self.patch = nn.Sequential(*projection(), *([nn.ReLU()] if mlp and patches > 1 else []))
        self.merge = nn.Linear(patches * dim, dim, **dd) if patches > 1 else nn.Identity()


class PirlModel(PretextModel):
    """PIRL: a ResNet that embeds an image and a transformed view of it alike.

    dim: of the embeddings. patches: of the view: 9 for a jigsaw, 1 for a rotated image. mlp: heads with a hidden
    layer. encoder_args: PretextResNet's.
    """

    def __init__(
        self, dim: int = 128, patches: int = 9, mlp: bool = False, device=None, dtype=None, **encoder_args: Any
    ) -> None:
        super().__init__(device=device, dtype=dtype, **encoder_args)
        self.dim = dim
        self.patches = patches
        self.heads = PirlHeads(self.num_features, dim, patches, mlp, device, dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> embeddings (B, dim), not normalized."""
        others = *self.heads.patch.parameters(), *self.heads.merge.parameters()
        return self.heads.image(with_unused(self.encoder(images), others))

    def embed_view(self, patches: Tensor) -> Tensor:
        """The transformed view's patches (B, patches, C, h, w), in their shuffled order -> embeddings (B, dim)."""
        each = self.heads.patch(self.encoder(patches.flatten(0, 1)))
        return self.heads.merge(each.reshape(len(patches), -1))


# --------------------------------------------------------------------------------- Jigsaw Clustering


class JigsawClusteringHeads(nn.Module):
    """The two branches on a quarter's features, under the reference's names (section 3.2 of the paper)."""

    def __init__(self, features: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.fc_clu = nn.Sequential(nn.Linear(features, features, **dd), nn.ReLU(), nn.Linear(features, dim, **dd))
        self.fc_loc = nn.Linear(features, 4, **dd)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 4, D) of the montages' cells -> unit vectors (B, 4, dim) and location logits (B, 4, 4)."""
        return F.normalize(self.fc_clu(features).float(), dim=-1), self.fc_loc(features)


class JigsawClusteringModel(PretextModel):
    """Jigsaw Clustering: a ResNet that tells of each cell of a 2x2 montage with which others it belongs, and where.

    dim: of the embeddings. encoder_args: PretextResNet's.
    """

    def __init__(self, dim: int = 128, device=None, dtype=None, **encoder_args: Any) -> None:
        super().__init__(device=device, dtype=dtype, **encoder_args)
        self.heads = JigsawClusteringHeads(self.num_features, dim, device, dtype)

    def forward_cells(self, montages: Tensor) -> Tensor:
        """Montages (B, C, H, W) -> features (B, 4, D) of their cells, row by row."""
        maps = self.encoder.forward_features(montages)
        # 8x8, so that no cell of an odd map (7x7 at 224) is half of one quarter and half of another
        maps = F.interpolate(maps, (8, 8), mode="bilinear", align_corners=False)
        return F.avg_pool2d(maps, 4).flatten(2).transpose(1, 2)

    def forward(self, montages: Tensor) -> tuple[Tensor, Tensor]:
        """Montages (B, C, H, W) -> unit vectors (B, 4, dim) and location logits (B, 4, 4) of their cells."""
        return self.heads(self.forward_cells(montages))


JigsawClusteringModel.layouts = {
    "Jigsaw Clustering, reference": KeyRules(
        Rename("module.encoder.fc_clu.*", "heads.fc_clu.*"),
        Rename("module.encoder.fc_loc.*", "heads.fc_loc.*"),
        Rename("module.encoder.*", "encoder.*"),
        _UNCOUNTED,
    )
}


# --------------------------------------------------------------------------------------------- Jigsaw


class JigsawHeads(nn.Module):
    """Each patch's features projected, with a ReLU as in the paper's siamese network, and all nine classified.

    norm: batch norm of the projections, as VISSL has it.
    """

    def __init__(self, features: int, dim: int, permutations: int, norm: bool = False, device=None, dtype=None) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        norms = [nn.BatchNorm1d(dim, **dd)] if norm else []
        self.patch = nn.Sequential(nn.Linear(features, dim, **dd), *norms, nn.ReLU())
        self.permutation = nn.Linear(9 * dim, permutations, **dd)


class JigsawModel(PretextModel):
    """Jigsaw: a ResNet that tells in which of `permutations` orders it is given an image's nine patches.

    dim: of each patch's projection. head_norm: see `JigsawHeads`. encoder_args: PretextResNet's.
    """

    def __init__(
        self,
        permutations: int = 2000,
        dim: int = 1000,
        head_norm: bool = False,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__(device=device, dtype=dtype, **encoder_args)
        self.permutations = permutations
        self.heads = JigsawHeads(self.num_features, dim, permutations, head_norm, device, dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, 9, C, h, w) in their shuffled order -> logits (B, permutations)."""
        return self.classify(self.embed(patches))

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, 9, C, h, w) -> the projection of each (B, 9, dim), whatever their order."""
        return self.heads.patch(self.encoder(patches.flatten(0, 1))).unflatten(0, (-1, 9))

    def classify(self, embedded: Tensor) -> Tensor:
        """Projections (B, 9, dim) in a shuffled order -> logits (B, permutations)."""
        return self.heads.permutation(embedded.flatten(1))


default_cfgs = {
    **register_family("pirl", dict(encoder=PretextResNet, pretraining=PirlModel), __name__),
    **register_family("jigsaw", dict(encoder=PretextResNet, pretraining=JigsawModel), __name__),
    **register_family("rotnet", dict(encoder=PretextResNet), __name__),
    **register_family("npid", dict(encoder=PretextResNet), __name__),
    **register_family("clusterfit", dict(encoder=PretextResNet), __name__),
    **register_family("jigclu", dict(encoder=PretextResNet, pretraining=JigsawClusteringModel), __name__),
}
