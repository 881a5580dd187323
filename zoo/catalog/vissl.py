"""ResNet-50s of VISSL's model zoo: PIRL, Jigsaw, RotNet, NPID and ClusterFit, with the forms that can be trained here.

All files are in one container and have one trunk; the figures are those of VISSL's MODEL_ZOO.md.
"""

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

GOYAL19_PAPER = Paper(
    title="Scaling and Benchmarking Self-Supervised Visual Representation Learning",
    authors="Goyal, Priya and Mahajan, Dhruv and Gupta, Abhinav and Misra, Ishan",
    venue="ICCV",
    year=2019,
    arxiv="1905.01235",
    bibtex_key="goyal19",
)
ROTNET_PAPER = Paper(
    title="Unsupervised Representation Learning by Predicting Image Rotations",
    authors="Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos",
    venue="ICLR",
    year=2018,
    arxiv="1803.07728",
    bibtex_key="rotnet",
)
NPID_PAPER = Paper(
    title="Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination",
    authors="Wu, Zhirong and Xiong, Yuanjun and Yu, Stella X. and Lin, Dahua",
    venue="CVPR",
    year=2018,
    arxiv="1805.01978",
    bibtex_key="npid",
)
CLUSTERFIT_PAPER = Paper(
    title="ClusterFit: Improving Generalization of Visual Representations",
    authors="Yan, Xueting and Misra, Ishan and Gupta, Abhinav and Ghadiyaram, Deepti and Mahajan, Dhruv",
    venue="CVPR",
    year=2020,
    arxiv="1912.03330",
    bibtex_key="clusterfit",
)

_VISSL_URL = "https://dl.fbaipublicfiles.com/vissl/model_zoo/"

_IMAGES = dict(in1k="ImageNet-1k", in22k="ImageNet-22k", yfcc100m="YFCC-100M")


def _vissl(
    family: str,
    tag: str,
    file: str,
    accuracy: float,
    paper: Paper,
    description: str,
    training: str,
    *,
    recipe: str = "",
    unknown: str = "",
    method: str = "",
    width: int = 1,
) -> Variant:
    """A backbone of VISSL's model zoo.

    file: its path there. accuracy: of VISSL's linear probe. description, training: the method's, completed here by the
    network and the images. method: the architecture's first word, if it isn't the family.
    """
    wide = "" if width == 1 else f"_w{width}"
    times = "" if width == 1 else f", {width} times as wide"
    return Variant(
        architecture=f"{method or family}_resnet50{wide}",
        tag=tag,
        family=family,
        form="encoder",
        description=description.replace("ResNet-50", f"ResNet-50{times}", 1),
        args=dict(width=width),
        parameters=RESNET50_PARAMETERS if width == 1 else 93_907_072,
        license="MIT",
        paper=paper,
        sources=(Source("url", _VISSL_URL + file),),
        recipe=recipe,
        unknown=unknown,
        training=f"{_IMAGES[tag.partition('_')[0]]} without labels, {training}.",
        metrics=linear_probe(accuracy, "VISSL's MODEL_ZOO.md"),
    )


def _final(folder: str, epochs: int) -> str:
    return f"{folder}/model_final_checkpoint_phase{epochs - 1}.torch"


def _pirl(
    tag: str, epochs: int, folder: str, accuracy: float, *, recipe: str = "", width: int = 1, note: str = ""
) -> Variant:
    mlp = tag.endswith("mlp_gblur")
    heads = (
        "heads with a hidden layer, blurred views and InfoNCE"
        if mlp
        else "linear heads and noise-contrastive estimation"
    )
    return _vissl(
        "pirl",
        tag,
        _final(folder, epochs),
        accuracy,
        PIRL_PAPER,
        f"PIRL's ResNet-50, {epochs} epochs, {'MLP heads and blur' if mlp else 'linear heads'}{note}",
        f"{epochs} epochs, {heads}",
        recipe=recipe,
        width=width,
    )


def _jigsaw(
    tag: str, file: str, accuracy: float, permutations: str = "", recipe: str = "", unknown: str = ""
) -> Variant:
    """permutations: how many there are; "" for a file of Goyal et al. (2019) that VISSL converted."""
    if not permutations:
        return _vissl(
            "jigsaw",
            tag,
            file,
            accuracy,
            GOYAL19_PAPER,
            f"Jigsaw's ResNet-50 by Goyal et al., {_IMAGES[tag.partition('_')[0]]}, converted by VISSL",
            "telling permutations of nine patches apart, in the setting of Goyal et al. (2019)",
            unknown=_GOYAL19,
        )
    return _vissl(
        "jigsaw",
        tag,
        file,
        accuracy,
        JIGSAW_PAPER,
        f"Jigsaw's ResNet-50, {permutations} permutations, {_IMAGES[tag.partition('_')[0]]}",
        f"105 epochs, telling {permutations} permutations of nine patches apart",
        recipe=recipe,
        unknown=unknown,
    )


def _jigsaw_heads(permutations: str, parameters: int, recipe: str) -> Variant:
    """Jigsaw's pretraining form as VISSL has it: batch norm in the patches' head."""
    count = int(permutations.replace(",", ""))
    return Variant(
        architecture=f"jigsaw_resnet50_perm{count if count < 1000 else f'{count // 1000}k'}",
        tag="",
        family="jigsaw",
        form="pretraining",
        description=f"Jigsaw's ResNet-50 with a classifier of {permutations} permutations: to be trained, no weights",
        args=dict(permutations=count, head_norm=True),
        parameters=parameters,
        license="Apache-2.0",
        paper=JIGSAW_PAPER,
        recipe=recipe,
    )


_NOT_KNOWN = "Its training settings are not known here"
_GOYAL19 = (
    f"{_NOT_KNOWN}: they are those of Goyal et al. (2019), whose code trained it before VISSL converted the file."
)
_ROTNET = (
    f"{_NOT_KNOWN}, but for the 105 epochs that its name says{{}}: those of VISSL's configuration could not be read, "
    "and the paper's are of another network. The zoo has no objective that tells rotations apart."
)
# VISSL's documentation, ssl_approaches/npid; paperswithcode.com/lib/vissl for the optimizer
_NPID = (
    f"{_NOT_KNOWN} in full: VISSL's documentation says 4,096 negatives, 128 dimensions and a temperature of 0.07 for "
    "NPID, 32,000 negatives, 800 epochs and 32 GPUs for NPID++, and a secondary source (paperswithcode.com/lib/vissl) "
    "momentum 0.9 and a weight decay of 1e-4; learning rate and augmentation are not known. The zoo has no objective "
    "for it."
)
_CLUSTERFIT = (
    f"{_NOT_KNOWN} in full: a secondary source (paperswithcode.com/lib/vissl) says 105 epochs, momentum 0.9 and a "
    "weight decay of 1e-4; the learning rate is not known, and which cluster each image is in was not published."
)
_IN22K = (
    "That it was trained as on ImageNet-1k is taken from its file's name (2,000 permutations, 8 GPUs, 105 epochs); "
    "nothing else is said of its training."
)


_JIGSAW_RUN = "jigsaw_rn50_in1k_ep105_perm2k_jigsaw_8gpu_resnet_"
_ROTATIONS = "telling the four rotations of an image apart"
_INSTANCES = "telling every image from all others, by a memory bank"

PIRL = (
    _pirl("in1k_200e", 200, "pirl/r50_200ep", 62.9, recipe="pirl_resnet50"),
    _pirl("in1k_200e_mlp_gblur", 200, "pirl/r50_200ep_mlp_gblur", 65.8, recipe="pirl_resnet50_mlp"),
    _pirl(
        "in1k_200e_run2",
        200,
        "pirl_jigsaw_4node_200ep_pirl_jigsaw_4node_resnet_22_07_20.ffd17b75",
        62.55,
        recipe="pirl_resnet50",
        note=", a second run",
    ),
    _pirl(
        "in1k_800e",
        800,
        "pirl_jigsaw_4node_pirl_jigsaw_4node_resnet_22_07_20.34377f59",
        64.29,
        recipe="pirl_resnet50_800e",
    ),
    _pirl("in1k_800e_mlp_gblur", 800, "pirl/r50_800ep_mlphead_gblur", 69.9, recipe="pirl_resnet50_mlp_800e"),
    _pirl("in1k_400e", 400, "pirl/w2_400ep", 69.3, recipe="pirl_resnet50_w2", width=2),
    _pirl("in1k_400e_mlp_gblur", 400, "pirl/r50w2_400ep_mlphead_gblur", 70.9, recipe="pirl_resnet50_mlp_w2", width=2),
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
        architecture="pirl_nano_48",
        tag="",
        family="pirl",
        form="encoder",
        description="The ResNet of four blocks that PIRL in small trains: no weights",
        args=RESNET_NANO,
        parameters=513_152,
        license="Apache-2.0",
        paper=PIRL_PAPER,
        input_size=(3, 48, 48),
        recipe="pirl_nano",
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
    # the published link of the first says perm2k too
    _jigsaw(
        "in1k_perm100", _final(f"{_JIGSAW_RUN}17_07_20.db174a43", 105), 48.57, "100", recipe="jigsaw_resnet50_perm100"
    ),
    _jigsaw("in1k_perm2k", _final(f"{_JIGSAW_RUN}17_07_20.cccee144", 105), 46.73, "2,000", recipe="jigsaw_resnet50"),
    _jigsaw(
        "in1k_perm10k",
        _final(f"{_JIGSAW_RUN}20_07_20.3d706467", 105),
        48.11,
        "10,000",
        recipe="jigsaw_resnet50_perm10k",
    ),
    _jigsaw(
        "in22k_perm2k",
        "converted_vissl_jigsaw_rn50_perm2k_in22k_8gpu_ep105.torch",
        44.84,
        "2,000",
        "jigsaw_resnet50_in22k",
        _IN22K,
    ),
    _jigsaw("in1k_goyal19", "converted_vissl_rn50_jigsaw_in1k_goyal19.torch", 46.58),
    _jigsaw("in22k_goyal19", "converted_vissl_rn50_jigsaw_in22k_goyal19.torch", 53.09),
    _jigsaw("yfcc100m_goyal19", "converted_vissl_rn50_jigsaw_yfcc100m_goyal19.torch", 51.37),
    _jigsaw_heads("100", 26_459_132, "jigsaw_resnet50_perm100"),
    _jigsaw_heads("2,000", 43_561_032, "jigsaw_resnet50"),
    _jigsaw_heads("10,000", 115_569_032, "jigsaw_resnet50_perm10k"),
    Variant(
        architecture="jigsaw_nano_64",
        tag="",
        family="jigsaw",
        form="encoder",
        description="The ResNet of four blocks that Jigsaw in small trains: no weights",
        args=RESNET_NANO,
        parameters=513_152,
        license="Apache-2.0",
        paper=JIGSAW_PAPER,
        input_size=(3, 64, 64),
        recipe="jigsaw_nano",
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

ROTNET = (
    _vissl(
        "rotnet",
        "in1k_105e",
        "rotnet_rn50_in1k_ep105_rotnet_8gpu_resnet_17_07_20.46bada9f/model_final_checkpoint_phase125.torch",
        48.2,
        ROTNET_PAPER,
        "RotNet's ResNet-50",
        f"105 epochs by its folder's name, {_ROTATIONS}",
        unknown=_ROTNET.format(" (its phase, counted from 0, is 125)"),
    ),
    _vissl(
        "rotnet",
        "in22k_105e",
        "converted_vissl_rn50_rotnet_in22k_ep105.torch",
        54.89,
        ROTNET_PAPER,
        "RotNet's ResNet-50, ImageNet-22k, converted by VISSL",
        f"105 epochs by the file's name, {_ROTATIONS}",
        unknown=_ROTNET.format(""),
    ),
)

NPID = (
    _vissl(
        "npid",
        "in1k_200e",
        _final("npid_1node_200ep_4kneg_npid_8gpu_resnet_23_07_20.9eb36512", 200),
        52.73,
        NPID_PAPER,
        "NPID's ResNet-50, 200 epochs",
        f"200 epochs, {_INSTANCES}",
        unknown=_NPID,
    ),
    _vissl(
        "npid",
        "in1k_lemniscate",
        "converted_vissl_rn50_npid_lemniscate_neg4k_stepLR_8gpu.torch",
        54.99,
        NPID_PAPER,
        "NPID's ResNet-50 by its authors' code, converted by VISSL",
        _INSTANCES,
        unknown=_NPID,
    ),
    _vissl(
        "npid",
        "in1k_800e",
        _final("npid_pp/4node_800ep_32kneg_cosine_resnet_23_07_20.75432662", 800),
        56.68,
        PIRL_PAPER,  # which introduces NPID++
        "NPID++'s ResNet-50, 800 epochs and more negatives",
        f"800 epochs and 32,000 negatives, {_INSTANCES}",
        unknown=_NPID,
        method="npidpp",
    ),
    _vissl(
        "npid",
        "in1k_800e",
        _final("npid_4node_800ep_32kneg_cosine_rn50w2_npid++_4nodes_resnet_27_07_20.b7f4016c", 800),
        62.73,
        PIRL_PAPER,
        "NPID++'s ResNet-50, 800 epochs and more negatives",
        f"800 epochs and 32,000 negatives, {_INSTANCES}",
        unknown=_NPID,
        method="npidpp",
        width=2,
    ),
)

CLUSTERFIT = (
    _vissl(
        "clusterfit",
        "in1k_rotnet16k_105e",
        "converted_vissl_rn50_rotnet_16kclusters_in1k_ep105.torch",
        53.63,
        CLUSTERFIT_PAPER,
        "ClusterFit's ResNet-50, trained on clusters of RotNet's features, converted by VISSL",
        "105 epochs by the file's name, telling 16,000 clusters of RotNet's features apart",
        unknown=_CLUSTERFIT,
    ),
)
