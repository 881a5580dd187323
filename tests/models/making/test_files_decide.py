"""What a file may decide of a model, and pretraining that starts from a file of the encoder alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from zoo import find_variant
from zoo.catalog import RENAMED
from zoo.errors import CheckpointMismatchError
from zoo.models import convert_checkpoint
from zoo.publish import export_model
from zoo.train.build import make_model
from zoo.train.recipe import load_recipe
from zoo.weights import Checkpoint, save_safetensors


def load(name: str, path: Path, **overlay: Any) -> Any:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), **overlay))


# ----------------------------------------------------------------------------------- sizes that files decide


@pytest.mark.parametrize("layout", ["reference", "zoo"])
@pytest.mark.parametrize("fpn_dim", [64, 192])  # 192: as wide as the backbone, which has fewer tensors then
def test_width_of_the_pyramid(layout: str, fpn_dim: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs: Any = timm.create_model("itpn_nano_patch16_64_pixel", fpn_dim=fpn_dim)
    path = tmp_path / "file.pth"
    torch.save({"model": theirs.reference_state() if layout == "reference" else theirs.state_dict()}, path)
    with caplog.at_level(logging.INFO, logger="zoo"):
        whole = load("itpn_nano_patch16_64_pixel", path)
    assert f"fpn_dim {fpn_dim} instead of 96" in caplog.text
    encoder = load("itpn_nano_patch16_64", path)
    for key, value in encoder.state_dict().items():
        if not key.startswith("fc_norm"):
            assert torch.equal(value, theirs.encoder.state_dict()[key])
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in whole.state_dict().items())
    assert [info["num_chs"] for info in encoder.feature_info][:3] == [fpn_dim] * 3
    assert encoder._model_args["fpn_dim"] == fpn_dim, "so a published config says it"
    export_model(encoder, tmp_path / "published", "somebody/itpn", license="mit")
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'published'}", pretrained=True)
    assert [info["num_chs"] for info in again.feature_info] == [info["num_chs"] for info in encoder.feature_info]


def test_width_of_the_teacher(tmp_path: Path) -> None:
    small = dict(embed_dim=96, depths=(1, 1, 4), num_heads=3, fpn_dim=48, img_size=64)
    name = "itpn_large_patch16_224_clip"
    theirs: Any = timm.create_model(name, teacher_dim=768 // 8, **small)
    path = tmp_path / "file.pth"
    torch.save({"model": theirs.reference_state()}, path)
    overlay = dict(file=str(path))
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **small)
    assert model.head.out_features == model.aux_head.out_features == 96
    with pytest.raises(CheckpointMismatchError):  # what the caller asks for is not decided by the file
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, teacher_dim=64, **small)


def test_whatever_else_differs_is_an_error(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("itpn_nano_patch16_64_pixel", decoder_dim=64)
    torch.save({"model": theirs.reference_state()}, tmp_path / "file.pth")
    with pytest.raises(CheckpointMismatchError, match="is no checkpoint of itpn_nano_patch16_64_pixel"):
        load("itpn_nano_patch16_64_pixel", tmp_path / "file.pth")


@pytest.mark.parametrize("crop", ["352", [352], [352, -704], [352.0, 704], {"a": 1}, [1 << 40, 8]])
def test_settings_of_tiles_that_make_no_sense_are_told_and_left(
    crop: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    variant = find_variant("crocov2_base_patch16_dec512d8_flow.crocoflow")
    args = dict(crop=crop, tile_conf_mode="conf_expsigmoid_10_5", task="flow")
    checkpoint = Checkpoint(tensors={}, extra={"args": args}, path=tmp_path / "file.pth")
    model: Any = timm.create_model(variant.name, device="meta")
    with caplog.at_level(logging.WARNING, logger="zoo"):
        assert type(model).args_from(checkpoint) == dict(tile_confidence="conf_expsigmoid_10_5")
    assert "no usable crop" in caplog.text


def test_converted_files_keep_what_the_checkpoint_says() -> None:
    variant = find_variant("croco_nano_patch8_dec128d4_flow")
    model: Any = timm.create_model(variant.name)
    args = dict(crop=[64, 80], tile_conf_mode="conf_expbeta3")
    converted = convert_checkpoint(variant, Checkpoint(model.reference_state(), {"args": args}, Path("file.pth")))
    assert converted.metadata["model_args"].startswith('{"tile_size": [64, 80], "tile_confidence": "conf_expbeta3"')
    assert converted.tensors.keys() == model.state_dict().keys()


# -------------------------------------------------------------------------------- starting from the encoder


FORMS = {
    "hivit_nano_patch16_64_mae": ("hivit_nano_patch16_64", "norm, embed, decoder"),
    "convmae_nano_patch16_64_mae": ("convmae_nano_patch16_64", "fuse, norm, embed, decoder"),
    "itpn_nano_patch16_64_pixel": ("itpn_nano_patch16_64", "level_embed, decoder"),
    "croco_nano_patch8_64_dec128d4": ("croco_nano_patch8_64", "decoder, head"),
}


@pytest.mark.parametrize("form", FORMS)
def test_pretraining_starts_from_an_encoder_alone(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder_name, random = FORMS[form]
    encoder: Any = timm.create_model(encoder_name)
    path = tmp_path / "encoder.safetensors"
    save_safetensors(encoder.state_dict(), path, {})
    with pytest.raises(CheckpointMismatchError):  # unless it is said that it may
        load(form, path)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        model = load(form, path, partial=True)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"holds the encoder alone, so {random} start at random" in record.message
    own = model.encoder.state_dict()
    assert own and all(torch.equal(value, encoder.state_dict()[key]) for key, value in own.items())
    assert all(p.std() > 0 for name, p in model.named_parameters() if name.startswith("decoder.") and p.ndim > 1)

    whole = tmp_path / "whole.safetensors"  # which is still loaded as a whole
    save_safetensors(model.state_dict(), whole, {})
    again = load(form, whole, partial=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_partial_is_no_excuse_for_another_file(tmp_path: Path) -> None:
    encoder: Any = timm.create_model("hivit_nano_patch16_64")
    path = tmp_path / "encoder.safetensors"
    save_safetensors(encoder.state_dict(), path, {})
    with pytest.raises(CheckpointMismatchError):
        load("itpn_nano_patch16_64_pixel", path, partial=True)
    state = {key: value for key, value in encoder.state_dict().items() if key != "blocks.3.mlp.fc1.weight"}
    save_safetensors(state, path, {})
    with pytest.raises(CheckpointMismatchError):
        load("hivit_nano_patch16_64_mae", path, partial=True)


def test_a_run_starts_from_an_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recipe's `init`, and a reference file as the published ones are: encoder and mask token."""
    whole: Any = timm.create_model("hivit_nano_patch16_64_mae")
    kept = {key: value for key, value in whole.reference_state().items() if not key.startswith("decoder")}
    path = tmp_path / "mae.pth"
    torch.save({"model": {key: value for key, value in kept.items() if not key.startswith("norm.")}}, path)
    model: Any = make_model(load_recipe("hivit_nano", {"init": str(path)}))
    assert "start at random" in caplog.text
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, whole.encoder.state_dict()[key]), key


# ---------------------------------------------------------------------------------------------- former names


@pytest.mark.parametrize("old", RENAMED)
def test_former_names_load_with_a_warning(old: str) -> None:
    new = RENAMED[old]
    with pytest.warns(UserWarning, match=f"{old} to current {new}"):
        model: Any = timm.create_model(old, device="meta")
    assert f"{model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}" == new
    with pytest.warns(UserWarning, match=f"is called {new} now"):
        assert find_variant(old).name == new
    assert old not in timm.list_models(include_tags=True)


def test_loaded_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    """A dense model's own file says its tiles too."""
    model: Any = timm.create_model("croco_nano_patch8_dec128d4_stereo", tile_size=(64, 64), tile_overlap=0.5)
    export_model(model, tmp_path / "published", "somebody/stereo", license="apache-2.0")
    file = tmp_path / "published" / "model.safetensors"
    alone = load("croco_nano_patch8_dec128d4_stereo", file)
    assert (alone.tile_size, alone.tile_overlap) == ((64, 64), 0.5)
    assert load_file(file).keys() == alone.state_dict().keys()
