"""Zoo encoders inside Hugging Face transformers: AutoModel on a published one, AutoBackbone on any name.

    python examples/transformers_backbone.py --model OWNER/NAME --backbone crocov2_base_patch16_224 --image photo.jpg

Needs `pip install transformers` besides the zoo. transformers makes the models through timm, so importing zoo is all
that it takes.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, TimmBackboneConfig

import zoo  # noqa: F401  registers the zoo's architectures with timm
from zoo.photos import read_image


def extract(model: str, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Patch tokens (1, N, D) and their pooled vector (1, D), by a model that `zoo push` has published.

    image: uint8 (H, W, 3). model: its repository on the Hub, or a folder.
    """
    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModel.from_pretrained(model).eval()
    with torch.inference_mode():
        output = network(**processor(image))
    return output.last_hidden_state, output.pooler_output


def maps(backbone: str, images: Tensor) -> tuple[Tensor, ...]:
    """Feature maps (B, D, h, w) of the last two blocks for images (B, 3, H, W), as transformers' detectors take them.

    backbone: a variant of the zoo, or "hf-hub:OWNER/NAME".
    """
    config = TimmBackboneConfig(backbone=backbone, out_indices=(-2, -1))
    network = AutoBackbone.from_config(config, pretrained=True, img_size=tuple(images.shape[2:])).eval()
    with torch.inference_mode():
        return network(images).feature_maps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="repository on the Hub, or a folder")
    parser.add_argument("--backbone", default="croco_nano_patch8_64", help="a variant of the zoo")
    parser.add_argument("--image", required=True, help="a photo")
    args = parser.parse_args()
    tokens, vector = extract(args.model, read_image(args.image))
    print(f"{args.model}: tokens {tuple(tokens.shape)}, vector {tuple(vector.shape)}")
    for map_ in maps(args.backbone, torch.rand(1, 3, 96, 128)):
        print(f"{args.backbone}: map {tuple(map_.shape)}")
