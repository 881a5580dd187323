"""The picture of a published model: what it has learned, on a photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo import pictures
from zoo.catalog import Variant
from zoo.demo import stereo_pair
from zoo.errors import DataError
from zoo.models.shared.masked import PatchPredictor
from zoo.publish.folder import COMPLETION, FEATURES
from zoo.scenes import SceneConfig, ScenePairs

_PICTURE_PATCHES = 32  # rows and columns of the features' picture


@torch.inference_mode()
def draw_example(model: Any, variant: Variant, folder: Path) -> None:
    """A picture of what a model in eval mode has learned: a completion if it makes some, else its features.

    Forms that neither complete nor have a backbone, and models of other than RGB images, get none. Changes the
    model's input size.
    """
    if model.in_chans != 3:
        return
    views = _example_views()
    completes = getattr(model, "head", model) is not None  # pairs may be made without
    if isinstance(model, PatchPredictor) and variant.form != "dense" and completes:
        figure = _draw_completion(model, variant, views)
        pictures.save_figure(figure, folder / COMPLETION)
        return
    encoder = getattr(model, "encoder", model)
    if not hasattr(encoder, "forward_intermediates"):
        return
    side = _PICTURE_PATCHES * encoder.feature_info[-1]["reduction"]
    if hasattr(encoder, "set_input_size"):  # convolutional networks take any size
        encoder.set_input_size((side, side))
    encoder.pretrained_cfg = model.pretrained_cfg  # the normalization
    image = pictures.to_input(views[0], encoder, (side, side))
    (maps,) = encoder.forward_intermediates(
        image, [getattr(encoder, "final_level", -1)], norm=True, intermediates_only=True
    )  # 1, D, h, w
    rows, columns = maps.shape[2:]
    colors = pictures.pca_rgb(maps[0].flatten(1).T).unflatten(0, (rows, columns)).numpy()
    figure = pictures.draw_images(
        [(pictures.to_pixels(image, model)[0], colors)],
        ("photo", "features"),
        "",
        f"Three principal components of the features as red, green and blue, a map of {rows} x {columns}.",
    )
    pictures.save_figure(figure, folder / FEATURES)


def _draw_completion(model: Any, variant: Variant, views: tuple[Any, Any]) -> Any:
    caption = pictures.completion_caption(model)
    img1, img2 = (pictures.to_input(view, model) for view in views)
    if variant.form == "binocular":
        row = pictures.picture_completion(model, img1, img2)
        return pictures.draw_completions([row], caption, "90% of a photo hidden")
    result = model.complete(img1, generator=torch.Generator().manual_seed(0))
    truth = pictures.to_pixels(img1, model)
    hidden = pictures.hide(truth, result.mask, model.patch_size)
    images = (hidden[0], pictures.to_pixels(result.image, model)[0], truth[0])
    return pictures.draw_images([images], ("input", "completion", "truth"), "75% of a photo hidden", caption, panel=2.4)


def _example_views() -> tuple[Any, Any]:
    """Two views of one scene, uint8 (H, W, 3): photos where scikit-image has them, else rendered."""
    try:
        window = stereo_pair().crop(20, 120, 448, 448)
        return window.left, window.right
    except DataError:
        scene = ScenePairs(SceneConfig(image_size=448))[0]
        return scene["image1"], scene["image2"]
