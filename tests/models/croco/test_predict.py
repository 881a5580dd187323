"""`predict` of dense two-image models: whatever people hold photos in, of whatever size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.models.croco.test_tiles import Ramp
from zoo.errors import ImageError
from zoo.models.croco import DensePairModel
from zoo.models.croco.predict import to_batch

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> DensePairModel:
    tiny = dict(embed_dim=16, depth=4, num_heads=2, decoder_dim=16, decoder_depth=4, decoder_num_heads=2)
    head = dict(
        layer_dims=(8, 8, 8, 8), feature_dim=8, last_dim=8, img_size=(32, 48), tile_size=(32, 48), tile_overlap=0.5
    )
    torch.manual_seed(0)
    net: Any = timm.create_model("croco_nano_patch8_dec128d4_stereo", **tiny, **head)
    return net.eval()


def made_of(kind: str, folder: Path) -> Any:
    """ARRAY in another form."""
    image, tensor = Image.fromarray(ARRAY), torch.from_numpy(ARRAY).permute(2, 0, 1)
    image.save(folder / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    alpha = np.dstack([ARRAY, RNG.integers(0, 256, ARRAY.shape[:2]).astype(np.uint8)])
    return {
        "array": ARRAY,
        "array with alpha": alpha,
        "flipped array": ARRAY[::-1][::-1],
        "PIL": image,
        "PIL with alpha": Image.fromarray(alpha),
        "PIL turned by EXIF": Image.open(folder / "turned.png"),
        "file": folder / "photo.png",
        "name of a file": str(folder / "photo.png"),
        "tensor": tensor,
        "tensor of a batch": tensor[None],
        "float tensor": tensor / 255,
        "double tensor with gradients": (tensor.double() / 255).requires_grad_(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("array with alpha", "flipped array", "PIL", "PIL with alpha", "PIL turned by EXIF", "file", "name of a file"),
        *("tensor", "tensor of a batch", "float tensor", "double tensor with gradients"),
    ],
)
def test_the_same_photo_in_any_form(kind: str, tmp_path: Path) -> None:
    torch.testing.assert_close(to_batch(made_of(kind, tmp_path)), to_batch(ARRAY), atol=1e-6, rtol=0)


def test_grays(tmp_path: Path) -> None:
    gray = ARRAY[..., 0]
    expected = to_batch(np.repeat(gray[..., None], 3, axis=2))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for form in (gray, gray[..., None], Image.fromarray(gray), torch.from_numpy(gray)[None], tmp_path / "deep.png"):
        assert torch.equal(to_batch(form), expected)
    assert torch.equal(to_batch(Image.open(tmp_path / "deep.png")), expected)  # 16 bits
    assert to_batch(Image.fromarray(gray > 127)).unique().tolist() == [0, 1]  # a bit a pixel
    assert to_batch(Image.fromarray(ARRAY).quantize(8)).shape == (1, 3, 40, 56)  # a palette


@pytest.mark.parametrize(
    "size", [(40, 56), (56, 40), (16, 24), (33, 47), (31, 100), (100, 31), (7, 9), (1, 1), (64, 96), (65, 97)]
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_any_size(model: DensePairModel, size: tuple[int, int], scale: float) -> None:
    image1, image2 = RNG.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    found: Any = model.predict(image1, image2, scale=scale)
    assert found.disparity.shape == found.confidence.shape == size
    assert found.disparity.dtype == np.float32 and np.isfinite(found.disparity).all()


def test_values_are_in_the_photos_pixels() -> None:
    """Whatever they were enlarged or reduced to."""
    model: Any = Ramp((10.0, 20.0, -1.0), tile_size=(32, 64), photo_scale=0.5)
    for height, width in ((128, 256), (30, 100), (128, 66)):
        image = np.zeros((height, width, 3), np.uint8)
        found = model.predict(image, image)
        looked_at = round(height / 2), round(width / 2)
        factor = max(1.0, 32 / looked_at[0], 64 / looked_at[1])
        seen = [max(tile, round(side * factor)) for side, tile in zip(looked_at, (32, 64))]
        assert found.flow.shape == (height, width, 2)
        np.testing.assert_allclose(found.flow[..., 0], 10 * width / seen[1], rtol=1e-5)
        np.testing.assert_allclose(found.flow[..., 1], 20 * height / seen[0], rtol=1e-5)
        np.testing.assert_allclose(found.confidence, -1, rtol=1e-5)


def test_it_is_what_forward_gives(model: DensePairModel) -> None:
    image1, image2 = RNG.integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    model.train()
    found: Any = model.predict(image1, image2, scale=1)
    assert model.training
    model.eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        dense = model(*((to_batch(x) - mean) / std for x in (image1, image2)))
    np.testing.assert_allclose(found.disparity, dense[0, 0], atol=1e-4, rtol=1e-4)
    half: Any = timm.create_model(
        "croco_nano_patch8_dec128d4_stereo", depth=4, img_size=(32, 48), tile_size=(32, 48)
    ).bfloat16()
    assert np.isfinite(half.predict(image1, image2, scale=1).disparity).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (ARRAY.astype(np.float32), "float32"),
        (ARRAY.astype(np.uint16), "uint16"),
        (np.moveaxis(ARRAY, -1, 0), "no image"),
        (ARRAY[:0], "no image"),
        (ARRAY[None], "no image"),
        (torch.rand(2, 3, 8, 8), "no image"),
        (torch.rand(3, 8, 8) * 255, "from 0 to 1"),
        (torch.full((3, 8, 8), torch.nan), "from 0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "from 0 to 1"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "8 or 16 bits"),
        (7, "A int is no image"),
        ("none.png", "There is no image"),
    ],
)
def test_what_is_no_image(model: DensePairModel, bad: Any, message: str) -> None:
    for pair in ((bad, ARRAY), (ARRAY, bad)):
        with pytest.raises(ImageError, match=message):
            model.predict(*pair)


def test_pairs_and_settings_that_do_not_fit(model: DensePairModel) -> None:
    with pytest.raises(ImageError, match=r"differ in size \(40x56 and 40x55 pixels\)"):
        model.predict(ARRAY, ARRAY[:, :-1])
    strip = np.zeros((2, 400, 3), np.uint8)
    with pytest.raises(ImageError, match="too narrow"):
        model.predict(strip, strip, scale=1)
    for settings, message in (
        (dict(scale=0), "positive scale"),
        (dict(scale=float("nan")), "positive scale"),
        (dict(tile_batch=0), "computes no tile"),
        (dict(overlap=1.0), "can't cover"),
    ):
        with pytest.raises(ImageError, match=message):
            model.predict(ARRAY, ARRAY, **settings)
