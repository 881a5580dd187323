"""Zoo encoders under detectors: transformers' backbones, DETR and Mask2Former, torchvision's Faster R-CNN."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackboneConfig,
)

import zoo  # noqa: F401  (registers the models)

SIZE = (64, 96)
HIERARCHICAL = ["hivit_nano_patch16_64", "itpn_nano_patch16_64", "convmae_nano_patch16_64"]
ENCODERS = [*HIERARCHICAL, "croco_nano_patch8_64"]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("indices", [(-1,), (0, 1, 2, 3), (2, 3)])
def test_transformers_backbone(name: str, indices: tuple[int, ...]) -> None:
    config = TimmBackboneConfig(backbone=name, out_indices=indices, use_pretrained_backbone=False)
    network: Any = AutoBackbone.from_config(config, img_size=SIZE).eval()
    maps = network(torch.randn(1, 3, *SIZE)).feature_maps
    assert [m.shape[1] for m in maps] == network.channels and len(maps) == len(indices)


def test_detr() -> None:
    backbone = TimmBackboneConfig(backbone="hivit_nano_patch16_64", out_indices=(3,), use_pretrained_backbone=False)
    layers: dict[str, Any] = dict(encoder_layers=1, decoder_layers=1, d_model=32, num_queries=5)
    heads: dict[str, Any] = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    config = DetrConfig(backbone_config=backbone, use_timm_backbone=False, backbone=None, **layers, **heads)
    network = DetrForObjectDetection(config).eval()
    assert network(torch.randn(1, 3, 64, 64)).pred_boxes.shape == (1, 5, 4)


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_mask2former(name: str) -> None:
    """Its pixel decoder takes four maps, of strides 4 to 32; a step of training reaches the backbone."""
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone=name, out_indices=(0, 1, 2, 3), use_pretrained_backbone=False)
    widths = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32)
    layers: dict[str, Any] = dict(encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16)
    config = Mask2FormerConfig(
        backbone_config=backbone, **widths, **layers, num_queries=4, num_labels=2, train_num_points=16
    )
    network: Any = Mask2FormerForUniversalSegmentation(config)
    masks = torch.zeros(1, 64, 64)
    masks[:, :32] = 1
    output = network(torch.randn(1, 3, 64, 64), mask_labels=[masks], class_labels=[torch.tensor([1])])
    assert output.masks_queries_logits.shape == (1, 4, 16, 16) and output.class_queries_logits.shape == (1, 4, 3)
    output.loss.backward()
    encoder = network.model.pixel_level_module.encoder
    assert next(encoder.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["hivit_nano_patch16_64", "convmae_nano_patch16_64"])
def test_exporters_of_detectors(name: str, tmp_path: Path) -> None:
    """What they do to a network with our backbone in it: a deep copy, runs to fill its caches, a trace that is not
    strict, and ONNX by tracing, with an open batch (but for ConvMAE, of which that exporter takes the batch for fixed;
    torch's own exporter does not)."""
    backbone = timm.create_model(name, features_only=True, out_indices=(2, 3), img_size=SIZE)
    network = copy.deepcopy(backbone).eval().float().requires_grad_(False)
    batch = {} if name.startswith("convmae") else {0: "batch"}
    image, more = torch.randn(1, 3, *SIZE), torch.randn(3 if batch else 1, 3, *SIZE)
    for _ in range(2):
        expected = network(image)
    traced = torch.jit.trace(network, image, strict=False)
    torch.jit.save(traced, tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(image), expected)
    path = tmp_path / "backbone.onnx"
    torch.onnx.export(
        network,
        (image,),
        path,
        dynamo=False,
        input_names=["images"],
        output_names=["level2", "level3"],
        dynamic_axes={"images": batch, "level2": batch, "level3": batch},
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for found, level in zip(session.run(None, {"images": more.numpy()}), network(more), strict=True):
        np.testing.assert_allclose(found, level.numpy(), rtol=1e-3, atol=1e-4)


class Pyramid(nn.Module):
    """What Faster R-CNN wants of a backbone: named maps of `out_channels` channels."""

    out_channels = 16

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3), dynamic_img_size=True)
        self.fpn = FeaturePyramidNetwork(self.encoder.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.encoder(x))))


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_faster_rcnn(name: str) -> None:
    torch.manual_seed(0)
    network = FasterRCNN(
        Pyramid(name),
        num_classes=3,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
    )
    network.transform.size_divisible = 32
    image = torch.rand(3, 64, 96)
    target = dict(boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0]]), labels=torch.tensor([1]))
    losses = network([image], [target])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in network.backbone.fpn.parameters())
    assert set(network.eval()([image])[0]) == {"boxes", "labels", "scores"}
