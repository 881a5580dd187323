"""DUSt3R, MASt3R and MonST3R: pointmaps of two photos, on CroCo v2's encoder and decoder."""

from __future__ import annotations

from typing import Any

from zoo.catalog.entry import HALF, Paper, Source, Variant

DUST3R_PAPER = Paper(
    title="DUSt3R: Geometric 3D Vision Made Easy",
    authors="Wang, Shuzhe and Leroy, Vincent and Cabon, Yohann and Chidlovskii, Boris and Revaud, Jérôme",
    venue="CVPR",
    year=2024,
    arxiv="2312.14132",
    bibtex_key="dust3r",
)
MAST3R_PAPER = Paper(
    title="Grounding Image Matching in 3D with MASt3R",
    authors="Leroy, Vincent and Cabon, Yohann and Revaud, Jérôme",
    venue="ECCV",
    year=2024,
    arxiv="2406.09756",
    bibtex_key="mast3r",
)
MONST3R_PAPER = Paper(
    title="MonST3R: A Simple Approach for Estimating Geometry in the Presence of Motion",
    authors="Zhang, Junyi and Herrmann, Charles and Hur, Junhwa and Jampani, Varun and Darrell, Trevor and Cole, "
    "Forrester and Sun, Deqing and Yang, Ming-Hsuan",
    venue="ICLR",
    year=2025,
    arxiv="2410.03825",
    bibtex_key="monst3r",
)

DEFAULT_POINTMAPS = "dust3r_nano_patch8_64"
"""What makes points of photos when nobody names a model."""

_SERVER = "https://download.europe.naverlabs.com/ComputerVision/"


def _sources(
    folder: str, name: str, revision: str = "", sha256: str = "", pickle_sha256: str = ""
) -> tuple[Source, ...]:
    """The authors' repository on the Hub, then the pickle on their server.

    revision, sha256, pickle_sha256: each stands in one secondary record (somebody's download), so all may be wrong.
    """
    return (
        Source("hub", f"naver/{name}", revision=revision, recorded_sha256=sha256),
        Source("url", f"{_SERVER}{folder}/{name}.pth", recorded_sha256=pickle_sha256),
    )


DUST3R_224 = _sources("DUSt3R", "DUSt3R_ViTLarge_BaseDecoder_224_linear", "597e507faeac944ceabcc6797700a7f91b48ade5")
DUST3R_512_LINEAR = _sources("DUSt3R", "DUSt3R_ViTLarge_BaseDecoder_512_linear", "2e8a5a2")
DUST3R_512 = _sources(
    "DUSt3R",
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "55c9c80a66567f77335dc2e45a232c12385fbca0",
    "7c300a89534113436bde52732d315121",
    "9f194a32e34fc124ed10f64115b8e848b7da87c2d1ed131d34b4806721c19dbd",
)
MAST3R_512 = _sources("MASt3R", "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric")
_MONST3R = (
    Source(
        "hub",
        "Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
        revision="1ea2a9eade23a10898ec73be3fd44b5aa4ea0255",
    ),
)

LICENSE = "CC-BY-NC-SA-4.0"
MAST3R_UNKNOWN = (
    "Its training settings are not known here: data sets, the loss of its descriptors and the schedule stand in the "
    "paper, which could not be read."
)
MAST3R_NOTICE = (
    "The authors' CHECKPOINTS_NOTICE adds that the data sets which MASt3R was trained on have conditions of their own, "
    "that of Map-free above all: read it before you use these weights."
)
SIZE_512 = (3, 384, 512)

_LARGE: dict[str, Any] = dict(embed_dim=1024, depth=24, num_heads=16)
_DECODER: dict[str, Any] = dict(decoder_dim=768, decoder_depth=12, decoder_num_heads=12)
_NANO: dict[str, Any] = dict(
    img_size=64,
    patch_size=8,
    embed_dim=192,
    depth=4,
    num_heads=3,
    decoder_dim=128,
    decoder_depth=3,
    decoder_num_heads=4,
    head_type="linear",
)
_TRAINING = "Trained for pointmaps on pairs of photos with known depth and cameras, from the weights of CroCo v2 large"


def _dust3r(size: str, head: str, **entry: Any) -> Variant:
    common: dict[str, Any] = dict(
        architecture=f"dust3r_large_patch16_{size}_{head}",
        tag="naver",
        family="pointmaps",
        form="pointmaps",
        args={**_LARGE, **_DECODER, "img_size": SIZE_512[1:] if size == "512" else 224, "head_type": head},
        license=LICENSE,
        paper=DUST3R_PAPER,
        input_size=SIZE_512 if size == "512" else (3, 224, 224),
        mean=HALF,
        std=HALF,
        recipe=f"dust3r_{size}_{head}",
    )
    return Variant(**common | entry)


POINTMAPS = (
    Variant(
        architecture=DEFAULT_POINTMAPS,
        tag="scenes",
        family="pointmaps",
        form="pointmaps",
        description="DUSt3R in small, trained by this package on procedural scenes, weights inside it",
        args=_NANO,
        parameters=3_496_896,
        license="Apache-2.0",
        paper=DUST3R_PAPER,
        input_size=(3, 64, 64),
        mean=HALF,
        std=HALF,
        sources=(Source("package", "dust3r_nano_patch8_64.scenes.safetensors", layout="zoo"),),
        recipe="dust3r_nano_end",
        training="Procedural scenes rendered on the fly by zoo/scenes, from the small CroCo that `croco_nano_rich` "
        "trains: 85 k pairs on a GPU by `dust3r_nano`, a run that was cut off, then 4 k by it and 22 k by "
        "`dust3r_nano_end` on a CPU, while the learning rate fell. The held-out scenes of the evaluation are of the "
        "same kind.",
    ),
    _dust3r(
        "224",
        "linear",
        description="DUSt3R at 224 x 224 with linear heads: two photos to a 3D point for each pixel",
        parameters=532_342_016,
        sources=DUST3R_224,
        training=f"{_TRAINING}.",
    ),
    _dust3r(
        "512",
        "linear",
        description="DUSt3R at 512 pixels with linear heads: two photos to a 3D point for each pixel",
        parameters=532_342_016,
        sources=DUST3R_512_LINEAR,
        training=f"{_TRAINING}, by way of DUSt3R at 224.",
    ),
    _dust3r(
        "512",
        "dpt",
        description="DUSt3R at 512 pixels with DPT heads: two photos to a 3D point for each pixel",
        parameters=571_170_440,
        sources=DUST3R_512,
        training=f"{_TRAINING}, by way of DUSt3R at 224 and at 512 with linear heads.",
    ),
    _dust3r(
        "512",
        "dpt",
        tag="monst3r",
        description="MonST3R: DUSt3R fine-tuned on videos, for scenes in which things move",
        parameters=571_170_440,
        paper=MONST3R_PAPER,
        sources=_MONST3R,
        recipe="",
        unknown="Its training settings are not known here: data sets, how pairs are drawn from videos and the schedule "
        "stand in the paper, which could not be read. Its loss and network are DUSt3R's, so a recipe would "
        "start from `dust3r_512_dpt`.",
        training="Fine-tuned from DUSt3R on pairs of video frames with known depth and cameras.",
    ),
    Variant(
        architecture="mast3r_large_patch16_512",
        tag="metric",
        family="pointmaps",
        form="pointmaps",
        description="MASt3R: pointmaps in meters, and descriptors that match the pixels of both photos",
        args={**_LARGE, **_DECODER, "img_size": SIZE_512[1:], "head_type": "catmlp+dpt"},
        parameters=688_638_088,
        license=LICENSE,
        notice=MAST3R_NOTICE,
        paper=MAST3R_PAPER,
        input_size=SIZE_512,
        mean=HALF,
        std=HALF,
        sources=MAST3R_512,
        unknown=MAST3R_UNKNOWN,
        training="Trained for metric pointmaps and matching on pairs of photos with known depth and cameras, from "
        "the weights of DUSt3R.",
    ),
)
