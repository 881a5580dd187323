"""Bring the Hub side of the zoo to life: fetch, convert, verify, describe, push and pin the weights of every variant.

    python tools/release_weights.py --org ORG --dry-run --filter 'croco_base*'
    python tools/release_weights.py --org ORG

Each variant becomes the repository ORG/VARIANT, and its revision and SHA-256 go into zoo/weights.lock.json, which is to
be committed: from then on `pretrained=True` takes the weights from there. What is pinned is done, so the same command
goes on where it was stopped. Log in with `hf auth login` before; variants that fail are named at the end.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's zoo, installed or not

import timm
from huggingface_hub import HfApi, ModelCard, constants

from tools.cards import sections
from tools.cards.records import CARDS, CardError
from zoo import publish, weights
from zoo.catalog import VARIANTS, Variant
from zoo.errors import CorruptWeightsError, PublishError, ZooError
from zoo.models import ZooModel, fetch
from zoo.train.recipe import recipe_path
from zoo.weights import sources
from zoo.weights.disk import files
from zoo.weights.network.hub import HUB_FILENAME


def release(variant: Variant, org: str, folder: Path) -> dict[str, str]:
    """Publish one variant; returns its entry of the lock file."""
    repo = f"{org}/{variant.name}"
    export(variant, repo, folder)
    commit = publish.upload(folder, repo, message=f"{variant.name}, by pretext-zoo's release")
    digest = files.sha256(folder / HUB_FILENAME)
    listed = {s.rfilename: s for s in HfApi().model_info(repo, revision=commit.oid, files_metadata=True).siblings or ()}
    lfs = listed[HUB_FILENAME].lfs
    if lfs is None or lfs.sha256 != digest:
        raise PublishError(f"{repo} holds another {HUB_FILENAME} than was sent; look at {commit} and release it again.")
    return dict(repo=repo, filename=HUB_FILENAME, revision=commit.oid, sha256=digest)


def export(variant: Variant, repo: str, folder: Path) -> None:
    """Write all that is published of a variant, from its first source that isn't the Hub."""
    path = fetch(variant.name)
    if weights.source_of(path)["source"]["kind"] == "hub":
        raise PublishError(
            f"The weights of {variant.name} on this machine came from the Hub; unset ZOO_HUB_ORG, remove {path}, and "
            "let them be converted from the authors' checkpoint."
        )
    if problem := weights.verify(path)[0].problem:
        raise CorruptWeightsError(problem)
    model: Any = timm.create_model(variant.name, pretrained=True).eval()
    assert isinstance(model, ZooModel)
    publish.write_weights(model, folder, variant.license.lower(), variant)
    loaded: Any = publish.check_loads_back(folder, model)
    if variant.recipe:
        shutil.copyfile(recipe_path(variant.recipe), folder / publish.RECIPE)
    for picture in (CARDS / variant.architecture).glob("*.png"):
        shutil.copyfile(picture, folder / picture.name)
    publish.draw_example(loaded, variant, folder)
    (folder / publish.CARD).write_text(hub_card(variant, repo, folder), encoding="utf-8")
    publish.write_sums(folder)


def hub_card(variant: Variant, repo: str, folder: Path) -> str:
    """The variant's card with the metadata, links and picture that its repository needs."""
    card = ModelCard(sections.card(variant))
    license, classes = variant.license.lower(), variant.num_classes
    datasets = ["imagenet-1k"] if "in1k" in variant.tag.split("_") else []
    data = publish.card_data(variant, repo, license, classes, datasets, variant.metrics)
    data.tags = list(dict.fromkeys([*data.tags, *card.data.tags]))
    org = repo.partition("/")[0]
    text = re.sub(r"\]\(([^/)]+)\.md\)", rf"]({constants.ENDPOINT}/{org}/\1)", card.text)
    text = re.sub(r"\]\(\.\./zoo/train/recipes/[^)]+\)", f"]({publish.RECIPE})", text)
    text = text.replace(f"]({variant.architecture}/", "](")
    title = "## How to load it\n\n"
    here = f'From here with `timm.create_model("hf-hub:{repo}", pretrained=True)`, and by the name in the zoo:\n\n'
    shown = [
        f"![{alt}]({name})\n\n"
        for name, alt in publish.PICTURES.items()
        if (folder / name).is_file() and f"]({name})" not in text
    ]
    return f"---\n{data}\n---\n{text.replace(title, ''.join(shown) + title + here, 1)}"


def pin(name: str, entry: dict[str, str]) -> None:
    lock = files.read_json(sources.LOCK_FILE) or {}
    files.write_json(sources.LOCK_FILE, dict(sorted({**lock, name: entry}.items())))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--org", required=True, help="organization or user on the Hub that you can write to")
    parser.add_argument("--filter", default="*", help="variants to release, with * and ? as in a shell")
    parser.add_argument("--dry-run", action="store_true", help="do everything but push and pin")
    args = parser.parse_args(arguments)
    chosen = [variant for variant in VARIANTS if variant.sources and fnmatchcase(variant.name, args.filter)]
    if not chosen:
        parser.error(f"no variant with weights is called like {args.filter}")
    failed = []
    for number, variant in enumerate(chosen, start=1):
        label = f"[{number}/{len(chosen)}] {variant.name}"
        pinned = (files.read_json(sources.LOCK_FILE) or {}).get(variant.name)
        if pinned:
            print(f"{label}: done before, {pinned['repo']} at {pinned['revision'][:10]}", flush=True)
            continue
        print(f"{label}: ...", flush=True)
        try:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                if args.dry_run:
                    export(variant, f"{args.org}/{variant.name}", folder)
                    print(f"{label}: fine, {', '.join(publish.listing(folder))}", flush=True)
                    continue
                entry = release(variant, args.org, folder)
        except (ZooError, CardError) as error:
            failed.append(variant.name)
            print(f"{label}: {error}", file=sys.stderr, flush=True)
            continue
        pin(variant.name, entry)
        print(f"{label}: {entry['repo']} at {entry['revision'][:10]}, pinned", flush=True)
    if failed:
        print(f"Not released: {', '.join(failed)}. Mend what is said above and start it again.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
