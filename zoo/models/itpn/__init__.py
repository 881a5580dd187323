"""iTPN: HiViT with a feature pyramid that is pretrained together with it.

Paper: arXiv 2211.12735. `ITPN` is the backbone, whose neck comes with it; the pretraining forms are `ITPNPixel` (a
masked autoencoder on all levels), `ITPNClip` (predicts a teacher's tokens) and `ITPNEma` (pixels, and the features
that a moving average of the model itself has on every level).
"""

from zoo.models.itpn.backbone import ITPN, Pyramid
from zoo.models.itpn.clip import ITPNClip, TokenPrediction
from zoo.models.itpn.pixel import ITPNEma, ITPNPixel
from zoo.models.making.build import register_family

__all__ = ["ITPN", "ITPNClip", "ITPNEma", "ITPNPixel", "Pyramid", "TokenPrediction"]

default_cfgs = register_family("itpn", dict(encoder=ITPN, pixel=ITPNPixel, clip=ITPNClip, ema=ITPNEma), __name__)
