"""What was measured of weights that were trained here, from the files beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.cards.markdown import grid, table
from tools.cards.wording import CLAIMS, MATCHERS, OWN_TASKS, PREDICTIONS
from zoo.catalog import VARIANTS, Variant
from zoo.lookup import find_variant
from zoo.train.data.loading import ENDLESS
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.schedule import make_plan

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "model_cards"
BUNDLED = ROOT / "zoo" / "weights" / "bundled"


_OF_PAIRS = ("cross_view_completion", "pointmaps", "stereo", "flow")


class CardError(Exception):
    """Something that a card needs is missing or contradicts the rest."""


def measured(variant: Variant) -> str:
    """How weights of the package were trained and what they do, from the files beside them; "" for other weights."""
    sources = [source for source in variant.sources if source.kind == "package"]
    if not sources:
        return _small_run(variant)
    if (whole := whole_of(variant)) is not None:
        name = whole.name
        return f"How these weights came about, and what they were measured to do, is on [{name}]({name}.md)'s card."
    weights = BUNDLED / sources[0].location
    run = _training_run(variant, weights.with_suffix(".training.json"))
    parts = [f"## The run that made these weights\n\n{run}", _evaluation(weights)]
    return "\n\n".join([*parts, *_pictures(variant)])


def whole_of(encoder: Variant) -> Variant | None:
    """The two-image or pretraining variant that a backbone's weights are a part of."""
    if encoder.form != "encoder" or not encoder.sources:
        return None
    wholes = (
        v for v in VARIANTS if v.form in ("binocular", "pretraining", "pointmaps") and v.sources == encoder.sources
    )
    return next(wholes, None)


def _pictures(variant: Variant) -> list[str]:
    """The pictures of an architecture, which are of its newest weights: those that its bare name loads."""
    if find_variant(variant.architecture) != variant:
        return []
    paths = sorted((CARDS / variant.architecture).glob("*.png"))
    return [f"![{path.stem.replace('_', ' ')}]({path.parent.name}/{path.name})" for path in paths]


def _small_run(variant: Variant) -> str:
    """What tools/record_run.py has put into the card's folder: how a run of the recipe went, and pictures."""
    folder = CARDS / variant.architecture
    record, parts = folder / "training.json", _pictures(variant)
    if record.exists():
        parts.insert(0, f"{_training_run(variant, record)}\n\nThe weights are not kept; the command makes them again.")
        if (evaluation := folder / "evaluation.json").exists():
            parts.insert(1, _own_task(evaluation))
        title = "A run of the recipe"
    else:
        title = "What it sees"
    return "\n\n".join([f"## {title}", *parts]) if parts else ""


def _training_run(variant: Variant, record: Path) -> str:
    recipe = load_recipe(variant.recipe)
    steps = make_plan(recipe, recipe.data.get("samples", ENDLESS)).steps
    samples = steps * recipe.batch_size
    with _record(record) as run:
        if (run["recipe"], run["seed"], run["steps"], run["samples"]) != (recipe.name, recipe.seed, steps, samples):
            raise CardError(
                f"it describes another run than the recipe {recipe.name}, which takes {steps} steps and {samples} "
                f"samples with seed {recipe.seed}; record the run that made the weights"
            )
        time = f"{run['hours']:.1f} hours" if run["hours"] >= 1 else f"{60 * run['hours']:.0f} minutes"
        rows = {
            "Length": f"{steps:,} steps, {samples:,} {kind_of_samples(recipe)}, {time}",
            "Where and when": f"{run['machine']}, torch {run['torch']}, {run['date']}",
            "Seed": run["seed"],
            "Loss when first logged": ", ".join(f"{loss:.4f}" for loss in run["first_losses"]),
            "Loss at the end": f"{run['final_loss']:.4f}",
        }
        text = f"```bash\n{run['command']}\n```\n\n{table(rows)}"
        if losses := run.get("reproduced_losses"):
            text += (
                f"\n\n<details><summary>The first {len(losses)} losses, the same to the last bit in a second run on "
                f"the same machine</summary>\n\n{' '.join(f'{loss:.9g}' for loss in losses)}\n\n</details>"
            )
        return text


def kind_of_samples(recipe: Recipe) -> str:
    return "pairs" if recipe.objective["name"] in _OF_PAIRS else "images"


def _own_task(path: Path) -> str:
    """The figure that `zoo eval pretext` measured of a run."""
    with _record(path) as result:
        figure = next(name for name in OWN_TASKS if name in result)
        return (
            f"{OWN_TASKS[figure]}: **{result[figure]:.1%}** of {result['samples']:,} "
            f"(chance: {result['chance']:.2%}; the bar: {result['bar']}; "
            f"{'held' if result['holds'] else 'missed'}). Measured by `zoo eval pretext` on {result['date']}, "
            f"images: {result['images']}."
        )


def _evaluation(weights: Path) -> str:
    with _record(weights.with_suffix(".evaluation.json")) as result:
        if result["model"]["sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
            raise CardError(f"it is about other weights than {weights.name}; evaluate those")
        if "points2" in result:
            return f"## What these weights do\n\n{_points(result)}"
        if "motorcycle" in result:
            return f"## What these weights do\n\n{_stereo(result)}"
        if "flow" in result:
            return f"## What these weights do\n\n{_flow(result)}"
        scenes, photos, settings = result["scenes"], result["photos"], result["settings"]
        claims = [
            f"- {CLAIMS[claim]} (`{claim}`): **{'yes' if outcome['holds'] else 'no'}**"
            for claim, outcome in result["verdict"].items()
        ]
        text = (
            f"Measured by `zoo eval pairs` on {settings['date'][:10]}, with torch {settings['torch']}: on "
            f"{scenes['pairs']} scenes that training never saw (seed {settings['scene_seed']}), and on "
            f"{photos['pairs']} crops of real photos ({settings['photos']}), with {settings['mask_ratio']:.0%} of "
            "image 1's patches hidden."
        )
        parts = [text, "\n".join(claims), _loss_rows(scenes, photos), _match_rows(scenes, photos)]
        parts += [_conditions(CLAIMS[claim], outcome["conditions"]) for claim, outcome in result["verdict"].items()]
        return "## What these weights do\n\n" + "\n\n".join(parts)


def _points(result: dict[str, Any]) -> str:
    """What `zoo eval points` has measured."""
    settings = result["settings"]
    rows = {
        f"Depth of view {i}, median relative error": f"{of['median_rel']:.1%}; the best constant depth: "
        f"{of['plane_median_rel']:.1%}"
        for i, of in ((1, result["depth1"]), (2, result["depth2"]))
    }
    rows |= {f"Depth of view {i} within a factor of 1.25": f"{result[f'depth{i}']['within_1.25']:.1%}" for i in (1, 2)}
    rows["Focal length, median relative error"] = f"{result['focal']['median_rel']:.1%}"
    for way, name in (("procrustes", "Procrustes"), ("pnp", "PnP")):
        if way in result:
            of = result[way]
            areas = ", ".join(f"{of[f'both_auc_{t}']:.2f}" for t in (5, 10, 20))
            rows[f"Relative pose by {name}"] = (
                f"median error of rotation {of['rotation_median']:.1f} degrees, of the direction of translation "
                f"{of['translation_median']:.1f}; area under the curve of the larger one up to 5, 10 and 20 degrees: "
                f"{areas}"
            )
    holds = result["verdict"]["beats_plane_by_a_third"]
    return (
        f"Measured by `zoo eval points` on {settings['date'][:10]}, with torch {settings['torch']}, on "
        f"{result['pairs']} scenes that training never saw (seed {settings['scene_seed']}), of the kind that it saw. "
        f"View 1's depth beats the best constant depth by a third: **{'yes' if holds else 'no'}**.\n\n{table(rows)}"
    )


def _stereo(result: dict[str, Any]) -> str:
    """What tools/bundle.py has measured of a stereo model, on a photo and on scenes."""
    lines = ["| | average error | > 1 px | > 2 px | > 3 px |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, row in (("these weights", "motorcycle"), ("OpenCV's SGBM", "sgbm"), ("the best constant", "constant")):
        lines.append(f"| photo, {name} | {' | '.join(f'{value:.2f}' for value in result[row].values())} |")
    lines.append(f"| scenes, these weights | {' | '.join(f'{value:.2f}' for value in result['scenes'].values())} |")
    settings = result["settings"]
    return (
        f"Measured on {settings['date']} with torch {settings['torch']}: the disparity's error in pixels and the "
        "shares (%) that are off by more, over all known pixels; of a real photo that no training saw (Middlebury's "
        f"motorcycle, 741x500, whole, `model.predict` as it comes), and of {settings['scenes']} held-out scenes of the "
        f"training's kind (seed {settings['scene_seed']}, 96x192 pixels).\n\n" + "\n".join(lines)
    )


_FLOW_FIGURES = ("EPE", "Fl", "bad@1.0", "bad@3.0", "bad@5.0", "s0-10", "s10-40", "s40+")


def _flow(result: dict[str, Any]) -> str:
    """What tools/bundle.py has measured of a flow model, on scenes and on a photo."""
    lines = ["| | " + " | ".join(_FLOW_FIGURES) + " |", "| --- |" + " ---: |" * len(_FLOW_FIGURES)]
    for place, pixels in (("scenes", "scenes"), ("matched", "their matched pixels"), ("photo", "photo")):
        for key, name in (("model", "these weights"), ("best_shift", "each pair's best shift"), ("no_flow", "no flow")):
            figures = [result["flow"][place][key][figure] for figure in _FLOW_FIGURES]
            cells = ["none" if figure is None else f"{figure:.2f}" for figure in figures]
            lines.append(f"| {pixels}, {name} | {' | '.join(cells)} |")
    settings = result["settings"]
    return (
        f"Measured on {settings['date']} with torch {settings['torch']}: the mean end-point error in pixels (EPE), "
        "the share (%) that is off by more than 3 pixels and 5 % (Fl) and by more than 1, 3 and 5 pixels, and the EPE "
        "where the true flow is 0 to 10, 10 to 40 and more pixels long. Of all known pixels, hidden ones too, of "
        f"{settings['scenes']} held-out scenes of the training's kind (seed {settings['scene_seed']}, 128x128 pixels); "
        "of those of these pixels that image 2 shows, too (matched); and of a real photo that no training saw "
        "(Middlebury's motorcycle, 741x500, whole, `model.predict` as it comes), whose flow is its disparity. A best "
        "shift is chosen with the truth at hand: the one vector with the smallest error.\n\n" + "\n".join(lines)
    )


def _loss_rows(scenes: dict[str, Any], photos: dict[str, Any]) -> str:
    bins = list(scenes["share_of_patches_by_displacement"])
    lines = []
    for name, row in scenes["losses"].items():
        real = photos["losses"][name]
        cells = [row["loss"], row["color"], row["structure"]]
        cells += [row["by_displacement"][key]["loss"] if key in row["by_displacement"] else math.nan for key in bins]
        cells += [real["loss"], real["color"], real["structure"]]
        lines.append([f"`{name}`: {PREDICTIONS[name]}", *(f"{cell:.3f}" for cell in cells)])
    titles = ["Prediction", "Loss", "Color", "Structure", *(f"{name} px" for name in bins)]
    note = (
        "Loss is the squared error of the hidden patches, each normalized by its own mean and deviation; color is the "
        "part of it that lies in the patch's mean color, structure the rest; columns in px are the loss of patches "
        "that the true geometry moves that far."
    )
    return f"{note}\n\n{grid([*titles, 'Photos: loss', 'Color', 'Structure'], lines)}"


def _match_rows(scenes: dict[str, Any], photos: dict[str, Any]) -> str:
    lines = []
    for name in scenes["matches"]["within_patch_width"]:
        shares = [
            part["matches"][key][name]
            for part in (scenes, photos)
            for key in ("within_patch_width", "within_patch_width_moved")
        ]
        lines.append([f"`{name}`: {_matcher(name)}", *(f"{share:.1%}" for share in shares)])
    note = (
        "How often the best match in image 2 of a hidden patch that image 2 shows lies within a patch width of the "
        "truth, over all of them and over those that lie farther than that from their place in image 1."
    )
    return f"{note}\n\n{grid(['Match by', 'Scenes', 'Moved', 'Photos', 'Moved'], lines)}"


def _matcher(name: str) -> str:
    if name.startswith("attention_"):
        return f"cross-attention of decoder block {name.removeprefix('attention_')}"
    return MATCHERS[name]


def _conditions(claim: str, conditions: list[dict[str, Any]]) -> str:
    lines = [
        [
            item["name"],
            f"{item['value']:.3f}",
            f"{item['relation']} {item['bar']:.3f}",
            "yes" if item["holds"] else "no",
        ]
        for item in conditions
    ]
    return f'"{claim}" means that all of these hold:\n\n{grid(["Condition", "Value", "Bar", "Holds"], lines)}'


@contextmanager
def _record(path: Path) -> Iterator[dict[str, Any]]:
    """A JSON file to make a part of a card from; whatever it lacks becomes a CardError that names the file."""
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CardError(f"{error.filename} is missing; cards of weights in the package are made from it") from None
    except (KeyError, TypeError) as error:
        raise CardError(f"{path} lacks or misstates {error}; write it again") from error
    except (CardError, ValueError) as error:
        raise CardError(f"{path}: {error}") from error
