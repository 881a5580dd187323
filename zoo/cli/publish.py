"""`zoo push`: publishing a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli._app import need, print_table


def push(
    source: Annotated[
        Path, typer.Argument(help="Folder of a training run, or one that was exported before.", exists=True)
    ],
    repo: Annotated[str, typer.Option(help="Repository on the Hub, as OWNER/NAME.")],
    license: Annotated[
        str | None,
        typer.Option(help="License of the weights; default: that of those they started from, or apache-2.0."),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="The Hub's name of their training data; repeatable.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to; made if need be.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that zoo push did not write.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also keep what is uploaded, in this folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show it; upload nothing.")] = False,
) -> None:
    """Publish a training run on the Hugging Face Hub.

    Weights, timm's config, a card, pictures and the recipe go there in one commit, once it is sure that they load
    back. Uses the login of `hf auth login`, or HF_TOKEN.

    Example: zoo push runs/croco_nano --repo me/croco_nano_rooms --private
    """
    need("train", "accelerate", "matplotlib", "yaml")
    from zoo import publish

    publish.check_repository(repo)
    with publish.workspace() as folder:
        if (source / publish.CONFIG).is_file():
            publish.copy_published(source, folder)
            publish.check_folder(folder, license)
        else:
            publish.export_run(source, folder, repo, license=license, datasets=dataset or ())
        print_table(*((name, f"{(folder / name).stat().st_size:,} bytes") for name in publish.listing(folder)))
        if output is not None:
            publish.copy_published(folder, output)
        if dry_run:
            print(f"\n{(folder / publish.CARD).read_text('utf-8')}\nNothing was uploaded to {repo}.")
            return
        commit = publish.upload(folder, repo, private=private, revision=revision, create_pr=create_pr, force=force)
        print(commit.pr_url or commit)
