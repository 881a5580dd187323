"""Features of many photos on disk: what `zoo features` writes, and the reader of it.

>>> from zoo.features import open_features
>>> features = open_features("features/")      # all shards as one; a single .safetensors file, too
>>> features[0], features["photos/a.jpg"]      # a tensor (C,), or (C, h, w) of maps
"""

from __future__ import annotations

from zoo.features.extract import Extracted, Job, Options, extract_features, run
from zoo.features.reader import Features, open_features

__all__ = ["Extracted", "Features", "Job", "Options", "extract_features", "open_features", "run"]
