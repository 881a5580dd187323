"""How much a two-image model takes from its second image: losses, simple baselines, matches, and a verdict.

A low completion loss deceives: colors alone, or one shift of the whole second image, explain much of it. So the
model is set against predictions that know only so much, on held-out procedural scenes and on real photos.

    zoo eval pairs croco_nano_patch8_64_dec128d4 --output evaluation.json
    zoo eval pairs runs/croco_nano --picture completions.png     # a run, also one still going

Every loss is CroCo's: the squared error of a hidden patch normalized by its own mean and deviation, averaged over
the hidden patches. It is split into color (the part of the error that is its per-channel mean over the patch's
pixels) and structure (the rest). Below, P are pairs, N patches of an image, n of them hidden, Q pixels of a patch.
"""

from zoo.evaluate.pairs.evaluation import evaluate, measure
from zoo.evaluate.pairs.matches import match_hits, true_matches, untrained
from zoo.evaluate.pairs.predictions import recorded_attention
from zoo.evaluate.pairs.report import draw_completions, print_result
from zoo.evaluate.pairs.sets import BATCH, HELD_OUT_SEED, Pairs, photo_pairs, scene_pairs
from zoo.evaluate.pairs.subject import Subject, load_subject

__all__ = [
    "BATCH",
    "HELD_OUT_SEED",
    "Pairs",
    "Subject",
    "draw_completions",
    "evaluate",
    "load_subject",
    "match_hits",
    "measure",
    "photo_pairs",
    "print_result",
    "recorded_attention",
    "scene_pairs",
    "true_matches",
    "untrained",
]
