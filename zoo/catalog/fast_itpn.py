"""Fast-iTPN: iTPN's faster successor, pretrained against a CLIP teacher."""

from __future__ import annotations

from typing import Any

from zoo.catalog.entry import Metric, Paper, Source, Variant
from zoo.catalog.figures import imagenet_top1
from zoo.catalog.itpn import NOTICE

FAST_ITPN_PAPER = Paper(
    title="Fast-iTPN: Integrally Pre-Trained Transformer Pyramid Network with Token Migration",
    authors="Tian, Yunjie and Xie, Lingxi and Qiu, Jihao and Jiao, Jianbin and Wang, Yaowei and Tian, Qi "
    "and Ye, Qixiang",
    venue="TPAMI",
    year=2024,
    arxiv="2211.12735",
    bibtex_key="fast_itpn",
)

_BASE_SHA256 = "626fd426dd89b2681d8b3942fa00e05fffb467af111c7bbd6a0a4b8bc0afc388"
_FAST_ITPN_BASE = dict(embed_dim=512, depths=(3, 3, 24), num_heads=8)


_README = "the reference's fast_itpn/README.md"
# Fine-tuning takes ImageNet's mean and deviation, by the commands there; what pretraining took is not published.
_NORMALIZATION = "Which mean and deviation it was pretrained with is not published; those here are of the fine-tuning."


def _finetuned(*figures: tuple[int, float]) -> tuple[Metric, ...]:
    """figures: pixels and accuracy of each fine-tuning."""
    return tuple(
        imagenet_top1(top1, f"after fine-tuning on ImageNet-1K at {pixels}x{pixels}", _README)
        for pixels, top1 in figures
    )


def _fast_itpn(
    size: str, args: dict[str, Any], parameters: int, metrics: tuple[Metric, ...], *sources: Source
) -> Variant:
    """The pretraining checkpoint of a size: the encoder in it."""
    return Variant(
        architecture=f"fast_itpn_{size}_patch16_224",
        tag="clipl_in1k_1600e",
        family="fast_itpn",
        form="encoder",
        description=f"Fast-iTPN {size} backbone, pretrained to predict a CLIP teacher's tokens",
        args=args,
        parameters=parameters,
        license="MIT",
        paper=FAST_ITPN_PAPER,
        sources=sources,
        recipe=f"fast_itpn_{size}_finetune",
        training="Pretrained on ImageNet-1K for 1600 epochs to predict the tokens of a large CLIP. The file also holds "
        f"what pretraining adds, which is left out, and no classifier: none is published. {_NORMALIZATION}",
        metrics=metrics,
        notice=NOTICE,
    )


FAST_ITPN = (
    _fast_itpn(
        "tiny",
        dict(embed_dim=384, depths=(1, 1, 12), num_heads=6),
        23_834_976,
        _finetuned((224, 85.1), (384, 86.2), (512, 86.5)),
        Source("gdrive", "1Ze9RkJggxxi58Dl7sqWrf2TNOSnRK4Wi", filename="fast_itpn_tiny_1600e_1k.pt"),
    ),
    _fast_itpn(
        "small",
        dict(embed_dim=384, depths=(2, 2, 20), num_heads=6),
        39_517_920,
        _finetuned((224, 86.4), (384, 86.95), (512, 87.8)),
        Source("gdrive", "1Wvk5kQSh8fWQCUwzAp7eaVpmOi3D5_H4", filename="fast_itpn_small_1600e_1k.pt"),
    ),
    _fast_itpn(
        "base",
        _FAST_ITPN_BASE,
        84_312_192,
        _finetuned((224, 87.4), (512, 88.5)),
        # the digest is of MCITrack's copy of fast_itpn_base_clipl_e1600.pt, the second source here
        *(
            Source("gdrive", id, recorded_sha256=_BASE_SHA256, filename="fast_itpn_base_clipl_e1600.pt")
            for id in ("1ADXPV95XpWb1ROMCih1n3AD52fGdr8C_", "1hxth6RWiJ-3rY21CClZqjl2xsL07Kt17")
        ),
    ),
    Variant(
        architecture="fast_itpn_base_patch16_224",
        tag="clipl_in1k_ft_in21k",
        family="fast_itpn",
        form="encoder",
        description="Fast-iTPN base backbone, fine-tuned on ImageNet-21K; its classifier is left out",
        args=_FAST_ITPN_BASE,
        parameters=84_312_192,
        license="MIT",
        paper=FAST_ITPN_PAPER,
        sources=(Source("gdrive", "1ddGbBm46FiUdNs9HPSepokhuOKhEnBdV"),),
        training="Pretrained as clipl_in1k_1600e, then fine-tuned with the labels of ImageNet-21K at 224x224 (author, "
        "iTPN's issue 14): what ImageNet-1K is fine-tuned from at 512x512.",
        unknown="The settings of its fine-tuning on ImageNet-21K are not known here, and the code of its "
        "pretraining is not published. Nor is it recorded how many classes and which precision the file has.",
        metrics=_finetuned((512, 88.75)),
        notice=NOTICE,
    ),
    _fast_itpn(
        "large",
        dict(embed_dim=768, depths=(2, 2, 40), num_heads=12),
        311_248_320,
        _finetuned((640, 89.5)),
        Source("gdrive", "16uybbJ23Fp7lnGNYL5I198glHGhwn_y2", filename="fast_itpn_large_1600e_1k.pt"),
    ),
)
