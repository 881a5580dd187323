"""A zoo encoder under a segmentation head of segmentation_models_pytorch, trained for a few steps.

    python examples/segmentation.py --encoder croco_nano_patch8_64.scenes_far --steps 60

Needs `pip install segmentation-models-pytorch` besides the zoo: its "tu-" encoders are timm's, and so, once zoo is
imported, the zoo's. The task is a toy: to tell the discs of rendered pictures from what is behind them.
"""

from __future__ import annotations

import argparse

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo  # noqa: F401  registers the zoo's architectures with timm

SIZE = 64


def make_model(encoder: str, pretrained: bool = True) -> nn.Module:
    """DPT on four blocks of a plain transformer; smp's other decoders take encoders with maps of several scales."""
    return smp.DPT(
        f"tu-{encoder}",
        encoder_weights="zoo" if pretrained else None,
        decoder_readout="ignore",  # there is no class token
        decoder_intermediate_channels=(32, 64, 96, 96),
        decoder_fusion_channels=32,
        classes=1,
        dynamic_img_size=True,
    )


def draw_discs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures (B, 3, SIZE, SIZE) of a disc each, and its mask (B, 1, SIZE, SIZE)."""
    center, radius = torch.rand(count, 2, 1, 1, generator=generator) * SIZE, 12.0
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = ((rows - center[:, 0]).square() + (columns - center[:, 1]).square() < radius**2).float().unsqueeze(1)
    colors = torch.randn(2, count, 3, 1, 1, generator=generator)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return colors[0] * mask + colors[1] * (1 - mask) + 0.3 * noise, mask


def train(model: nn.Module, steps: int, batch_size: int = 8) -> list[float]:
    """Train the head on top of the frozen encoder; returns the loss of each step."""
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        images, masks = draw_discs(batch_size, generator)
        loss = F.binary_cross_entropy_with_logits(model(images), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="croco_nano_patch8_64.scenes_far", help="a variant of the zoo")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    losses = train(make_model(args.encoder), args.steps)
    print(f"loss {losses[0]:.3f} at first, {sum(losses[-5:]) / len(losses[-5:]):.3f} at the end")
