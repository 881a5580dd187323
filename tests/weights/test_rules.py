"""Renaming between the references' names and ours, strictly and both ways."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import RULES, assert_same, reference_state
from zoo.errors import CheckpointMismatchError
from zoo.weights import KeyRules, Rename, check_state


def test_rules_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    state = reference_state()
    alias = {"dec_blocks2.0.cross_attn.projq.weight": state["dec_blocks.0.cross_attn.projq.weight"].clone()}
    head = {"prediction_head.weight": torch.ones(1)}
    with caplog.at_level(logging.INFO, "zoo"):
        ours = RULES.to_zoo(state | alias | head, name="v")
    assert "the prediction head" in caplog.text
    assert sorted(ours) == [
        "decoder.blocks.0.cross_attn.q_proj.weight",
        "encoder.blocks.0.attn.qkv.bias",
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.1.attn.qkv.bias",
        "encoder.blocks.1.attn.qkv.weight",
        "mask_token",
    ]
    assert_same(RULES.to_reference(ours), state | alias)
    assert RULES.reference_name("encoder.blocks.11.norm1.weight") == "enc_blocks.11.norm1.weight"
    assert RULES.covers(state) and not RULES.covers([*state, "backbone.conv1.weight"])


def test_rules_are_strict() -> None:
    state = reference_state()
    with pytest.raises(CheckpointMismatchError, match=r"3 tensors \(of 9\).*other\.0, other\.1, other\.2"):
        RULES.to_zoo(state | {f"other.{i}": torch.ones(1) for i in range(3)}, name="v")
    with pytest.raises(CheckpointMismatchError, match="they differ"):
        RULES.to_zoo(state | {"dec_blocks2.0.cross_attn.projq.weight": torch.ones(8, 8)}, name="v")
    with pytest.raises(CheckpointMismatchError, match="no tensor that corresponds to head.weight"):
        RULES.to_reference({"head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="number of wildcards"):
        KeyRules(Rename("a.*.b", "c"))
    with pytest.raises(ValueError, match="ambiguous"):
        KeyRules(Rename("a.*", "x.*"), Rename("b.*", "x.*")).to_zoo({"b.w": torch.ones(1)}, name="v")
    # A wildcard in the middle is a part between dots.
    assert not KeyRules(Rename("blocks.*.w.*", "b.*.w.*")).covers(["blocks.0.attn.w.x"])


def test_check_state(tmp_path: Path) -> None:
    shapes = {"a.weight": (768, 768), "a.bias": (768,), "mlp.weight": (3072, 768), "head.weight": (10, 768)}
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    expected = {name: tensor.to("meta") for name, tensor in state.items()}
    check_state(state, expected, name="v", path="f.pth")
    headless = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    with pytest.raises(CheckpointMismatchError, match=r"f\.pth is no checkpoint of v: it lacks 1 of 4 .*head\.weight"):
        check_state(headless, expected, name="v", path="f.pth")
    large = {
        name: torch.empty([size if size == 10 else size * 4 // 3 for size in shape]) for name, shape in shapes.items()
    }
    with pytest.raises(CheckpointMismatchError, match=r"width 1024 where 768 .*large checkpoint in place of a base"):
        check_state(large | {"extra": torch.empty(1)}, expected, name="v", path="f.pth")
