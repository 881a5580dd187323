"""Every tensor of every public CroCo checkpoint has its place here, and finds back to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import zoo
from zoo.errors import CheckpointMismatchError
from zoo.layers.positions.sincos import sincos_table
from zoo.models import ZooModel
from zoo.weights import Checkpoint, save_safetensors

KEYS = Path(__file__).parents[1] / "upstream_keys"
# each public file, the form that takes all of it, and the encoder in it
FILES = {
    "croco_v1_base_smalldec": ("croco_base_patch16_224_dec512d8", "croco_base_patch16_224"),
    "croco_v2_base_smalldec": ("crocov2_base_patch16_224_dec512d8", "crocov2_base_patch16_224"),
    "croco_v2_base_basedec": ("crocov2_base_patch16_224_dec768d12", "crocov2_base_patch16_224"),
    "croco_v2_large_basedec": ("crocov2_large_patch16_224_dec768d12", "crocov2_large_patch16_224"),
    "crocostereo": ("crocov2_large_patch16_dec768d12_stereo", None),
    "crocostereo_vitb_smalldecoder": ("crocov2_base_patch16_dec512d8_stereo", None),
    "crocostereo_vitb_basedecoder": ("crocov2_base_patch16_dec768d12_stereo", None),
    "crocoflow": ("crocov2_large_patch16_dec768d12_flow", None),
    "crocoflow_vitb_smalldecoder": ("crocov2_base_patch16_dec512d8_flow", None),
    "crocoflow_vitb_basedecoder": ("crocov2_base_patch16_dec768d12_flow", None),
}


def relative_offsets(side: int) -> Tensor:
    """For each two patches of a square grid (dy + s - 1) * (2s - 1) + dx + s - 1, with dy, dx = query minus key."""
    y, x = torch.arange(side * side).div(side, rounding_mode="floor"), torch.arange(side * side) % side
    return (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1


def reference_checkpoint(name: str) -> Checkpoint:
    """The names and shapes of a public checkpoint at full size; each tensor is one number, repeated by strides."""
    shapes = json.loads((KEYS / f"{name}.json").read_text())
    aliases = {"act_postprocess.": "act_{}_postprocess.", "layer_rn.": "layer{}_rn."}
    tensors: dict[str, Tensor] = {}
    for i, (key, shape) in enumerate(sorted(shapes.items())):
        tensors[key] = torch.tensor(float(i)).expand(shape)
        if key == "relative_position_index":  # the only one that isn't learned
            tensors[key] = relative_offsets(round(shape[0] ** 0.5))
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


# each public pretraining file: the form that takes all of it, and the backbones in it
PRETRAINED = {
    "convmae_base_pretrain": ("convmae_base_patch16_224_mae", ["convmae_base_patch16_224.in1k_1600e"]),
    "hivit_base_mae_pretrain": (
        "hivit_base_patch16_224_mae",
        ["hivit_base_patch16_224.mae_in1k_1600e"],
    ),
    "itpn_base_pixel_pretrain": ("itpn_base_patch16_224_pixel", ["itpn_base_patch16_224.pixel_in1k"]),
    "itpn_large_pixel_pretrain": ("itpn_large_patch16_224_pixel", ["itpn_large_patch16_224.pixel_in1k"]),
    "itpn_base_clip_pretrain": ("itpn_base_patch16_224_clip", ["itpn_base_patch16_224.clip_in1k"]),
    "itpn_large_clip_pretrain": ("itpn_large_patch16_224_clip", ["itpn_large_patch16_224.clip_in1k"]),
}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in got)


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_form_both_ways_and_its_backbone(name: str) -> None:
    checkpoint = reference_checkpoint(name)
    form_name, backbones = PRETRAINED[name]
    form: ZooModel = timm.create_model(form_name, device="meta")
    state = form.convert(checkpoint)
    assert shapes(state) == shapes(form.state_dict())
    form.load_state_dict(state, assign=True)
    assert_equal(form.reference_state(), checkpoint.tensors)

    clip = "_clip" in name
    for backbone_name in backbones:
        for classes in (0, 3):  # a classifier has no pyramid
            backbone: ZooModel = timm.create_model(backbone_name, device="meta", num_classes=classes)
            has_pyramid = getattr(backbone, "pyramid", None) is not None
            assert has_pyramid == ("itpn" in name and classes == 0)
            wanted = {key: value for key, value in backbone.state_dict().items() if not key.startswith("head.")}
            for source in (checkpoint, Checkpoint(tensors=state, extra={}, path=Path("ours.safetensors"))):
                alone = backbone.convert(source)
                assert shapes(alone) == shapes(wanted)
                assert all(
                    torch.equal(value, torch.full(value.shape, float(key == "fc_norm.weight")))
                    if key.startswith("fc_norm.")
                    else torch.equal(value, state["encoder." + key].view(value.shape))
                    for key, value in alone.items()
                )
                assert any(key.endswith("ls2.gamma") for key in alone) == clip, "layer scale is never left out"
                left = {key[8:] for key in state if key.startswith("encoder.")} - alone.keys()
                assert all(key.startswith("pyramid.") for key in left) and bool(left) == (
                    "itpn" in name and classes > 0
                )


FINETUNED = {
    "convmae_base_finetuned": ("convmae_base_patch16_224.in1k_1600e_ft_in1k", {}),
    **{
        f"fast_itpn_{size}_finetuned": (f"fast_itpn_{size}_patch16_224", {})
        for size in ("tiny", "small", "base", "large")
    },
    "hivit_tiny": ("hivit_tiny_patch16_224", {}),
    "hivit_small": ("hivit_small_patch16_224", {}),
    "hivit_base_finetuned": ("hivit_base_patch16_224.mae_in1k_1600e_ft_in1k", {}),
    "itpn_base_finetuned": ("itpn_base_patch16_224", dict(rel_pos=True)),
    "itpn_large_finetuned": ("itpn_large_patch16_224", dict(rel_pos=True)),
}


@pytest.mark.parametrize("name", FINETUNED)
def test_finetuned_classifier_both_ways(name: str) -> None:
    checkpoint = reference_checkpoint(name)
    architecture, args = FINETUNED[name]
    model: ZooModel = timm.create_model(architecture, device="meta", num_classes=1000, **args)
    state = model.convert(checkpoint)
    assert shapes(state) == shapes(model.state_dict())
    model.load_state_dict(state, assign=True)
    assert_equal(model.reference_state(), checkpoint.tensors)
    own = {key: value for key, value in state.items() if not key.startswith("head.")}
    alone: ZooModel = (
        timm.create_model(architecture, device="meta", num_classes=0, features="stages", **args)
        if name.startswith("itpn")
        else timm.create_model(architecture, device="meta", num_classes=0, **args)
    )
    assert_equal(alone.convert(Checkpoint(tensors=own, extra={}, path=Path("x"))), own)


def test_fast_itpn_backbone_of_other_checkpoints(caplog) -> None:
    """A pretraining checkpoint has a pyramid and heads; a classifier is left out where none is wanted."""
    finetuned = reference_checkpoint("fast_itpn_tiny_finetuned").tensors
    trunk = {key: value for key, value in finetuned.items() if not key.startswith(("fc_norm", "head"))}
    clip = reference_checkpoint("itpn_base_clip_pretrain").tensors
    ours = ("blocks.", "patch_embed.", "absolute_pos_embed", "relative_position_index")
    heads = {key: value for key, value in clip.items() if not key.startswith(ours)}
    model: ZooModel = timm.create_model("fast_itpn_tiny_patch16_224", device="meta", num_classes=0)
    whole = model.convert(Checkpoint(tensors=finetuned, extra={}, path=Path("finetuned.pth")))
    with caplog.at_level("INFO", logger="zoo"):
        backbone = model.convert(Checkpoint(tensors=trunk | heads, extra={}, path=Path("pretraining.pth")))
    assert shapes(backbone) == shapes(whole) == shapes(model.state_dict())
    assert all(torch.equal(value, whole[key]) for key, value in backbone.items() if not key.startswith("fc_norm"))
    assert any(key.endswith("gamma_1") for key in backbone) and "the pyramid" in caplog.text
    assert (backbone["fc_norm.weight"] == 1).all() and (backbone["fc_norm.bias"] == 0).all()


@pytest.mark.parametrize("name", ["hivit_base_mae_pretrain", "itpn_base_pixel_pretrain", "itpn_base_clip_pretrain"])
def test_relative_bias_starts_at_zero_where_pretraining_had_none(name: str) -> None:
    checkpoint = reference_checkpoint(name)
    _, (backbone_name,) = PRETRAINED[name]
    published: ZooModel = timm.create_model(backbone_name, device="meta")
    model: ZooModel = timm.create_model(backbone_name, device="meta", rel_pos=True)
    ours = Checkpoint(tensors=published.convert(checkpoint), extra={}, path=Path("ours.safetensors"))
    for source in (checkpoint, ours):
        state = model.convert(source)
        assert shapes(state) == shapes(model.state_dict())
        tables = [value for key, value in state.items() if key.endswith("rel_pos.table")]
        assert tables and all((table == 0).all() for table in tables) == ("_clip" not in name)
    # a table that is missing where others are there is no such start
    if "_clip" in name:
        lacking = {key: value for key, value in ours.tensors.items() if key != "blocks.9.rel_pos.table"}
        assert "blocks.9.rel_pos.table" not in model.convert(Checkpoint(tensors=lacking, extra={}, path=Path("x")))


def test_checkpoints_of_other_variants_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    def complaint(name: str, served: str) -> str:
        monkeypatch.setattr(zoo.weights, "read_checkpoint", lambda path, **how: reference_checkpoint(served))
        with pytest.raises(CheckpointMismatchError) as error:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file="served.pth"))
        return str(error.value)

    text = complaint("itpn_base_patch16_224.pixel_in1k", "itpn_large_pixel_pretrain")
    assert "but one of itpn_large_patch16_224.pixel_in1k" in text
    text = complaint("itpn_base_patch16_224_clip", "itpn_large_clip_pretrain")
    assert "but one of itpn_large_patch16_224_clip.clip_in1k" in text
    text = complaint("itpn_base_patch16_224.pixel_in1k", "itpn_base_clip_pretrain")
    assert "but one of itpn_base_patch16_224.clip_in1k" in text
    text = complaint("hivit_base_patch16_224", "itpn_base_pixel_pretrain")
    assert "but one of itpn_base_patch16_224.pixel_in1k" in text
    text = complaint("fast_itpn_base_patch16_224", "fast_itpn_small_finetuned")
    assert "but one of fast_itpn_small_patch16_224.clipl_in1k_1600e" in text
    text = complaint("fast_itpn_base_patch16_224", "convmae_base_finetuned")
    assert "but one of convmae_base_patch16_224.in1k_1600e_ft_in1k" in text
    text = complaint("convmae_base_patch16_224_mae", "hivit_base_mae_pretrain")
    assert "but one of hivit_base_patch16_224" in text
    text = complaint("itpn_base_patch16_224_pixel", "hivit_base_mae_pretrain")
    assert "but one of hivit_base_patch16_224" in text


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
    dense_name = "crocov2_large_patch16_dec768d12_stereo"
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
    assert torch.equal(wide.pos_embed.table, sincos_table(768, 7, 28).unflatten(0, (7, 28)))
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
