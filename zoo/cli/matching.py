"""`zoo stereo` and `zoo flow`: disparity and flow of one's own photos."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from zoo.cli._app import need
from zoo.cli._models import load_named
from zoo.errors import DataError, ImageError, UnknownVariantError

if TYPE_CHECKING:
    import numpy as np

STEREO_MODEL = "croco_nano_patch8_dec128d4_stereo"
FLOW_MODEL = "croco_nano_patch8_dec128d4_flow"

_Model = Annotated[str, typer.Option(help="A variant, the folder of a training run, or OWNER/NAME on the Hub.")]
_Scale = Annotated[
    float | None,
    typer.Option(
        min=0.05, max=8, help="Work on photos so many times as large; default: what the model is best at (`zoo info`)."
    ),
]
_Overlap = Annotated[
    float | None, typer.Option(min=0, max=0.99, help="Share of a tile that its neighbor repeats; default: the model's.")
]
_Truth = Annotated[Path | None, typer.Option(help="The true map: draws it and the error. Of many pairs a folder.")]
_Confidence = Annotated[bool, typer.Option("--confidence", help="Draw the confidence, too.")]
_TileBatch = Annotated[int, typer.Option(min=1, help="Tiles at a time.")]


class Job(NamedTuple):
    """A pair of photos, the name that its files get, and its truth."""

    image1: Path
    image2: Path
    name: str
    truth: Path | None


def stereo(
    left: Annotated[Path, typer.Argument(help="The left photo, a folder of them, or a list of pairs.")],
    right: Annotated[Path | None, typer.Argument(help="The right photo, or a folder; nothing for a list.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The picture to write, default: disparity.png; of many pairs the folder: disparity."
        ),
    ] = None,
    save: Annotated[
        str | None, typer.Option(help="Write the disparity as this .pfm or .npy file; of many pairs the ending.")
    ] = None,
    model: _Model = STEREO_MODEL,
    truth: _Truth = None,
    scale: _Scale = None,
    overlap: _Overlap = None,
    tile_batch: _TileBatch = 4,
    confidence: _Confidence = False,
    baseline: Annotated[float | None, typer.Option(help="Distance of the cameras: with it depth is metric.")] = None,
    focal: Annotated[float | None, typer.Option(help="Focal length in pixels of the photos.")] = None,
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view in degrees, in place of --focal.")] = None,
    points: Annotated[
        Path | None, typer.Option(help="Write a colored point cloud, .ply; of many pairs a folder.")
    ] = None,
    depth: Annotated[Path | None, typer.Option(help="Write the z-depth, .npy; of many pairs a folder.")] = None,
) -> None:
    """Turn rectified photos into disparity, depth and points.

    Two photos, two folders of them, or a list of lines "left right". Depth and points need --focal or --fov, and are
    in units of --baseline (default: 1, the distance of the cameras).

    Example: zoo stereo left.png right.png -o disparity.png --save disparity.pfm
    """
    need("demo", "matplotlib")
    import numpy as np

    from zoo.geometry.clouds import write_ply
    from zoo.matching import colored_points, depth_of, draw_stereo, focal_of
    from zoo.train.data.matching.maps import check_ending, read_truth, write_map

    jobs, many = _jobs(left, right, truth)
    output = output or Path("disparity" if many else "disparity.png")
    _check_output(output, many)
    check_ending("" if save is None else f".{save.rpartition('.')[2]}", "stereo")
    if (points is not None or depth is not None) and focal is None and fov is None:
        raise ImageError("Depth needs the camera's focal length; give --focal in pixels or --fov in degrees.")
    if focal is not None and fov is not None:
        raise ImageError("A focal length and a field of view say the same; give one of --focal and --fov.")
    net, name = load_matcher(model, "stereo")
    for job in _progress(jobs, many):
        image, found = _predict(net, job, scale, overlap, tile_batch)
        true = None if job.truth is None else read_truth(job.truth, "stereo")
        _check_truth(true, found.disparity, job)
        sure = found.confidence if confidence else None
        figure = draw_stereo(image, found.disparity, true, sure, f"{job.name}, {name}")
        _save_figure(figure, output, job, many)
        if save is not None:
            write_map(_place(save, output, job, many), found.disparity)
        if points is None and depth is None:
            continue
        length = focal if focal is not None else focal_of(float(fov or 0), image.shape[1])
        z = depth_of(found.disparity, length, 1.0 if baseline is None else baseline)
        if depth is not None:
            write_map(depth / f"{job.name}.npy" if many else depth, z)
        if points is not None:
            farthest = float(np.percentile(z[np.isfinite(z)], 99)) if np.isfinite(z).any() else 0.0
            cloud = colored_points(z, image, length, farthest)
            write_ply(points / f"{job.name}.ply" if many else points, *cloud)
    _tell(output if many else None, None if many else save, depth, points)


def flow(
    image1: Annotated[Path, typer.Argument(help="The first photo, a folder of them, or a list of pairs.")],
    image2: Annotated[Path | None, typer.Argument(help="The second photo, or a folder; nothing for a list.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The picture to write, default: flow.png; of many pairs the folder: flow."),
    ] = None,
    save: Annotated[
        str | None, typer.Option(help="Write the flow as this .flo or .npy file; of many pairs the ending.")
    ] = None,
    model: _Model = FLOW_MODEL,
    truth: _Truth = None,
    scale: _Scale = None,
    overlap: _Overlap = None,
    tile_batch: _TileBatch = 4,
    confidence: _Confidence = False,
) -> None:
    """Turn two photos into optical flow: where what one shows lies in the other.

    Two photos, two folders of them, or a list of lines "image1 image2".

    Example: zoo flow frame1.png frame2.png -o flow.png --save flow.flo
    """
    need("demo", "matplotlib")
    from zoo.matching import draw_flow
    from zoo.train.data.matching.maps import check_ending, read_truth, write_map

    jobs, many = _jobs(image1, image2, truth)
    output = output or Path("flow" if many else "flow.png")
    _check_output(output, many)
    check_ending("" if save is None else f".{save.rpartition('.')[2]}", "flow")
    net, name = load_matcher(model, "flow")
    for job in _progress(jobs, many):
        image, found = _predict(net, job, scale, overlap, tile_batch)
        true = None if job.truth is None else read_truth(job.truth, "flow")
        _check_truth(true, found.flow, job)
        sure = found.confidence if confidence else None
        figure = draw_flow(image, found.flow, true, sure, f"{job.name}, {name}")
        _save_figure(figure, output, job, many)
        if save is not None:
            write_map(_place(save, output, job, many), found.flow)
    _tell(output if many else None, None if many else save)


def load_matcher(model: str, task: str) -> tuple[Any, str]:
    """The dense two-image model of a variant, a run's folder, or a Hub repository, on a GPU if there is one; its name.

    Raises UnknownVariantError (a ValueError) for a model of another kind.
    """
    import torch

    net, name = load_named(model, None, "dense", f"predicts no {task}")
    if net.value_channels != {"stereo": 1, "flow": 2}[task]:
        raise UnknownVariantError(f"{name} predicts no {task}; choose one of `zoo list --form dense` that does.")
    return net.to("cuda" if torch.cuda.is_available() else "cpu"), name


def _predict(net: Any, job: Job, scale: float | None, overlap: float | None, tile_batch: int) -> tuple[np.ndarray, Any]:
    from zoo.photos import read_image

    images = [read_image(path) for path in (job.image1, job.image2)]
    try:
        return images[0], net.predict(*images, scale=scale, overlap=overlap, tile_batch=tile_batch)
    except ImageError as error:
        raise ImageError(f"{job.image1} and {job.image2}: {error}") from error


def _jobs(first: Path, second: Path | None, truth: Path | None) -> tuple[list[Job], bool]:
    """What is asked for, and whether it is many pairs."""
    from zoo.train.data.matching.pairs import read_list

    if second is not None and first.is_dir() != second.is_dir():
        raise DataError(f"One of {first} and {second} is a folder and the other isn't; give two photos or two folders.")
    if second is not None and not first.is_dir():
        return [Job(first, second, first.stem, truth)], False
    if second is not None:
        photos = [_photos(folder) for folder in (first, second)]
        if len(photos[0]) != len(photos[1]) or not photos[0]:
            raise DataError(
                f"{first} holds {len(photos[0])} photos and {second} {len(photos[1])}; as many are needed, since they "
                "are paired in the order of their names."
            )
        pairs: list[tuple[Path, Path, Path | None]] = [(one, two, None) for one, two in zip(*photos)]
    else:
        if not first.is_file() or first.suffix.lower() in _PHOTOS:
            raise DataError(f"{first} alone is no pair; give two photos, two folders, or a list file of pairs.")
        pairs = [(entry.image1, entry.image2, entry.truth) for entry in read_list(first, columns=(2, 3))]
    names = [one.stem for one, _, _ in pairs]
    if len(set(names)) < len(names):  # every camera numbers its frames
        names = [f"{number:05d}_{name}" for number, name in enumerate(names)]
    if truth is not None:
        pairs = [(one, two, _truth_of(one, truth)) for one, two, _ in pairs]
    return [Job(one, two, name, true) for (one, two, true), name in zip(pairs, names)], True


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _PHOTOS)


def _truth_of(photo: Path, folder: Path) -> Path:
    """The map of a photo's name in the folder of truths."""
    found = sorted(folder.glob(f"{glob.escape(photo.stem)}.*")) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder} is no folder with a map called {photo.stem}; the truth of many pairs is one.")
    return found[0]


_PHOTOS = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def _progress(jobs: list[Job], many: bool) -> Iterator[Job]:
    from tqdm import tqdm

    return iter(tqdm(jobs, unit="pair", disable=None if many else True))


def _check_truth(truth: np.ndarray | None, found: np.ndarray, job: Job) -> None:
    if truth is not None and truth.shape != found.shape:
        raise DataError(
            f"The truth {job.truth} is {truth.shape[0]}x{truth.shape[1]} pixels large and {job.image1} "
            f"{found.shape[0]}x{found.shape[1]}; give the one that belongs to it."
        )


def _save_figure(figure: Any, output: Path, job: Job, many: bool) -> None:
    from zoo.pictures import save_figure

    path = save_figure(figure, output / f"{job.name}.png" if many else output)
    if not many:
        print(path)


def _check_output(output: Path, many: bool) -> None:
    """Raises DataError, before anything is computed, where pictures can't go."""
    if not many and output.is_dir():
        raise DataError(f"{output} is a folder; name the picture in it, such as {output / 'picture.png'}.")


def _tell(*written: Path | str | None) -> None:
    """Say where else something was written."""
    for path in written:
        if path is not None:
            print(path)


def _place(save: str, output: Path, job: Job, many: bool) -> Path:
    """Where a map goes: `save`, or of many pairs beside the pictures, with that ending."""
    if not many:
        return Path(save)
    return output / f"{job.name}.{save.rpartition('.')[2]}"


_Data = Annotated[
    list[str], typer.Option(help="SET:SPLIT=PATH, such as sintel:subval_clean=PATH, or the path of a list; repeatable.")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="The first so many pairs of each set only.")]
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="The folder of results and pictures; a stopped one goes on.")
]


def eval_stereo(
    model: Annotated[str, typer.Argument(help="A variant, the folder of a training run, or OWNER/NAME on the Hub.")],
    data: _Data,
    output: _Output = Path("evaluation") / "stereo",
    overlap: _Overlap = None,
    scale: _Scale = None,
    limit: _Limit = None,
    tile_batch: _TileBatch = 4,
) -> None:
    """Measure a stereo model on data sets with a truth.

    Whole images by tiles; with `accelerate launch -m zoo.cli` on several GPUs.

    Example: zoo eval stereo MODEL --data middlebury_eval3:subval_full=PATH --data eth3d:subval=PATH
    """
    _evaluate(model, "stereo", data, output, overlap, scale, limit, tile_batch)


def eval_flow(
    model: Annotated[str, typer.Argument(help="A variant, the folder of a training run, or OWNER/NAME on the Hub.")],
    data: _Data,
    output: _Output = Path("evaluation") / "flow",
    overlap: _Overlap = None,
    scale: _Scale = None,
    limit: _Limit = None,
    tile_batch: _TileBatch = 4,
) -> None:
    """Measure a flow model on data sets with a truth.

    Whole images by tiles; with `accelerate launch -m zoo.cli` on several GPUs.

    Example: zoo eval flow MODEL --data sintel:subval_clean=PATH --data sintel:subval_final=PATH
    """
    _evaluate(model, "flow", data, output, overlap, scale, limit, tile_batch)


def _evaluate(
    model: str,
    task: str,
    data: list[str],
    output: Path,
    overlap: float | None,
    scale: float | None,
    limit: int | None,
    tile_batch: int,
) -> None:
    need("eval", "accelerate", "matplotlib")
    from zoo.evaluate import matching as evaluation

    wishes = [evaluation.parse_wish(text) for text in data]
    net, name = load_matcher(model, task)
    result = evaluation.evaluate(net, name, task, wishes, output, overlap, scale, limit, tile_batch)
    if result["sets"]:  # the main process's
        evaluation.print_result(result)
        print(output / "result.json")
