"""Make the permutations that Jigsaw tells apart: 10,000 of the 9! orders of nine patches, far from each other.

    python tools/make_permutations.py [--count N] [-o zoo/train/objectives/jigsaw/permutations.npy]

One greedy sequence serves every size of the set, since its beginnings are the smaller sets: each next permutation
has the largest possible Hamming distance to the nearest one before it; among those, the largest total distance to
all before; among those, it is the first in lexicographic order. Nothing is random. Takes ten seconds.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

PATCHES = 9
OUTPUT = Path(__file__).resolve().parents[1] / "zoo" / "train" / "objectives" / "jigsaw" / "permutations.npy"


def make_permutations(count: int) -> np.ndarray:
    """The first `count` permutations of the sequence, (count, 9) uint8; the first is the identity."""
    every = np.array(list(itertools.permutations(range(PATCHES))), dtype=np.uint8)  # 9!, 9: in lexicographic order
    columns = np.ascontiguousarray(every.T)
    nearest = np.full(len(every), PATCHES, dtype=np.int32)  # distance to the nearest chosen one
    total = np.zeros(len(every), dtype=np.int32)  # of the distances to all chosen ones
    chosen = []
    for _ in range(count):
        best = int(np.argmax(nearest * (PATCHES * count + 1) + total))
        chosen.append(best)
        distance = np.zeros(len(every), dtype=np.uint8)
        for column, place in zip(columns, every[best]):
            distance += column != place
        np.minimum(nearest, distance, out=nearest)
        total += distance
        nearest[best] = -1  # never again
    return every[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    np.save(args.output, make_permutations(args.count))
    print(f"{args.output}: {args.count} permutations, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
