"""How flow is measured beside what knows less, and the small flow model of the package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from zoo.evaluate import flow_scenes
from zoo.lookup import find_variant
from zoo.train.data.matching.maps import read_truth, write_map
from zoo.weights import sources
from zoo.weights.disk import files

MODEL = "croco_nano_patch8_dec128d4_flow"
SHA256 = "e37d9740d259379af4b20c0f424e9f48a714933ff9378265e4fdc47d5b37c25b"


def test_the_best_shift_is_the_geometric_median_of_what_is_known() -> None:
    flow = torch.tensor([3.0, -4.0]).view(2, 1, 1).repeat(1, 6, 8)
    flow[:, 0] = torch.tensor([200.0, 90.0])[:, None]  # a sixth is far off, and a sixth unknown
    flow[:, 1] = math.inf
    torch.testing.assert_close(flow_scenes.best_shift(flow), torch.tensor([3.0, -4.0]), rtol=0, atol=0.02)
    corners = torch.tensor([[0.0, 6.0, 0.0, 6.0], [0.0, 0.0, 2.0, 2.0]])[:, None]  # where a rectangle's diagonals meet
    torch.testing.assert_close(flow_scenes.best_shift(corners), torch.tensor([3.0, 1.0]), rtol=0, atol=0.05)


def test_figures_beside_what_knows_less() -> None:
    truth = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).repeat(1, 1, 6, 8)
    truth[..., :4] *= 2
    found = flow_scenes.compare(truth + torch.tensor([0.0, 2.0]).view(2, 1, 1), truth)
    assert found["model"]["EPE"] == pytest.approx(2) and found["no_flow"]["EPE"] == pytest.approx(7.5)
    assert found["best_shift"]["EPE"] == pytest.approx(2.5, abs=0.01)
    assert found["model"]["s40+"] is None  # and not NaN, which JSON doesn't know
    assert flow_scenes.compare(truth, torch.full_like(truth, math.inf))["best_shift"]["EPE"] is None


def test_weights_of_the_package_beat_each_pairs_best_shift() -> None:
    variant = find_variant(MODEL)
    weights = sources.BUNDLED / variant.sources[0].location
    assert files.sha256(weights) == SHA256 and weights.stat().st_size <= 12e6
    measured = json.loads(weights.with_suffix(".evaluation.json").read_text("utf-8"))
    assert measured["model"] == dict(name=variant.name, sha256=SHA256)
    recorded = measured["flow"]["scenes"]
    assert recorded["model"]["EPE"] <= 0.7 * recorded["best_shift"]["EPE"]

    net = timm.create_model(MODEL, pretrained=True).eval()
    scenes = flow_scenes.held_out_scenes(variant.recipe, 8)
    samples = [scenes[i] for i in range(8)]
    truth = torch.from_numpy(np.stack([sample["flow"] for sample in samples])).movedim(-1, 1)
    found = flow_scenes.compare(flow_scenes.predict_scenes(net, samples), truth)
    assert found["model"]["EPE"] < 0.95 * found["best_shift"]["EPE"] < found["no_flow"]["EPE"]


def test_zoo_flow_takes_them_by_itself(zoo: Any, tmp_path: Path) -> None:
    sample = flow_scenes.held_out_scenes(find_variant(MODEL).recipe, 3)[2]
    photos = [tmp_path / f"{i}.png" for i in (1, 2)]
    for photo, name in zip(photos, ("image1", "image2")):
        Image.fromarray(sample[name]).save(photo)
    write_map(tmp_path / "truth.flo", sample["flow"])
    files_of_it = ("-o", str(tmp_path / "flow.png"), "--save", str(tmp_path / "flow.npy"))
    code, _, err = zoo("flow", *map(str, photos), *files_of_it, "--truth", str(tmp_path / "truth.flo"), "--scale", "1")
    assert code == 0, err
    assert Image.open(tmp_path / "flow.png").size[0] > 500
    flow = torch.from_numpy(read_truth(tmp_path / "flow.npy", "flow")).movedim(-1, 0)[None]
    found = flow_scenes.compare(flow, torch.from_numpy(sample["flow"]).movedim(-1, 0)[None])
    assert found["model"]["EPE"] < found["best_shift"]["EPE"]
