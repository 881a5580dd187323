"""`zoo points`: a point cloud of two photos."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.catalog import DEFAULT_POINTMAPS
from zoo.cli._app import need, print_rows
from zoo.cli._models import load_named


def points(
    img1: Annotated[Path, typer.Argument(help="A photo.", exists=True, dir_okay=False)],
    img2: Annotated[Path, typer.Argument(help="Another view of the same scene.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The point cloud to write, .ply.")] = Path("cloud.ply"),
    glb: Annotated[bool, typer.Option("--glb", help="Write the cloud as .glb, too, beside it.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw photos, depths and the cloud into this picture.")] = None,
    depth: Annotated[Path | None, typer.Option(help="Folder for the depths, depth1.npy and depth2.npy.")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Least confidence of a point; default: the surest four fifths.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A pointmap variant, the folder of a training run, or OWNER/NAME on the Hub.")
    ] = DEFAULT_POINTMAPS,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights file to use in place of the published ones.", exists=True)
    ] = None,
) -> None:
    """Make a colored point cloud of two photos.

    Tells the focal length of both and how their cameras lie to each other.

    Example: zoo points left.jpg right.jpg -o cloud.ply --picture view.png
    """
    if glb:
        need("points", "trimesh")
    if picture is not None:
        need("demo", "matplotlib")
    import torch

    from zoo.geometry import write_glb, write_ply
    from zoo.pictures import save_figure
    from zoo.points import draw, reconstruct
    from zoo.train.data.matching.maps import write_map

    if output.suffix.lower() != ".ply":
        raise typer.BadParameter(f"{output} must end in .ply.")
    net, name = load_named(model, weights, "pointmaps", "gives no points")
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    found = reconstruct(net, img1, img2, confidence)
    x, y, z = found.center2.tolist()
    unit = "m" if name.endswith(".metric") else "of unknown units"
    print_rows(
        [
            ("model", name),
            ("focal", f"{found.focal1:.0f} pixels of {img1.name}, {found.focal2:.0f} of {img2.name}"),
            ("rotation", f"{found.rotation:.1f} degrees between the cameras"),
            ("camera 2", f"at {x:.3g}, {y:.3g}, {z:.3g} {unit} (right, down, ahead of camera 1)"),
            ("points", f"{len(found.points):,} of a confidence of at least {found.threshold:.2f}"),
            *([] if weights else _accuracy(name)),
        ]
    )
    print(write_ply(output, found.points, found.colors))
    if glb:
        print(write_glb(output.with_suffix(".glb"), found.points, found.colors))
    if depth is not None:
        for view, values in (("depth1", found.depth1), ("depth2", found.depth2)):
            write_map(depth / f"{view}.npy", values.numpy())
        print(depth)
    if picture is not None:
        print(save_figure(draw(found, name), picture))


def _accuracy(name: str) -> list[tuple[str, str]]:
    """What the package's own weights were measured to be worth for cameras, which no picture of one pair shows."""
    from zoo.weights.sources import BUNDLED

    measured = BUNDLED / f"{name}.evaluation.json"
    if not measured.is_file():
        return []
    way = "procrustes" if importlib.util.find_spec("cv2") is None else "pnp"  # as `relative_pose` chooses
    pose = json.loads(measured.read_text("utf-8"))[way]
    turned, aside = pose["rotation_median"], pose["translation_median"]
    off = f"rotation off by {turned:.0f} degrees, camera 2's direction by {aside:.0f}, medians on held-out scenes"
    return [("accuracy", off)]
