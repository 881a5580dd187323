"""ConvMAE: convolutional stages under a transformer, pretrained as a masked autoencoder."""

from __future__ import annotations

from zoo.catalog.entry import Metric, Paper, Source, Variant
from zoo.catalog.figures import ade20k, coco, imagenet_top1, linear_probe

CONVMAE_PAPER = Paper(
    title="MCMAE: Masked Convolution Meets Masked Autoencoders",
    authors="Gao, Peng and Ma, Teli and Li, Hongsheng and Lin, Ziyi and Dai, Jifeng and Qiao, Yu",
    venue="NeurIPS",
    year=2022,
    arxiv="2205.03892",
    bibtex_key="convmae",
)

_CONVMAE_SOURCE = Source("gdrive", "1AEPivXw0A0b_m5EwEi6fg2pOAoDr8C31", filename="convmae.pth")
_CONVMAE_BASE = dict(embed_dim=(256, 384, 768), depths=(2, 2, 11), num_heads=12)
_CONVMAE_NANO = dict(embed_dim=(48, 96, 192), depths=(1, 1, 4), num_heads=3)
_CONVMAE_TRAINING = "Pretrained on ImageNet-1K for 1600 epochs as a masked autoencoder, without labels."

_README = "the reference's README.md"
_DOWNSTREAM = (
    *coco(53.2, 47.1, "Mask R-CNN, 25 epochs, fine-tuned from it", _README),
    *coco(53.9, 47.6, "Mask R-CNN in ViTDet's style, fine-tuned from it", "Alpha-VL's Official-ConvMAE-Det, README.md"),
    ade20k(51.7, "UperNet, fine-tuned from it", _README),
)

CONVMAE = (
    Variant(
        architecture="convmae_base_patch16_224",
        tag="in1k_1600e",
        family="convmae",
        form="encoder",
        description="ConvMAE base encoder: two convolutional stages under a transformer",
        args=_CONVMAE_BASE,
        parameters=84_605_824,
        license="MIT",
        paper=CONVMAE_PAPER,
        sources=(_CONVMAE_SOURCE,),
        recipe="convmae_base",
        training=_CONVMAE_TRAINING,
        metrics=(*linear_probe(70.9, "the paper and the reference's README.md"), *_DOWNSTREAM),
    ),
    Variant(
        architecture="convmae_base_patch16_224",
        tag="in1k_1600e_ft_in1k",
        family="convmae",
        form="encoder",
        description="ConvMAE base, fine-tuned to classify ImageNet-1K",
        args=_CONVMAE_BASE,
        parameters=85_374_824,
        license="MIT",
        paper=CONVMAE_PAPER,
        num_classes=1000,
        sources=(Source("gdrive", "19F6vQUlITpzNLvXLKi5NRxRLOmKRxqFi"),),
        recipe="convmae_base_finetune",
        training=f"{_CONVMAE_TRAINING} Then fine-tuned on its labels for 100 epochs.",
        metrics=(
            imagenet_top1(84.982, "fine-tuned for 100 epochs", "the evaluation in the reference's FINETUNE.md"),
            Metric(
                "image classification",
                "ImageNet-1k",
                "top-5 accuracy (%)",
                97.152,
                "fine-tuned for 100 epochs",
                "the evaluation in the reference's FINETUNE.md",
            ),
        ),
    ),
    Variant(
        architecture="convmae_base_patch16_224_mae",
        tag="",
        family="convmae",
        form="pretraining",
        description="ConvMAE base with its multi-scale decoder, as it is pretrained: no weights, the published file "
        "holds its encoder alone",
        args={**_CONVMAE_BASE, "decoder_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
        parameters=114_790_528,
        license="Apache-2.0",
        paper=CONVMAE_PAPER,
        recipe="convmae_base",
    ),
    Variant(
        architecture="convmae_nano_patch16_64",
        tag="",
        family="convmae",
        form="encoder",
        description="Encoder of a small ConvMAE that a CPU can train",
        args=_CONVMAE_NANO,
        parameters=2_035_968,
        license="Apache-2.0",
        paper=CONVMAE_PAPER,
        input_size=(3, 64, 64),
        recipe="convmae_nano",
    ),
    Variant(
        architecture="convmae_nano_patch16_64_mae",
        tag="",
        family="convmae",
        form="pretraining",
        description="ConvMAE in small, as it is pretrained: a CPU can train it",
        args={**_CONVMAE_NANO, "decoder_dim": 128, "decoder_depth": 2, "decoder_num_heads": 4},
        parameters=2_775_168,
        license="Apache-2.0",
        paper=CONVMAE_PAPER,
        input_size=(3, 64, 64),
        recipe="convmae_nano",
    ),
)
