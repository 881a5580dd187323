"""The demo, and the pictures it shares with the `zoo` command and notebooks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from zoo import pictures
from zoo.demo import check_matches, mutual_matches, run_demo, stereo_pair
from zoo.errors import DataError, ImageError, UnknownVariantError
from zoo.layers.masking import random_mask
from zoo.photos import read_image

NANO = "croco_nano_patch8_64_dec128d4"


def test_demo_with_packaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = run_demo(tmp_path / "demo")
    assert sorted((tmp_path / "demo").iterdir()) == sorted(paths)
    (cloud,) = (path for path in paths if path.suffix == ".ply")
    assert cloud.read_bytes().startswith(b"ply") and cloud.stat().st_size > 1_000_000
    for path in paths:
        if path == cloud:
            continue
        image = np.asarray(Image.open(path).convert("RGB"))
        assert min(image.shape[:2]) > 400
        assert image.std() > 40  # something is on it
    told = capsys.readouterr().out
    assert "2.9 M parameters, from package" in told
    assert "encoder (2, 3072, 192)" in told
    assert "disparity.png: off by 2.58 pixels; 40 / 21 / 15 %" in told
    share = float(told.split(" patches matched, ")[1].partition("%")[0])
    assert share > 80


def test_demo_refuses_encoders(tmp_path: Path) -> None:
    with pytest.raises(UnknownVariantError, match="choose one of"):
        run_demo(tmp_path / "demo", model="croco_nano_patch8_64")
    assert not list(tmp_path.iterdir())


def test_demo_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DataError, match="pip install"):
        stereo_pair()


def test_stereo_pair_agrees_with_its_disparity() -> None:
    pair = stereo_pair()
    ys, xs = np.nonzero(np.isfinite(pair.disparity))
    there = np.round(xs - pair.disparity[ys, xs]).astype(int)
    seen = there >= 0
    difference = pair.left[ys[seen], xs[seen]].astype(float) - pair.right[ys[seen], there[seen]]
    assert np.abs(difference).mean() < 10


def test_matches() -> None:
    # two views of 4 x 8 patches: the second one's content is 2 patches further left
    features = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    shifted = torch.zeros_like(features)
    shifted[:, :6] = features[:, 2:]
    first, second = mutual_matches(features.flatten(0, 1), shifted.flatten(0, 1))
    in_both = first % 8 >= 2
    assert in_both.sum() == 24
    assert (second[in_both] == first[in_both] - 2).all()

    disparity = np.full((4, 8), 2.0)
    disparity[:, :2] = disparity[0] = np.inf  # unknown
    disparity[1] = 2.0 + 3.5  # more than 3 patch widths off
    disparity[1, :2] = np.inf
    matches = check_matches(features.flatten(0, 1), shifted.flatten(0, 1), disparity)
    assert len(matches.first) == 18
    np.testing.assert_array_equal(matches.correct, matches.first // 8 >= 2)
    assert matches.share == pytest.approx(12 / 18)


def test_to_input_is_timms_evaluation_transform() -> None:
    model = timm.create_model(NANO).eval()
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    config = timm.data.resolve_data_config(model=model)
    expected = timm.data.create_transform(**config)(Image.fromarray(photo))
    assert torch.equal(pictures.to_input(photo, model)[0], expected)
    wide = pictures.to_input(photo, model, (64, 96))
    assert wide.shape == (1, 3, 64, 96)
    exact = pictures.to_input(photo[:64, :96].copy(), model, (64, 96))  # nothing to resize
    np.testing.assert_allclose(pictures.to_pixels(exact, model)[0], photo[:64, :96] / 255, atol=1e-6)
    with pytest.raises(ImageError, match="multiples of 8"):
        pictures.to_input(photo, model, (60, 64))


def test_read_image_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image"):
        read_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "text.png")


def test_hide_leaves_visible_patches() -> None:
    mask = random_mask(2, 12, 0.75, torch.Generator().manual_seed(0))
    pixels = np.random.default_rng(0).random((2, 24, 32, 3), dtype=np.float32) * 0.5
    hidden = pictures.hide(pixels, mask, 8)
    for image in range(2):
        for patch in range(12):
            window = (image, slice(patch // 4 * 8, patch // 4 * 8 + 8), slice(patch % 4 * 8, patch % 4 * 8 + 8))
            if mask[image, patch]:
                assert (hidden[window] == np.float32(pictures.HIDDEN_COLOR)).all()
            else:
                assert (hidden[window] == pixels[window]).all()


def test_pca_colors() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q
    colors = pictures.pca_rgb(scores @ basis.T + 5)
    assert colors.shape == (500, 3)
    assert colors.min() == 0 and colors.max() == 1
    inside = ((colors > 0) & (colors < 1)).all(dim=1)
    related = torch.corrcoef(torch.cat((colors[inside], scores[inside]), dim=1).T)[:3, 3:].abs()
    assert related.diagonal().min() > 0.95
    # neither the features' order nor another sign of the basis changes a patch's color
    torch.testing.assert_close(pictures.pca_rgb((scores @ basis.T).flip(0)).flip(0), colors, atol=1e-4, rtol=0)
    assert (pictures.pca_rgb(torch.ones(5, 4)) <= 1).all()  # no variance: some color, not nan
