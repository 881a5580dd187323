"""Jigsaw Clustering: a plain ResNet trained on montages of shuffled quarters."""

from __future__ import annotations

from zoo.catalog.entry import Paper, Source, Variant
from zoo.catalog.figures import coco, imagenet_top1, linear_probe
from zoo.catalog.resnet import RESNET50_PARAMETERS, RESNET_NANO

JIGCLU_PAPER = Paper(
    title="Jigsaw Clustering for Unsupervised Visual Representation Learning",
    authors="Chen, Pengguang and Liu, Shu and Jia, Jiaya",
    venue="CVPR",
    year=2021,
    arxiv="2104.00323",
    bibtex_key="jigclu",
)

# The organization has had three names; the first URL lives by GitHub's redirects.
_JIGCLU_200E = tuple(
    Source("url", f"https://github.com/{name}/JigsawClustering/releases/download/1.0/JigClu_200e.pth")
    for name in ("Jia-Research-Lab", "JIA-Lab-research")
)

_README = "the reference's README.md"

JIGCLU = (
    Variant(
        architecture="jigclu_resnet50",
        tag="in1k_200e",
        family="jigclu",
        form="encoder",
        description="Jigsaw Clustering's ResNet-50, 200 epochs",
        args={},
        parameters=RESNET50_PARAMETERS,
        license="unknown",
        paper=JIGCLU_PAPER,
        sources=_JIGCLU_200E,
        recipe="jigclu_resnet50",
        training="ImageNet-1k without labels, 200 epochs.",
        metrics=(
            *linear_probe(66.4, _README),
            imagenet_top1(40.7, "fine-tuned with 1 % of the labels", _README),
            imagenet_top1(63.0, "fine-tuned with 10 % of the labels", _README),
            *coco(39.3, None, "fine-tuned", _README),
        ),
    ),
    Variant(
        architecture="jigclu_resnet50_mlp128",
        tag="in1k_200e",
        family="jigclu",
        form="pretraining",
        description="Jigsaw Clustering's ResNet-50 with both of its branches, to be trained further",
        args=dict(dim=128),
        parameters=27_974_852,
        license="unknown",
        paper=JIGCLU_PAPER,
        sources=_JIGCLU_200E,
        recipe="jigclu_resnet50",
        training="ImageNet-1k without labels, 200 epochs.",
    ),
    Variant(
        architecture="jigclu_nano_64",
        tag="",
        family="jigclu",
        form="encoder",
        description="The ResNet of four blocks that Jigsaw Clustering in small trains: no weights",
        args=dict(**RESNET_NANO, output_stride=16),
        parameters=513_152,
        license="Apache-2.0",
        paper=JIGCLU_PAPER,
        input_size=(3, 64, 64),
        recipe="jigclu_nano",
    ),
    Variant(
        architecture="jigclu_nano_64_mlp64",
        tag="",
        family="jigclu",
        form="pretraining",
        description="Jigsaw Clustering in small: a ResNet of four blocks, trained in minutes on a CPU",
        args=dict(**RESNET_NANO, output_stride=16, dim=64),
        parameters=810_692,
        license="Apache-2.0",
        paper=JIGCLU_PAPER,
        input_size=(3, 64, 64),
        recipe="jigclu_nano",
    ),
)
