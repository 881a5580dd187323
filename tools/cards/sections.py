"""A card's sections, made from the catalog."""

from __future__ import annotations

from typing import Any

from tools.cards.lines import hub_lines, sized, timm_lines
from tools.cards.markdown import numbers, table
from tools.cards.records import kind_of_samples, measured, whole_of
from tools.cards.wording import ABOUT, CHANNELS, FAMILIES, HEADERS_ONLY, LICENSES
from zoo.catalog import VARIANTS, Source, Variant
from zoo.train.recipe import RECIPES, Recipe, load_recipe, recipe_path


def front_matter(variant: Variant) -> str:
    """The YAML that the Hugging Face Hub reads."""
    tags = ["pretext-zoo", "self-supervised-learning", variant.family]
    if variant.form == "dense":
        tags.append({2: "stereo-matching", 3: "optical-flow"}[variant.args["out_chans"]])
    lines = [f"license: {variant.license.lower()}", "library_name: timm", "pipeline_tag: image-feature-extraction"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def introduction(variant: Variant) -> str:
    text = f"{FAMILIES[variant.family]} {ABOUT.get((variant.family, variant.form)) or ABOUT[variant.form]}"
    if (whole := whole_of(variant)) is not None:
        what = {
            "binocular": "the decoder, for tasks on two photos",
            "pointmaps": "decoders and heads, for pointmaps",
        }.get(whole.form, "what pretraining adds to it")
        text += f" [{whole.name}]({whole.name}.md) has the same weights with {what}."
    if not variant.sources:
        text += " **It has no published weights**: it is here to be trained."
    elif variant.sources[0].kind == "package":
        text += (
            " This one is small, for lessons, tests and machines without a GPU, and was trained on rendered scenes: "
            "for work on photos, take a larger one."
        )
    return f"# {variant.name}\n\n{variant.description}.\n\n{text}"


def usage(variant: Variant) -> str:
    parts = [timm_lines(variant)]
    if variant.form == "dense":
        (height, width), overlap = variant.args["tile_size"], variant.args["tile_overlap"]
        parts.append(
            f"The result's channels are {CHANNELS[variant.args['out_chans']]}. The last one, which the reference calls "
            "confidence, grows with the expected error: the larger, the less sure. `forward_tiled` cuts images into "
            f"tiles of the training crop, {height}x{width} pixels, and averages these, less sure pixels weighing less; "
            f"smaller images are enlarged for it. Tiles overlap by {overlap:g} of their size"
            + (", as in the authors' evaluation; `overlap=0.7`, as in their demo, is faster." if overlap > 0.7 else ".")
        )
    if variant.form == "pointmaps":
        parts.append(
            '`model.predict("left.jpg", "right.jpg")` takes photos of any size and orientation, and gives arrays of '
            "numpy and where each point's pixel lies in its photo. `zoo points left.jpg right.jpg -o cloud.ply` makes "
            "a point cloud of them."
        )
    if variant.form == "binocular":
        parts.append(
            "`complete` is for looking at: it brings predicted patches back to pixels with the true mean and "
            "deviation of each hidden patch, as the reference's demo does, which flatters the picture. Say so where "
            "you show it."
        )
    if variant.tag:
        parts.append(hub_lines(variant))
    return "## How to load it\n\n" + "\n\n".join(parts)


def facts(variant: Variant) -> str:
    channels, height, width = variant.input_size
    patch = variant.args.get("patch_size", 16)
    rows = {
        "Input": f"RGB, {channels} x {height} x {width}; other sizes that the patch of {patch} divides by `img_size` "
        "(one size) or `dynamic_img_size=True` (any)",
        "Normalization": f"values 0 to 1, then mean {numbers(variant.mean)}, deviation {numbers(variant.std)}",
        "Parameters": f"{variant.parameters:,} trained",
    }
    if variant.form == "pointmaps" and height != width:
        rows["Input"] = (
            f"two RGB images, {width} pixels long and {height}, 336, 288, 256 or 160 wide, either way up; takes any "
            f"size that {patch} divides"
        )
    elif variant.form in ("binocular", "dense", "pointmaps"):
        rows["Input"] = f"two RGB images, trained at {channels} x {height} x {width}; any size that {patch} divides"
    elif not sized(variant):
        rows["Input"] = f"RGB, {channels} x {height} x {width} in evaluations; takes any size"
    return f"## Input and size\n\n{table(rows)}"


def license_and_source(variant: Variant) -> str:
    if not variant.sources:
        return "## License\n\nThe code is under Apache-2.0; there are no weights to be licensed."
    text = "## License and source of the weights\n\n"
    if variant.license == "unknown":
        text += "Their authors state no license for the weights: ask them before you share these or build on them."
    elif variant.family in HEADERS_ONLY:
        text += f"{variant.notice} So the weights are taken to be under {LICENSES[variant.license]}"
    else:
        text += f"The weights are under {LICENSES[variant.license]}"
    if variant.license != "Apache-2.0":
        text += " The zoo's code is under Apache-2.0, which does not extend to these weights."
    if variant.notice and variant.family not in HEADERS_ONLY:
        text += f" {variant.notice}"
    source = variant.sources[0]
    if source.kind == "package":
        return f"{text}\n\nThey are inside the package, as `zoo/weights/bundled/{source.location}`."
    part = " Its encoder is used." if whole_of(variant) else ""
    if any(other.kind == "gdrive" for other in variant.sources):
        part += " Downloads from Google Drive need `pip install 'pretext-zoo[drive]'`."
    if source.kind == "hub":
        return f"{text}\n\n{_from_the_hub(variant, part)}"
    if others := [f"<{_address(other)}>" for other in variant.sources[1:]]:
        part += f" If it can't be had there, it is taken from {' or '.join(others)}."
    if source.recorded_sha256:
        part += f" One record says that its SHA-256 is {source.recorded_sha256}."
    return (
        f"{text}\n\nThey come from the authors' checkpoint, <{_address(source)}>, a PyTorch pickle.{part} The zoo "
        "reads it without running any code in it, checks every key and shape, and keeps the result in its cache as "
        "safetensors under its own names. The file's SHA-256 is recorded at the first download, and a later "
        "one must have the same. On machines without network, name a folder that holds "
        f"`{variant.name}.safetensors` in `ZOO_WEIGHTS`."
    )


def _from_the_hub(variant: Variant, part: str) -> str:
    source, *others = variant.sources
    text = f"They come from the authors' repository on the Hugging Face Hub, <https://huggingface.co/{source.location}>"
    if len(source.revision) == 40:
        text += f", at the commit {source.revision} if the Hub knows it, or else as they are now"
    text += (
        f".{part} The zoo checks every key and shape, and the settings of config.json, and keeps the result in its "
        "cache as safetensors under its own names. The commit and the SHA-256 of what comes first are recorded, and "
        "demanded ever after."
    )
    if others:
        text += f" Where the Hub has them not, the authors' pickle is read without running it: <{others[0].location}>."
    offline = f"On machines without network, name a folder that holds `{variant.name}.safetensors` in `ZOO_WEIGHTS`."
    return f"{text} {offline}"


def _address(source: Source) -> str:
    return f"https://drive.google.com/file/d/{source.location}" if source.kind == "gdrive" else source.location


def training(variant: Variant) -> str:
    lines = [f"## Training\n\n{variant.training}".rstrip()]
    if variant.recipe:
        recipe = load_recipe(variant.recipe)
        link = f"[{recipe.name}](../zoo/train/recipes/{recipe_path(recipe.name).relative_to(RECIPES).as_posix()})"
        if not variant.sources:
            lines.append(
                f"No weights of it are published. A run would start from the recipe {link} with `model` set to "
                f"`{variant.architecture}`{_start(variant)}:"
            )
        elif variant.sources[0].kind == "package":
            lines.append(f"The recipe is {link}:")
        elif recipe.init in (variant.name, variant.architecture):
            lines.append(
                f"Its pretraining's code is not published. The authors' fine-tuning of it is restated in {link}, but "
                f"was not run at full length here ({recipe.source}):"
            )
        else:
            lines.append(f"The authors' recipe, restated in {link} but not run at full length here ({recipe.source}):")
        lines.append(_recipe_table(recipe))
    elif variant.unknown:
        lines.append("The zoo has no recipe for it.")
    if variant.unknown:
        lines.append(variant.unknown)
    return "\n\n".join(lines)


def _start(variant: Variant) -> str:
    """How a run of a pretraining form can start from the published encoder in it."""
    encoder = next((v for v in VARIANTS if v.sources and f"{v.architecture}_mae" == variant.architecture), None)
    return f", and with `init` set to `{encoder.name}` it starts from the published encoder" if encoder else ""


def _recipe_table(recipe: Recipe) -> str:
    optimizer, plan = recipe.optimizer, recipe.schedule
    unit = plan.unit.removesuffix("s") if plan.warmup == 1 else plan.unit
    start = f" from {plan.warmup_lr:g}" if plan.warmup_lr else ""
    warmup = f"{plan.warmup:g} {unit} of linear warm-up{start}, " if plan.warmup else ""
    stop = f", stopped at {plan.stop:g}" if plan.stop else ""
    shape = f"cosine over {plan.length:g} {plan.unit}"
    if plan.milestones:
        shape = f"{plan.length:g} {plan.unit}, the rate times {plan.gamma:g} at " + ", ".join(
            f"{milestone:g}" for milestone in plan.milestones
        )
    how = f"momentum {optimizer.momentum:g}" if optimizer.momentum else f"betas {numbers(optimizer.betas)}"
    rows = {
        "Objective": _words(recipe.objective),
        "Data": _words(recipe.data),
        "Batch": f"{recipe.batch_size} {kind_of_samples(recipe)}",
        "Optimizer": f"{optimizer.name}, {how}, weight decay {optimizer.weight_decay:g}, peak learning rate "
        f"{recipe.learning_rate():g}",
        "Schedule": f"{warmup}{shape}{stop}",
        "Precision": recipe.precision,
    }
    if recipe.accumulate > 1:
        rows["Accumulation"] = f"each batch in {recipe.accumulate} parts"
    if recipe.ema is not None:
        rows["Moving average"] = f"of the weights, decay {recipe.ema:g}"
    if recipe.init:
        rows = {"Starts from": f"`{recipe.init}`"} | rows
    for setting, points in recipe.curriculum.items():
        rows[f"Changes: {setting}"] = ", ".join(f"{value} from step {step}" for step, value in points)
    return table(rows)


def _words(settings: dict[str, Any]) -> str:
    """A recipe's nested settings on one line: the kind of thing first, then its settings."""
    first, *rest = settings.items()
    return "; ".join([str(first[1]), *(f"{key} {value}" for key, value in rest)]).replace("_", " ")


def published(variant: Variant) -> str:
    if any(source.kind == "package" for source in variant.sources):
        return ""  # nobody else has measured them
    if not variant.metrics:
        return "## Published figures\n\nNone are listed here; those of the paper are in its tables."
    lines = [f"| {m.task} | {m.dataset} | {m.name} | {m.value} | {m.conditions} | {m.cited} |" for m in variant.metrics]
    head = "| Task | Data | Measure | Value | Conditions | Source |\n| --- | --- | --- | ---: | --- | --- |"
    note = "Measured by others with the authors' code, not with the zoo's."
    if any(metric.secondary for metric in variant.metrics):
        note += (
            " A secondary source is another than what the authors have published; figures from there were not checked "
            "against that."
        )
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
            "It does one task, on images like those that it was fine-tuned on; for KITTI, ETH3D and Spring the authors "
            "fine-tuned further, and these weights have tags of their own."
        )
    if variant.form == "pointmaps":
        points.append(
            "It takes two photos; more of them need an alignment of many pairs, which is not in the zoo. Scale is "
            f"{'metric where the scene is like those of its training' if variant.tag == 'metric' else 'unknown'}, and "
            "mirrors, glass and sky have no right points."
        )
    if any(source.kind in ("url", "gdrive", "hub") for source in variant.sources):
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


SECTIONS = (introduction, usage, facts, license_and_source, training, measured, published, limits, citation)


def card(variant: Variant) -> str:
    """The whole card. Raises CardError when something it needs is missing."""
    sections = [front_matter(variant), *(section(variant) for section in SECTIONS)]
    return "\n\n".join(section for section in sections if section) + "\n"
