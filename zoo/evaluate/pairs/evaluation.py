"""The whole table of a model, on scenes and on photos."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from zoo.evaluate.pairs.baselines import baseline_predictions
from zoo.evaluate.pairs.claims import verdict
from zoo.evaluate.pairs.losses import Moments, displacement_bins, loss_parts, loss_table, moments, patch_displacement
from zoo.evaluate.pairs.matches import match_hits, untrained
from zoo.evaluate.pairs.predictions import model_predictions
from zoo.evaluate.pairs.sets import BATCH, MASK_SEED, Pairs, photo_pairs, scene_pairs
from zoo.evaluate.pairs.subject import Subject
from zoo.layers.masking import split_mask, take_tokens
from zoo.layers.patchify import normalize_patches, patchify
from zoo.models.croco import PairModel


@torch.inference_mode()
def measure(model: PairModel, pairs: Pairs) -> dict[str, Any]:
    """The whole table of a model (in eval mode) on some pairs, as plain numbers; see `evaluate` for the keys."""
    hidden, size = int(pairs.mask[0].sum()), model.patch_size
    encoders = dict(features=model.encoder, untrained_features=untrained(model.encoder))
    found: dict[str, list[Moments]] = defaultdict(list)
    hits: dict[str, list[Tensor]] = defaultdict(list)
    displacements, counted, moved = [], [], []
    for parts in zip(*(x.split(BATCH) for x in pairs)):
        batch = Pairs(*parts)
        visible, index = split_mask(batch.mask, hidden)
        target = normalize_patches(patchify(batch.image1, size))
        predictions, attention = model_predictions(model, batch, hidden)
        predictions |= baseline_predictions(batch, target, visible, index, size)
        for name, prediction in predictions.items():
            found[name].append(moments(prediction, take_tokens(target, index)))
        displacements.append(patch_displacement(batch.flow, size).gather(1, index))
        found_hits, counts, far = match_hits(encoders, batch, index, attention, size)
        for name, hit in found_hits.items():
            hits[name].append(hit)
        counted.append(counts)
        moved.append(far)

    errors, scalars = loss_table({k: Moments(*map(torch.cat, zip(*parts))) for k, parts in found.items()})
    displacement, counts, far = map(torch.cat, (displacements, counted, moved))
    bins = {
        name: (displacement >= low) & (displacement < high)
        for name, (low, high) in displacement_bins(pairs.flow.shape[-1]).items()
    }
    pair_loss = {name: errors[name].sum(-1).mean(-1) for name in ("right", "wrong")}
    return dict(
        pairs=len(pairs.mask),
        hidden_patches=hidden,
        losses={
            name: dict(
                **loss_parts(error),
                by_displacement={key: loss_parts(error[where]) for key, where in bins.items() if where.any()},
            )
            for name, error in errors.items()
        },
        scalars=scalars,
        share_of_patches_by_displacement={key: where.double().mean().item() for key, where in bins.items()},
        share_right_below_wrong=(pair_loss["right"] < pair_loss["wrong"]).double().mean().item(),
        matches=dict(
            patches=int(counts.sum()),
            patches_moved=int(far.sum()),
            within_patch_width={name: torch.cat(hit)[counts].mean().item() for name, hit in hits.items()},
            within_patch_width_moved={name: torch.cat(hit)[far].mean().item() for name, hit in hits.items()}
            if far.any()
            else {},
        ),
    )


def evaluate(subject: Subject, count: int, seed: int) -> tuple[dict[str, Any], Pairs, Pairs]:
    """Evaluate on `count` scenes of the sequence `seed` and on the photos; also returns those pairs, to look at.

    The result is plain JSON. `losses` has a row for each of: right (the true second view), wrong (one of another
    place), zeros, copy (image 2's patch at the same place), copy_one_scalar, color_copy (only that patch's color),
    color_copy_one_scalar, global_shift (image 2 shifted by the displacement that fits the visible patches best,
    without and with scalars fitted), self (image 1 as its own reference), shuffled (image 2's patches in disorder),
    oracle (image 2 warped by the true geometry). Bins are of a hidden patch's median true displacement, in pixels.

    Raises RecipeError (a ValueError) when the model was trained on the scenes of `seed`.
    """
    start = time.monotonic()
    model, recipe = subject.model, subject.recipe
    config, mask_ratio = subject.scenes(seed), subject.mask_ratio
    scenes = scene_pairs(config, seed, count, model, mask_ratio)
    photos = photo_pairs((config.height, config.width), model, mask_ratio)
    results = dict(scenes=measure(model, scenes), photos=measure(model, photos))
    settings = dict(
        scene_seed=seed,
        training_seed=recipe.seed if recipe else None,
        mask_seed=MASK_SEED,
        mask_ratio=mask_ratio,
        scene_config=dataclasses.asdict(config),
        photos="Middlebury 2014 motorcycle (scikit-image), overlapping crops",
        torch=torch.__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 1),
    )
    about = dict(name=subject.name, weights=subject.weights.name, sha256=subject.sha256, step=subject.step)
    return dict(model=about, settings=settings, **results, verdict=verdict(**results)), scenes, photos
