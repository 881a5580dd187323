"""CroCo: cross-view completion pretraining, versions 1 and 2, and its stereo and flow models.

One encoder sees both photos of a scene; a decoder rebuilds the hidden patches of the first with the help of
the second. Papers: arXiv 2210.10716 (v1: sin-cos positions), arXiv 2211.10408 (v2: rotary positions).
The encoder is a one-image timm backbone; `PairModel` is encoder + two-image decoder, also over any timm
VisionTransformer; `DensePairModel` adds a DPT head.
"""

from zoo.models.croco.any_pair import TimmEncoder, create_pair_model
from zoo.models.croco.blocks import Block, CrossBlock
from zoo.models.croco.decoder import Decoder
from zoo.models.croco.dense import DensePairModel, dpt_hooks
from zoo.models.croco.encoder import CrocoEncoder
from zoo.models.croco.mae import CrocoMAE
from zoo.models.croco.pair import PairModel
from zoo.models.making.build import register_family
from zoo.models.shared.masked import Completion

__all__ = [
    "Block",
    "Completion",
    "CrocoEncoder",
    "CrocoMAE",
    "CrossBlock",
    "Decoder",
    "DensePairModel",
    "PairModel",
    "TimmEncoder",
    "create_pair_model",
    "dpt_hooks",
]

default_cfgs = register_family(
    "croco", dict(encoder=CrocoEncoder, pretraining=CrocoMAE, binocular=PairModel, dense=DensePairModel), __name__
)
