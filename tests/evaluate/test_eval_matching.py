"""Judging stereo and flow models on data sets: exact sums, going on, Spring's larger truth, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.matching_sets import write_flow, write_stereo
from zoo.errors import DataError
from zoo.evaluate.matching import evaluate, parse_wish, print_result, published
from zoo.models.croco import DensePairModel
from zoo.sgbm import fill_from_background
from zoo.train.data.matching.pairs import MatchingPairs

NORMAL = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def tiny(channels: int) -> Any:
    torch.manual_seed(0)
    model = DensePairModel(
        out_chans=channels,
        img_size=(16, 32),
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        decoder_dim=24,
        decoder_depth=2,
        decoder_num_heads=2,
        layer_dims=(8, 8, 8, 8),
        feature_dim=8,
        last_dim=8,
        hooks=(0, 1, 2, 3),
        tile_overlap=0.5,
    )
    model.pretrained_cfg = dict(NORMAL)
    return model.eval()


def test_stereo_sets_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stereo(tmp_path)
    wishes = [
        parse_wish(f"{name}={tmp_path}") for name in ("eth3d:train", "spring:subval", "middlebury_eval3:subval_full")
    ]
    model, output = tiny(2), tmp_path / "out"
    first = evaluate(model, "tiny", "stereo", wishes, output, limit=2)
    assert [of["pairs"] for of in first["sets"].values()] == [2, 1, 1]
    result = evaluate(model, "tiny", "stereo", wishes, output)
    assert [of["pairs"] for of in result["sets"].values()] == [3, 1, 1]
    rows = (output / "eth3d_train/pairs0.jsonl").read_text().splitlines()
    assert [json.loads(row)["number"] for row in rows] == [0, 1, 2]  # two of them from the first time

    errors = []
    pairs = MatchingPairs("stereo", tmp_path, "eth3d:train")
    for i in range(3):
        found = model.predict(pairs[i]["image1"], pairs[i]["image2"]).disparity
        known = np.isfinite(pairs[i]["disparity"])
        errors.append(np.abs(found - pairs[i]["disparity"])[known])
    every = np.concatenate(errors)
    pixels = result["sets"]["eth3d:train"]["pixels"]
    assert pixels["L1err"] == pytest.approx(every.mean(), rel=1e-5)
    assert pixels["bad@2.0"] == pytest.approx(100 * (every > 2).mean(), rel=1e-5)
    means = result["sets"]["eth3d:train"]["pair_means"]
    assert means["avgerr"] == pytest.approx(np.mean([of.mean() for of in errors]), rel=1e-5)

    pairs = MatchingPairs("stereo", tmp_path, "spring:subval", whole_truth=True)
    found = model.predict(pairs[0]["image1"], pairs[0]["image2"]).disparity
    blocks = pairs[0]["disparity"].reshape(24, 2, 40, 2)
    best = np.min(np.abs(np.where(np.isfinite(blocks), blocks, 1e6) - found[:, None, :, None]), axis=(1, 3))
    assert result["sets"]["spring:subval"]["pixels"]["L1err"] == pytest.approx(best.mean(), rel=1e-5)

    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {path.name for path in (output / "eth3d_train").glob("*.png")} == {"worst1.png", "worst2.png", "worst3.png"}
    print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("eth3d:train" in line for line in lines)
    assert any("bad@2.0" in line and f"{pixels['bad@2.0']:.3f}" in line for line in lines)

    with torch.no_grad():  # other weights: nothing of the old rows is taken over
        next(model.parameters()).add_(1.0)
    changed = evaluate(model, "tiny", "stereo", wishes[:1], output)
    assert changed["sets"]["eth3d:train"]["pixels"] != pixels


def test_flow_sets(tmp_path: Path) -> None:
    write_flow(tmp_path)
    wish = parse_wish(f"sintel:subval_final={tmp_path / 'MPI-Sintel'}")
    result = evaluate(tiny(3), "tiny", "flow", [wish], tmp_path / "out", overlap=0.2, limit=2)
    pixels = result["sets"]["sintel:subval_final"]["pixels"]
    assert pixels["s0-10"] is not None and pixels["s40+"] is None and 0 <= pixels["Fl"] <= 100


def test_own_list(tmp_path: Path) -> None:
    write_stereo(tmp_path)
    scene = "eth3d_lowres/{}/delivery_area_1l"
    row = [
        f"{scene.format('train')}/im0.png",
        f"{scene.format('train')}/im1.png",
        f"{scene.format('train_gt')}/disp0GT.pfm",
    ]
    (tmp_path / "mine.csv").write_text(",".join(row))
    result = evaluate(tiny(2), "tiny", "stereo", [parse_wish(str(tmp_path / "mine.csv"))], tmp_path / "out")
    assert result["sets"]["mine.csv"]["pairs"] == 1


def test_wishes_that_name_nothing() -> None:
    for text in ("", "=x", "eth3d:subval="):
        with pytest.raises(DataError, match="names no data"):
            parse_wish(text)


def test_published_figures() -> None:
    assert published("nobody", "sintel:subval_clean") == [] == published("nobody", "x")


def test_holes_are_filled_from_the_background() -> None:
    hole = np.inf
    found = fill_from_background(np.array([[hole, 5, hole, 2, hole], [hole] * 5], dtype=np.float32))
    np.testing.assert_array_equal(found, [[5, 5, 2, 2, 2], [0] * 5])
