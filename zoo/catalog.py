"""Every model of the zoo, once: pure data that everything else is made from.

timm's pretrained configs, hubconf's entry points, the model cards, the README table, `zoo list` and
`zoo info` all read this file. It imports neither torch nor timm, nor anything else of the zoo.
Adding a variant = one entry in `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Source:
    """One place that has a variant's weights.

    kind: "package" (a file in zoo/weights/bundled), "url" or "gdrive" (a Google Drive file id).
    location: the file's name, the URL or the id.
    layout: "zoo" (our key names, safetensors) or "reference" (a checkpoint to be converted).
    """

    kind: str
    location: str
    layout: str = "reference"


@dataclass(frozen=True)
class Metric:
    """A published figure, with the conditions it was measured under and where it stands."""

    task: str
    dataset: str
    name: str
    value: float
    conditions: str
    source: str


@dataclass(frozen=True)
class Paper:
    title: str
    authors: str
    venue: str
    year: int
    arxiv: str
    bibtex_key: str


@dataclass(frozen=True)
class Variant:
    """An architecture and, when it has weights, the tag that names them.

    architecture: timm's grammar: family, size, patch, image size, then what is special.
    tag: what the weights were trained on; "" for an architecture without published weights.
    family: the file in zoo/models that builds it.
    form: "encoder" (a one-image backbone, with a classifier if the weights have one), "pretraining" (a backbone
        with what its pretext task adds), "binocular" (encoder + two-image decoder) or "dense" (binocular + dense
        head).
    args: arguments of the family's constructor for this form; tags of one architecture may differ in them.
    parameters: number of trained parameters.
    num_classes: classes of the weights' own classifier, 0 for none.
    input_size: channels, height, width. mean, std: of the normalization that the weights expect.
    sources: tried in order; the user's mirror and the Hub come before them (see zoo/weights).
    training: data and recipe, in a sentence or two.
    """

    architecture: str
    tag: str
    family: str
    form: str
    description: str
    args: dict[str, Any]
    parameters: int
    license: str
    paper: Paper
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    num_classes: int = 0
    sources: tuple[Source, ...] = ()
    recipe: str = ""
    training: str = ""
    metrics: tuple[Metric, ...] = field(default=())

    @property
    def name(self) -> str:
        """timm's name of the variant: architecture, and the tag behind a dot."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture


# ---------------------------------------------------------------------------------------------- CroCo

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
_NANO_WEIGHTS = Source("package", "croco_nano_patch8_64_dec128d4.scenes.safetensors", layout="zoo")
_NANO_TRAINING = (
    "Procedural scenes rendered on the fly by zoo/scenes, with coarser textures and smaller displacements "
    "than the renderer's defaults: easier ones, and the held-out scenes of the evaluation are of the same kind."
)
_NANO_FAR_WEIGHTS = Source("package", "croco_nano_patch8_64_dec128d4.scenes_far.safetensors", layout="zoo")
_NANO_FAR_TRAINING = (
    "Trained on from the weights `croco_nano_patch8_64_dec128d4.scenes`, on procedural scenes with views farther "
    "apart: displacements up to a quarter of the width. Textures are still coarser than the renderer's default, and "
    "the held-out scenes of the evaluation are of the same kind."
)

# crocoflow.pth is the file of the MPI-Sintel submission, by the reference's stereoflow/README.MD. The stereo
# figures of the paper that could be found were measured with other files, fine-tuned for each benchmark.
_SINTEL = tuple(
    Metric(
        task="optical flow",
        dataset=f"MPI-Sintel, {rendering} pass",
        name="EPE (pixels)",
        value=epe,
        conditions="test set, tiles overlapping by 0.9",
        source="CroCo-Flow's row of table 4 in arXiv 2609.11486, conditions from the reference's stereoflow/README.MD",
    )
    for rendering, epe in (("clean", 1.09), ("final", 2.44))
)

DEFAULT_PAIR = "croco_nano_patch8_64_dec128d4"
"""What completes photos when nobody names a model: its weights come with the package."""

_NANO_PAIR = Variant(
    architecture="croco_nano_patch8_64_dec128d4",
    tag="scenes_far",
    family="croco",
    form="binocular",
    description="CroCo in small: encoder and two-image decoder, trained by this package, weights inside it",
    args={**_NANO, **_NANO_DECODER},
    parameters=2_926_080,
    license="Apache-2.0",
    paper=CROCO_V2_PAPER,
    input_size=(3, 64, 64),
    sources=(_NANO_FAR_WEIGHTS,),
    recipe="croco_nano_far",
    training=_NANO_FAR_TRAINING,
)
_NANO_ENCODER = Variant(
    architecture="croco_nano_patch8_64",
    tag="scenes_far",
    family="croco",
    form="encoder",
    description="Encoder of the small CroCo trained by this package, weights inside it",
    args=_NANO,
    parameters=1_816_896,
    license="Apache-2.0",
    paper=CROCO_V2_PAPER,
    input_size=(3, 64, 64),
    sources=(_NANO_FAR_WEIGHTS,),
    recipe="croco_nano_far",
    training=_NANO_FAR_TRAINING,
)
_NANO_FIRST: dict[str, Any] = dict(tag="scenes", sources=(_NANO_WEIGHTS,), recipe="croco_nano", training=_NANO_TRAINING)

_CROCO = (
    _NANO_PAIR,
    _NANO_ENCODER,
    replace(
        _NANO_PAIR,
        description="The small CroCo's first weights, with which its training went on, inside the package",
        **_NANO_FIRST,
    ),
    replace(_NANO_ENCODER, description="Encoder of the small CroCo's first weights, inside the package", **_NANO_FIRST),
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
        training=_HABITAT_REAL,
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
        training=_HABITAT_REAL,
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
    Variant(
        architecture="crocov2_large_patch16_352x704_dec768d12_stereo",
        tag="crocostereo",
        family="croco",
        form="dense",
        description="CroCo-Stereo: CroCo v2 large with a DPT head for disparity (pixels) and its confidence",
        args={**_LARGE, **_ROPE, **_BASE_DECODER, "out_chans": 2},
        parameters=437_417_890,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        input_size=(3, 352, 704),
        sources=(Source("url", _CROCO_URL + "StereoFlow_models/crocostereo.pth"),),
        training="Fine-tuned for stereo matching from CroCo v2 large.",
    ),
    Variant(
        architecture="crocov2_large_patch16_352x704_dec768d12_flow",
        tag="crocoflow",
        family="croco",
        form="dense",
        description="CroCo-Flow: CroCo v2 large with a DPT head for optical flow (x, y in pixels) and its confidence",
        args={**_LARGE, **_ROPE, **_BASE_DECODER, "out_chans": 3},
        parameters=437_417_923,
        license=_CROCO_LICENSE,
        paper=CROCO_V2_PAPER,
        input_size=(3, 352, 704),
        sources=(Source("url", _CROCO_URL + "StereoFlow_models/crocoflow.pth"),),
        training="Fine-tuned for optical flow from CroCo v2 large.",
        metrics=_SINTEL,
    ),
)

# -------------------------------------------------------------------------------------------- ConvMAE

CONVMAE_PAPER = Paper(
    title="MCMAE: Masked Convolution Meets Masked Autoencoders",
    authors="Gao, Peng and Ma, Teli and Li, Hongsheng and Lin, Ziyi and Dai, Jifeng and Qiao, Yu",
    venue="NeurIPS",
    year=2022,
    arxiv="2205.03892",
    bibtex_key="convmae",
)

_CONVMAE_SOURCE = Source("gdrive", "1AEPivXw0A0b_m5EwEi6fg2pOAoDr8C31")
_CONVMAE_BASE = dict(embed_dim=(256, 384, 768), depths=(2, 2, 11), num_heads=12)
_CONVMAE_NANO = dict(embed_dim=(48, 96, 192), depths=(1, 1, 4), num_heads=3)
_CONVMAE_TRAINING = "Pretrained on ImageNet-1K for 1600 epochs as a masked autoencoder, without labels."


def _imagenet_top1(value: float, conditions: str, source: str) -> Metric:
    return Metric("classification", "ImageNet-1K", "top-1 (%)", value, conditions, source)


_CONVMAE = (
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
        metrics=(_imagenet_top1(70.9, "linear probe", "the paper"),),
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
        training=f"{_CONVMAE_TRAINING} Then fine-tuned on its labels for 100 epochs.",
        metrics=(_imagenet_top1(85.0, "fine-tuned for 100 epochs", "the paper"),),
    ),
    Variant(
        architecture="convmae_base_patch16_224_mae",
        tag="in1k_1600e",
        family="convmae",
        form="pretraining",
        description="ConvMAE base with its multi-scale decoder, as it is pretrained",
        args={**_CONVMAE_BASE, "decoder_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
        parameters=114_790_528,
        license="MIT",
        paper=CONVMAE_PAPER,
        sources=(_CONVMAE_SOURCE,),
        recipe="convmae_base",
        training=_CONVMAE_TRAINING,
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

# --------------------------------------------------------------------------------------- HiViT and iTPN

HIVIT_PAPER = Paper(
    title="HiViT: A Simpler and More Efficient Design of Hierarchical Vision Transformer",
    authors="Zhang, Xiaosong and Tian, Yunjie and Xie, Lingxi and Huang, Wei and Dai, Qi and Ye, Qixiang and Tian, Qi",
    venue="ICLR",
    year=2023,
    arxiv="2205.14949",
    bibtex_key="hivit",
)
ITPN_PAPER = Paper(
    title="Integrally Pre-Trained Transformer Pyramid Networks",
    authors="Tian, Yunjie and Xie, Lingxi and Wang, Zhaozhi and Wei, Longhui and Zhang, Xiaopeng and Jiao, Jianbin "
    "and Wang, Yaowei and Tian, Qi and Ye, Qixiang",
    venue="CVPR",
    year=2023,
    arxiv="2211.12735",
    bibtex_key="itpn",
)

_HALF = (0.5, 0.5, 0.5)

_HIVIT_TINY = dict(embed_dim=384, depths=(2, 2, 10), num_heads=6)
_HIVIT_SMALL = dict(embed_dim=384, depths=(4, 4, 20), num_heads=6)
_HIVIT_BASE = dict(embed_dim=512, depths=(4, 4, 20), num_heads=8)
_HIVIT_NANO = dict(embed_dim=192, depths=(2, 2, 4), num_heads=3)
_HIVIT_DECODER = dict(decoder_dim=512, decoder_depth=6, decoder_num_heads=16)
_HIVIT_MAE = Source("gdrive", "1VZQz4buhlepZ5akTcEvrA3a_nxsQZ8eQ")
_HIVIT_FINETUNED = Source("gdrive", "1TVfocCnoJj-SB7to6UQFvrB2205u2Q59")
_HIVIT_TRAINING = "Masked autoencoding of ImageNet-1K for 1600 epochs."

_ITPN_BASE = dict(embed_dim=512, depths=(3, 3, 24), num_heads=8)
_ITPN_LARGE = dict(embed_dim=768, depths=(2, 2, 40), num_heads=12)
_ITPN_NANO = dict(embed_dim=192, depths=(2, 2, 4), num_heads=3, fpn_dim=96, fpn_depth=1)
_ITPN_PIXEL = dict(fpn_depth=2, rel_pos=False)
_ITPN_CLIP = dict(fpn_depth=1, rel_pos=True, init_values=0.1)
_ITPN_DECODER = dict(decoder_dim=512, decoder_depth=8, decoder_num_heads=16)
_NANO_MASKED_DECODER = dict(decoder_dim=128, decoder_depth=2, decoder_num_heads=4)
_ITPN_BASE_PIXEL = Source("gdrive", "1HxW37BOEhIE9UNgHq0zblK0fTy2-IyzM")
_ITPN_BASE_CLIP = Source("gdrive", "1H51Zusrvlj8RjcWA7yuUyeqaVhmndSeN")
_ITPN_LARGE_PIXEL = Source("gdrive", "1TYCaepVflm0xMrQefG5Sj4ityXYbJLFt")
_ITPN_LARGE_CLIP = Source("gdrive", "1gyyjcdMvAQsz2xC7ei-rEd7G4po2spy4")
_ITPN_PIXEL_TRAINING = "Masked autoencoding of ImageNet-1K, backbone and pyramid together."
_ITPN_CLIP_TRAINING = "Predicts CLIP's tokens of ImageNet-1K images, a part of whose patches is hidden from it."


_HIVIT = (
    Variant(
        architecture="hivit_nano_patch16_64_mae",
        tag="",
        family="hivit",
        form="pretraining",
        description="HiViT in small as a masked autoencoder, to be trained on a CPU: no weights",
        args={**_HIVIT_NANO, **_NANO_MASKED_DECODER},
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
    ),
    Variant(
        architecture="hivit_small_patch16_224",
        tag="",
        family="hivit",
        form="encoder",
        description="HiViT-Small backbone or classifier: to be trained, no weights",
        args=_HIVIT_SMALL,
        parameters=37_141_464,
        license="Apache-2.0",
        paper=HIVIT_PAPER,
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
        training=_HIVIT_TRAINING,
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
        training=f"{_HIVIT_TRAINING} Then fine-tuned for its classes.",
        metrics=(_imagenet_top1(84.6, "after fine-tuning on ImageNet-1K", "the authors' published results"),),
    ),
    Variant(
        architecture="hivit_base_patch16_224_mae",
        tag="mae_in1k_1600e",
        family="hivit",
        form="pretraining",
        description="HiViT-Base as a masked autoencoder",
        args={**_HIVIT_BASE, **_HIVIT_DECODER},
        parameters=86_940_800,
        license="MIT",
        paper=HIVIT_PAPER,
        sources=(_HIVIT_MAE,),
        training=_HIVIT_TRAINING,
    ),
)


_ITPN = (
    Variant(
        architecture="itpn_nano_patch16_64_pixel",
        tag="",
        family="itpn",
        form="pretraining",
        description="iTPN in small as a masked autoencoder, to be trained on a CPU: no weights",
        args={**_ITPN_NANO, **_NANO_MASKED_DECODER},
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
        args={**_ITPN_NANO, **_NANO_MASKED_DECODER},
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
        training=_ITPN_PIXEL_TRAINING,
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
        mean=_HALF,
        std=_HALF,
        sources=(_ITPN_BASE_CLIP,),
        training=_ITPN_CLIP_TRAINING,
        metrics=(_imagenet_top1(86.2, "after fine-tuning on ImageNet-1K", "the authors' published results"),),
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
        training=_ITPN_PIXEL_TRAINING,
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
        mean=_HALF,
        std=_HALF,
        sources=(_ITPN_BASE_CLIP,),
        training=_ITPN_CLIP_TRAINING,
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
        training=_ITPN_PIXEL_TRAINING,
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
        mean=_HALF,
        std=_HALF,
        sources=(_ITPN_LARGE_CLIP,),
        training=_ITPN_CLIP_TRAINING,
        metrics=(_imagenet_top1(87.8, "after fine-tuning on ImageNet-1K", "the authors' published results"),),
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
        training=_ITPN_PIXEL_TRAINING,
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
        mean=_HALF,
        std=_HALF,
        sources=(_ITPN_LARGE_CLIP,),
        training=_ITPN_CLIP_TRAINING,
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

# ------------------------------------------------------------------------------------------ Fast-iTPN

FAST_ITPN_PAPER = Paper(
    title="Fast-iTPN: Integrally Pre-Trained Transformer Pyramid Network with Token Migration",
    authors="Tian, Yunjie and Xie, Lingxi and Qiu, Jihao and Jiao, Jianbin and Wang, Yaowei and Tian, Qi "
    "and Ye, Qixiang",
    venue="TPAMI",
    year=2024,
    arxiv="2211.12735",
    bibtex_key="fast_itpn",
)

_FAST_ITPN_BASE = dict(embed_dim=512, depths=(3, 3, 24), num_heads=8)


def _fast_itpn(size: str, args: dict[str, Any], parameters: int, drive_id: str, top1: float | None) -> Variant:
    """The fine-tuned checkpoint of a size."""
    return Variant(
        architecture=f"fast_itpn_{size}_patch16_224",
        tag="clipl_in1k_ft_in1k",
        family="fast_itpn",
        form="encoder",
        description=f"Fast-iTPN {size}, pretrained against a CLIP teacher and fine-tuned to classify ImageNet-1K",
        args=args,
        parameters=parameters,
        license="MIT",
        paper=FAST_ITPN_PAPER,
        num_classes=1000,
        sources=(Source("gdrive", drive_id),),
        training="Pretrained on ImageNet-1K to predict CLIP's tokens, then fine-tuned on its labels.",
        metrics=() if top1 is None else (_imagenet_top1(top1, "fine-tuned at 224x224", "the paper"),),
    )


_FAST_ITPN = (
    _fast_itpn(
        "tiny",
        dict(embed_dim=384, depths=(1, 1, 12), num_heads=6),
        24_219_976,
        "1Ze9RkJggxxi58Dl7sqWrf2TNOSnRK4Wi",
        85.1,
    ),
    _fast_itpn(
        "small",
        dict(embed_dim=384, depths=(2, 2, 20), num_heads=6),
        39_902_920,
        "1Wvk5kQSh8fWQCUwzAp7eaVpmOi3D5_H4",
        86.4,
    ),
    _fast_itpn("base", _FAST_ITPN_BASE, 84_825_192, "1ADXPV95XpWb1ROMCih1n3AD52fGdr8C_", 87.4),
    Variant(
        architecture="fast_itpn_base_patch16_224",
        tag="in21k_512",
        family="fast_itpn",
        form="encoder",
        description="Fast-iTPN base, the authors' ImageNet-21K checkpoint at 512x512; its classifier is left out",
        args={**_FAST_ITPN_BASE, "img_size": 512},
        parameters=84_736_128,
        license="MIT",
        paper=FAST_ITPN_PAPER,
        input_size=(3, 512, 512),
        sources=(Source("gdrive", "1ddGbBm46FiUdNs9HPSepokhuOKhEnBdV"),),
        training="Trained on ImageNet-21K; the checkpoint is for 512x512 pixels.",
    ),
    _fast_itpn(
        "large",
        dict(embed_dim=768, depths=(2, 2, 40), num_heads=12),
        312_017_320,
        "16uybbJ23Fp7lnGNYL5I198glHGhwn_y2",
        None,  # the paper's 89.5 is of another checkpoint, at 640x640
    ),
)

# ------------------------------------------------------------------------------------ jigsaw families

PIRL_PAPER = Paper(
    title="Self-Supervised Learning of Pretext-Invariant Representations",
    authors="Misra, Ishan and van der Maaten, Laurens",
    venue="CVPR",
    year=2020,
    arxiv="1912.01991",
    bibtex_key="pirl",
)
JIGSAW_PAPER = Paper(
    title="Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
    authors="Noroozi, Mehdi and Favaro, Paolo",
    venue="ECCV",
    year=2016,
    arxiv="1603.09246",
    bibtex_key="jigsaw",
)
JIGCLU_PAPER = Paper(
    title="Jigsaw Clustering for Unsupervised Visual Representation Learning",
    authors="Chen, Pengguang and Liu, Shu and Jia, Jiaya",
    venue="CVPR",
    year=2021,
    arxiv="2104.00323",
    bibtex_key="jigclu",
)

_VISSL_URL = "https://dl.fbaipublicfiles.com/vissl/model_zoo/"
_JIGCLU_200E = Source(
    "url", "https://github.com/Jia-Research-Lab/JigsawClustering/releases/download/1.0/JigClu_200e.pth"
)
_PIRL_HEADS = "linear heads and noise-contrastive estimation"
_PIRL_MLP_HEADS = "heads with a hidden layer, blurred views and InfoNCE"
_RESNET50_PARAMETERS = 23_508_032
_RESNET_NANO = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))


def _linear_probe(accuracy: float, source: str) -> tuple[Metric, ...]:
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


def _pirl(tag: str, epochs: int, path: str, accuracy: float | None = None, width: int = 1) -> Variant:
    """A backbone of VISSL's model zoo; `path`: its folder there."""
    mlp = tag.endswith("mlp_gblur")
    return Variant(
        architecture="pirl_resnet50" if width == 1 else f"pirl_resnet50_w{width}",
        tag=tag,
        family="pirl",
        form="encoder",
        description=f"PIRL's ResNet-50{'' if width == 1 else f', {width} times as wide'}, {epochs} epochs, "
        f"{'MLP heads and blur' if mlp else 'linear heads'}",
        args=dict(width=width),
        parameters=_RESNET50_PARAMETERS if width == 1 else 93_907_072,
        license="MIT",
        paper=PIRL_PAPER,
        sources=(Source("url", f"{_VISSL_URL}{path}/model_final_checkpoint_phase{epochs - 1}.torch"),),
        recipe="pirl_resnet50_mlp" if mlp else "pirl_resnet50",
        training=f"ImageNet-1k without labels, {epochs} epochs, {_PIRL_MLP_HEADS if mlp else _PIRL_HEADS}.",
        metrics=_linear_probe(accuracy, "VISSL's model zoo") if accuracy else (),
    )


def _jigsaw(tag: str, permutations: str, run: str) -> Variant:
    """A backbone of VISSL's model zoo; `run`: the end of its folder's name there."""
    return Variant(
        architecture="jigsaw_resnet50",
        tag=tag,
        family="jigsaw",
        form="encoder",
        description=f"Jigsaw's ResNet-50, {permutations} permutations",
        args={},
        parameters=_RESNET50_PARAMETERS,
        license="MIT",
        paper=JIGSAW_PAPER,
        sources=(
            Source(
                "url",
                f"{_VISSL_URL}jigsaw_rn50_in1k_ep105_perm2k_jigsaw_8gpu_resnet_{run}/"
                "model_final_checkpoint_phase104.torch",
            ),
        ),
        recipe="jigsaw_resnet50",
        training=f"ImageNet-1k without labels, 105 epochs, telling {permutations} permutations of nine patches apart. "
        "The published linear probes of the three sets of permutations lie between 46.7 and 48.6 % top-1 on "
        "ImageNet-1k.",
    )


_PIRL = (
    _pirl("in1k_200e", 200, "pirl/r50_200ep", 62.9),
    _pirl("in1k_200e_mlp_gblur", 200, "pirl/r50_200ep_mlp_gblur", 65.8),
    _pirl("in1k_800e", 800, "pirl_jigsaw_4node_pirl_jigsaw_4node_resnet_22_07_20.34377f59", 64.3),
    _pirl("in1k_800e_mlp_gblur", 800, "pirl/r50_800ep_mlphead_gblur", 69.9),
    _pirl("in1k_400e", 400, "pirl/w2_400ep", width=2),
    _pirl("in1k_400e_mlp_gblur", 400, "pirl/r50w2_400ep_mlphead_gblur", width=2),
    Variant(
        architecture="pirl_resnet50_lin128",
        tag="",
        family="pirl",
        form="pretraining",
        description="PIRL's ResNet-50 with linear heads for images and jigsaws: to be trained, no weights",
        args=dict(dim=128),
        parameters=24_180_160,
        license="Apache-2.0",
        paper=PIRL_PAPER,
        recipe="pirl_resnet50",
    ),
    Variant(
        architecture="pirl_resnet50_mlp128",
        tag="",
        family="pirl",
        form="pretraining",
        description="PIRL's ResNet-50 with MLP heads for images and jigsaws: to be trained, no weights",
        args=dict(dim=128, mlp=True),
        parameters=32_572_864,
        license="Apache-2.0",
        paper=PIRL_PAPER,
        recipe="pirl_resnet50_mlp",
    ),
    Variant(
        architecture="pirl_nano_48_lin64",
        tag="",
        family="pirl",
        form="pretraining",
        description="PIRL in small: a ResNet of four blocks with linear heads, trained in minutes on a CPU",
        args=dict(**_RESNET_NANO, dim=64),
        parameters=615_744,
        license="Apache-2.0",
        paper=PIRL_PAPER,
        input_size=(3, 48, 48),
        recipe="pirl_nano",
    ),
)

_JIGSAW = (
    # its published link says perm2k too
    _jigsaw("in1k_perm100", "100", "17_07_20.db174a43"),
    _jigsaw("in1k_perm2k", "2,000", "17_07_20.cccee144"),
    _jigsaw("in1k_perm10k", "10,000", "20_07_20.3d706467"),
    Variant(
        architecture="jigsaw_resnet50_perm2k",
        tag="",
        family="jigsaw",
        form="pretraining",
        description="Jigsaw's ResNet-50 with a classifier of 2,000 permutations: to be trained, no weights",
        args=dict(permutations=2000),
        parameters=43_559_032,
        license="Apache-2.0",
        paper=JIGSAW_PAPER,
        recipe="jigsaw_resnet50",
    ),
    Variant(
        architecture="jigsaw_nano_64_perm100",
        tag="",
        family="jigsaw",
        form="pretraining",
        description="Jigsaw in small: a ResNet of four blocks, 100 permutations, trained in minutes on a CPU",
        args=dict(**_RESNET_NANO, permutations=100, dim=64),
        parameters=603_684,
        license="Apache-2.0",
        paper=JIGSAW_PAPER,
        input_size=(3, 64, 64),
        recipe="jigsaw_nano",
    ),
)

_JIGCLU = (
    Variant(
        architecture="jigclu_resnet50",
        tag="in1k_200e",
        family="jigclu",
        form="encoder",
        description="Jigsaw Clustering's ResNet-50, 200 epochs",
        args={},
        parameters=_RESNET50_PARAMETERS,
        license="unknown",
        paper=JIGCLU_PAPER,
        sources=(_JIGCLU_200E,),
        recipe="jigclu_resnet50",
        training="ImageNet-1k without labels, 200 epochs.",
        metrics=_linear_probe(66.4, "arXiv 2104.00323"),
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
        sources=(_JIGCLU_200E,),
        recipe="jigclu_resnet50",
        training="ImageNet-1k without labels, 200 epochs.",
    ),
    Variant(
        architecture="jigclu_nano_64_mlp64",
        tag="",
        family="jigclu",
        form="pretraining",
        description="Jigsaw Clustering in small: a ResNet of four blocks, trained in minutes on a CPU",
        args=dict(**_RESNET_NANO, output_stride=16, dim=64),
        parameters=810_692,
        license="Apache-2.0",
        paper=JIGCLU_PAPER,
        input_size=(3, 64, 64),
        recipe="jigclu_nano",
    ),
)

# ------------------------------------------------------------------------------------------------ all

VARIANTS: tuple[Variant, ...] = (*_CROCO, *_CONVMAE, *_HIVIT, *_ITPN, *_FAST_ITPN, *_PIRL, *_JIGSAW, *_JIGCLU)
