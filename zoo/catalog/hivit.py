"""HiViT: hierarchical vision transformers, pretrained as masked autoencoders."""

from __future__ import annotations

from zoo.catalog.entry import Paper, Source, Variant
from zoo.catalog.figures import ade20k, coco, imagenet_top1

HIVIT_PAPER = Paper(
    title="HiViT: A Simpler and More Efficient Design of Hierarchical Vision Transformer",
    authors="Zhang, Xiaosong and Tian, Yunjie and Xie, Lingxi and Huang, Wei and Dai, Qi and Ye, Qixiang and Tian, Qi",
    venue="ICLR",
    year=2023,
    arxiv="2205.14949",
    bibtex_key="hivit",
)

_HIVIT_TINY = dict(embed_dim=384, depths=(2, 2, 10), num_heads=6)
_HIVIT_SMALL = dict(embed_dim=384, depths=(4, 4, 20), num_heads=6)
_HIVIT_BASE = dict(embed_dim=512, depths=(4, 4, 20), num_heads=8)
_HIVIT_NANO = dict(embed_dim=192, depths=(2, 2, 4), num_heads=3)
_HIVIT_DECODER = dict(decoder_dim=512, decoder_depth=6, decoder_num_heads=16)
_HIVIT_MAE = Source("gdrive", "1VZQz4buhlepZ5akTcEvrA3a_nxsQZ8eQ", filename="mae_hivit_base_1600ep.pth")
_HIVIT_FINETUNED = Source("gdrive", "1TVfocCnoJj-SB7to6UQFvrB2205u2Q59", filename="mae_hivit_base_1600ep_ft100ep.pth")
_README = "the reference's README.md"
_HIVIT_TRAINING = "Masked autoencoding of ImageNet-1K for 1600 epochs."

NANO_MASKED_DECODER = dict(decoder_dim=128, decoder_depth=2, decoder_num_heads=4)

HIVIT = (
    Variant(
        architecture="hivit_nano_patch16_64_mae",
        tag="",
        family="hivit",
        form="pretraining",
        description="HiViT in small as a masked autoencoder, to be trained on a CPU: no weights",
        args={**_HIVIT_NANO, **NANO_MASKED_DECODER},
        parameters=2_689_104,
        license="Apache-2.0",
        paper=HIVIT_PAPER,
        input_size=(3, 64, 64),
        recipe="hivit_nano",
    ),
    Variant(
        architecture="hivit_nano_patch16_64",
        tag="",
        family="hivit",
        form="encoder",
        description="HiViT in small, as its masked autoencoder trains it: no weights",
        args={**_HIVIT_NANO, "rel_pos": False},
        parameters=2_018_640,
        license="Apache-2.0",
        paper=HIVIT_PAPER,
        input_size=(3, 64, 64),
        recipe="hivit_nano",
    ),
    Variant(
        architecture="hivit_tiny_patch16_224",
        tag="",
        family="hivit",
        form="encoder",
        description="HiViT-Tiny backbone or classifier: to be trained, no weights",
        args=_HIVIT_TINY,
        parameters=18_796_668,
        license="Apache-2.0",
        paper=HIVIT_PAPER,
        recipe="hivit_tiny_supervised",
    ),
    Variant(
        architecture="hivit_small_patch16_224",
        tag="sup_in1k",
        family="hivit",
        form="encoder",
        description="HiViT-Small, trained with labels to classify ImageNet-1K",
        args=_HIVIT_SMALL,
        parameters=37_526_464,
        license="MIT",
        paper=HIVIT_PAPER,
        num_classes=1000,
        sources=(Source("gdrive", "1bXr6089pbygItoVGBPbLhlRkdXG11NrT"),),  # an author's answer, issue 5 of iTPN
        recipe="hivit_small_supervised",
        training="Trained with labels on ImageNet-1K, without any pretraining.",
        unknown="That the paper's figure is this file's is not said.",
        metrics=(
            imagenet_top1(
                83.5, "supervised, 224 pixels", "figure of the paper, not tied to this file by its authors", True
            ),
        ),
    ),
    Variant(
        architecture="hivit_base_patch16_224",
        tag="mae_in1k_1600e",
        family="hivit",
        form="encoder",
        description="HiViT-Base backbone, pretrained as a masked autoencoder",
        args={**_HIVIT_BASE, "rel_pos": False},
        parameters=65_789_312,
        license="MIT",
        paper=HIVIT_PAPER,
        sources=(_HIVIT_MAE,),
        recipe="hivit_base",
        training=_HIVIT_TRAINING,
        metrics=(
            imagenet_top1(84.6, "after fine-tuning for 100 epochs", _README),
            *coco(53.3, None, "after fine-tuning; the README states no schedule", _README),
            ade20k(52.8, "after fine-tuning; the README states no schedule", _README),
        ),
    ),
    Variant(
        architecture="hivit_base_patch16_224",
        tag="mae_in1k_1600e_ft_in1k",
        family="hivit",
        form="encoder",
        description="HiViT-Base classifier, fine-tuned from the masked autoencoder",
        args=_HIVIT_BASE,
        parameters=66_418_952,
        license="MIT",
        paper=HIVIT_PAPER,
        num_classes=1000,
        sources=(_HIVIT_FINETUNED,),
        recipe="hivit_base_finetune",
        training=f"{_HIVIT_TRAINING} Then fine-tuned for its classes.",
        metrics=(imagenet_top1(84.6, "fine-tuned for 100 epochs", _README),),
    ),
    Variant(
        architecture="hivit_base_patch16_224_mae",
        tag="",
        family="hivit",
        form="pretraining",
        description="HiViT-Base as a masked autoencoder: no weights, the published file holds its encoder alone",
        args={**_HIVIT_BASE, **_HIVIT_DECODER},
        parameters=86_940_800,
        license="Apache-2.0",
        paper=HIVIT_PAPER,
        recipe="hivit_base",
    ),
)
