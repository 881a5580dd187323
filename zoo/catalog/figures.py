"""Published figures that many families state alike."""

from __future__ import annotations

from zoo.catalog.entry import Metric


def imagenet_top1(value: float, conditions: str, source: str) -> Metric:
    return Metric("classification", "ImageNet-1K", "top-1 (%)", value, conditions, source)


def linear_probe(accuracy: float, source: str) -> tuple[Metric, ...]:
    return (
        Metric(
            task="image classification",
            dataset="ImageNet-1k",
            name="top-1 accuracy (%)",
            value=accuracy,
            conditions="linear classifier on the frozen backbone",
            source=source,
        ),
    )
