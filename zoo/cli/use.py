"""`zoo features`, `zoo complete` and `zoo demo`: using models on photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.catalog import DEFAULT_PAIR
from zoo.cli._app import load_model, parse_size
from zoo.errors import ImageError, UnknownVariantError
from zoo.lookup import find_variant

if TYPE_CHECKING:
    from torch import Tensor

_Model = Annotated[str, typer.Argument(help="A variant, or an architecture for its first tag.")]
_Weights = Annotated[
    Path | None, typer.Option("--weights", help="Weights file to use in place of the published ones.", exists=True)
]
_Size = Annotated[
    str | None, typer.Option(help="Height x width to resize and crop photos to, such as 384x512; default: the model's.")
]


def features(
    model: _Model,
    images: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", exists=True)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    maps: Annotated[bool, typer.Option("--maps", help="Write feature maps (C, h, w), not pooled (C,).")] = False,
    size: _Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos at a time.")] = 16,
    weights: _Weights = None,
) -> None:
    """Extract features of photos into a .safetensors file.

    It gets one tensor a photo, under the photo's path. A two-image model gives its encoder's features. Runs on
    a GPU if there is one.

    Example: zoo features crocov2_base_patch16_224 photos/ -o features.safetensors --maps
    """
    import torch
    from tqdm import tqdm

    from zoo.pictures import check_size, to_input
    from zoo.weights import save_safetensors

    variant = find_variant(model)
    paths = _find_photos(images)
    img_size = parse_size(size)
    net = load_model(variant, weights)
    encoder: Any = net if variant.form == "encoder" else net.encoder
    if img_size is not None:
        check_size(net, img_size)
        if hasattr(encoder, "set_input_size"):  # convolutional networks take any size
            encoder.set_input_size(img_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    found: dict[str, Tensor] = {}
    with torch.inference_mode(), tqdm(total=len(paths), desc=variant.name, unit="photo", disable=None) as bar:
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            batch = torch.cat([to_input(path, net, img_size) for path in chunk]).to(device)
            if maps:
                level = getattr(encoder, "final_level", -1)
                (values,) = encoder.forward_intermediates(batch, [level], norm=True, intermediates_only=True)
            else:
                values = encoder.forward_head(encoder.forward_features(batch), pre_logits=True)
            found.update(zip((path.as_posix() for path in chunk), values.cpu(), strict=True))
            bar.update(len(chunk))
    save_safetensors(found, output, {"format": "pt", "variant": variant.name})
    print(f"{output}: {len(found)} tensors of shape {tuple(values.shape[1:])}")


def complete(
    img1: Annotated[Path, typer.Argument(help="The photo to hide and complete.", exists=True, dir_okay=False)],
    img2: Annotated[Path, typer.Argument(help="Another view of the same scene.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    model: Annotated[str, typer.Option(help="A binocular variant.")] = DEFAULT_PAIR,
    mask_ratio: Annotated[float, typer.Option(min=0.05, max=0.99, help="Share of the photo to hide.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Which patches are hidden.")] = 0,
    size: _Size = None,
    weights: _Weights = None,
) -> None:
    """Draw a photo rebuilt from a few patches and another view.

    Example: zoo complete left.jpg right.jpg -o completion.png --mask-ratio 0.75
    """
    from zoo import pictures

    variant = find_variant(model)
    if variant.form != "binocular":
        raise UnknownVariantError(
            f"{variant.name} ({variant.form}) can't complete photos; choose one of `zoo list --form binocular`."
        )
    img_size = parse_size(size)
    net = load_model(variant, weights)
    hidden, reference = (pictures.to_input(path, net, img_size) for path in (img1, img2))
    row = pictures.picture_completion(net, hidden, reference, "", mask_ratio, seed)
    figure = pictures.draw_completions(
        [row], pictures.completion_caption(net), f"{variant.name}, {mask_ratio:.0%} hidden"
    )
    print(pictures.save_figure(figure, output))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
    model: Annotated[str, typer.Option(help="A binocular variant.")] = DEFAULT_PAIR,
    weights: _Weights = None,
) -> None:
    """Show completion, features and matches of a real stereo pair.

    The default model's weights and the photos need no network.

    Example: zoo demo --output demo
    """
    from zoo.demo import run_demo

    run_demo(output, model, weights)


_PHOTO_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def _find_photos(paths: Iterable[Path]) -> list[Path]:
    """The files as they are given, and all photos below the folders."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PHOTO_SUFFIXES)
        if not inside:
            raise ImageError(f"The folder {path} holds no photos; they end in {', '.join(sorted(_PHOTO_SUFFIXES))}.")
        found += inside
    return found
