"""`zoo eval`: measuring what models have learned."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli._app import need, parse_size, print_table


class Precision(str, enum.Enum):
    """What training computes in."""

    fp32 = "fp32"
    bf16 = "bf16"


def eval_pairs(
    model_or_run: Annotated[
        str, typer.Argument(help="A two-image variant, the folder of a training run, or OWNER/NAME on the Hub.")
    ],
    pairs: Annotated[int, typer.Option(min=8, help="Number of held-out scenes.")] = 500,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the scenes; default: one that no recipe trains with.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result to this JSON file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw some completions into this picture.")] = None,
) -> None:
    """Measure what a two-image model takes from its second image.

    Its completions are set against predictions that know less, on held-out scenes and real photos.

    Example: zoo eval pairs runs/croco_nano --picture completions.png
    """
    need("eval", "accelerate", "rich", "skimage", "yaml", *(["matplotlib"] if picture is not None else []))
    from rich.console import Console

    from zoo.evaluate import pairs as evaluation
    from zoo.pictures import save_figure
    from zoo.weights.disk.files import write_json

    subject = evaluation.load_subject(model_or_run)
    with Console(stderr=True).status(f"evaluating {subject.name}, about a minute for a small model"):
        result, scenes, photos = evaluation.evaluate(subject, pairs, evaluation.HELD_OUT_SEED if seed is None else seed)
    evaluation.print_result(result)
    if output is not None:
        write_json(output, result)
    if picture is not None:
        sets = dict(scenes=scenes, photos=photos)
        print(save_figure(evaluation.draw_completions(subject.model, sets), picture))


def eval_points(
    model_or_run: Annotated[
        str, typer.Argument(help="A pointmap variant, the folder of a training run, or OWNER/NAME on the Hub.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="A folder of posed pairs; default: held-out scenes.", exists=True)
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 200,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the scenes; default: one that no recipe trains with.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result to this JSON file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw some pairs' depths into this picture.")] = None,
) -> None:
    """Measure a pointmap model's depth, focal length and relative poses.

    On held-out procedural scenes, or on your pairs with known depth and cameras.

    Example: zoo eval points runs/dust3r_nano --picture depths.png
    """
    need("eval", "accelerate", "rich", "yaml", *(["matplotlib"] if picture is not None else []))
    from rich.console import Console

    from zoo.evaluate import points as evaluation
    from zoo.evaluate.pairs.subject import load_subject
    from zoo.pictures import save_figure
    from zoo.weights.disk.files import write_json

    subject = load_subject(model_or_run, "pointmaps")
    seed = evaluation.HELD_OUT_SEED if seed is None else seed
    folder = None if data is None else str(data)
    with Console(stderr=True).status(f"evaluating {subject.name}, a minute or two for a small model"):
        result = evaluation.evaluate(subject, folder, pairs, seed)
    rows = [
        (part, name, f"{value:.4g}")
        for part, of in result.items()
        if part not in ("model", "settings", "verdict")
        for name, value in (of.items() if isinstance(of, dict) else [("", of)])
    ]
    print_table(("figure", "", "value"), *rows)
    holds = result["verdict"]["beats_plane_by_a_third"]
    print(f"View 1's depth {'beats' if holds else 'does not beat'} the best constant depth by a third.")
    if output is not None:
        write_json(output, result)
    if picture is not None:
        print(save_figure(evaluation.draw(subject, folder, seed), picture))


def eval_look(
    model_or_run: Annotated[
        str, typer.Argument(help="A two-image variant, the folder of a training run, or OWNER/NAME on the Hub.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path("look"),
) -> None:
    """Draw what a two-image model has learned: completions, attention, matches and features, before and after.

    Example: zoo eval look croco_nano_patch8_64_dec128d4 -o look
    """
    need("eval", "accelerate", "matplotlib", "rich", "skimage", "yaml")
    from zoo.evaluate.pairs import load_subject
    from zoo.evaluate.pictures import draw_learning

    for path in draw_learning(load_subject(model_or_run), output):
        print(path)


def eval_pretext(
    run: Annotated[Path, typer.Argument(help="Folder of a training run of PIRL, Jigsaw or Jigsaw Clustering.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The JSON file to write; default: RUN/evaluation.json.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many to measure with.")] = 1000,
) -> None:
    """Measure how well a run does its own pretext task.

    The samples are new ones, those that would come next if the run went on.

    Example: zoo eval pretext runs/pirl_nano --samples 500
    """
    need("train", "accelerate", "yaml")
    from zoo.evaluate.pretext import evaluate
    from zoo.weights.disk.files import write_json

    result = evaluate(run, samples)
    write_json(output or run / "evaluation.json", result)
    print_table(*((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in result.items()))


class OrderingKind(str, enum.Enum):
    """What an ordering is trained by: the recipes croco_ and mae_ of this kind."""

    nano = "nano"
    nano_rich = "nano_rich"


def eval_ordering(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; .json and .png are written beside it.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder of the training runs and of what was measured.")] = Path("runs/3d"),
    steps: Annotated[int, typer.Option(min=10, help="Of each pretraining.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="How many; 0 is the first.")] = 3,
    flow_steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning for flow.")] = 300,
    precision: Annotated[Precision, typer.Option(help="Of all training.")] = Precision.bf16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare training data.")] = 2,
    kind: Annotated[OrderingKind, typer.Option(help="Of the recipes: nano for a CPU, nano_rich for a GPU.")] = (
        OrderingKind.nano
    ),
    only: Annotated[
        int | None, typer.Option(min=0, help="Train and measure this seed, and write no page: for several at once.")
    ] = None,
    croco: Annotated[
        Path | None, typer.Option(help="A finished run to take for CroCo, with --mae: nothing is pretrained then.")
    ] = None,
    mae: Annotated[Path | None, typer.Option(help="A finished run to take for MAE, with --croco.")] = None,
) -> None:
    """Compare CroCo, a masked autoencoder and an untrained network.

    On three tasks in 3D, and on one that isn't. It trains all but the last, for
    hours; stopped, the same command goes on with what is in --runs.

    Example: zoo eval ordering --croco RUN --mae RUN --output ordering.md
    """
    need("eval", "accelerate", "matplotlib", "rich", "skimage", "sklearn", "yaml")
    from zoo.evaluate import ordering, ordering_page
    from zoo.evaluate.stereo_ordering import read_section, write_section
    from zoo.pictures import save_figure
    from zoo.weights.disk.files import atomic_writer, write_json

    if (croco is None) != (mae is None):
        raise typer.BadParameter("--croco and --mae go together: a finished run for each, or for neither.")
    options = f"--seeds {seeds} --flow-steps {flow_steps} --precision {precision.value} --runs {runs} --output {output}"
    if croco is not None and mae is not None:
        finished = dict(CroCo=croco, MAE=mae)
        command = f"zoo eval ordering --croco {croco} --mae {mae} {options}"
    else:
        finished = {}
        command = f"zoo eval ordering --steps {steps} --kind {kind.value} {options}"
    sizes = ordering.Sizes(flow_steps=flow_steps)
    which = list(range(seeds)) if only is None else [only]
    result = ordering.compare(steps, which, runs, sizes, precision.value, workers, command, kind.value, finished)
    if only is not None:
        print(runs)
        return
    ordering_page.print_table(result)
    write_json(output.with_suffix(".json"), result)
    picture = save_figure(ordering_page.draw(result), output.with_suffix(".png"))
    on_stereo = read_section(output)
    with atomic_writer(output) as file:
        file.write(ordering_page.page(result, picture.name).encode())
    if on_stereo:
        write_section(output, on_stereo)
    print(output)


class Renderer(str, enum.Enum):
    """Who draws and renders scenes."""

    workers = "workers"
    device = "device"


def eval_stereo_ordering(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page whose first section it is; .stereo.json, .stereo.png beside."),
    ],
    runs: Annotated[Path, typer.Option(help="Folder of the training runs and of what was measured.")] = Path("runs/3d"),
    pretraining_steps: Annotated[int, typer.Option(min=2, help="Of each pretraining.")] = 2000,
    steps: Annotated[int, typer.Option(min=2, help="Of each fine-tuning.")] = 1500,
    seeds: Annotated[int, typer.Option(min=1, help="How many; 0 is the first.")] = 3,
    size: Annotated[str, typer.Option(help="Height x width of the scenes that are fine-tuned on.")] = "96x192",
    pairs: Annotated[int, typer.Option(min=1, help="Held-out scenes to measure on.")] = 200,
    precision: Annotated[Precision, typer.Option(help="Of all training.")] = Precision.bf16,
    render: Annotated[Renderer, typer.Option(help="Who draws and renders scenes; a GPU does it soonest.")] = (
        Renderer.workers
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare each training's data.")] = 2,
) -> None:
    """Compare CroCo, a masked autoencoder's encoder and no pretraining on stereo matching.

    It trains all of them; stopped, the same command goes on with what is in --runs.

    Example: zoo eval stereo-ordering --output docs/3d_ordering.md --jobs 9 --render device
    """
    need("eval", "accelerate", "cv2", "matplotlib", "rich", "skimage", "yaml")
    from zoo.evaluate import stereo_ordering
    from zoo.pictures import save_figure
    from zoo.weights.disk.files import write_json

    image_size = parse_size(size)
    assert image_size is not None
    plan = stereo_ordering.Plan(pretraining_steps, steps, image_size, pairs, precision.value, render.value)
    options = f"--pretraining-steps {pretraining_steps} --steps {steps} --seeds {seeds} --size {size} --pairs {pairs}"
    where = f"--precision {precision.value} --render {render.value} --jobs {jobs} --runs {runs} --output {output}"
    command = f"zoo eval stereo-ordering {options} \\\n    {where}"
    result = stereo_ordering.compare(plan, list(range(seeds)), runs, jobs, workers, command)
    stereo_ordering.print_result(result)
    write_json(output.with_suffix(".stereo.json"), result)
    picture = save_figure(stereo_ordering.draw(result, runs), output.with_suffix(".stereo.png"))
    stereo_ordering.write_section(output, stereo_ordering.section(result, picture.name))
    print(output)
