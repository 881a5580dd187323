"""Publishing weights on the Hugging Face Hub: a folder that timm understands, proved to load back, in one commit.

A published folder holds config.json and model.safetensors (what `timm.create_model("hf-hub:OWNER/NAME")` reads), a
card, pictures, the run's recipe, and SHA256SUMS. Tokens are huggingface_hub's own affair: its login and HF_TOKEN.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import CommitInfo
from torch import nn

from zoo.catalog import Metric
from zoo.publish.card import card_data, make_card
from zoo.publish.checks import check_finite, check_folder, check_loads_back, check_repository
from zoo.publish.example import draw_example
from zoo.publish.export import export_model, export_run, write_weights
from zoo.publish.folder import (
    CARD,
    COMPLETION,
    CONFIG,
    FEATURES,
    FILES,
    LOSS,
    PICTURES,
    RECIPE,
    SUMS,
    copy_published,
    listing,
    write_sums,
)
from zoo.publish.hub import upload
from zoo.publish.licenses import DEFAULT_LICENSE, choose_license
from zoo.publish.runs import Run
from zoo.publish.temporary import workspace

__all__ = [
    "CARD",
    "COMPLETION",
    "CONFIG",
    "DEFAULT_LICENSE",
    "FEATURES",
    "FILES",
    "LOSS",
    "PICTURES",
    "RECIPE",
    "SUMS",
    "Run",
    "card_data",
    "check_finite",
    "check_folder",
    "check_loads_back",
    "check_repository",
    "choose_license",
    "copy_published",
    "draw_example",
    "export_model",
    "export_run",
    "listing",
    "make_card",
    "push_to_hub",
    "upload",
    "workspace",
    "write_sums",
    "write_weights",
]


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    datasets: Sequence[str] = (),
    metrics: Sequence[Metric] = (),
) -> CommitInfo:
    """Publish a zoo model as `repo` ("OWNER/NAME") on the Hub; returns the commit (its URL, as text, and `oid`).

    license: in the Hub's spelling, such as "mit"; by default that of the weights that these started from, or
    Apache-2.0. private: if the repository has to be made. revision: a branch, made if need be. create_pr: propose the
    change instead. force: overwrite files that were not published by this function. datasets: the Hub's names of what
    the weights were trained on. metrics: figures for the card and the Hub's leaderboards.

    Raises PublishError (a RuntimeError) for weights that are not finite or would not load back, for a license that
    the weights may not have, for files that would be lost, and for what the Hub refuses.

    >>> zoo.push_to_hub(model, "me/croco_nano_rooms", license="mit")
    """
    with workspace() as folder:
        export_model(model, folder, repo, license=license, datasets=datasets, metrics=metrics)
        return upload(folder, repo, private=private, revision=revision, create_pr=create_pr, force=force)
