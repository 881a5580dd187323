"""The batched color jitter is torchvision's, image by image."""

import torch
from torchvision.transforms.v2 import functional as TF

from zoo.train.data.jitter import color_jitter, draw_jitter


def test_same_as_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 16, 24), dtype=torch.uint8, generator=generator)
    steps = torch.stack([draw_jitter(0.4, generator) for _ in images])
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for image, own, got in zip(images, steps.tolist(), color_jitter(images, steps), strict=True):
        assert sorted(kind for kind, _ in own) == [0, 1, 2] and all(0.6 <= factor <= 1.4 for _, factor in own)
        for kind, factor in own:
            image = adjust[int(kind)](image, factor)
        off = (image.int() - got.int()).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 1e-2
    assert len({tuple(kind for kind, _ in own) for own in steps.tolist()}) > 2, "the order is random too"
