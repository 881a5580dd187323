"""Every model of the zoo, once: pure data that everything else is made from.

timm's pretrained configs, hubconf's entry points, the model cards, the README table, `zoo list` and
`zoo info` all read this. It imports neither torch nor timm, nor anything else of the zoo: a file a family.
Adding a variant = one entry in its family's file.
"""

from zoo.catalog.convmae import CONVMAE
from zoo.catalog.croco import CROCO, CROCO_V1_PAPER, DEFAULT_PAIR
from zoo.catalog.entry import IMAGENET_MEAN, IMAGENET_STD, Metric, Paper, Source, Variant
from zoo.catalog.fast_itpn import FAST_ITPN
from zoo.catalog.hivit import HIVIT
from zoo.catalog.itpn import ITPN
from zoo.catalog.jigclu import JIGCLU
from zoo.catalog.pointmaps import DEFAULT_POINTMAPS, POINTMAPS
from zoo.catalog.vissl import JIGSAW, PIRL

__all__ = [
    "CROCO_V1_PAPER",
    "DEFAULT_PAIR",
    "DEFAULT_POINTMAPS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VARIANTS",
    "Metric",
    "Paper",
    "Source",
    "Variant",
]

VARIANTS: tuple[Variant, ...] = (*CROCO, *POINTMAPS, *CONVMAE, *HIVIT, *ITPN, *FAST_ITPN, *PIRL, *JIGSAW, *JIGCLU)
