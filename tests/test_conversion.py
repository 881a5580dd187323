"""Every tensor of every public CroCo checkpoint has its place here, and finds back to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import zoo  # noqa: F401  (registers the models)
from zoo.errors import CheckpointMismatchError
from zoo.layers.sincos import sincos_table
from zoo.models import ZooModel
from zoo.weights import Checkpoint, save_safetensors

KEYS = Path(__file__).parent / "upstream_keys"
# each public file, the form that takes all of it, and the encoder in it
FILES = {
    "croco_v1_base_smalldec": ("croco_base_patch16_224_dec512d8", "croco_base_patch16_224"),
    "croco_v2_base_smalldec": ("crocov2_base_patch16_224_dec512d8", "crocov2_base_patch16_224"),
    "croco_v2_base_basedec": ("crocov2_base_patch16_224_dec768d12", "crocov2_base_patch16_224"),
    "croco_v2_large_basedec": ("crocov2_large_patch16_224_dec768d12", "crocov2_large_patch16_224"),
    "crocostereo": ("crocov2_large_patch16_352x704_dec768d12_stereo", None),
    "crocoflow": ("crocov2_large_patch16_352x704_dec768d12_flow", None),
}


def reference_checkpoint(name: str) -> Checkpoint:
    """The names and shapes of a public checkpoint at full size; each tensor is one number, repeated by strides."""
    shapes = json.loads((KEYS / f"{name}.json").read_text())
    aliases = {"act_postprocess.": "act_{}_postprocess.", "layer_rn.": "layer{}_rn."}
    tensors: dict[str, Tensor] = {}
    for i, (key, shape) in enumerate(sorted(shapes.items())):
        tensors[key] = torch.tensor(float(i)).expand(shape)
    for key in shapes:  # the reference keeps these tensors under two names
        for alias, original in aliases.items():
            if alias in key:
                head, tail = key.split(alias)
                index, rest = tail.split(".", 1)
                tensors[key] = tensors[head + original.format(int(index) + 1) + rest]
    return Checkpoint(tensors=tensors, extra={}, path=Path(f"{name}.pth"))


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_key_both_ways(name: str) -> None:
    checkpoint = reference_checkpoint(name)
    architecture, encoder_name = FILES[name]
    model: ZooModel = timm.create_model(architecture, device="meta")
    state = model.convert(checkpoint)
    assert shapes(state) == shapes(model.state_dict())
    (rules,) = (rules for layout, rules in model.layouts.items() if layout.endswith("reference"))
    back = rules.to_reference(state)
    assert back.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(back[key], checkpoint.tensors[key]) for key in back)

    if encoder_name is None:
        return
    encoder: ZooModel = timm.create_model(encoder_name, device="meta")
    alone = encoder.convert(checkpoint)
    assert shapes(alone) == shapes(encoder.state_dict())
    assert all(torch.equal(value, state["encoder." + key]) for key, value in alone.items())
    from_ours = encoder.convert(Checkpoint(tensors=state, extra={}, path=Path("ours.safetensors")))
    assert from_ours.keys() == alone.keys(), "the encoder also reads our own pair files"


def load(architecture: str, checkpoint: Checkpoint, tmp_path: Path, **args) -> ZooModel:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {key: value.clone() for key, value in checkpoint.tensors.items()}}, path)
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **args)


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A v1 checkpoint with random weights and few blocks, under the reference's names."""
    model: ZooModel = timm.create_model("croco_base_patch16_224_dec512d8", depth=1, decoder_depth=1)
    return next(iter(model.layouts.values())).to_reference(model.state_dict())


SMALL = dict(depth=1, decoder_depth=1)


def checkpoint_of(tensors: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(tensors=tensors, extra={}, path=Path("x"))


def test_mismatches_are_named(small: dict[str, Tensor], tmp_path: Path) -> None:
    pair, encoder = "croco_base_patch16_224_dec512d8", "croco_base_patch16_224"
    model = load(pair, checkpoint_of(small), tmp_path, **SMALL)
    assert torch.equal(model.head.weight, small["prediction_head.weight"])
    assert load(encoder, checkpoint_of(small), tmp_path, depth=1).pos_embed is not None

    with pytest.raises(CheckpointMismatchError, match=r"lacks .*patch_embed"):
        without = {key: value for key, value in small.items() if not key.startswith("patch_embed")}
        load(encoder, checkpoint_of(without), tmp_path, depth=1)
    with pytest.raises(CheckpointMismatchError, match="croco_base_patch16_224_dec512d8"):
        only_encoder = {k: v for k, v in small.items() if k.startswith(("enc_", "patch_embed"))}
        load(pair, checkpoint_of(only_encoder), tmp_path, **SMALL)
    with pytest.raises(CheckpointMismatchError, match="unexpected|doesn't know"):
        load(pair, checkpoint_of(small | {"extra.weight": torch.ones(1)}), tmp_path, **SMALL)
    with pytest.raises(CheckpointMismatchError, match="768"):
        load("crocov2_large_patch16_224", checkpoint_of({k: v for k, v in small.items() if "pos" not in k}), tmp_path)


def test_dense_heads_start_from_a_pair(small: dict[str, Tensor], tmp_path: Path, caplog) -> None:
    """A completion model's weights, the reference's or ours, under a new head; and an encoder out of a dense model."""
    dense_name = "crocov2_large_patch16_352x704_dec768d12_stereo"
    pair: ZooModel = timm.create_model("crocov2_base_patch16_224_dec512d8", **SMALL)
    args = dict(embed_dim=768, num_heads=12, decoder_dim=512, decoder_num_heads=16, hooks=(0, 1, 1, 1), img_size=224)
    for state in (pair.state_dict(), pair.reference_state()):
        dense = load(dense_name, checkpoint_of(dict(state)), tmp_path, **args, **SMALL)
        assert "dense is not in" in caplog.text
        assert torch.equal(dense.decoder.blocks[0].mlp.fc1.weight, pair.decoder.blocks[0].mlp.fc1.weight)
        assert not any(p.is_meta for p in dense.parameters()) and dense.dense.output[0].weight.std() > 0
    for state in (dense.state_dict(), dense.reference_state()):
        encoder = load("crocov2_base_patch16_224", checkpoint_of(dict(state)), tmp_path, depth=1)
        assert torch.equal(encoder.norm.weight, pair.encoder.norm.weight)
    kwargs = timm.create_model("croco_nano_patch8_64_dec128d4", norm_memory=False).reference_settings()["croco_kwargs"]
    assert kwargs["norm_im2_in_dec"] is False and kwargs["pos_embed"] == "RoPE100" and kwargs["dec_num_heads"] == 4


def test_named_sources_go_first(small: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    encoder: ZooModel = timm.create_model("croco_base_patch16_224", depth=1)
    save_safetensors(encoder.state_dict(), path, {})
    cfg = dict(file=str(path), input_size=(3, 224, 224), num_classes=0, fixed_input_size=True)
    for named in (dict(pretrained_cfg=cfg), dict(pretrained_cfg_overlay=dict(file=str(path)))):
        back = timm.create_model("croco_base_patch16_224", pretrained=True, depth=1, **named)
        assert torch.equal(back.norm.weight, encoder.norm.weight)
    with pytest.raises(ValueError, match="dict\\(file="):
        timm.create_model("croco_base_patch16_224", pretrained=True, pretrained_cfg_overlay=dict(url="http://x/y.pth"))
    save_safetensors({key: torch.zeros_like(value) for key, value in encoder.state_dict().items()}, tmp_path / "z", {})
    path.write_bytes((tmp_path / "z").read_bytes())  # rewritten in place, while a model is loaded from it
    assert torch.equal(back.norm.weight, encoder.norm.weight)
    save_safetensors(encoder.state_dict(), path, {})
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    encoder.load_pretrained(path)  # into a live model: the optimizer keeps its parameters
    assert optimizer.param_groups[0]["params"][0] is next(encoder.parameters())


def test_positions_of_another_shape(small: dict[str, Tensor], tmp_path: Path) -> None:
    """7 x 28 patches are as many as 14 x 14, at other places."""
    wide = load("croco_base_patch16_224", checkpoint_of(small), tmp_path, depth=1, img_size=(112, 448))
    assert torch.equal(wide.pos_embed.table, sincos_table(768, 7, 28))
    again = load("croco_base_patch16_224", checkpoint_of(wide.state_dict()), tmp_path, depth=1, img_size=(112, 448))
    assert torch.equal(again.pos_embed.table, wide.pos_embed.table)


def test_adapted_inputs(small: dict[str, Tensor], tmp_path: Path) -> None:
    """Other channels, sizes, classes and types than the checkpoint's, and nothing drawn at random unasked."""
    checkpoint = checkpoint_of(small)
    grey = load("croco_base_patch16_224_dec512d8", checkpoint, tmp_path, in_chans=1, **SMALL)
    torch.testing.assert_close(
        grey.encoder.patch_embed.proj.weight, small["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    torch.testing.assert_close(grey.head.bias, small["prediction_head.bias"].unflatten(0, (256, 3)).mean(1))
    wide = load("croco_base_patch16_224", checkpoint, tmp_path, depth=1, img_size=(64, 96))
    assert wide(torch.randn(1, 3, 64, 96)).shape == (1, 768)
    classes = load("croco_base_patch16_224", checkpoint, tmp_path, depth=1, num_classes=5)
    assert classes(torch.randn(1, 3, 224, 224)).isfinite().all() and classes.head.bias.abs().max() == 0
    half = load("croco_base_patch16_224", checkpoint, tmp_path, depth=1, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for p in classes.parameters())
