"""zoo points: two photos to a cloud, a picture, depths, and what it says of the cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from zoo import geometry, points
from zoo.models.pointmaps import Prediction
from zoo.models.shared.photos import PhotoFit
from zoo.scenes import SceneConfig, ScenePairs
from zoo.weights import save_safetensors

TRUTHS = ("points1", "points2", "pose", "intrinsics")


class Oracle:
    """`predict` with the truth of a scene; photos are called 1 and 2."""

    def __init__(self, index: int, size: tuple[int, int] = (72, 96)) -> None:
        self.sample = ScenePairs(SceneConfig(image_size=size), seed=3, length=index + 1, truths=TRUTHS)[index]
        self.fit = PhotoFit(0.5, 0, 0, *size)  # of photos twice as large

    def predict(self, img1: int, img2: int) -> Prediction:
        sample = self.sample
        maps = {i: torch.from_numpy(sample[f"points{i}"]) for i in (1, 2)}
        if img1 == 2:
            maps = {i: geometry.move(p, torch.from_numpy(sample["pose"])) for i, p in maps.items()}
        sure = np.full(self.fit[3:], 2.0, np.float32)
        sure[:10] = 1.5
        images = (sample[f"image{img1}"], sample[f"image{img2}"])
        pixels = self.fit.pixels()
        arrays = (maps[img1].numpy(), maps[img2].numpy(), sure, sure)
        return Prediction(*arrays, *images, self.fit, self.fit, pixels, pixels)


@pytest.mark.parametrize("index", range(2))
def test_the_truth_becomes_cameras_and_a_cloud(index: int) -> None:
    oracle: Any = Oracle(index)
    found = points.reconstruct(oracle, 1, 2, 1.8)  # type: ignore[arg-type]
    sample = oracle.sample
    assert found.focal1 == pytest.approx(2 * sample["intrinsics"][0, 0], rel=1e-3)
    assert found.focal2 == pytest.approx(2 * sample["intrinsics"][0, 0], rel=1e-3)
    np.testing.assert_allclose(found.pose, sample["pose"], atol=1e-3)
    np.testing.assert_allclose(found.center2, np.linalg.inv(sample["pose"])[:3, 3], atol=1e-3)
    assert len(found.points) == 2 * 62 * 96
    assert torch.equal(found.colors[0], torch.from_numpy(sample["image1"][10, 0]))
    np.testing.assert_allclose(
        found.depth2, (sample["points2"] @ sample["pose"][:3, :3].T + sample["pose"][:3, 3])[..., 2], atol=1e-3
    )
    front = points.look_from(found, 0, 96)  # the first camera a step back: the photo in small, with holes at its edges
    assert front.shape == (96, 96, 3) and (front > points._BACKGROUND + 0.01).any(-1).mean() > 0.3


def test_command(tmp_path: Path, zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    draw = points.draw
    monkeypatch.setattr(points, "draw", lambda found, title: titles.append(title) or draw(found, title))
    torch.manual_seed(0)
    model = timm.create_model("dust3r_nano_patch8_64")
    save_safetensors(model.state_dict(), tmp_path / "w.safetensors", {})
    sample = ScenePairs(SceneConfig(image_size=(60, 80)), seed=3, length=1)[0]
    photos = []
    for i in (1, 2):
        photos.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(sample[f"image{i}"]).save(photos[-1])
    weights = ("--weights", str(tmp_path / "w.safetensors"))
    cloud, picture = tmp_path / "cloud.ply", tmp_path / "view.png"
    code, out, err = zoo(
        *("points", *photos, "-o", str(cloud), "--glb", "--picture", str(picture), "--depth", str(tmp_path / "depth")),
    )  # by the package's own weights
    assert code == 0, err
    for said in ("focal", "degrees between", "camera 2", "of unknown units", "of a confidence of at least", "accuracy"):
        assert said in out
    assert cloud.read_bytes().startswith(b"ply\n") and (tmp_path / "cloud.glb").read_bytes().startswith(b"glTF")
    assert np.load(tmp_path / "depth" / "depth1.npy").shape == (64, 64)
    assert Image.open(picture).size[0] > 500 and titles == ["dust3r_nano_patch8_64.scenes"]
    for more, message in (
        (("--confidence", "1e9"), "No point has a confidence"),
        (("--model", "croco_nano_patch8_64"), "gives no points"),
        (("-o", str(tmp_path / "cloud.obj")), ".ply"),
    ):
        code, _, err = zoo("points", *photos, *weights, *more)
        assert code == 2 and message in err
