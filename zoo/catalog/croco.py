"""CroCo: encoders and two-image models. What was fine-tuned from them is in croco_dense.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.catalog import pointmaps
from zoo.catalog.entry import HALF, Metric, Paper, Source, Variant
from zoo.catalog.figures import ade20k, imagenet_top1

CROCO_V1_PAPER = Paper(
    title="CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View Completion",
    authors="Weinzaepfel, Philippe and Leroy, Vincent and Lucas, Thomas and Brégier, Romain and Cabon, Yohann "
    "and Arora, Vaibhav and Antsfeld, Leonid and Chidlovskii, Boris and Csurka, Gabriela and Revaud, Jérôme",
    venue="NeurIPS",
    year=2022,
    arxiv="2210.10716",
    bibtex_key="croco",
)
CROCO_V2_PAPER = Paper(
    title="CroCo v2: Improved Cross-view Completion Pre-training for Stereo Matching and Optical Flow",
    authors="Weinzaepfel, Philippe and Lucas, Thomas and Leroy, Vincent and Cabon, Yohann and Arora, Vaibhav "
    "and Brégier, Romain and Csurka, Gabriela and Antsfeld, Leonid and Chidlovskii, Boris and Revaud, Jérôme",
    venue="ICCV",
    year=2023,
    arxiv="2211.10408",
    bibtex_key="croco_v2",
)
MAE_PAPER = Paper(
    title="Masked Autoencoders Are Scalable Vision Learners",
    authors="He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Dollár, Piotr and Girshick, Ross",
    venue="CVPR",
    year=2022,
    arxiv="2111.06377",
    bibtex_key="mae",
)

_CROCO_LICENSE = "CC-BY-NC-SA-4.0"
_CROCO_URL = "https://download.europe.naverlabs.com/ComputerVision/CroCo/"
_CROCO_V1 = Source("url", _CROCO_URL + "CroCo.pth")
_CROCO_V2_SMALL = Source("url", _CROCO_URL + "CroCo_V2_ViTBase_SmallDecoder.pth")
_CROCO_V2_BASE = Source("url", _CROCO_URL + "CroCo_V2_ViTBase_BaseDecoder.pth")
_CROCO_V2_LARGE = Source("url", _CROCO_URL + "CroCo_V2_ViTLarge_BaseDecoder.pth")

_HABITAT = "1.8 M pairs of views rendered in Habitat indoor scenes."
_HABITAT_REAL = (
    "The 1.8 M Habitat pairs of v1 and 5.3 M pairs of real photos (ARKitScenes, MegaDepth, 3DStreetView, IndoorVL)."
)

_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
_SMALL_DECODER = dict(decoder_dim=512, decoder_depth=8, decoder_num_heads=16)
_BASE_DECODER = dict(decoder_dim=768, decoder_depth=12, decoder_num_heads=12)
_SINCOS = dict(pos_embed="sincos")
_ROPE = dict(pos_embed="rope")

_NANO = dict(patch_size=8, embed_dim=192, depth=4, num_heads=3, pos_embed="rope")
_NANO_DECODER = dict(decoder_dim=128, decoder_depth=4, decoder_num_heads=4)
_NANO_FAR_WEIGHTS = Source("package", "croco_nano_patch8_64_dec128d4.scenes_far.safetensors", layout="zoo")
_NANO_FAR_TRAINING = (
    "Trained on from a run of `croco_nano`, on procedural scenes with views farther "
    "apart: displacements up to a quarter of the width. Textures are still coarser than the renderer's default, and "
    "the held-out scenes of the evaluation are of the same kind."
)
_NANO_RICH_WEIGHTS = Source("package", "croco_nano_patch8_64_dec128d4.scenes_rich.safetensors", layout="zoo")
_NANO_RICH_TRAINING = (
    "From nothing in one run of less than four minutes on a GPU: 1.28 M pairs of procedural scenes, with textures as "
    "fine as a quarter of the image's width, photos of scikit-image that are free for any use on half of the surfaces, "
    "and displacements up to a quarter of the width. The held-out scenes of the evaluation are of the same kind."
)

_SUMMARIES = "two summaries of the paper that agree; not checked against the paper"
_V1_SUMMARY = "a summary of the paper; not checked against the paper"


def _v1(task: str, dataset: str, name: str, value: float) -> Metric:
    return Metric(task, dataset, name, value, "after fine-tuning", _V1_SUMMARY, secondary=True)


def _matching(
    middlebury: float, eth3d: float, things: tuple[float, float], sintel: tuple[float, float]
) -> tuple[Metric, ...]:
    """A row of CroCo v2's table of improvements: validation errors after fine-tuning for stereo and for flow."""
    rows = [
        ("stereo matching", "Middlebury", "bad pixels (%), of more than 1 or 2 pixels: the sources differ", middlebury),
        ("stereo matching", "ETH3D", "bad@1 (%)", eth3d),
        *(
            ("optical flow", f"{dataset}, {rendering} pass", "EPE (pixels)", value)
            for dataset, values in (("FlyingThings", things), ("MPI-Sintel", sintel))
            for rendering, value in zip(("clean", "final"), values)
        ),
    ]
    return tuple(
        Metric(*row, conditions="validation scenes, after fine-tuning", source=_SUMMARIES, secondary=True)
        for row in rows
    )


_V1_ENCODER_FIGURES = (
    _v1("depth", "NYUv2", "delta 1 (%)", 85.6),
    _v1("depth", "NYUv2", "relative error", 0.106),
    _v1("depth", "NYUv2", "RMSE", 0.424),
    _v1("eight dense tasks", "Taskonomy", "mean L1 x 1000, lower is better", 33.00),
    ade20k(40.6, "after fine-tuning", _V1_SUMMARY, secondary=True),
    imagenet_top1(37.0, "linear classifier on the frozen backbone", _V1_SUMMARY, secondary=True),
)
_V1_PAIR_FIGURES = (
    _v1("optical flow", "MPI-Sintel, clean pass", "EPE (pixels)", 3.00),
    _v1("optical flow", "MPI-Sintel, final pass", "EPE (pixels)", 3.60),
    *_matching(26.3, 1.82, (3.89, 3.56), (2.07, 2.57)),
)

DEFAULT_PAIR = "croco_nano_patch8_64_dec128d4"
"""What completes photos when nobody names a model: its weights come with the package."""

_NANO_PAIR = Variant(
    architecture="croco_nano_patch8_64_dec128d4",
    tag="scenes_rich",
    family="croco",
    form="binocular",
    description="CroCo in small: encoder and two-image decoder, trained by this package, weights inside it",
    args={**_NANO, **_NANO_DECODER},
    parameters=2_926_080,
    license="Apache-2.0",
    paper=CROCO_V2_PAPER,
    input_size=(3, 64, 64),
    sources=(_NANO_RICH_WEIGHTS,),
    recipe="croco_nano_rich",
    training=_NANO_RICH_TRAINING,
)
_NANO_ENCODER = Variant(
    architecture="croco_nano_patch8_64",
    tag="scenes_rich",
    family="croco",
    form="encoder",
    description="Encoder of the small CroCo trained by this package, weights inside it",
    args=_NANO,
    parameters=1_816_896,
    license="Apache-2.0",
    paper=CROCO_V2_PAPER,
    input_size=(3, 64, 64),
    sources=(_NANO_RICH_WEIGHTS,),
    recipe="croco_nano_rich",
    training=_NANO_RICH_TRAINING,
)
_NANO_FAR: dict[str, Any] = dict(
    tag="scenes_far", sources=(_NANO_FAR_WEIGHTS,), recipe="croco_nano_far", training=_NANO_FAR_TRAINING
)


def _descendant(
    tag: str,
    description: str,
    paper: Paper,
    sources: tuple[Source, ...],
    input_size: tuple[int, int, int] = pointmaps.SIZE_512,
    notice: str = "",
    recipe: str = "",
    unknown: str = "",
) -> Variant:
    """CroCo v2's large encoder as pointmaps have trained it on."""
    return Variant(
        architecture="crocov2_large_patch16_224",
        tag=tag,
        family="croco",
        form="encoder",
        description=f"{description}, ViT-Large with rotary positions, trained on from CroCo v2's",
        args={**_LARGE, **_ROPE, "img_size": input_size[1:]},
        parameters=303_098_880,
        license=_CROCO_LICENSE,
        paper=paper,
        input_size=input_size,
        mean=HALF,
        std=HALF,
        sources=sources,
        training="Trained for pointmaps on pairs of photos with known depth and cameras, from the weights of CroCo v2.",
        recipe=recipe,
        unknown=unknown,
        notice=notice,
    )


CROCO = (
    _NANO_PAIR,
    _NANO_ENCODER,
    replace(
        _NANO_PAIR,
        description="The small CroCo as a CPU trained it, on easier scenes; its weights are inside the package",
        **_NANO_FAR,
    ),
    replace(
        _NANO_ENCODER,
        description="Encoder of the small CroCo as a CPU trained it, weights inside the package",
        **_NANO_FAR,
    ),
    Variant(
        architecture="croco_nano_patch8_64_mae",
        tag="",
        family="croco",
        form="pretraining",
        description="The small CroCo's encoder as a masked autoencoder, for comparison: no second view, no weights",
        args={**_NANO, **_NANO_DECODER},
        parameters=2_659_840,
        license="Apache-2.0",
        paper=MAE_PAPER,
        input_size=(3, 64, 64),
        recipe="mae_nano",
    ),
    Variant(
        architecture="croco_base_patch16_224",
        tag="habitat",
        family="croco",
        form="encoder",
        description="CroCo v1 encoder, ViT-Base with fixed sin-cos positions",
        args={**_BASE, **_SINCOS},
        parameters=85_646_592,
        license=_CROCO_LICENSE,
        paper=CROCO_V1_PAPER,
        sources=(_CROCO_V1,),
        recipe="croco_base",
        training=_HABITAT,
        metrics=_V1_ENCODER_FIGURES,
    ),
    Variant(
        architecture="crocov2_base_patch16_224",
        tag="habitat_real_smalldec",
        family="croco",
        form="encoder",
        description="CroCo v2 encoder, ViT-Base with rotary positions, trained with the small decoder",
        args={**_BASE, **_ROPE},
        parameters=85_646_592,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_SMALL,),
        recipe="crocov2_base_smalldec",
        training=_HABITAT_REAL,
    ),
    Variant(
        architecture="crocov2_base_patch16_224",
        tag="habitat_real_basedec",
        family="croco",
        form="encoder",
        description="CroCo v2 encoder, ViT-Base with rotary positions, trained with the base decoder",
        args={**_BASE, **_ROPE},
        parameters=85_646_592,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_BASE,),
        recipe="crocov2_base_basedec",
        training=_HABITAT_REAL,
    ),
    Variant(
        architecture="crocov2_large_patch16_224",
        tag="habitat_real",
        family="croco",
        form="encoder",
        description="CroCo v2 encoder, ViT-Large with rotary positions",
        args={**_LARGE, **_ROPE},
        parameters=303_098_880,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_LARGE,),
        recipe="crocov2_large",
        training=_HABITAT_REAL,
    ),
    _descendant(
        "dust3r_224",
        "DUSt3R's encoder at 224 x 224",
        pointmaps.DUST3R_PAPER,
        pointmaps.DUST3R_224,
        (3, 224, 224),
        recipe="dust3r_224_linear",
    ),
    _descendant(
        "dust3r_512",
        "DUSt3R's encoder at 512 pixels",
        pointmaps.DUST3R_PAPER,
        pointmaps.DUST3R_512,
        recipe="dust3r_512_dpt",
    ),
    _descendant(
        "mast3r_512",
        "MASt3R's encoder at 512 pixels",
        pointmaps.MAST3R_PAPER,
        pointmaps.MAST3R_512,
        notice=pointmaps.MAST3R_NOTICE,
        unknown=pointmaps.MAST3R_UNKNOWN,
    ),
    Variant(
        architecture="croco_base_patch16_224_dec512d8",
        tag="habitat",
        family="croco",
        form="binocular",
        description="CroCo v1, ViT-Base encoder and small two-image decoder, fixed sin-cos positions",
        args={**_BASE, **_SINCOS, **_SMALL_DECODER},
        parameters=120_076_288,
        license=_CROCO_LICENSE,
        paper=CROCO_V1_PAPER,
        sources=(_CROCO_V1,),
        recipe="croco_base",
        training=_HABITAT,
        metrics=_V1_PAIR_FIGURES,
    ),
    Variant(
        architecture="crocov2_base_patch16_224_dec512d8",
        tag="habitat_real",
        family="croco",
        form="binocular",
        description="CroCo v2, ViT-Base encoder and small two-image decoder, rotary positions",
        args={**_BASE, **_ROPE, **_SMALL_DECODER},
        parameters=120_076_288,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_SMALL,),
        recipe="crocov2_base_smalldec",
        training=_HABITAT_REAL,
        metrics=_matching(20.7, 0.82, (3.35, 2.94), (1.76, 2.30)),
    ),
    Variant(
        architecture="crocov2_base_patch16_224_dec768d12",
        tag="habitat_real",
        family="croco",
        form="binocular",
        description="CroCo v2, ViT-Base encoder and base two-image decoder, rotary positions",
        args={**_BASE, **_ROPE, **_BASE_DECODER},
        parameters=200_269_824,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_BASE,),
        recipe="crocov2_base_basedec",
        training=_HABITAT_REAL,
        metrics=_matching(17.1, 1.14, (3.10, 2.73), (1.51, 1.99)),
    ),
    Variant(
        architecture="crocov2_large_patch16_224_dec768d12",
        tag="habitat_real",
        family="croco",
        form="binocular",
        description="CroCo v2, ViT-Large encoder and base two-image decoder, rotary positions",
        args={**_LARGE, **_ROPE, **_BASE_DECODER},
        parameters=417_918_720,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        sources=(_CROCO_V2_LARGE,),
        recipe="crocov2_large",
        training=_HABITAT_REAL,
        metrics=_matching(15.5, 0.38, (2.85, 2.45), (1.43, 1.99)),
    ),
    Variant(
        architecture="croco_base_patch16_224_cat512d8",
        tag="",
        family="croco",
        form="binocular",
        description="CroCo v1 with a decoder of CatBlocks (both images in one sequence): to be trained, no weights",
        args={**_BASE, **_SINCOS, **_SMALL_DECODER, "decoder_block": "cat"},
        parameters=111_655_936,
        license="Apache-2.0",
        paper=CROCO_V1_PAPER,
        recipe="croco_base",
    ),
)
