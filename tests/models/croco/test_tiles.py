"""Large and small images by tiles: what DensePairModel.forward_tiled does besides the golden cases."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from zoo.errors import ImageError
from zoo.models.croco import DensePairModel
from zoo.models.croco.tiles import tile_starts, tile_weight


class Ramp(DensePairModel):
    """Predicts known values instead of looking: x and y, in pixels, of how much larger the image was made."""

    def __init__(self, values: tuple[float, ...], **args: Any) -> None:
        tiny = dict(embed_dim=8, depth=4, num_heads=1, decoder_dim=8, decoder_depth=3, decoder_num_heads=1)
        super().__init__(len(values), layer_dims=(4, 4, 4, 4), feature_dim=4, last_dim=4, img_size=32, **tiny, **args)
        self.pretrained_cfg = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.values = values
        self.calls: list[tuple[int, int]] = []

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:  # type: ignore[override]
        self.calls.append((img1.shape[-2], img1.shape[-1]))
        return torch.tensor(self.values).view(1, -1, 1, 1).expand(len(img1), -1, *img1.shape[-2:])


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    img1, img2 = torch.randn(2, 1, 3, height, width)
    return img1, img2


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (32, 32, 0.9, [0]),
        (33, 32, 0.9, [0, 1]),
        (96, 32, 0.0, [0, 32, 64]),
        (52, 32, 0.7, [0, 7, 13, 20]),
        (37, 32, 0.95, [0, 1, 2, 4, 5]),  # 1.25, 2.5 and 3.75: halves to even
    ],
)
def test_tiles_start_where_they_should(length: int, window: int, overlap: float, starts: list[int]) -> None:
    assert tile_starts(length, window, overlap) == starts


def test_settings_are_the_models_own_unless_said() -> None:
    model = Ramp((1.0, 0.0), tile_size=(16, 32), tile_overlap=0.5)
    assert (model.tile_confidence, Ramp((1.0, 2.0, 0.0)).tile_confidence) == (
        "conf_expsigmoid_15_3",
        "conf_expsigmoid_10_5",
    )
    assert Ramp((1.0,)).tile_confidence == "none" and Ramp((1.0,)).tile_size == (32, 32)
    model.forward_tiled(*pair(32, 64))
    assert set(model.calls) == {(16, 32)} and len(model.calls) == 9
    model.calls.clear()
    model.forward_tiled(*pair(32, 64), tile=(32, 32), overlap=0.0)
    assert model.calls == [(32, 32)] * 2


@pytest.mark.parametrize(
    ("height", "width", "enlarged"),
    [(24, 40, (38, 64)), (24, 200, (32, 267)), (100, 20, (320, 64)), (31, 64, (32, 66))],
)
def test_small_images_are_enlarged_and_their_values_brought_back(
    height: int, width: int, enlarged: tuple[int, int]
) -> None:
    """Wide, low images too, which the reference's factor would shrink."""
    model = Ramp((10.0, 20.0, -1.0), tile_size=(32, 64))
    dense = model.forward_tiled(*pair(height, width))
    assert dense.shape == (1, 3, height, width)
    for channel, value in enumerate((10 * width / enlarged[1], 20 * height / enlarged[0], -1.0)):
        torch.testing.assert_close(dense[:, channel], torch.full((1, height, width), value))


def test_sure_tiles_count_more() -> None:
    dense = torch.tensor([[1.0, 0.0], [3.0, 2.0]]).view(2, 2, 1, 1)  # two tiles: value and expected error
    sure, unsure = tile_weight(dense, "conf_expbeta3").flatten().tolist()
    assert sure == 1 and unsure == pytest.approx(torch.exp(torch.tensor(-6.0)).item())
    sure, unsure = tile_weight(dense, "conf_expsigmoid_15_3").flatten().tolist()
    assert sure == 1 and unsure == pytest.approx(torch.exp(-30 * (torch.tensor(2 / 3).sigmoid() - 0.5)).item())
    assert tile_weight(dense, "none").flatten().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(confidence="expsigmoid"), "choose conf_expsigmoid_BETA_SCALE"),
        (dict(overlap=1.0), "choose an overlap of at least 0 and below 1"),
        (dict(tile=(0, 32)), "can't cover an image"),
    ],
)
def test_settings_that_tile_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Ramp((1.0, 0.0)).forward_tiled(*pair(64, 64), **settings)


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match="bring them to one size"):
        Ramp((1.0, 0.0)).forward_tiled(pair(64, 64)[0], pair(64, 80)[1])


@pytest.mark.parametrize("name", timm.list_pretrained("crocov2*_stereo*") + timm.list_pretrained("crocov2*_flow*"))
def test_published_models_know_their_tiles(name: str) -> None:
    model: Any = timm.create_model(name, device="meta")
    assert model.tile_size == model.pretrained_cfg["input_size"][1:]
    assert model.tile_overlap >= 0.9 and model.tile_confidence != "none"
    assert model._model_args["tile_confidence"] == model.tile_confidence  # so a published config says it
