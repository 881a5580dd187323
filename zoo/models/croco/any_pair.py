"""A two-image model on timm's plain transformers."""

from __future__ import annotations

import re
import warnings
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.layers import PatchEmbed
from timm.models import VisionTransformer, checkpoint
from timm.models.eva import Eva
from torch import Tensor, nn

from zoo.errors import ArgumentsError, UnknownVariantError, UnsuitableModelError, WeightsUnavailableError
from zoo.layers.masking import take_tokens
from zoo.models.croco.blocks import PosEmbed
from zoo.models.croco.encoder import CrocoEncoder
from zoo.models.croco.pair import PairModel
from zoo.models.making.build import register_builder
from zoo.models.shared.ancestry import Ancestor
from zoo.models.shared.backbone import image_grid
from zoo.models.shared.masked import Grid
from zoo.models.shared.model import ZooModel
from zoo.weights.network.hub import explain

_SERVED = (
    "choose one of timm's VisionTransformer (ViT, DeiT, MAE, DINO, CLIP, SigLIP...), of timm's Eva (EVA, DINOv3), "
    "or one of CroCo's encoders."
)


class TimmEncoder(nn.Module):
    """A timm VisionTransformer or Eva as the encoder of a PairModel.

    Class and register tokens take part in its blocks and are left out of what the decoder sees.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        vit.reset_classifier(0, "")  # what only a classifier uses would be left without gradients
        vit.fc_norm = nn.Identity()
        self.vit = vit
        self.pretrained_cfg = vit.pretrained_cfg
        self.embed_dim = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size[0]
        self.in_chans = vit.patch_embed.proj.in_channels

    @property
    def patch_embed(self) -> nn.Module:
        return self.vit.patch_embed

    @property
    def blocks(self) -> nn.Module:
        return self.vit.blocks

    def grid_of(self, x: Tensor) -> Grid:
        """Rows and columns of the patches of images (B, C, H, W). Raises ImageError for a size it can't take."""
        embed = self.vit.patch_embed
        return image_grid(x.shape[2], x.shape[3], self.patch_size, embed.img_size, self.vit.dynamic_img_size)

    def forward_tokens(
        self, x: Tensor, visible: Tensor | None = None, indices: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.forward_tokens`; patches are dropped after the position embedding."""
        vit = self.vit
        prefix = vit.num_prefix_tokens
        self.grid_of(x)
        x = vit._pos_embed(vit.patch_embed(x))
        ropes: list[Any] = [None] * len(vit.blocks)
        if isinstance(x, tuple):  # Eva's, with the rotation of each patch, for all blocks or for each
            x, rope = x
            if rope is not None:
                mixed = getattr(vit, "rope_mixed", False)  # depth, heads, N, d; else N, d
                if visible is not None:
                    rope = rope[:, :, visible].transpose(1, 2) if mixed else rope[visible].unsqueeze(1)
                ropes = list(rope) if mixed else [rope] * len(vit.blocks)
        if visible is not None:
            x = torch.cat((x[:, :prefix], take_tokens(x[:, prefix:], visible)), dim=1)
        x = vit.norm_pre(x)
        taken = []
        for i, (block, rope) in enumerate(zip(vit.blocks, ropes)):
            args = () if rope is None else (rope,)
            x = checkpoint(block, x, *args) if vit.grad_checkpointing and self.training else block(x, *args)
            if i in indices:
                taken.append(x[:, prefix:])
        x = vit.norm(x)[:, prefix:]
        if len(vit.blocks) - 1 in indices:
            taken[-1] = x
        return x, taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.vit.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}


def create_pair_model(
    encoder: str | nn.Module,
    decoder: str = "cross512d8",
    pretrained: bool = False,
    freeze_encoder: bool = False,
    img_size: int | tuple[int, int] | None = None,
    pos_embed: PosEmbed = "rope",
    norm_memory: bool = True,
    decoder_num_heads: int | None = None,
    completes: bool = True,
    **encoder_args: Any,
) -> PairModel:
    """A two-image model on a plain transformer: timm's VisionTransformer (ViT, DeiT, MAE, DINO, CLIP, SigLIP...),
    timm's Eva (EVA, DINOv3) or CroCo's encoder.

    Others are refused: those with stages or windows (Swin, SAM, HiViT) have no tokens that can be left out one by one,
    and a convolution below the patches (hybrids) would see what is hidden.

    encoder: a timm model name, created with `pretrained`, `img_size` and `encoder_args`, or a module. Of one that
    timm.create_model has made the name is remembered, so that `zoo.push_to_hub` can publish the pair.
    decoder: block kind, width and depth, such as "cross512d8" or "cat768d12"; it starts untrained.
    freeze_encoder: train the decoder only. pos_embed: the decoder's positions.
    decoder_num_heads: by default heads of 32 channels, as in CroCo's small decoder (64 from width 768 on).
    completes: have the mask token and the pixel head, which only completion needs, at all.

    Raises ArgumentsError (a ValueError) when the decoder's name can't be read, UnsuitableModelError (a TypeError, too)
    when the encoder is of another kind, UnknownVariantError when there is no model of that name,
    WeightsUnavailableError when timm can't fetch its weights.

    >>> pair = zoo.create_pair_model("vit_base_patch14_dinov2", pretrained=True, freeze_encoder=True)
    """
    match = re.fullmatch(r"(cross|cat)(\d+)d(\d+)", decoder)
    if not match:
        raise ArgumentsError(
            f"A decoder called '{decoder}' is unknown; write block, width and depth, as in cross512d8."
        )
    block, dim, depth = match[1], int(match[2]), int(match[3])
    if encoder_args.get("num_classes"):
        raise ArgumentsError(
            f"A two-image model has no classifier, so num_classes={encoder_args['num_classes']} means nothing; leave "
            "it out."
        )
    origin = None
    given = not isinstance(encoder, str)
    if isinstance(encoder, str):
        if img_size is not None:
            encoder_args["img_size"] = img_size
        if freeze_encoder and not pretrained:
            warnings.warn(
                f"The encoder {encoder} is frozen with random weights; pass pretrained=True to load its own.",
                stacklevel=2,
            )
        encoder = _create_encoder(encoder, pretrained, encoder_args)
    told = _told(encoder)
    if given or pretrained:
        origin = _origin(encoder)
    if isinstance(encoder, (VisionTransformer, Eva)) and _is_plain(encoder.patch_embed):
        encoder = TimmEncoder(encoder)
    if not isinstance(encoder, (TimmEncoder, CrocoEncoder)):
        kind = type(encoder).__name__
        if isinstance(encoder, (VisionTransformer, Eva)):
            kind += f" with {type(encoder.patch_embed).__name__}"
        raise UnsuitableModelError(f"{kind} can't be the encoder of a two-image model; {_SERVED}")
    heads = decoder_num_heads or max(1, dim // (64 if dim >= 768 else 32))
    plain: dict[str, Any] = dict(norm_memory=norm_memory, pos_embed=pos_embed, completes=completes)
    pair = PairModel(
        decoder_dim=dim,
        decoder_depth=depth,
        decoder_num_heads=heads,
        decoder_block=block,  # type: ignore[arg-type]
        encoder=encoder,
        freeze_encoder=freeze_encoder,
        **plain,
    )
    pair.ancestor = origin
    embed: Any = encoder.patch_embed
    own = dict(architecture="create_pair_model", tag=None, input_size=(encoder.in_chans, *embed.img_size))
    pair.pretrained_cfg = {**getattr(encoder, "pretrained_cfg", {}), **own}  # the encoder's normalization
    if told is not None:
        more = dict(decoder=decoder, decoder_num_heads=heads, freeze_encoder=freeze_encoder)
        pair._model_args = told | plain | more  # type: ignore[assignment]  # where timm notes them too
    return pair


def _told(encoder: Any) -> dict[str, Any] | None:
    """The arguments of `create_pair_model` that make an encoder again, if timm.create_model has made it."""
    name, args = getattr(encoder, "pretrained_cfg", {}).get("architecture"), getattr(encoder, "_model_args", None)
    if args is None or not timm.is_model(name or ""):
        return None
    args = {key: value for key, value in args.items() if key not in ("num_classes", "global_pool")}
    return dict(dynamic_img_size=False) | args | dict(encoder=name)


def _origin(encoder: Any) -> Ancestor | None:
    """Whose weights an encoder has. Of a timm model that is given as it is, timm's own count."""
    if isinstance(encoder, ZooModel):
        return encoder.ancestor
    cfg = getattr(encoder, "pretrained_cfg", {})
    name = cfg.get("hf_hub_id") or f"{cfg.get('architecture')}.{cfg.get('tag')}"
    return Ancestor(name, cfg.get("license") or "")


register_builder(create_pair_model, __name__)


def _create_encoder(name: str, pretrained: bool, encoder_args: dict[str, Any]) -> nn.Module:
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise UnknownVariantError(f"timm has no model called '{name}'; timm.list_models('*vit*') prints those like it.")
    try:
        return timm.create_model(
            name, pretrained=pretrained, **(dict(num_classes=0, dynamic_img_size=True) | encoder_args)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:  # timm's own weights lie on the Hub, too
        reason = explain(error, name.partition(":")[2] or f"timm/{name}")
        raise WeightsUnavailableError(f"The encoder {name} could not be fetched from the Hub: {reason}.") from error
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise UnsuitableModelError(f"{name} can't be the encoder of a two-image model; {_SERVED}") from error


def _is_plain(embed: Any) -> bool:
    """Whether patches are embedded each for itself, and are square."""
    return isinstance(embed, PatchEmbed) and embed.patch_size[0] == embed.patch_size[1]
