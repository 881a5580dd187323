"""Every model of the zoo, once: pure data that everything else is made from.

timm's pretrained configs, hubconf's entry points, the model cards, the README table, `zoo list` and
`zoo info` all read this. It imports neither torch nor timm, nor anything else of the zoo: a file a family.
Adding a variant = one entry in its family's file.
"""

from zoo.catalog.convmae import CONVMAE
from zoo.catalog.croco import CROCO, CROCO_V1_PAPER, DEFAULT_PAIR
from zoo.catalog.croco_dense import CROCO_DENSE
from zoo.catalog.entry import IMAGENET_MEAN, IMAGENET_STD, Metric, Paper, Source, Variant
from zoo.catalog.fast_itpn import FAST_ITPN
from zoo.catalog.hivit import HIVIT
from zoo.catalog.itpn import ITPN
from zoo.catalog.jigclu import JIGCLU
from zoo.catalog.pointmaps import DEFAULT_POINTMAPS, POINTMAPS
from zoo.catalog.vissl import CLUSTERFIT, JIGSAW, NPID, PIRL, ROTNET

__all__ = [
    "CROCO_V1_PAPER",
    "DEFAULT_PAIR",
    "DEFAULT_POINTMAPS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RENAMED",
    "RETIRED",
    "VARIANTS",
    "Metric",
    "Paper",
    "Source",
    "Variant",
]

VARIANTS: tuple[Variant, ...] = (
    *CROCO,
    *CROCO_DENSE,
    *POINTMAPS,
    *CONVMAE,
    *HIVIT,
    *ITPN,
    *FAST_ITPN,
    *PIRL,
    *JIGSAW,
    *ROTNET,
    *NPID,
    *CLUSTERFIT,
    *JIGCLU,
)

RENAMED = {
    "crocov2_large_patch16_352x704_dec768d12_stereo": "crocov2_large_patch16_dec768d12_stereo.crocostereo",
    "crocov2_large_patch16_352x704_dec768d12_flow": "crocov2_large_patch16_dec768d12_flow.crocoflow",
    **{
        f"fast_itpn_{size}_patch16_224.clipl_in1k_ft_in1k": f"fast_itpn_{size}_patch16_224.clipl_in1k_1600e"
        for size in ("tiny", "small", "base", "large")
    },
    "fast_itpn_base_patch16_224.in21k_512": "fast_itpn_base_patch16_224.clipl_in1k_ft_in21k",
}
"""Former names of architectures and of variants, which load with a warning what they were meant to be."""

RETIRED = {
    f"{name}.scenes": f"The weights {name}.scenes have left the package; take {name}.scenes_rich, which are better on "
    "every measure, or make such as they were with `zoo train croco_nano`."
    for name in ("croco_nano_patch8_64_dec128d4", "croco_nano_patch8_64")
}
"""Former variants that nothing is called now, and what is said of them."""
