"""`zoo features`, `zoo complete` and `zoo demo`: using models on photos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.catalog import DEFAULT_PAIR
from zoo.cli._app import need, parse_size
from zoo.cli._models import load_named

_Weights = Annotated[
    Path | None, typer.Option("--weights", help="Weights file to use in place of the published ones.", exists=True)
]
_Size = Annotated[
    str | None, typer.Option(help="Height x width to resize and crop photos to, such as 384x512; default: the model's.")
]


def features(
    model: Annotated[str, typer.Argument(help="A variant, the folder of a training run, or OWNER/NAME on the Hub.")],
    images: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", exists=True)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for shards, or NAME.safetensors for one file.")
    ],
    maps: Annotated[bool, typer.Option("--maps", help="Write feature maps (C, h, w), not pooled (C,).")] = False,
    size: _Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos at a time.")] = 16,
    shard_size: Annotated[int, typer.Option(min=1, max=10_000, help="Photos of a shard: what a kill may lose.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode photos.")] = 2,
    draft: Annotated[
        bool, typer.Option("--draft/--no-draft", help="Decode large JPEG files at a part of their size.")
    ] = True,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first photo that can't be read.")] = False,
    weights: _Weights = None,
) -> None:
    """Extract features of photos: into shards in a folder, or into one file.

    Stopped at any moment, the same command goes on. Photos that can't be read are listed beside the features. A
    two-image model gives its encoder's features. Runs on a GPU if there is one; `zoo.features.open_features` reads it.

    Example: zoo features crocov2_base_patch16_224 photos/ -o features/ --maps
    """
    import torch

    from zoo.features import Job, Options, run

    options = Options(maps, parse_size(size), batch_size, workers, draft, strict)
    job = Job(images, output, shard_size)
    net, name = load_named(model, weights)
    done = run(job, net.to("cuda" if torch.cuda.is_available() else "cpu"), name, options)
    what = "tensors" if job.one_file else f"photos in {done.shards:,} shard{'s' if done.shards > 1 else ''},"
    print(f"{done.output}: {done.photos:,} {what} of shape {done.shape}")
    if done.unreadable_list is not None:
        print(
            f"{done.unreadable:,} of {len(job.photos):,} photos can't be read; {done.unreadable_list} says why.",
            file=sys.stderr,
        )


def complete(
    img1: Annotated[Path, typer.Argument(help="The photo to hide and complete.", exists=True, dir_okay=False)],
    img2: Annotated[Path, typer.Argument(help="Another view of the same scene.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    model: Annotated[
        str, typer.Option(help="A two-image variant, the folder of a training run, or OWNER/NAME on the Hub.")
    ] = DEFAULT_PAIR,
    mask_ratio: Annotated[float, typer.Option(min=0.05, max=0.99, help="Share of the photo to hide.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Which patches are hidden.")] = 0,
    size: _Size = None,
    weights: _Weights = None,
) -> None:
    """Draw a photo rebuilt from a few patches and another view.

    Example: zoo complete left.jpg right.jpg -o completion.png --mask-ratio 0.75
    """
    need("demo", "matplotlib")
    from zoo import pictures

    img_size = parse_size(size)
    net, name = load_named(model, weights, "binocular", "can't complete photos")
    hidden, reference = (pictures.to_input(path, net, img_size) for path in (img1, img2))
    row = pictures.picture_completion(net, hidden, reference, "", mask_ratio, seed)
    figure = pictures.draw_completions([row], pictures.completion_caption(net), f"{name}, {mask_ratio:.0%} hidden")
    print(pictures.save_figure(figure, output))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
    model: Annotated[str, typer.Option(help="A binocular variant.")] = DEFAULT_PAIR,
    weights: _Weights = None,
) -> None:
    """Show completion, features, matches, disparity and points of a real stereo pair.

    The default model's weights and the photos need no network.

    Example: zoo demo --output demo
    """
    need("demo", "matplotlib", "skimage", "cv2")
    from zoo.demo import run_demo

    run_demo(output, model, weights)
