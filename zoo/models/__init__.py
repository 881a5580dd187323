"""The model families, one file each; importing this package registers every architecture with timm."""

from zoo.models import convmae, croco, fast_itpn, hivit, itpn, pointmaps, resnet
from zoo.models.making.build import convert_checkpoint, fetch
from zoo.models.shared.ancestry import Ancestor
from zoo.models.shared.model import ZooModel

__all__ = [
    "Ancestor",
    "ZooModel",
    "convert_checkpoint",
    "convmae",
    "croco",
    "fast_itpn",
    "fetch",
    "hivit",
    "itpn",
    "pointmaps",
    "resnet",
]
