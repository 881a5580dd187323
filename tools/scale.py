"""What a training step of the jigsaw objectives needs besides the network: memory, and bytes between processes.

    python tools/scale.py            write the tables of docs/scale.md
    python tools/scale.py --check    exit with 1 if they are not what would be written

The figures are formulas in the settings of the published recipes; tests/tools/test_scale.py compares them with what two
processes send.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's zoo, installed or not

from zoo.catalog import VARIANTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
WORLDS = (1, 8, 64)
IMAGES = {1_281_167: "1.28 M", 100_000_000: "100 M", 1_000_000_000: "1 B"}
PER_PROCESS = 32  # images of a step on each GPU, as in the published runs of PIRL and Jigsaw Clustering
FLOAT, LONG = 4, 8  # bytes
BANK_SHARE = 20e9  # bytes of an 80 GB GPU that a bank may take, so that the network keeps its room


class Step(NamedTuple):
    """Bytes on each process: kept from step to step, needed within one, and received from the others in one.

    The network, its gradients and its optimizer come on top; see `gradients`.
    """

    kept: float
    within: float
    received: float


def pirl(images: int, world: int, batch: int = PER_PROCESS, dim: int = 128, negatives: int = 32_000) -> Step:
    """The bank; candidates of both losses, scores of one in float32 about ten times over (terms and gradients of a
    group of samples), and one sample's rows; embedding and index of every image of the other processes."""
    candidates = batch * (1 + negatives)
    rows = (1 + negatives) * dim * FLOAT
    received = (world - 1) * batch * (dim * FLOAT + LONG)
    return Step(images * dim * FLOAT, 2 * candidates * LONG + candidates // batch * 10 * FLOAT + rows, received)


def jigsaw_clustering(world: int, batch: int = PER_PROCESS, quarter: int = 112, dim: int = 128) -> Step:
    """All processes' quarters as bytes; scores of own embeddings with all, in float32, about four times over; the
    permutation, the other processes' quarters and embeddings, and what they say of one's own embeddings' gradient."""
    quarters = 4 * batch  # of a process
    pixels, embeddings = quarters * 3 * quarter**2, quarters * dim * FLOAT
    scores = quarters * world * quarters * FLOAT
    received = (world - 1) * (pixels + 2 * embeddings) + (world > 1) * world * quarters * LONG
    return Step(0, world * (pixels + 2 * embeddings) + 4 * scores, received)


def jigsaw(permutations: int = 2_000) -> Step:
    """The table of permutations, in the data workers; nothing between processes."""
    return Step(permutations * 9 * LONG, 0, 0)


def gradients(architecture: str, world: int) -> float:
    """Bytes of gradients that a process receives in a ring's all-reduce of a step, the same for every objective."""
    parameters = next(variant.parameters for variant in VARIANTS if variant.architecture == architecture)
    return 2 * (world - 1) / world * parameters * FLOAT


def largest_bank(bytes_a_number: int, shards: int = 1, dim: int = 128) -> float:
    """How many images' vectors fit into `BANK_SHARE` of each GPU."""
    return BANK_SHARE * shards / (dim * bytes_a_number)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---:" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """The page's tables, by the name that their place has in it."""
    banks = [
        (
            name,
            str(world),
            _size((step := pirl(images, world)).kept),
            _size(step.within),
            _size(step.received),
            _size(gradients("pirl_resnet50_lin128", world)),
        )
        for images, name in IMAGES.items()
        for world in WORLDS
    ]
    clustering = [
        (
            str(world),
            _size((step := jigsaw_clustering(world)).within),
            _size(step.received),
            _size(gradients("jigclu_resnet50_mlp128", world)),
        )
        for world in WORLDS
    ]
    classifying = [(str(w), _size(jigsaw().kept), _size(gradients("jigsaw_resnet50_perm2k", w))) for w in WORLDS]
    remedies = [
        (
            f"{kind}, {'on every GPU' if shards == 1 else f'sharded over {shards}'}",
            f"{largest_bank(size, shards) / 1e6:,.0f} M",
        )
        for kind, size in (("float32", 4), ("half precision", 2))
        for shards in WORLDS
    ]
    together = ("received, gradients",)
    return {
        "pirl": _table(("images", "GPUs", "bank", "within a step", "received", *together), banks),
        "jigclu": _table(("GPUs", "within a step", "received", *together), clustering),
        "jigsaw": _table(("GPUs", "permutations", *together), classifying),
        "remedies": _table(("bank", "largest number of images"), remedies),
    }


def page() -> str:
    """docs/scale.md with its tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    new = page()
    if parser.parse_args().check:
        sys.exit(0 if new == PAGE.read_text(encoding="utf-8") else f"{PAGE} is not what would be written")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
