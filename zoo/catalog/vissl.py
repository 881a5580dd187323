"""Backbones of VISSL's model zoo: PIRL and Jigsaw, with their forms to be trained."""

from __future__ import annotations

from zoo.catalog.entry import Paper, Source, Variant
from zoo.catalog.figures import linear_probe
from zoo.catalog.resnet import RESNET50_PARAMETERS, RESNET_NANO

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

_VISSL_URL = "https://dl.fbaipublicfiles.com/vissl/model_zoo/"

_PIRL_HEADS = "linear heads and noise-contrastive estimation"
_PIRL_MLP_HEADS = "heads with a hidden layer, blurred views and InfoNCE"


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
        parameters=RESNET50_PARAMETERS if width == 1 else 93_907_072,
        license="MIT",
        paper=PIRL_PAPER,
        sources=(Source("url", f"{_VISSL_URL}{path}/model_final_checkpoint_phase{epochs - 1}.torch"),),
        recipe="pirl_resnet50_mlp" if mlp else "pirl_resnet50",
        training=f"ImageNet-1k without labels, {epochs} epochs, {_PIRL_MLP_HEADS if mlp else _PIRL_HEADS}.",
        metrics=linear_probe(accuracy, "VISSL's model zoo") if accuracy else (),
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
        parameters=RESNET50_PARAMETERS,
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


PIRL = (
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
        args=dict(**RESNET_NANO, dim=64),
        parameters=615_744,
        license="Apache-2.0",
        paper=PIRL_PAPER,
        input_size=(3, 48, 48),
        recipe="pirl_nano",
    ),
)

JIGSAW = (
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
        args=dict(**RESNET_NANO, permutations=100, dim=64),
        parameters=603_684,
        license="Apache-2.0",
        paper=JIGSAW_PAPER,
        input_size=(3, 64, 64),
        recipe="jigsaw_nano",
    ),
)
