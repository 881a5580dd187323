"""The orders that Jigsaw tells apart: the zoo's own, the published lists, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.errors import CorruptWeightsError, RecipeError
from zoo.weights import cache_dir
from zoo.weights.disk.files import read_json, sha256, write_json
from zoo.weights.network.download import download

OWN = Path(__file__).parent / "permutations.npy"

_MOST_BYTES = 10_000_000  # of a list; 10,000 orders of nine places in eight bytes are 0.7 MB

_URL = "https://dl.fbaipublicfiles.com/fair_self_supervision_benchmark/jigsaw_permutations/"
PUBLISHED = {
    100: _URL + "naroozi_perms_100_patches_9_max.npy",
    2000: _URL + "hamming_perms_2000_patches_9_max_avg.npy",
    10_000: _URL + "hamming_perms_10000_patches_9_max_avg.npy",
}
"""Lists of the benchmark that VISSL's Jigsaw continues; their digests are recorded nowhere that could be found."""


def read_permutations(count: int, source: str = "own") -> Tensor:
    """`count` orders of nine patches, int64 (count, 9): the true place of each patch given.

    source: "own", the first ones of tools/make_permutations.py (at least 6 of 9 places differ between any two of the
    first 100, 4 of the first 2,000, 3 of all 10,000); "published", fetched once and the same file ever after; or
    an .npy file. Raises RecipeError (a ValueError), DownloadError, CorruptWeightsError.
    """
    if source == "own":
        path = OWN
    elif source == "published":
        path = _published(count)
    else:
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"There is no list of permutations {source}; write own, published or a file.npy.")
    try:
        every = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} is no list of permutations ({error}); it must be a plain .npy file.") from error
    if every.ndim != 2 or not np.issubdtype(every.dtype, np.integer):
        raise RecipeError(f"{path} is no list of permutations; it must hold whole numbers, nine in a row.")
    every = every - every.min()  # some count the places from 1
    if not 1 < count <= len(every):
        raise RecipeError(f"There are {len(every):,} permutations, not {count:,}; set model_args.permutations.")
    if every.shape[1] != 9 or (np.sort(every[:count], axis=1) != np.arange(9)).any():
        raise RecipeError(f"{path} holds rows that are no orders of nine patches; give another list.")
    return torch.from_numpy(every[:count].astype(np.int64))


def _published(count: int) -> Path:
    """The published list of `count` orders in the cache; what came first is what it must be ever after."""
    if count not in PUBLISHED:
        raise RecipeError(
            f"No list of {count:,} permutations is published; choose {', '.join(map(str, PUBLISHED))}, or the own one."
        )
    url = PUBLISHED[count]
    path = cache_dir() / "permutations" / url.rpartition("/")[2]
    record = path.with_suffix(".json")
    known = (read_json(record) or {}).get("sha256")
    if not path.is_file():
        write_json(record, dict(source=url, sha256=download(url, path, expected_sha256=known, at_most=_MOST_BYTES)))
    elif sha256(path) != known:
        raise CorruptWeightsError(f"{path} is not the file that was fetched first; delete it to fetch it again.")
    return path
