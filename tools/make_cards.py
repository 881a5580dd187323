"""Make the model cards, their index, and the README's table of families, from the catalog.

    python tools/make_cards.py            write model_cards/*.md and the table
    python tools/make_cards.py --check    name those that are missing or not what would be written, exit with 1

Cards of weights in the package also say how these were trained and what they do, from two files beside them:
<weights>.training.json, written by whoever trained them (command, recipe, seed, steps, samples, hours, machine,
torch, date, first_losses, final_loss), and <weights>.evaluation.json, written by `zoo eval pairs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's zoo, installed or not

import zoo  # noqa: F401  (registers the models)
from tools.cards.records import CARDS, ROOT, CardError
from tools.cards.sections import card
from zoo.catalog import VARIANTS, Variant

README = ROOT / "README.md"
BEGIN, END = "<!-- variants:begin -->", "<!-- variants:end -->"


INDEX = "README.md"  # beside the cards

_ABOUT = {
    "croco": "completes a hidden view of a scene from a second one: encoders, two-image models, stereo, flow",
    "pointmaps": "DUSt3R, MASt3R, MonST3R: 3D points of two photos, on CroCo",
    "convmae": "masked autoencoder with convolutional first stages",
    "hivit": "hierarchical vision transformer, masked autoencoder and supervised",
    "itpn": "HiViT with a feature pyramid that is pretrained with it, on pixels or CLIP's tokens",
    "fast_itpn": "iTPN's faster successor, against a CLIP teacher",
    "pirl": "ResNet-50 that embeds an image and a jigsaw of it alike",
    "jigsaw": "ResNet-50 that tells permutations of patches apart",
    "jigclu": "Jigsaw Clustering's ResNet-50",
    "rotnet": "ResNet-50 that tells by how much an image is turned",
    "npid": "NPID and NPID++: ResNet-50 that tells every image from all others",
    "clusterfit": "ResNet-50 trained on clusters of RotNet's features",
}


def families_table() -> str:
    """A row for each family: what it is, how many variants, how large, under which licenses."""
    head = (
        "| Family | What it is | Variants, with weights | Parameters | Licenses of the weights |\n" + "| --- " * 5 + "|"
    )
    rows = []
    for family in dict.fromkeys(variant.family for variant in VARIANTS):
        of = [variant for variant in VARIANTS if variant.family == family]
        weights = [variant for variant in of if variant.sources]
        sizes = [variant.parameters / 1e6 for variant in of]
        licenses = ", ".join(sorted({variant.license for variant in weights})) or "no weights"
        count, span = f"{len(of)}, {len(weights)}", f"{min(sizes):.0f} to {max(sizes):.0f} M"
        rows.append(f"| {family} | {_ABOUT[family]} | {count} | {span} | {licenses} |")
    return "\n".join([head, *rows])


def index() -> str:
    """The page beside the cards, which GitHub shows with their folder."""
    return f"# All models\n\n{variants_table('')}\n"


def tables() -> list[tuple[str, str, str]]:
    """Each family's name, what it is, and the table of its variants, with links to their cards."""
    families = dict.fromkeys(variant.family for variant in VARIANTS)
    of = {family: [variant for variant in VARIANTS if variant.family == family] for family in families}
    return [(family, _ABOUT[family], variants_table("model_cards/", variants)) for family, variants in of.items()]


def variants_table(folder: str, variants: Sequence[Variant] = VARIANTS) -> str:
    """A row for each variant, with a link to its card."""
    rows = [
        f"| [`{v.name}`]({folder}{v.name}.md) | {v.description} | {v.parameters / 1e6:.1f} M | "
        f"{'x'.join(map(str, v.input_size[1:]))} | {v.license if v.sources else 'no weights'} |"
        for v in variants
    ]
    head = "| Variant | What it is | Parameters | Input | License of the weights |\n| --- | --- | ---: | --- | --- |"
    return "\n".join([head, *rows])


def readme(text: str) -> str:
    """A README with its table of families made anew; one without the markers stays as it is."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{families_table()}\n{END}{after}" if begin and end else text


def wanted() -> tuple[dict[Path, str], list[str]]:
    """What every file should hold, and why some cards can't be made."""
    files, problems = {}, []
    for variant in VARIANTS:
        try:
            files[CARDS / f"{variant.name}.md"] = card(variant)
        except CardError as error:
            problems.append(f"{variant.name}: {error}")
    files[CARDS / INDEX] = index()
    if README.exists():
        files[README] = readme(README.read_text(encoding="utf-8"))
    return files, problems


def stale(files: dict[Path, str]) -> list[Path]:
    """Files that are missing or differ, and cards of variants that the catalog no longer has."""
    differing = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    names = {INDEX, *(f"{variant.name}.md" for variant in VARIANTS)}
    return differing + [path for path in sorted(CARDS.glob("*.md")) if path.name not in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything is stale")
    check = parser.parse_args().check
    files, problems = wanted()
    outdated = stale(files)
    for path in outdated:
        print(f"{'stale' if check else 'written' if path in files else 'removed'}: {path.relative_to(ROOT)}")
        if not check and path in files:
            path.write_text(files[path], encoding="utf-8")
        elif not check:
            path.unlink()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems or (check and outdated) else 0


if __name__ == "__main__":
    sys.exit(main())
