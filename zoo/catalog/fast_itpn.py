"""Fast-iTPN: iTPN's faster successor, pretrained against a CLIP teacher."""

from __future__ import annotations

from typing import Any

from zoo.catalog.entry import Paper, Source, Variant
from zoo.catalog.figures import imagenet_top1

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
        metrics=() if top1 is None else (imagenet_top1(top1, "fine-tuned at 224x224", "the paper"),),
    )


FAST_ITPN = (
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
