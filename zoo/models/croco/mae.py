"""CroCo's encoder in a masked autoencoder of single images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.models.croco.encoder import CrocoEncoder
from zoo.models.shared.masked import MaskedAutoencoder, PixelDecoder
from zoo.models.shared.model import init_linear


class CrocoMAE(MaskedAutoencoder):
    """CroCo's encoder under a masked autoencoder's one-image decoder: what CroCo is without its second view.

    For comparison: the same encoder, pretrained on single images as in MAE (arXiv 2111.06377). The encoder's
    arguments are CrocoEncoder's.
    """

    first_conv = "encoder.patch_embed.proj"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_target: bool = True,
        device=None,
        dtype=None,
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.encoder = CrocoEncoder(img_size, patch_size, in_chans, **encoder_args, **dd)
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.norm_target = norm_target
        self.decoder_embed = nn.Linear(self.encoder.embed_dim, decoder_dim, **dd)
        grid = self.encoder.grid_size
        self.decoder = PixelDecoder(grid, patch_size, in_chans, decoder_dim, decoder_depth, decoder_num_heads, **dd)
        self.num_features = self.head_hidden_size = self.embed_dim = self.encoder.embed_dim
        self.feature_info = [dict(info, module="encoder." + info["module"]) for info in self.encoder.feature_info]
        self.init_weights_unless_meta()

    def init_weights(self) -> None:
        """Draw the decoder (the encoder has drawn its own)."""
        init_linear(self.decoder_embed)
        self.decoder.init_weights()

    def embed_visible(self, image: Tensor, visible: Tensor) -> Tensor:
        return self.decoder_embed(self.encoder.forward_tokens(image, visible)[0])
