"""`zoo inspect`: what a checkpoint is, exactly, in part or nearly, and how to load it."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.weights.test_conversion import reference_checkpoint
from zoo.errors import CheckpointMismatchError, UnsafeCheckpointError, WeightsUnavailableError
from zoo.models.inspection import inspect_checkpoint
from zoo.models.shared.identify import identify
from zoo.weights import Checkpoint, save_safetensors

Zoo = Callable[..., tuple[int, str, str]]
NANO = "croco_nano_patch8_64"


def state(name: str, **args: Any) -> dict[str, Tensor]:
    return dict(timm.create_model(name, **args).state_dict())


@pytest.mark.parametrize(
    ("keys", "variant", "args"),
    [
        ("croco_v2_large_basedec", "crocov2_large_patch16_224_dec768d12.habitat_real", {}),
        ("croco_v1_base_smalldec", "croco_base_patch16_224_dec512d8.habitat", {}),
        ("hivit_tiny", "hivit_tiny_patch16_224", {"num_classes": 1000}),
        ("itpn_base_pixel_pretrain", "itpn_base_patch16_224_pixel.pixel_in1k", {}),
    ],
)
def test_published_files(keys: str, variant: str, args: dict[str, Any]) -> None:
    matches, nearest = identify(reference_checkpoint(keys))
    assert (matches[0].variant, matches[0].args, matches[0].missing, nearest) == (variant, args, (), None)
    encoders = [match for match in matches if match.architecture.startswith("crocov2_large_patch16_224")]
    assert all(match.left_out for match in encoders[1:]), "the encoder alone, without the rest of the file"


def test_own_files_and_wrapped_ones(tmp_path: Path) -> None:
    pair = f"{NANO}_dec128d4"
    own = state(pair)
    for wrap in ("", "module._orig_mod."):
        matches, _ = identify(Checkpoint({wrap + key: value for key, value in own.items()}, {}, Path("x")))
        assert (matches[0].architecture, matches[0].prefix, matches[0].left_out) == (pair, wrap, ())
        assert [match.architecture for match in matches if match.left_out][:1] == [NANO]
    encoder, _ = identify(Checkpoint(state(NANO, num_classes=7), {}, Path("x")))
    assert (encoder[0].architecture, encoder[0].args) == (NANO, {"num_classes": 7})
    half, _ = identify(Checkpoint({k: v for k, v in own.items() if k.startswith("encoder.")}, {}, Path("x")))
    assert any(match.architecture == pair and set(match.missing) == {"decoder", "head"} for match in half)


def test_unknown_files() -> None:
    other = state("vit_tiny_patch16_224", depth=1)
    matches, _ = identify(Checkpoint(other, {}, Path("x")))
    assert not matches
    strange = state(NANO) | {"extra.weight": torch.zeros(2)}
    del strange["norm.weight"]
    matches, nearest = identify(Checkpoint(strange, {}, Path("x")))
    assert not matches and nearest is not None and nearest.architecture == NANO
    assert (nearest.missing, nearest.unexpected) == (("norm.weight",), ("extra.weight",))
    assert identify(Checkpoint({}, {}, Path("x"))) == ([], None)


def test_command(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "a file.pth"
    torch.save({"model": OrderedDict(state(NANO)), "epoch": 7, "args": {"lr": 0.1}, "optimizer": {"x": 1}}, path)
    code, out, _ = zoo("inspect", path)
    assert code == 0 and f"it is       {NANO}" in out and "exactly" in out
    assert "torch zip" in out and "epoch: 7" in out and "args.lr: 0.1" in out and "SHA-256" in out
    names: dict[str, Any] = {}
    exec(out[out.index("import timm, zoo") :].partition("\n\n")[0], names)
    assert type(names["model"]).__name__ == "CrocoEncoder"
    code, out, _ = zoo("inspect", path, "--json", "--no-digest")
    found = json.loads(out)
    assert found["matches"][0]["architecture"] == NANO and found["sha256"] is None
    assert found["dtypes"] == {"float32": len(state(NANO))} and found["size"] == path.stat().st_size
    code, _, err = zoo("inspect", tmp_path / "nothing.pth")
    assert code == 2 and "There is no file" in err


def test_no_pickle_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": state(NANO), "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeCheckpointError):
        inspect_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


def test_loading_errors_point_to_it(tmp_path: Path) -> None:
    save_safetensors({"some.weight": torch.zeros(3)}, tmp_path / "some.safetensors", {})
    overlay = dict(file=str(tmp_path / "some.safetensors"))
    with pytest.raises(CheckpointMismatchError, match="`zoo inspect` tells what it is"):
        timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=overlay)


def test_classifiers_are_recognized(tmp_path: Path) -> None:
    """A classifier's file given to an encoder of another size or family is told as what it is."""
    for name, other in (("croco_nano_patch8_64", "convmae_nano_patch16_64"), ("convmae_nano_patch16_64", NANO)):
        save_safetensors(state(name, num_classes=5), tmp_path / "x.safetensors", {})
        with pytest.raises(CheckpointMismatchError, match=f"but one of {name}"):
            overlay = dict(file=str(tmp_path / "x.safetensors"))
            timm.create_model(other, pretrained=True, pretrained_cfg_overlay=overlay)


def test_places(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsUnavailableError, match="has none of"):
        inspect_checkpoint(tmp_path / "folder")
    torch.save(state(NANO), tmp_path / "folder" / "pytorch_model.bin")
    assert inspect_checkpoint(tmp_path / "folder", digest=False).matches[0].architecture == NANO
