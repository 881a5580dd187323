"""Make the model cards, and the README's table of variants, from the catalog.

    python tools/make_cards.py            write model_cards/*.md and the table
    python tools/make_cards.py --check    name those that are missing or not what would be written, exit with 1

Cards of weights in the package also say how these were trained and what they do, from two files beside them:
<weights>.training.json, written by whoever trained them (command, recipe, seed, steps, samples, hours, machine,
torch, date, first_losses, final_loss), and <weights>.evaluation.json, written by `zoo eval pairs`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's zoo, installed or not

import zoo  # noqa: F401  (registers the models)
from zoo.catalog import VARIANTS, Variant
from zoo.lookup import find_variant
from zoo.models._masked import MaskedAutoencoder
from zoo.models.itpn import ITPNClip
from zoo.models.resnet import JigsawClusteringModel, JigsawModel
from zoo.train.data.loading import ENDLESS
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.schedule import make_plan

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
BUNDLED = ROOT / "zoo" / "weights" / "bundled"
README = ROOT / "README.md"
BEGIN, END = "<!-- variants:begin -->", "<!-- variants:end -->"

LICENSES = {
    "CC-BY-NC-SA-4.0": (
        "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/). You may use, share and change them, "
        "but not commercially; you must name their authors; and what you make from them and share, such as "
        "fine-tuned weights, must be under the same license."
    ),
    "MIT": (
        "the [MIT license](https://opensource.org/license/mit). You may use, share and change them, commercially too, "
        "as long as the license's text stays with them."
    ),
    "Apache-2.0": (
        "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0). You may use, share and change them, "
        "commercially too, as long as the license and its notices stay with them."
    ),
}

FAMILIES = {
    "croco": (
        "CroCo is pretrained on pairs of photos of one scene from two viewpoints: most of the first photo is hidden, "
        "and the network rebuilds it with the help of the second. To do that well, it has to find out what corresponds "
        "to what: so it learns the geometry of scenes without labels."
    ),
    "convmae": (
        "ConvMAE is pretrained by hiding three quarters of an image's patches and rebuilding their pixels. Two "
        "convolutional stages come before the transformer; their convolutions are masked, so that nothing leaks from "
        "hidden patches, and here they run on the visible ones only."
    ),
    "hivit": (
        "HiViT is a hierarchical vision transformer that keeps every 16x16 patch separate until its main stage, so "
        "that in masked pretraining hidden patches are left out from the first layer on."
    ),
    "itpn": (
        "iTPN puts a feature pyramid on HiViT and pretrains both together by masked image modeling, so that the neck "
        "of a detector or segmenter is not trained from nothing."
    ),
    "fast_itpn": (
        "Fast-iTPN is iTPN's faster successor: convolutional first stages, a plain transformer with gated MLPs as the "
        "main one, pretrained to predict the tokens of a CLIP teacher at hidden patches."
    ),
    "pirl": (
        "PIRL trains a plain ResNet, timm's own, to embed an image and a jigsaw of its patches alike, and unlike the "
        "other images of the data, which a memory bank holds."
    ),
    "jigclu": (
        "Jigsaw Clustering cuts every image of a batch into overlapping quarters, shuffles all of them and tiles them "
        "into montages. A plain ResNet, timm's own, sees only these and learns to tell which quarters came from one "
        "image, and where each one stood."
    ),
    "jigsaw": (
        "Jigsaw shuffles nine patches of an image by one of a fixed set of permutations; a plain ResNet, timm's own, "
        "learns to tell by which."
    ),
}
"""What a newcomer should know of a family."""

ABOUT = {
    "encoder": "This is its backbone for single images, with the whole of timm's protocol.",
    "pretraining": (
        "This is the whole of what pretraining trains: take it to go on with pretraining or to look at the pretext "
        "task. For features take the backbone."
    ),
    ("croco", "encoder"): (
        "This is its encoder: a vision transformer for single photos, without class token. Fine-tune it for dense "
        "geometric tasks such as depth or surface normals."
    ),
    ("croco", "pretraining"): (
        "This is its encoder without the second photo: a masked autoencoder (MAE), which rebuilds the hidden patches "
        "of a photo from the visible ones alone. It is CroCo's control in comparisons."
    ),
    ("croco", "binocular"): (
        "This is its encoder with the two-image decoder: called with two photos, it gives the tokens of the first in "
        "the light of the second. Fine-tune it for stereo matching, optical flow, relative pose and other tasks on "
        "two photos; it can also show how it completes a hidden one."
    ),
    ("croco", "dense"): (
        "This is its encoder with the two-image decoder and a DPT head, fine-tuned with ground truth: unlike the "
        "other forms, it does its task as it is."
    ),
}
"""What a newcomer should know of a form; of all families' if the family has no text of its own."""

CHANNELS = {
    2: "the disparity in pixels and its confidence",
    3: "the flow along x, along y (both in pixels) and its confidence",
}
"""What the dense forms' channels are, by their number."""

TILING = {2: "beta=30, scale=10", 3: "beta=10, scale=5"}
"""The reference's weighting of tiles for stereo and for flow."""

PREDICTIONS = {
    "right": "**the model, with the true second view**",
    "wrong": "the model, with a view of another place",
    "self": "the model, with image 1 itself as the second",
    "shuffled": "the model, with the second view's patches in disorder",
    "zeros": "each patch's mean",
    "copy": "image 2 at the same place",
    "copy_one_scalar": "the same, best scaled",
    "color_copy": "image 2's color at the same place",
    "color_copy_one_scalar": "the same, best scaled",
    "global_shift": "image 2, shifted as a whole",
    "global_shift_one_scalar": "the same, best scaled",
    "global_shift_two_scalars": "the same, color and structure best scaled",
    "oracle": "image 2, warped by the true geometry",
}
MATCHERS = {
    "features": "the encoder's tokens",
    "untrained_features": "the tokens of an untrained encoder",
    "pixels": "normalized pixels",
    "same_place": "staying in place",
    "chance": "chance",
}
CLAIMS = {
    "uses_reference": "It makes use of the second image",
    "matches_views": "It makes use of the second image by finding what corresponds to what",
}
"""What `zoo eval pairs` calls its rows, its matches and the claims of its verdict."""


OWN_TASKS = {
    "own_image_nearest": "Jigsaws whose nearest vector in the whole bank is their own image's",
    "permutation_accuracy": "Permutations found",
    "location_accuracy": "Quarters whose place is found",
}
"""What `zoo eval pretext` measures."""


class CardError(Exception):
    """Something that a card needs is missing or contradicts the rest."""


# ------------------------------------------------------------------------------------------- sections


def front_matter(variant: Variant) -> str:
    """The YAML that the Hugging Face Hub reads."""
    tags = ["pretext-zoo", "self-supervised-learning", variant.family]
    if variant.form == "dense":
        tags.append({2: "stereo-matching", 3: "optical-flow"}[variant.args["out_chans"]])
    lines = [f"license: {variant.license.lower()}", "library_name: timm", "pipeline_tag: image-feature-extraction"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def introduction(variant: Variant) -> str:
    text = f"{FAMILIES[variant.family]} {ABOUT.get((variant.family, variant.form)) or ABOUT[variant.form]}"
    if (whole := _whole_of(variant)) is not None:
        what = "the decoder, for tasks on two photos" if whole.form == "binocular" else "what pretraining adds to it"
        text += f" [{whole.name}]({whole.name}.md) has the same weights with {what}."
    if not variant.sources:
        text += " **It has no published weights**: it is here to be trained."
    elif variant.sources[0].kind == "package":
        text += (
            " This one is small, for lessons, tests and machines without a GPU, and was trained on rendered scenes: "
            "for work on photos, take a larger one."
        )
    return f"# {variant.name}\n\n{variant.description}.\n\n{text}"


def _whole_of(encoder: Variant) -> Variant | None:
    """The two-image or pretraining variant that a backbone's weights are a part of."""
    if encoder.form != "encoder" or not encoder.sources:
        return None
    wholes = (v for v in VARIANTS if v.form in ("binocular", "pretraining") and v.sources == encoder.sources)
    return next(wholes, None)


def usage(variant: Variant) -> str:
    parts = [_timm_lines(variant)]
    if variant.form == "dense":
        parts.append(
            f"The result's channels are {CHANNELS[variant.args['out_chans']]}. The last one, which the reference calls "
            "confidence, grows with the expected error: the larger, the less sure. `forward_tiled` cuts images that "
            "are larger than the training crops into overlapping tiles and averages these, less sure pixels weighing "
            "less; `overlap=0.9` is slower than the default of 0.7 and what the authors' submissions used."
        )
    if variant.form == "binocular":
        parts.append(
            "`complete` is for looking at: it brings predicted patches back to pixels with the true mean and "
            "deviation of each hidden patch, as the reference's demo does, which flatters the picture. Say so where "
            "you show it."
        )
    if variant.tag:
        parts.append(_hub_lines(variant))
    return "## How to load it\n\n" + "\n\n".join(parts)


@cache
def _model(name: str, **args: Any) -> Any:
    """The variant's model without data: it knows the shapes of everything."""
    return timm.create_model(name, device="meta", **args).eval()


def _shape(tensor: torch.Tensor) -> str:
    return ", ".join(map(str, tensor.shape))


def _timm_lines(variant: Variant) -> str:
    """Lines that run as they are; a comment that starts with numbers is the shape of what its line assigns."""
    body = {"encoder": _encoder_lines, "pretraining": _pretraining_lines, "binocular": _pair_lines}
    lines = body.get(variant.form, _dense_lines)(variant, ", pretrained=True" if variant.tag else "")
    head = ["import timm", "import torch", "from PIL import Image"]
    if variant.form == "dense":
        head.append("from torchvision.transforms.functional import normalize, to_tensor")
    head += ["", "import zoo  # registers the zoo's architectures with timm", "", f'name = "{variant.name}"']
    return "```python\n" + "\n".join(head) + f"\n{lines}\n```"


def _image_lines(variant: Variant, *names: str) -> str:
    """Photos as the model takes them, under the names of their files."""
    return "\n".join(
        [
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # resize, normalize",
            *(
                f'{name} = transform(Image.open("{name}.jpg").convert("RGB")).unsqueeze(0)  # 1, '
                + ", ".join(map(str, variant.input_size))
                for name in names
            ),
        ]
    )


class _Shapes(NamedTuple):
    features: str
    vector: str
    maps: str
    strides: list[int]
    tokens: bool


@cache
def _encoder_shapes(name: str, input_size: tuple[int, int, int], size: tuple[int, int], sized: bool) -> _Shapes:
    """What a backbone gives for an image of its input size, and as features_only for one of `size`."""
    model, image = _model(name), torch.empty(1, *input_size, device="meta")
    backbone = _model(name, features_only=True, **({"img_size": size} if sized else {}))
    with torch.no_grad():
        features, vector = model.forward_features(image), model(image)
        maps = backbone(torch.empty(1, 3, *size, device="meta"))
    return _Shapes(
        _shape(features), _shape(vector), _shape(maps[-1]), backbone.feature_info.reduction(), features.ndim == 3
    )


def _encoder_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    size = (height + 32, 2 * width)
    shapes = _encoder_shapes(variant.name, variant.input_size, size, _sized(variant))
    tokens = "one for each patch, row by row" if shapes.tokens else "a map"
    result = f"scores of the {variant.num_classes:,} classes" if variant.num_classes else "their mean"
    at_size = ", img_size=size" if _sized(variant) else ""
    strides = ", ".join(map(str, shapes.strides))
    return f"""model = timm.create_model(name{weights}).eval()
{_image_lines(variant, "photo")}
with torch.inference_mode():
    features = model.forward_features(photo)  # {shapes.features}: {tokens}
    vector = model(photo)  # {shapes.vector}: {result}

# maps for dense heads, at strides {strides}, of images of any size that {shapes.strides[-1]} divides
size = {size}
backbone = timm.create_model(name{weights}, features_only=True{at_size}).eval()
deepest = backbone(torch.rand(1, 3, *size))[-1]  # {shapes.maps}"""


def _sized(variant: Variant) -> bool:
    """Whether a model is made for one input size; plain convolutional ones take any."""
    return variant.family not in ("pirl", "jigclu", "jigsaw")


def _pretraining_lines(variant: Variant, weights: str) -> str:
    model, shape = _model(variant.name), ", ".join(map(str, variant.input_size))
    image = torch.empty(1, *variant.input_size, device="meta")
    lines = [f"model = timm.create_model(name{weights}).eval()", _image_lines(variant, "photo")]
    if isinstance(model, MaskedAutoencoder):
        lines.append(
            f"image = model.complete(photo, mask_ratio=0.75).image  # 1, {shape}: the photo, hidden patches predicted"
        )
    elif isinstance(model, ITPNClip):
        rows, columns = model.encoder.grid_size
        lines += [
            f"mask = torch.rand(1, {rows * columns}) < 0.4  # the patches that it is not to see",
            "with torch.inference_mode():",
            f"    tokens, auxiliary = model(photo, mask)  # 1, {rows * columns}, {model.head.out_features} both: the "
            "teacher's tokens, as predicted",
        ]
    elif isinstance(model, JigsawModel):
        side = variant.input_size[1] // 3
        cut = f"photo.unfold(2, {side}, {side}).unfold(3, {side}, {side}).flatten(2, 3).transpose(1, 2)"
        lines += [
            f"patches = {cut}  # 1, 9, 3, {side}, {side}",
            "with torch.inference_mode():",
            f"    scores = model(patches)  # 1, {model.permutations}: of the orders that the patches may be in",
        ]
    elif isinstance(model, JigsawClusteringModel):
        with torch.no_grad():
            vectors, places = model(image)
        lines += [
            "with torch.inference_mode():",
            f"    vectors, places = model(photo)  # of a montage's quarters: {_shape(vectors)} and {_shape(places)}",
        ]
    else:
        with torch.no_grad():
            embedding = _shape(model(image))
        lines += ["with torch.inference_mode():", f"    vector = model(photo)  # {embedding}: the image's embedding"]
    return "\n".join(lines)


def _pair_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    patch, dim, shape = variant.args.get("patch_size", 16), variant.args["decoder_dim"], f"1, 3, {height}, {width}"
    num = (height // patch) * (width // patch)
    return f"""model = timm.create_model(name{weights}).eval()
{_image_lines(variant, "left", "right")}
with torch.inference_mode():
    tokens = model(left, right)  # 1, {num}, {dim}: the left image in the light of the right one
    tokens1, tokens2 = model(left, right, symmetric=True)  # both ways, encoding each image once
    maps = model.forward_intermediates(left, right, indices=4, output_fmt="NCHW")  # of the last four blocks
    image = model.complete(left, right, mask_ratio=0.9).image  # {shape}: the left one, hidden patches predicted"""


def _dense_lines(variant: Variant, weights: str) -> str:
    _, height, width = variant.input_size
    channels, crop = variant.args["out_chans"], f"[..., :{height}, :{width}]"
    return f"""model = timm.create_model(name{weights}).eval()


def read(path):
    return normalize(to_tensor(Image.open(path).convert("RGB")), {list(variant.mean)}, {list(variant.std)})[None]


left, right = read("left.jpg"), read("right.jpg"){"  # a rectified pair" if channels == 2 else ""}
with torch.inference_mode():
    dense = model(left{crop}, right{crop})  # 1, {channels}, {height}, {width}: of a crop
    whole = model.forward_tiled(left, right, {TILING[channels]})  # the same for images of any larger size"""


def _hub_lines(variant: Variant) -> str:
    return f"""With torch.hub, from a clone of the repository (or by its name on GitHub, without `source`):

```python
import torch

model = torch.hub.load(
    "path/to/pretext-zoo", "{variant.architecture}", source="local", weights="{variant.tag}"
)
```

There `weights` may also be a file that you have: a checkpoint of the reference code or safetensors of the zoo."""


def facts(variant: Variant) -> str:
    channels, height, width = variant.input_size
    patch = variant.args.get("patch_size", 16)
    rows = {
        "Input": f"RGB, {channels} x {height} x {width}; other sizes that the patch of {patch} divides by `img_size` "
        "(one size) or `dynamic_img_size=True` (any)",
        "Normalization": f"values 0 to 1, then mean {_numbers(variant.mean)}, deviation {_numbers(variant.std)}",
        "Parameters": f"{variant.parameters:,} trained",
    }
    if variant.form in ("binocular", "dense"):
        rows["Input"] = f"two RGB images, trained at {channels} x {height} x {width}; any size that {patch} divides"
    elif not _sized(variant):
        rows["Input"] = f"RGB, trained at {channels} x {height} x {width}; takes any size"
    return f"## Input and size\n\n{_table(rows)}"


def license_and_source(variant: Variant) -> str:
    if not variant.sources:
        return "## License\n\nThe code is under Apache-2.0; there are no weights to be licensed."
    text = "## License and source of the weights\n\n"
    if variant.license == "unknown":
        text += "Their authors state no license for the weights: ask them before you share these or build on them."
    else:
        text += f"The weights are under {LICENSES[variant.license]}"
    if variant.license != "Apache-2.0":
        text += " The zoo's code is under Apache-2.0, which does not extend to these weights."
    source = variant.sources[0]
    if source.kind == "package":
        return f"{text}\n\nThey are inside the package, as `zoo/weights/bundled/{source.location}`."
    part = " Its encoder is used." if _whole_of(variant) else ""
    where = source.location
    if source.kind == "gdrive":
        where = f"https://drive.google.com/file/d/{source.location}"
        part += " Downloads from Google Drive need `pip install 'pretext-zoo[drive]'`."
    return (
        f"{text}\n\nThey come from the authors' checkpoint, <{where}>, a PyTorch pickle.{part} The zoo reads "
        "it without running any code in it, checks every key and shape, and keeps the result in its cache as "
        "safetensors under its own names. The file's SHA-256 is recorded at the first download, and a later "
        "one must have the same. On machines without network, name a folder that holds "
        f"`{variant.name}.safetensors` in `ZOO_WEIGHTS`."
    )


def training(variant: Variant) -> str:
    lines = [f"## Training\n\n{variant.training}".rstrip()]
    if variant.recipe:
        recipe = load_recipe(variant.recipe)
        link = f"[{recipe.name}](../zoo/train/recipes/{recipe.name}.yaml)"
        if not variant.sources:
            lines.append(
                f"Nobody has trained it yet. A run would start from the recipe {link} with `model` set to "
                f"`{variant.architecture}`:"
            )
        elif variant.sources[0].kind == "package":
            lines.append(f"The recipe is {link}:")
        else:
            lines.append(f"The authors' recipe, restated in {link} but not run at full length here ({recipe.source}):")
        lines.append(_recipe_table(recipe))
    return "\n\n".join(lines)


def _recipe_table(recipe: Recipe) -> str:
    optimizer, plan = recipe.optimizer, recipe.schedule
    stop = f", stopped at {plan.stop:g}" if plan.stop else ""
    how = f"momentum {optimizer.momentum:g}" if optimizer.momentum else f"betas {_numbers(optimizer.betas)}"
    rows = {
        "Objective": _words(recipe.objective),
        "Data": _words(recipe.data),
        "Batch": f"{recipe.batch_size} {_samples(recipe)}",
        "Optimizer": f"{optimizer.name}, {how}, weight decay {optimizer.weight_decay:g}, peak learning rate "
        f"{recipe.learning_rate():g}",
        "Schedule": f"{plan.warmup:g} {plan.unit} of linear warm-up, cosine over {plan.length:g} {plan.unit}{stop}",
        "Precision": recipe.precision,
    }
    if recipe.init:
        rows = {"Starts from": f"`{recipe.init}`"} | rows
    for setting, points in recipe.curriculum.items():
        rows[f"Changes: {setting}"] = ", ".join(f"{value} from step {step}" for step, value in points)
    return _table(rows)


def _words(settings: dict[str, Any]) -> str:
    """A recipe's nested settings on one line: the kind of thing first, then its settings."""
    first, *rest = settings.items()
    return "; ".join([str(first[1]), *(f"{key} {value}" for key, value in rest)]).replace("_", " ")


def measured(variant: Variant) -> str:
    """How weights of the package were trained and what they do, from the files beside them; "" for other weights."""
    sources = [source for source in variant.sources if source.kind == "package"]
    if not sources:
        return _small_run(variant)
    if (whole := _whole_of(variant)) is not None:
        name = whole.name
        return f"How these weights came about, and what they were measured to do, is on [{name}]({name}.md)'s card."
    weights = BUNDLED / sources[0].location
    run = _training_run(variant, weights.with_suffix(".training.json"))
    parts = [f"## The run that made these weights\n\n{run}", _evaluation(weights)]
    return "\n\n".join([*parts, *_pictures(variant)])


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
            "Length": f"{steps:,} steps, {samples:,} {_samples(recipe)}, {time}",
            "Where and when": f"{run['machine']}, torch {run['torch']}, {run['date']}",
            "Seed": run["seed"],
            "Loss when first logged": ", ".join(f"{loss:.4f}" for loss in run["first_losses"]),
            "Loss at the end": f"{run['final_loss']:.4f}",
        }
        text = f"```bash\n{run['command']}\n```\n\n{_table(rows)}"
        if losses := run.get("reproduced_losses"):
            text += (
                f"\n\n<details><summary>The first {len(losses)} losses, the same to the last bit in a second run on "
                f"the same machine</summary>\n\n{' '.join(f'{loss:.9g}' for loss in losses)}\n\n</details>"
            )
        return text


def _samples(recipe: Recipe) -> str:
    return "pairs" if recipe.objective["name"] == "cross_view_completion" else "images"


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
    return f"{note}\n\n{_grid([*titles, 'Photos: loss', 'Color', 'Structure'], lines)}"


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
    return f"{note}\n\n{_grid(['Match by', 'Scenes', 'Moved', 'Photos', 'Moved'], lines)}"


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
    return f'"{claim}" means that all of these hold:\n\n{_grid(["Condition", "Value", "Bar", "Holds"], lines)}'


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


def published(variant: Variant) -> str:
    if any(source.kind == "package" for source in variant.sources):
        return ""  # nobody else has measured them
    if not variant.metrics:
        return "## Published figures\n\nNone are listed here; those of the paper are in its tables."
    lines = [
        f"| {m.task} | {m.dataset} | {m.name} | {m.value:g} | {m.conditions} | {m.source} |" for m in variant.metrics
    ]
    head = "| Task | Data | Measure | Value | Conditions | Source |\n| --- | --- | --- | ---: | --- | --- |"
    note = "Measured by others with the authors' code, not with the zoo's."
    return f"## Published figures\n\n{head}\n" + "\n".join(lines) + f"\n\n{note}"


def limits(variant: Variant) -> str:
    points = []
    if (variant.family, variant.form) == ("croco", "encoder"):
        points.append(
            "It was trained for geometry, not for categories: for classification or retrieval, start from another "
            "backbone."
        )
    if variant.form == "binocular":
        points.append(
            "It gives tokens, not disparities, flows or poses: those take a head and fine-tuning. Where the second "
            "photo does not show what is hidden in the first, a completion is a guess."
        )
    if variant.form == "dense":
        points.append(
            "It does one task, on images like those that it was fine-tuned on; the authors fine-tuned it further for "
            "some benchmarks, with weights that are not in the zoo."
        )
    if any(source.kind in ("url", "gdrive") for source in variant.sources):
        points.append(
            "Nobody could download this file where the zoo was made. The conversion fits all of the reference's key "
            "names and shapes, and small models with random weights give what the reference's code gave "
            "(tests/golden); with these weights themselves, no figure was measured again."
        )
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points) if points else ""


def citation(variant: Variant) -> str:
    paper = variant.paper
    return f"""## Citation

```bibtex
@inproceedings{{{paper.bibtex_key},
  title = {{{{{paper.title}}}}},
  author = {{{paper.authors}}},
  booktitle = {{{paper.venue}}},
  year = {{{paper.year}}},
  eprint = {{{paper.arxiv}}},
  archivePrefix = {{arXiv}},
}}
```

Paper: <https://arxiv.org/abs/{paper.arxiv}>"""


def _table(rows: dict[str, Any]) -> str:
    """Names and values; without titles, which Markdown can't leave out."""
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _grid(titles: list[str], lines: list[list[str]]) -> str:
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


# ------------------------------------------------------------------------------ cards, table and files


SECTIONS = (introduction, usage, facts, license_and_source, training, measured, published, limits, citation)


def card(variant: Variant) -> str:
    """The whole card. Raises CardError when something it needs is missing."""
    sections = [front_matter(variant), *(section(variant) for section in SECTIONS)]
    return "\n\n".join(section for section in sections if section) + "\n"


def variants_table() -> str:
    """A row for each variant, with a link to its card."""
    rows = [
        f"| [`{v.name}`](model_cards/{v.name}.md) | {v.description} | {v.parameters / 1e6:.1f} M | "
        f"{'x'.join(map(str, v.input_size[1:]))} | {v.license if v.sources else 'no weights'} |"
        for v in VARIANTS
    ]
    head = "| Variant | What it is | Parameters | Input | License of the weights |\n| --- | --- | ---: | --- | --- |"
    return "\n".join([head, *rows])


def readme(text: str) -> str:
    """A README with its table of variants made anew; one without the markers stays as it is."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{variants_table()}\n{END}{after}" if begin and end else text


def wanted() -> tuple[dict[Path, str], list[str]]:
    """What every file should hold, and why some cards can't be made."""
    files, problems = {}, []
    for variant in VARIANTS:
        try:
            files[CARDS / f"{variant.name}.md"] = card(variant)
        except CardError as error:
            problems.append(f"{variant.name}: {error}")
    if README.exists():
        files[README] = readme(README.read_text(encoding="utf-8"))
    return files, problems


def stale(files: dict[Path, str]) -> list[Path]:
    """Files that are missing or differ, and cards of variants that the catalog no longer has."""
    differing = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    names = {f"{variant.name}.md" for variant in VARIANTS}
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
