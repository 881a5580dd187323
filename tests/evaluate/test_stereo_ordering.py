"""`zoo eval stereo-ordering`: what a fresh decoder starts with, and the whole of it in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.conftest import Run
from zoo.evaluate import stereo_ordering as tool

SMALL = dict(embed_dim=48, depth=1, num_heads=3, decoder_dim=32, decoder_depth=4, decoder_num_heads=1)


def test_fresh_decoders_see_what_tells_tokens_apart() -> None:
    torch.manual_seed(0)
    plan = tool.Plan(2, 2, (16, 32))
    net = timm.create_model(tool.MODEL, **SMALL)
    with torch.no_grad():
        net.encoder.norm.bias += 3  # what all tokens share
    scenes = tool._scenes(plan, 30, 7)
    found = tool.fitted_embedding(net, scenes)
    assert found.keys() < net.state_dict().keys()
    net.load_state_dict(net.state_dict() | found)
    tokens = []
    net.decoder.embed.register_forward_hook(lambda module, given, out: tokens.append(out.detach().flatten(0, 1)))
    with torch.inference_mode():
        for _, images in tool._batches(net, scenes):
            net(*images)
    every = torch.cat(tokens)
    torch.testing.assert_close(every.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(every.std(0), torch.ones(32), atol=1e-4, rtol=0)


def test_whole_comparison(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "SCALES", (0.1, 0.15))  # of the photo
    page = tmp_path / "page.md"
    page.write_text("# A page\n\nThis page is written by its command, and more.\n")
    command = ["eval", "stereo-ordering", "--pretraining-steps", 2, "--steps", 2, "--seeds", 1, "--size", "32x64"]
    command += ["--pairs", 3, "--workers", 0, "--runs", tmp_path / "runs", "--output", page]
    code, _, err = zoo(*command)
    assert code == 0, err
    result = json.loads(page.with_suffix(".stereo.json").read_text("utf-8"))
    assert list(result["figures"]) == list(tool.STARTS)
    assert {start: of["steps"] for start, of in result["about"]["pretraining"].items()} == {
        "CroCo": 2,
        "MAE encoder": 2,
    }
    text = page.read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and len({row.count("|") for row in rows}) == 1
    assert text.startswith("# A page\n") and text.endswith("and more.\n")
    assert page.with_suffix(".stereo.png").stat().st_size > 10_000

    starts = [
        (tmp_path / f"runs/stereo_{start}_0.start.safetensors").read_bytes() for start in ("croco", "from_scratch")
    ]
    assert starts[0] != starts[1]
    monkeypatch.setattr(tool, "train", lambda *args, **options: pytest.fail("it has been trained"))
    monkeypatch.setattr(tool, "measure", lambda *args: pytest.fail("it has been measured"))
    for start in tool.STARTS:
        tool._tune(tool.Plan(2, 2, (32, 64), 3), start, 0, tmp_path / "runs", 0)
