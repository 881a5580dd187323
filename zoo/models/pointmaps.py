"""Pointmaps: two photos to a 3D point for every pixel of both, on CroCo's encoder and decoder.

DUSt3R (arXiv 2312.14132) gives CroCo a second decoder and two heads; both pointmaps are in the first camera's frame.
MonST3R (arXiv 2410.03825) is the same network with other weights, MASt3R (arXiv 2406.09756) adds local descriptors
and metric scale. `zoo.geometry` makes depth, focal length, pose, matches and point clouds of what these give.
"""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import Mlp
from timm.models import checkpoint
from torch import Tensor, nn

from zoo.layers.dpt import DPTHead
from zoo.layers.positions.rope import rope_on
from zoo.layers.precision import without_autocast
from zoo.models.croco import CrocoEncoder, CrossBlock
from zoo.models.making.build import register_family
from zoo.models.making.reference_settings import check_settings, reference_settings_of
from zoo.models.shared.masked import Grid, check_pair
from zoo.models.shared.model import ZooModel, init_linear
from zoo.models.shared.photos import PhotoFit, fit_photo
from zoo.weights import Alias, Checkpoint, Drop, KeyRules, Rename

_logger = logging.getLogger("zoo")

HeadType = Literal["linear", "dpt", "catmlp+dpt"]
"""What makes points of tokens, under the reference's names."""

Photo = str | Path | Image.Image | np.ndarray

_DESCRIPTOR_DIM = 24  # channels of a descriptor (MASt3R, section 3.2)
_MIN_DISTANCE = 1e-8  # below which a raw point's direction is not told


class Pointmaps(NamedTuple):
    """What DUSt3R and MonST3R give of a pair of images.

    points1 (B, H1, W1, 3), points2 (B, H2, W2, 3): x right, y down, z forward in camera 1's frame, both of them; of
    unknown scale. confidence1 (B, H1, W1), confidence2: more than 1, the more the surer.
    """

    points1: Tensor
    points2: Tensor
    confidence1: Tensor
    confidence2: Tensor


class MatchingPointmaps(NamedTuple):
    """`Pointmaps` in meters, and what MASt3R gives besides: descriptors (B, H, W, D), unit vectors that are alike where
    both images show the same point, and their confidences (B, H, W), positive."""

    points1: Tensor
    points2: Tensor
    confidence1: Tensor
    confidence2: Tensor
    descriptors1: Tensor
    descriptors2: Tensor
    descriptor_confidence1: Tensor
    descriptor_confidence2: Tensor


@dataclass(frozen=True)
class Prediction:
    """What `PointmapModel.predict` makes of two photos: arrays of numpy, without batch dimension.

    points1 (H1, W1, 3), points2 (H2, W2, 3), confidence1 (H1, W1), confidence2: see `Pointmaps`. image1, image2: uint8
    (H, W, 3), what the model saw of each photo. fit1, fit2: how the photos were resized and cropped. pixels1, pixels2
    (H, W, 2): where each point's pixel lies in its photo, as x, y. descriptors and their confidences: see
    `MatchingPointmaps`; None without them.
    """

    points1: np.ndarray
    points2: np.ndarray
    confidence1: np.ndarray
    confidence2: np.ndarray
    image1: np.ndarray
    image2: np.ndarray
    fit1: PhotoFit
    fit2: PhotoFit
    pixels1: np.ndarray
    pixels2: np.ndarray
    descriptors1: np.ndarray | None = None
    descriptors2: np.ndarray | None = None
    descriptor_confidence1: np.ndarray | None = None
    descriptor_confidence2: np.ndarray | None = None


class TwinDecoder(nn.Module):
    """Two stacks of blocks that look at each other (DUSt3R, section 3.1): both images advance together.

    In each layer image 1's block (`blocks`) sees image 2's tokens of the layer before, and image 2's block (`blocks2`)
    image 1's; in CroCo's decoder image 2's tokens stay as they are.
    """

    mask_token: Tensor

    def __init__(
        self,
        encoder_dim: int,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        rope_base: float = 100.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.rope_base = rope_base
        self.grad_checkpointing = False
        self.embed = nn.Linear(encoder_dim, dim, **dd)
        # nothing is hidden here; it stays because every public checkpoint holds it and conversion is exact both ways
        self.register_buffer("mask_token", torch.zeros(1, 1, dim, **dd))
        self.blocks, self.blocks2 = (
            nn.ModuleList(CrossBlock(dim, num_heads, mlp_ratio, qkv_bias, **dd) for _ in range(depth)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)

    def forward(
        self, x1: Tensor, x2: Tensor, grid1: Grid, grid2: Grid, indices: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder tokens x1 (B, N1, E), x2 (B, N2, E) of grids (rows, columns) -> the outputs of blocks `indices` for
        image 1, each (B, N1, D), and for image 2; the last block's are normed."""
        x1, x2 = self.embed(x1), self.embed(x2)
        rope1 = rope_on(self.head_dim, *grid1, self.rope_base, x1.device)
        rope2 = rope1 if grid2 == grid1 else rope_on(self.head_dim, *grid2, self.rope_base, x2.device)
        taken = {}
        for i, (block1, block2) in enumerate(zip(self.blocks, self.blocks2)):
            if self.grad_checkpointing and self.training:
                x1, x2 = checkpoint(block1, x1, x2, rope1, rope2), checkpoint(block2, x2, x1, rope2, rope1)
            else:
                x1, x2 = block1(x1, x2, rope1, rope2), block2(x2, x1, rope2, rope1)
            if i in indices:
                taken[i] = x1, x2
        taken[len(self.blocks) - 1] = self.norm(x1), self.norm(x2)
        return [taken[i][0] for i in indices], [taken[i][1] for i in indices]


class LinearHead(nn.Module):
    """One linear layer from a token to the points and confidences of its patch."""

    def __init__(self, dim: int, patch_size: int, device=None, dtype=None) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(dim, 4 * patch_size**2, device=device, dtype=dtype)

    def forward(self, tokens: Sequence[Tensor], grid: Grid) -> tuple[Tensor]:
        """The four sequences of `PointmapModel`, of which the last is read -> B, 4, H, W."""
        return (_shuffle(self.proj(tokens[-1]), grid, self.patch_size),)


class PointHead(nn.Module):
    """A DPT head for points and, with `descriptor_dim`, an MLP for descriptors (MASt3R, section 3.2)."""

    def __init__(
        self,
        dims: Sequence[int],
        patch_size: int,
        layer_dims: Sequence[int],
        feature_dim: int,
        last_dim: int,
        descriptor_dim: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.patch_size = patch_size
        self.dpt = DPTHead(dims, 4, layer_dims, feature_dim, last_dim, **dd)
        width = dims[0] + dims[-1]
        self.local_features = (
            Mlp(width, 4 * width, (descriptor_dim + 1) * patch_size**2, **dd) if descriptor_dim else None
        )

    def forward(self, tokens: Sequence[Tensor], grid: Grid) -> tuple[Tensor, ...]:
        """Four sequences (B, h * w, C_i) -> B, 4, H, W, and B, descriptor_dim + 1, H, W if there are descriptors."""
        points = self.dpt(tokens, grid)
        size = grid[0] * self.patch_size, grid[1] * self.patch_size
        if points.shape[-2:] != size:  # a patch size other than 16
            points = F.interpolate(points, size=size, mode="bilinear", align_corners=True)
        if self.local_features is None:
            return (points,)
        both = torch.cat((tokens[0], tokens[-1]), dim=-1)
        return points, _shuffle(self.local_features(both), grid, self.patch_size)


def _shuffle(x: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Tokens (B, h * w, C * patch * patch) -> the maps of their patches, side by side: B, C, H, W."""
    return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid), patch_size)


def _points_and_confidence(raw: Tensor) -> tuple[Tensor, Tensor]:
    """A head's map (B, 4, H, W) -> points (B, H, W, 3), whose distance is expm1 of the raw one, and 1 + exp of the
    last channel (DUSt3R, sections 3.1 and 3.2)."""
    raw = raw.float()
    xyz = raw[:, :3].permute(0, 2, 3, 1)
    distance = torch.linalg.vector_norm(xyz, dim=-1, keepdim=True)
    return xyz / distance.clamp(min=_MIN_DISTANCE) * torch.expm1(distance), 1 + raw[:, 3].exp()


class PointmapModel(ZooModel):
    """Encoder, two decoders and two heads: `forward(img1, img2)` gives both images' points in camera 1's frame.

    head_type: "linear", "dpt" (DUSt3R's two), or "catmlp+dpt" (MASt3R's, with descriptors of `descriptor_dim`).
    layer_dims, feature_dim, last_dim: of the DPT, see `DPTHead`. img_size: what the model was made for; it takes any
    size that the patch divides, and two images of different sizes. The other arguments are CrocoEncoder's.
    The weights of a CroCo pair (reference's or ours) load too: both decoders start from its one, the first blocks of it
    if they are fewer, and the heads at random, to be trained.
    """

    first_conv = "encoder.patch_embed.proj"
    head_name = "heads"
    config_file = True
    features_only_advice = (
        "{} takes two images, so features_only does not apply; its encoder alone is crocov2_large_patch16_224 with the "
        "tags dust3r_224, dust3r_512 and mast3r_512."
    )

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        decoder_dim: int = 768,
        decoder_depth: int = 12,
        decoder_num_heads: int = 12,
        head_type: HeadType = "linear",
        descriptor_dim: int = _DESCRIPTOR_DIM,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        last_dim: int = 128,
        rope_base: float = 100.0,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        positions: dict[str, Any] = dict(pos_embed="rope", rope_base=rope_base, dynamic_img_size=True)
        self.encoder = CrocoEncoder(img_size, patch_size, in_chans, **positions, **encoder_args, **dd)
        width = self.encoder.embed_dim
        self.decoder = TwinDecoder(width, decoder_dim, decoder_depth, decoder_num_heads, rope_base=rope_base, **dd)
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.head_type = head_type
        # the decoder's blocks half-way, at three quarters and last; before them the encoder's output
        self.hooks: tuple[int, ...] = (decoder_depth * 2 // 4 - 1, decoder_depth * 3 // 4 - 1, decoder_depth - 1)
        dims = (width, decoder_dim, decoder_dim, decoder_dim)
        self.descriptor_dim = descriptor_dim if head_type == "catmlp+dpt" else 0
        if head_type == "linear":
            self.hooks = self.hooks[-1:]
            heads: list[nn.Module] = [LinearHead(decoder_dim, patch_size, **dd) for _ in range(2)]
        elif decoder_depth < 2:
            raise ValueError(f"A DPT head can't read a decoder of {decoder_depth} block; make it of at least 2.")
        elif head_type in ("dpt", "catmlp+dpt"):
            sizes = (layer_dims, feature_dim, last_dim, self.descriptor_dim)
            heads = [PointHead(dims, patch_size, *sizes, **dd) for _ in range(2)]
        else:
            raise ValueError(f"A head called '{head_type}' is unknown; choose linear, dpt or catmlp+dpt.")
        self.heads = nn.ModuleList(heads)  # of image 1 and of image 2
        self.num_features = self.head_hidden_size = self.embed_dim = decoder_dim
        self.num_classes = 0
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoders and the linear layers of the heads (the encoder has drawn its own)."""
        self.decoder.apply(init_linear)
        self.heads.apply(init_linear)

    def encode(self, img1: Tensor, img2: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> the encoder's normed tokens of each; images of equal size go as one batch."""
        check_pair(img1, img2)
        if img1.shape == img2.shape:
            x1, x2 = self.encoder.forward_features(torch.cat((img1, img2))).unflatten(0, (2, -1)).unbind()
            return x1, x2
        return self.encoder.forward_features(img1), self.encoder.forward_features(img2)

    def forward(self, img1: Tensor, img2: Tensor) -> Pointmaps | MatchingPointmaps:
        """Normalized images (B, C, H, W), of equal size or not -> both images' pointmaps and confidences.

        Points and confidences are float32, also under autocast, where the heads are left out of it.
        """
        x1, x2 = self.encode(img1, img2)
        grid1, grid2 = self.encoder.grid_of(img1), self.encoder.grid_of(img2)
        taken1, taken2 = self.decoder(x1, x2, grid1, grid2, self.hooks)
        return self._read((x1, *taken1), (x2, *taken2), grid1, grid2)

    @torch.inference_mode()
    def predict(self, img1: Photo, img2: Photo) -> Prediction:
        """Two photos of any size and orientation -> their points, as arrays, and where their pixels lie in the photos.

        A photo is a file, an image of PIL or an array, uint8 (h, w, 3). It is resized to the model's longer side and
        cropped to whole patches; for a model of square images, to its middle square. Computed on the model's device, as
        in evaluation mode.

        Raises ImageError (a ValueError).
        """
        photos = [fit_photo(photo, self.encoder.img_size, self.patch_size) for photo in (img1, img2)]
        mean, std = (torch.tensor(self.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        like = next(self.parameters())
        inputs = [
            ((torch.from_numpy(np.array(array)).permute(2, 0, 1)[None] / 255 - mean) / std).to(like)
            for array, _ in photos
        ]
        training = self.training
        self.eval()
        result = self(*inputs)
        self.train(training)
        (image1, fit1), (image2, fit2) = photos
        arrays: dict[str, Any] = {name: value[0].cpu().numpy() for name, value in result._asdict().items()}
        return Prediction(
            image1=image1,
            image2=image2,
            fit1=fit1,
            fit2=fit2,
            pixels1=fit1.pixels(),
            pixels2=fit2.pixels(),
            **arrays,
        )

    def _read(
        self, tokens1: Sequence[Tensor], tokens2: Sequence[Tensor], grid1: Grid, grid2: Grid
    ) -> Pointmaps | MatchingPointmaps:
        """What the heads make of each image's encoder and decoder tokens."""
        dtype = next(self.heads.parameters()).dtype
        with without_autocast(tokens1[0]):
            raw1 = self.heads[0]([x.to(dtype) for x in tokens1], grid1)
            raw2 = self.heads[1]([x.to(dtype) for x in tokens2], grid2)
            (points1, confidence1), (points2, confidence2) = (_points_and_confidence(raw[0]) for raw in (raw1, raw2))
            if not self.descriptor_dim:
                return Pointmaps(points1, points2, confidence1, confidence2)
            (desc1, desc_confidence1), (desc2, desc_confidence2) = (_descriptors(raw[1]) for raw in (raw1, raw2))
        return MatchingPointmaps(
            points1, points2, confidence1, confidence2, desc1, desc2, desc_confidence1, desc_confidence2
        )

    def convert(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """See `ZooModel.convert`; a CroCo pair's one decoder becomes both, and settings beside the tensors are checked.

        Raises CheckpointMismatchError (a ValueError) too for a checkpoint whose settings say another function.
        """
        settings = reference_settings_of(checkpoint)
        if settings is not None:
            check_settings(settings, self.constructor_settings(), str(checkpoint.path))
        state = super().convert(checkpoint)
        if any(key.startswith(("decoder.blocks2.", "heads.")) for key in state):
            return state
        depth = len(self.decoder.blocks)
        blocks = {key: match for key in state if (match := re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", key))}
        spare = [key for key, match in blocks.items() if int(match[1]) >= depth]
        for key in spare:
            del state[key]
        if spare:
            _logger.info("%s: its decoder's first %d blocks are taken, those behind left out", checkpoint.path, depth)
        # a copy: two parameters must not share the memory that training writes to
        second = {f"decoder.blocks2.{m[1]}.{m[2]}": state[key].clone() for key, m in blocks.items() if key in state}
        return state | second

    def constructor_settings(self) -> dict[str, Any]:
        """The reference's constructor arguments for this model, under its names (those of its config.json)."""
        infinity = float("inf")
        encoder: Any = self.encoder
        decoder = self.decoder
        settings: dict[str, Any] = dict(
            pos_embed=f"RoPE{decoder.rope_base:g}",
            img_size=[max(encoder.img_size)] * 2,
            patch_size=self.patch_size,
            head_type=self.head_type,
            output_mode="pts3d" + (f"+desc{self.descriptor_dim}" if self.descriptor_dim else ""),
            depth_mode=["exp", -infinity, infinity],
            conf_mode=["exp", 1, infinity],
            enc_embed_dim=encoder.embed_dim,
            enc_depth=len(encoder.blocks),
            enc_num_heads=encoder.blocks[0].attn.num_heads,
            dec_embed_dim=decoder.dim,
            dec_depth=len(decoder.blocks),
            dec_num_heads=decoder.num_heads,
            landscape_only=False,
        )
        if self.descriptor_dim:
            settings |= dict(two_confs=True, desc_conf_mode=["exp", 0, infinity])
        return settings

    def reference_settings(self) -> dict[str, Any]:
        """What the reference's checkpoints hold besides the tensors: `args`, whose `model` is constructor text."""
        name = "AsymmetricMASt3R" if self.descriptor_dim else "AsymmetricCroCo3DStereo"
        arguments = ", ".join(
            f"{key}={tuple(value) if isinstance(value, list) else value!r}"
            for key, value in self.constructor_settings().items()
        )
        return dict(args=Namespace(model=f"{name}({arguments})"))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: encoder first, then both decoders layer by layer."""
        return dict(
            stem=r"^encoder\.patch_embed",
            encoder=[(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
            decoder=[
                (r"^decoder\.embed", (-1,)),
                (r"^decoder\.blocks2?\.(\d+)", None),
                (r"^decoder\.norm|^heads", (99999,)),
            ],
        )


def _descriptors(raw: Tensor) -> tuple[Tensor, Tensor]:
    """A head's map (B, D + 1, H, W) -> unit descriptors (B, H, W, D) and exp of the last channel (B, H, W)."""
    raw = raw.float()
    descriptors = raw[:, :-1].permute(0, 2, 3, 1)
    return descriptors / torch.linalg.vector_norm(descriptors, dim=-1, keepdim=True), raw[:, -1].exp()


def _blocks(theirs: str, ours: str) -> tuple[Rename, ...]:
    return (
        Rename(f"{theirs}.*.cross_attn.projq.*", f"decoder.{ours}.*.cross_attn.q_proj.*"),
        Rename(f"{theirs}.*.cross_attn.projk.*", f"decoder.{ours}.*.cross_attn.k_proj.*"),
        Rename(f"{theirs}.*.cross_attn.projv.*", f"decoder.{ours}.*.cross_attn.v_proj.*"),
        Rename(f"{theirs}.*.norm_y.*", f"decoder.{ours}.*.norm_memory.*"),
        Rename(f"{theirs}.*", f"decoder.{ours}.*"),
    )


def _dpt_rules(theirs: str, ours: str) -> tuple[Rename | Alias, ...]:
    """layerN_rn and layer_rn.N are one tensor under two names, of which a safetensors file has one."""
    return (
        Rename(f"{theirs}.act_postprocess.*", f"{ours}.reassemble.*"),
        Rename(f"{theirs}.head.*", f"{ours}.output.*"),
        *(
            rule
            for i in range(4)
            for rule in (
                Rename(f"{theirs}.scratch.layer{i + 1}_rn.weight", f"{ours}.project.{i}.weight"),
                Alias(f"{theirs}.scratch.layer_rn.{i}.weight", f"{theirs}.scratch.layer{i + 1}_rn.weight"),
                Rename(f"{theirs}.scratch.refinenet{i + 1}.resConfUnit1.*", f"{ours}.fusion.{i}.unit1.*"),
                Rename(f"{theirs}.scratch.refinenet{i + 1}.resConfUnit2.*", f"{ours}.fusion.{i}.unit2.*"),
                Rename(f"{theirs}.scratch.refinenet{i + 1}.out_conv.*", f"{ours}.fusion.{i}.out_conv.*"),
            )
        ),
    )


_CROCO = (
    Rename("mask_token", "decoder.mask_token"),
    Rename("patch_embed.*", "encoder.patch_embed.*"),
    Rename("enc_blocks.*", "encoder.blocks.*"),
    Rename("enc_norm.*", "encoder.norm.*"),
    Rename("decoder_embed.*", "decoder.embed.*"),
    *_blocks("dec_blocks", "blocks"),
    Rename("dec_norm.*", "decoder.norm.*"),
)

PointmapModel.layouts = {
    "DUSt3R, reference": KeyRules(
        *_CROCO,
        *_blocks("dec_blocks2", "blocks2"),
        *(
            rule
            for i in range(2)
            for rule in (
                Rename(f"downstream_head{i + 1}.proj.*", f"heads.{i}.proj.*"),
                Rename(f"downstream_head{i + 1}.head_local_features.*", f"heads.{i}.local_features.*"),
                *_dpt_rules(f"downstream_head{i + 1}.dpt", f"heads.{i}.dpt"),
            )
        ),
    ),
    "CroCo pair, the reference's": KeyRules(*_CROCO, Drop("prediction_head.*", "predicts pixels")),
    "CroCo pair": KeyRules(
        Drop("head.*", "predicts pixels"),
        Rename("encoder.*", "encoder.*"),
        Rename("decoder.*", "decoder.*"),
    ),
}

default_cfgs = register_family("pointmaps", dict(pointmaps=PointmapModel), __name__)
