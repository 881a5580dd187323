"""Encoder and two-image decoder: cross-view completion and what it teaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from zoo.layers.masking import split_mask, take_tokens
from zoo.layers.unused import with_unused
from zoo.models.croco.blocks import PosEmbed
from zoo.models.croco.decoder import Decoder
from zoo.models.croco.encoder import CrocoEncoder
from zoo.models.shared.masked import Completion, Grid, PatchPredictor, adapt_pixel_head, check_mask, check_pair
from zoo.models.shared.model import init_linear
from zoo.weights import Alias, Drop, KeyRules, Rename


class PairModel(PatchPredictor):
    """Encoder and two-image decoder: `forward(img1, img2)` gives image 1's tokens in the light of image 2.

    encoder: any module with CrocoEncoder's `forward_tokens`, `grid_of`, `patch_embed`, `blocks` and sizes; by default a
    CrocoEncoder made from the other arguments. freeze_encoder: keep it as it is, in eval mode, without gradients.
    decoder_block, norm_memory: see `Decoder` and `CrossBlock`. norm_target: the completion predicts patches
    normalized by their own mean and deviation. completes: have the mask token and the pixel head at all.
    """

    first_conv = "encoder.patch_embed.proj"
    features_only_advice = (
        "{} takes two images, so features_only does not apply; call its forward_intermediates(img1, img2), or create "
        "{} with features_only=True."
    )

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_block: Literal["cross", "cat"] = "cross",
        norm_memory: bool = True,
        pos_embed: PosEmbed = "rope",
        rope_base: float = 100.0,
        pos_resample: Literal["compute", "bicubic"] = "compute",
        norm_target: bool = True,
        completes: bool = True,
        dynamic_img_size: bool = True,
        encoder: Any = None,
        freeze_encoder: bool = False,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        positions: dict[str, Any] = dict(pos_embed=pos_embed, rope_base=rope_base, pos_resample=pos_resample)
        if encoder is None:
            encoder = CrocoEncoder(
                img_size, patch_size, in_chans, dynamic_img_size=dynamic_img_size, **positions, **encoder_args, **dd
            )
        elif encoder_args:
            raise TypeError(f"An encoder was given, so {', '.join(encoder_args)} would go unused; leave them out.")
        self.encoder = encoder
        self.decoder = Decoder(
            encoder.embed_dim,
            encoder.patch_embed.grid_size,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            block=decoder_block,
            norm_memory=norm_memory,
            mask_token=completes,
            **positions,
            **dd,
        )
        self.patch_size = encoder.patch_size
        self.in_chans = encoder.in_chans
        self.norm_target = norm_target
        pixels = self.patch_size**2 * self.in_chans
        self.head = nn.Linear(decoder_dim, pixels, **dd) if completes else None
        self.num_features = self.head_hidden_size = self.embed_dim = decoder_dim
        depth = len(encoder.blocks)
        self.feature_info: list[dict[str, Any]] = [
            dict(module=f"encoder.blocks.{i}", num_chs=encoder.embed_dim, reduction=self.patch_size)
            for i in range(depth)
        ] + [
            dict(module=f"decoder.blocks.{i}", num_chs=decoder_dim, reduction=self.patch_size)
            for i in range(decoder_depth)
        ]
        self.encoder_frozen = freeze_encoder
        if freeze_encoder:
            self.encoder.requires_grad_(False).eval()
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder and the pixel head (the encoder has drawn its own)."""
        self.decoder.init_weights()
        if self.head is not None:
            init_linear(self.head)

    def train(self, mode: bool = True) -> PairModel:
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def _grid(self, x: Tensor) -> Grid:
        return self.encoder.grid_of(x)

    def _encode(
        self, x: Tensor, visible: Tensor | None = None, indices: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        if self.encoder_frozen:
            with torch.no_grad():
                return self.encoder.forward_tokens(x, visible, indices)
        return self.encoder.forward_tokens(x, visible, indices)

    def _encode_both(self, img1: Tensor, img2: Tensor, indices: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, list]:
        """Tokens of both images and blocks `indices` of image 1; images of equal size go as one batch."""
        check_pair(img1, img2)
        if img1.shape == img2.shape:
            tokens, taken = self._encode(torch.cat((img1, img2)), indices=indices)
            x1, x2 = tokens.unflatten(0, (2, -1)).unbind()
            return x1, x2, [y[: len(img1)] for y in taken]
        x1, taken = self._encode(img1, indices=indices)
        return x1, self._encode(img2)[0], taken

    def forward(self, img1: Tensor, img2: Tensor, symmetric: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C, H, W), of equal size or not -> tokens of image 1 in the light of image 2 (B, N1, D).

        symmetric: give also image 2 in the light of image 1; each image is encoded once.
        """
        x1, x2, _ = self._encode_both(img1, img2)
        grid1, grid2 = self._grid(img1), self._grid(img2)
        x1 = with_unused(x1, self._only_completing())
        if not symmetric:
            return self.decoder(x1, x2, grid1, grid2)[0]
        if grid1 == grid2:
            both, _ = self.decoder(torch.cat((x1, x2)), torch.cat((x2, x1)), grid1, grid2)
            y1, y2 = both.unflatten(0, (2, -1)).unbind()
            return y1, y2
        return self.decoder(x1, x2, grid1, grid2)[0], self.decoder(x2, x1, grid2, grid1)[0]

    def _only_completing(self) -> Iterator[nn.Parameter]:
        """What neither `forward` nor `forward_intermediates` needs."""
        if self.decoder.mask_token is not None:
            yield self.decoder.mask_token
        if self.head is not None:
            yield from self.head.parameters()

    def forward_intermediates(
        self,
        img1: Tensor,
        img2: Tensor,
        indices: int | list[int] | None = None,
        output_fmt: str = "NLC",
        intermediates_only: bool = True,
    ) -> Any:
        """Blocks of the list [encoder blocks of image 1..., decoder blocks...], for dense heads.

        indices: the last n if an int, all if None, else those numbers (negative: from the end). The last
        encoder block and the last decoder block are the normed ones. output_fmt: "NLC" tokens (B, N1, C) or
        "NCHW" maps (B, C, h, w). With intermediates_only off: (tokens of forward, intermediates).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt '{output_fmt}' is unknown; choose NCHW or NLC.")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        depth = len(self.encoder.blocks)
        encoder_take = sorted({i for i in take if i < depth})
        decoder_take = sorted({i for i in take if i >= depth})
        check_pair(img1, img2)
        grid1, grid2 = self._grid(img1), self._grid(img2)
        tokens = None
        if intermediates_only and not decoder_take:  # then image 2 plays no part
            by_index = dict(zip(encoder_take, self._encode(img1, indices=tuple(encoder_take))[1], strict=True))
        else:
            x1, x2, encoder_blocks = self._encode_both(img1, img2, tuple(encoder_take))
            x1 = with_unused(x1, self._only_completing())
            tokens, decoder_blocks = self.decoder(x1, x2, grid1, grid2, indices=[i - depth for i in decoder_take])
            by_index = dict(zip(encoder_take + decoder_take, encoder_blocks + decoder_blocks, strict=True))
        blocks = [by_index[i] for i in take]
        if output_fmt == "NCHW":
            blocks = [x.transpose(1, 2).unflatten(2, grid1).contiguous() for x in blocks]
        return blocks if intermediates_only else (tokens, blocks)

    def predict(
        self, img1: Tensor, img2: Tensor, mask: Tensor, hidden: int, all_patches: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict image 1's hidden patches from its visible ones and the whole of image 2.

        mask: (B, N) bool, True = hidden; hidden: how many each row hides. Returns the prediction
        (B, hidden, patch * patch * C) with the patches' numbers (B, hidden); with all_patches the prediction
        is (B, N, patch * patch * C). Pixels are normalized by patch if `norm_target`.
        """
        if self.head is None:
            raise ValueError("This model was made without a pixel head, so it can't complete; choose a binocular one.")
        check_pair(img1, img2)
        check_mask(mask, self._grid(img1), len(img1))
        visible, hidden_index = split_mask(mask, hidden)
        x1, _ = self._encode(img1, visible)
        x2, _ = self._encode(img2)
        tokens, _ = self.decoder(x1, x2, self._grid(img1), self._grid(img2), visible)
        if not all_patches:
            tokens = take_tokens(tokens, hidden_index)
        return self.head(tokens), hidden_index

    def completion_loss(
        self, img1: Tensor, img2: Tensor, mask: Tensor, hidden: int, target: str | None = None
    ) -> Tensor:
        """The pretraining loss (CroCo, section 3.2): squared error of the hidden patches' target, a scalar.

        target: one of `zoo.layers.patchify.TARGETS`, by default the one that `norm_target` says.
        """
        return self._target_loss(img1, *self.predict(img1, img2, mask, hidden), target)

    def complete(
        self,
        img1: Tensor,
        img2: Tensor,
        mask_ratio: float = 0.9,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Hide patches of image 1 and rebuild them with the help of image 2, to look at.

        mask: (B, N) bool, True = hidden, the same number in each row; else drawn with `mask_ratio` and the
        CPU `generator`.
        """
        check_pair(img1, img2)
        return self._complete(
            img1, lambda mask, hidden: self.predict(img1, img2, mask, hidden), mask_ratio, mask, generator
        )

    def reference_settings(self) -> dict[str, Any]:
        """The reference's own constructor arguments, under the name that its v2 checkpoints hold them."""
        encoder, decoder = self.encoder, self.decoder
        height, width = encoder.patch_embed.img_size
        rope = decoder.pos_embed is None
        return dict(
            croco_kwargs=dict(
                img_size=height if height == width else (height, width),
                patch_size=self.patch_size,
                enc_embed_dim=encoder.embed_dim,
                enc_depth=len(encoder.blocks),
                enc_num_heads=encoder.blocks[0].attn.num_heads,
                dec_embed_dim=decoder.dim,
                dec_depth=len(decoder.blocks),
                dec_num_heads=decoder.num_heads,
                norm_im2_in_dec=not isinstance(getattr(decoder.blocks[0], "norm_memory", None), nn.Identity),
                pos_embed=f"RoPE{decoder.rope_base:g}" if rope else "cosine",
            )
        )

    def _adapt_in_chans(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        super()._adapt_in_chans(state, own)
        if "head.weight" in state and self.in_chans != 3 and "head.weight" in own:
            adapt_pixel_head(state, "head", self.patch_size, self.in_chans)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay: encoder first, then decoder."""
        return dict(
            stem=r"^encoder\.(?:vit\.)?(?:patch_embed|pos_embed|cls_token|reg_token|norm_pre)",
            encoder=[(r"^encoder\.(?:vit\.)?blocks\.(\d+)", None), (r"^encoder\.(?:vit\.)?norm", (99999,))],
            decoder=[
                (r"^decoder\.(?:embed|mask_token|image_embed)", (-1,)),
                (r"^decoder\.blocks\.(\d+)", None),
                (r"^decoder\.norm|^head|^dense", (99999,)),
            ],
        )


def pair_rules(*more: Rename | Alias | Drop) -> KeyRules:
    return KeyRules(
        Rename("mask_token", "decoder.mask_token"),
        Rename("enc_pos_embed", "encoder.pos_embed.table", grid=True),
        Rename("dec_pos_embed", "decoder.pos_embed.table", grid=True),
        Rename("patch_embed.*", "encoder.patch_embed.*"),
        Rename("enc_blocks.*", "encoder.blocks.*"),
        Rename("enc_norm.*", "encoder.norm.*"),
        Rename("decoder_embed.*", "decoder.embed.*"),
        Rename("dec_blocks.*.cross_attn.projq.*", "decoder.blocks.*.cross_attn.q_proj.*"),
        Rename("dec_blocks.*.cross_attn.projk.*", "decoder.blocks.*.cross_attn.k_proj.*"),
        Rename("dec_blocks.*.cross_attn.projv.*", "decoder.blocks.*.cross_attn.v_proj.*"),
        Rename("dec_blocks.*.norm_y.*", "decoder.blocks.*.norm_memory.*"),
        Rename("dec_blocks.*", "decoder.blocks.*"),
        Rename("dec_norm.*", "decoder.norm.*"),
        *more,
    )


PairModel.layouts = {"CroCo pair, reference": pair_rules(Rename("prediction_head.*", "head.*"))}
