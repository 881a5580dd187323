"""iTPN: HiViT with a feature pyramid, pretrained together, against pixels or a teacher's tokens."""

from __future__ import annotations

from zoo.catalog.entry import HALF, Paper, Source, Variant
from zoo.catalog.figures import ade20k, coco, imagenet_top1
from zoo.catalog.hivit import NANO_MASKED_DECODER

ITPN_PAPER = Paper(
    title="Integrally Pre-Trained Transformer Pyramid Networks",
    authors="Tian, Yunjie and Xie, Lingxi and Wang, Zhaozhi and Wei, Longhui and Zhang, Xiaopeng and Jiao, Jianbin "
    "and Wang, Yaowei and Tian, Qi and Ye, Qixiang",
    venue="CVPR",
    year=2023,
    arxiv="2211.12735",
    bibtex_key="itpn",
)

_ITPN_BASE = dict(embed_dim=512, depths=(3, 3, 24), num_heads=8)
_ITPN_LARGE = dict(embed_dim=768, depths=(2, 2, 40), num_heads=12)
_ITPN_NANO = dict(embed_dim=192, depths=(2, 2, 4), num_heads=3, fpn_dim=96, fpn_depth=1)
_ITPN_PIXEL = dict(fpn_depth=2, rel_pos=False)
_ITPN_CLIP = dict(fpn_depth=1, rel_pos=True, init_values=0.1)
_ITPN_DECODER = dict(decoder_dim=512, decoder_depth=8, decoder_num_heads=16)

_ITPN_BASE_PIXEL = Source("gdrive", "1HxW37BOEhIE9UNgHq0zblK0fTy2-IyzM")
_ITPN_BASE_CLIP = Source("gdrive", "1H51Zusrvlj8RjcWA7yuUyeqaVhmndSeN")
_ITPN_LARGE_PIXEL = Source("gdrive", "1TYCaepVflm0xMrQefG5Sj4ityXYbJLFt")
_ITPN_LARGE_CLIP = Source("gdrive", "1gyyjcdMvAQsz2xC7ei-rEd7G4po2spy4")
NOTICE = (
    "Each file of the authors' source says in its header that it is under the MIT license; their repository has never "
    "had a license file, and its README links to one that isn't there."
)
_README = "the reference's README.md; which of the published numbers of epochs the file has is not said"
_FINETUNED = "after fine-tuning on ImageNet-1K, {}"
_BASE_PIXEL_FIGURES = (
    imagenet_top1(85.1, _FINETUNED.format("pretrained for 400 epochs"), _README),
    imagenet_top1(85.5, _FINETUNED.format("pretrained for 1600 epochs"), _README),
    *coco(53.0, 46.5, "Mask R-CNN 1x, of 1600 epochs", _README),
    *coco(54.0, 47.4, "Mask R-CNN 3x, of 1600 epochs", _README),
    *coco(56.0, 48.5, "Cascade Mask R-CNN 3x, of 1600 epochs", _README),
    ade20k(53.5, "UperNet, of 1600 epochs", _README),
)
_BASE_CLIP_FIGURES = (
    imagenet_top1(85.9, _FINETUNED.format("pretrained for 300 epochs"), _README),
    imagenet_top1(86.2, _FINETUNED.format("pretrained for 800 epochs"), _README),
    *coco(53.2, 46.6, "Mask R-CNN 1x, of 800 epochs", _README),
    *coco(54.1, 47.5, "Mask R-CNN 3x, of 800 epochs", _README),
    *coco(56.1, 48.6, "Cascade Mask R-CNN 3x, of 800 epochs", _README),
    ade20k(54.7, "UperNet, of 800 epochs", _README),
)
_LARGE_PIXEL_FIGURES = (
    imagenet_top1(86.3, _FINETUNED.format("pretrained for 400 epochs"), _README),
    imagenet_top1(86.7, _FINETUNED.format("pretrained for 1600 epochs"), _README),
    *coco(55.6, 48.6, "Mask R-CNN 1x, of 1600 epochs", _README),
    ade20k(56.1, "UperNet, of 1600 epochs", _README),
)
_TEACHER = "the reference's README.md; which of its two teachers the file's was is not said"
_LARGE_CLIP_FIGURES = (
    imagenet_top1(87.0, _FINETUNED.format("with the teacher CLIP-B"), _TEACHER),
    imagenet_top1(87.8, _FINETUNED.format("with the teacher CLIP-L"), _TEACHER),
    *coco(55.2, 48.2, "Mask R-CNN 1x, with the teacher CLIP-L", _TEACHER),
    ade20k(57.7, "UperNet, with the teacher CLIP-L", _TEACHER),
)
_EPOCHS = "Which of the published numbers of epochs the file has is not said."
_PYRAMID = (
    f"{_EPOCHS} Its link has changed twice, and an early file had a pyramid of 512 channels (iTPN, issue 3) in place "
    "of 256: the width is read from the file."
)
_WHICH_TEACHER = (
    "Whether its teacher was CLIP-B or CLIP-L is not said; the width of what it predicts, 512 or 768, is read from the "
    "file."
)
_ITPN_PIXEL_TRAINING = "Masked autoencoding of ImageNet-1K, backbone and pyramid together."
_ITPN_CLIP_TRAINING = "Predicts CLIP's tokens of ImageNet-1K images, a part of whose patches is hidden from it."

ITPN = (
    Variant(
        architecture="itpn_nano_patch16_64_pixel",
        tag="",
        family="itpn",
        form="pretraining",
        description="iTPN in small as a masked autoencoder, to be trained on a CPU: no weights",
        args={**_ITPN_NANO, **NANO_MASKED_DECODER},
        parameters=3_046_648,
        license="Apache-2.0",
        paper=ITPN_PAPER,
        input_size=(3, 64, 64),
        recipe="itpn_nano_pixel",
    ),
    Variant(
        architecture="itpn_nano_patch16_64_ema",
        tag="",
        family="itpn",
        form="pretraining",
        description="iTPN in small against its own moving average, to be trained on a CPU: no weights",
        args={**_ITPN_NANO, **NANO_MASKED_DECODER},
        parameters=3_306_712,
        license="Apache-2.0",
        paper=ITPN_PAPER,
        input_size=(3, 64, 64),
        recipe="itpn_nano_ema",
    ),
    Variant(
        architecture="itpn_nano_patch16_64",
        tag="",
        family="itpn",
        form="encoder",
        description="iTPN in small with its pyramid, as its pixel and moving-average forms train it: no weights",
        args={**_ITPN_NANO, "rel_pos": False},
        parameters=2_534_160,
        license="Apache-2.0",
        paper=ITPN_PAPER,
        input_size=(3, 64, 64),
        recipe="itpn_nano_pixel",
    ),
    Variant(
        architecture="itpn_base_patch16_224",
        tag="pixel_in1k",
        family="itpn",
        form="encoder",
        description="iTPN-Base backbone with its pyramid, pretrained as a masked autoencoder",
        args={**_ITPN_BASE, **_ITPN_PIXEL},
        parameters=82_605_184,
        license="MIT",
        paper=ITPN_PAPER,
        sources=(_ITPN_BASE_PIXEL,),
        unknown=_PYRAMID,
        training=_ITPN_PIXEL_TRAINING,
        recipe="itpn_base_pixel",
        metrics=_BASE_PIXEL_FIGURES,
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_base_patch16_224",
        tag="clip_in1k",
        family="itpn",
        form="encoder",
        description="iTPN-Base backbone with its pyramid, pretrained to predict CLIP's tokens",
        args={**_ITPN_BASE, **_ITPN_CLIP},
        parameters=81_718_720,
        license="MIT",
        paper=ITPN_PAPER,
        mean=HALF,
        std=HALF,
        sources=(_ITPN_BASE_CLIP,),
        unknown=_EPOCHS,
        training=_ITPN_CLIP_TRAINING,
        recipe="itpn_base_clip",
        metrics=_BASE_CLIP_FIGURES,
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_base_patch16_224_pixel",
        tag="pixel_in1k",
        family="itpn",
        form="pretraining",
        description="iTPN-Base as a masked autoencoder",
        args={**_ITPN_BASE, **_ITPN_PIXEL, **_ITPN_DECODER},
        parameters=108_392_992,
        license="MIT",
        paper=ITPN_PAPER,
        sources=(_ITPN_BASE_PIXEL,),
        unknown=_PYRAMID,
        training=_ITPN_PIXEL_TRAINING,
        recipe="itpn_base_pixel",
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_base_patch16_224_clip",
        tag="clip_in1k",
        family="itpn",
        form="pretraining",
        description="iTPN-Base that predicts CLIP's tokens",
        args={**_ITPN_BASE, **_ITPN_CLIP},
        parameters=88_738_288,
        license="MIT",
        paper=ITPN_PAPER,
        mean=HALF,
        std=HALF,
        sources=(_ITPN_BASE_CLIP,),
        unknown=_EPOCHS,
        training=_ITPN_CLIP_TRAINING,
        recipe="itpn_base_clip",
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_large_patch16_224",
        tag="pixel_in1k",
        family="itpn",
        form="encoder",
        description="iTPN-Large backbone with its pyramid, pretrained as a masked autoencoder",
        args={**_ITPN_LARGE, **_ITPN_PIXEL},
        parameters=292_452_160,
        license="MIT",
        paper=ITPN_PAPER,
        sources=(_ITPN_LARGE_PIXEL,),
        unknown=_EPOCHS,
        training=_ITPN_PIXEL_TRAINING,
        recipe="itpn_large_pixel",
        metrics=_LARGE_PIXEL_FIGURES,
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_large_patch16_224",
        tag="clip_in1k",
        family="itpn",
        form="encoder",
        description="iTPN-Large backbone with its pyramid, pretrained to predict CLIP's tokens",
        args={**_ITPN_LARGE, **_ITPN_CLIP},
        parameters=291_812_512,
        license="MIT",
        paper=ITPN_PAPER,
        mean=HALF,
        std=HALF,
        sources=(_ITPN_LARGE_CLIP,),
        unknown=_WHICH_TEACHER,
        training=_ITPN_CLIP_TRAINING,
        recipe="itpn_large_clip",
        metrics=_LARGE_CLIP_FIGURES,
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_large_patch16_224_pixel",
        tag="pixel_in1k",
        family="itpn",
        form="pretraining",
        description="iTPN-Large as a masked autoencoder",
        args={**_ITPN_LARGE, **_ITPN_PIXEL, **_ITPN_DECODER},
        parameters=318_239_456,
        license="MIT",
        paper=ITPN_PAPER,
        sources=(_ITPN_LARGE_PIXEL,),
        unknown=_EPOCHS,
        training=_ITPN_PIXEL_TRAINING,
        recipe="itpn_large_pixel",
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_large_patch16_224_clip",
        tag="clip_in1k",
        family="itpn",
        form="pretraining",
        description="iTPN-Large that predicts CLIP's tokens",
        args={**_ITPN_LARGE, **_ITPN_CLIP},
        parameters=307_059_176,
        license="MIT",
        paper=ITPN_PAPER,
        mean=HALF,
        std=HALF,
        sources=(_ITPN_LARGE_CLIP,),
        unknown=_WHICH_TEACHER,
        training=_ITPN_CLIP_TRAINING,
        recipe="itpn_large_clip",
        notice=NOTICE,
    ),
    Variant(
        architecture="itpn_base_patch16_224_ema",
        tag="",
        family="itpn",
        form="pretraining",
        description="iTPN-Base against its own moving average: to be trained, no weights",
        args={**_ITPN_BASE, **_ITPN_PIXEL, **_ITPN_DECODER},
        parameters=111_150_880,
        license="Apache-2.0",
        paper=ITPN_PAPER,
    ),
)
