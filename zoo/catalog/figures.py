"""Published figures that many families state alike."""

from __future__ import annotations

from zoo.catalog.entry import Metric


def imagenet_top1(value: float, conditions: str, source: str, secondary: bool = False) -> Metric:
    return Metric("image classification", "ImageNet-1k", "top-1 accuracy (%)", value, conditions, source, secondary)


def linear_probe(accuracy: float, source: str) -> tuple[Metric, ...]:
    return (imagenet_top1(accuracy, "linear classifier on the frozen backbone", source),)


def coco(box: float, mask: float | None, conditions: str, source: str) -> tuple[Metric, ...]:
    """Average precision on COCO, of boxes and, where it is given, of masks."""
    boxes = Metric("object detection", "COCO", "box AP", box, conditions, source)
    if mask is None:
        return (boxes,)
    return boxes, Metric("instance segmentation", "COCO", "mask AP", mask, conditions, source)


def ade20k(value: float, conditions: str, source: str, secondary: bool = False) -> Metric:
    return Metric("semantic segmentation", "ADE20K", "mIoU (%)", value, conditions, source, secondary)
