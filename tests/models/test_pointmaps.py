"""DUSt3R and MASt3R: shapes, sizes, photos, initialization, settings beside the weights, compile and export."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import zoo
from tests.golden_cases import read_case
from zoo.catalog import VARIANTS
from zoo.errors import CheckpointMismatchError, CorruptWeightsError, ImageError
from zoo.models.making.reference_settings import parse_constructor
from zoo.models.pointmaps import MatchingPointmaps, PointmapModel, Pointmaps
from zoo.weights import Checkpoint, save_safetensors

NANO = "dust3r_nano_patch8_64"
SMALL: dict[str, Any] = dict(
    **dict(patch_size=16, embed_dim=48, depth=3, num_heads=3, decoder_dim=32, decoder_depth=4, decoder_num_heads=2),
    **dict(layer_dims=(12, 16, 20, 24), feature_dim=16, last_dim=8, descriptor_dim=6),
)
HEADS = ("linear", "dpt", "catmlp+dpt")


def small(head_type: str, **args: Any) -> PointmapModel:
    torch.manual_seed(0)
    return PointmapModel(img_size=(48, 64), head_type=head_type, **SMALL | args).eval()  # type: ignore[arg-type]


def images(*sizes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("head_type", HEADS)
@pytest.mark.parametrize("patch_size", [8, 16])
def test_shapes_of_equal_and_other_sizes(head_type: str, patch_size: int) -> None:
    model = small(head_type, patch_size=patch_size)
    for size1, size2 in (((48, 64), (48, 64)), ((64, 32), (48, 80)), ((16, 96), (96, 16))):
        with torch.no_grad():
            result = model(*images(size1, size2))
        assert isinstance(result, MatchingPointmaps if head_type == "catmlp+dpt" else Pointmaps)
        for i, size in ((1, size1), (2, size2)):
            points, confidence = getattr(result, f"points{i}"), getattr(result, f"confidence{i}")
            assert points.shape == (2, *size, 3) and confidence.shape == (2, *size)
            assert points.dtype == torch.float32 and (confidence > 1).all()
            if head_type == "catmlp+dpt":
                descriptors = getattr(result, f"descriptors{i}")
                assert descriptors.shape == (2, *size, 6)
                torch.testing.assert_close(descriptors.norm(dim=-1), torch.ones(2, *size))
                assert (getattr(result, f"descriptor_confidence{i}") > 0).all()


def test_one_batch_and_two_give_the_same() -> None:
    model = small("dpt")
    img1, img2 = images((48, 64), (48, 64))
    with torch.no_grad():
        together = model(img1, img2)
        apart = model.encoder.forward_features(img1), model.encoder.forward_features(img2)
    for x, y in zip(model.encode(img1, img2), apart):
        torch.testing.assert_close(x, y)
    for i in range(2):  # samples don't mix
        with torch.no_grad():
            alone = model(img1[i : i + 1], img2[i : i + 1])
        for x, y in zip(together, alone):
            torch.testing.assert_close(x[i : i + 1], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_type", HEADS)
def test_heads_stay_out_of_autocast(head_type: str) -> None:
    model = small(head_type)
    seen = []
    model.heads[0].register_forward_hook(lambda _, inputs, outputs: seen.extend((*inputs[0], *outputs)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = model(*images((48, 64), (48, 64)))
    assert all(x.dtype == torch.float32 for x in (*seen, *result))
    with torch.no_grad():
        half = small(head_type).bfloat16()(*(x.bfloat16() for x in images((48, 64), (48, 64))))
    assert all(x.dtype == torch.float32 for x in half)


def test_grad_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for enable in (False, True):
        model = small("dpt").train()
        model.set_grad_checkpointing(enable)
        result = model(*images((48, 64), (48, 64)))
        (result.points1.sum() + result.confidence2.sum()).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("head_type", HEADS)
def test_export(head_type: str) -> None:
    model, inputs = small(head_type), tuple(images((48, 64), (32, 64), batch=1))
    exported = torch.export.export(model, inputs).module()
    for x, y in zip(exported(*inputs), model(*inputs)):
        torch.testing.assert_close(x, y)


def test_compile() -> None:
    model, inputs = small("dpt"), images((48, 64), (48, 64))
    with torch.no_grad():
        for x, y in zip(torch.compile(model, backend="eager", fullgraph=True)(*inputs), model(*inputs)):
            torch.testing.assert_close(x, y)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="takes two images, so features_only does not apply"):
        timm.create_model(NANO, features_only=True)
    with pytest.raises(ValueError, match="choose linear, dpt or catmlp"):
        small("mlp")
    with pytest.raises(ValueError, match="at least 2"):
        small("dpt", decoder_depth=1)


# ---------------------------------------------------------------------------------------------- photos


def photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (97, 401), (30, 40), (64, 64)])
def test_predict_tells_where_pixels_lie(size: tuple[int, int]) -> None:
    model = timm.create_model("dust3r_large_patch16_512_dpt", **SMALL, img_size=(48, 64))
    result = model.predict(photo(*size), photo(300, 400))
    height, width = result.points1.shape[:2]
    assert max(height, width) == 64 and height % 16 == width % 16 == 0 and min(height, width) >= 16
    assert result.points1.dtype == result.confidence1.dtype == np.float32 and result.image1.dtype == np.uint8
    assert result.pixels1.shape == (height, width, 2) and result.descriptors1 is None
    assert result.fit1.scale == pytest.approx(64 / max(size), rel=0.05)
    # the photo's colors say where each pixel is from
    x, y = result.pixels1[..., 0] * 255 / size[1], result.pixels1[..., 1] * 255 / size[0]
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(result.image1[..., 0][inner] - x[inner]).max() < 8
    assert np.abs(result.image1[..., 1][inner] - y[inner]).max() < 8


def test_predict_gives_what_forward_does(tmp_path: Path) -> None:
    model = timm.create_model(NANO).train()
    array = photo(64, 64)
    result = model.predict(array, Image.fromarray(array[:, ::-1]))
    assert model.training
    x = torch.from_numpy(np.stack([array, array[:, ::-1]])).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        points = model.eval()(x[:1], x[1:]).points2[0]
    np.testing.assert_allclose(result.points2, points.numpy(), rtol=1e-4, atol=1e-5)
    wide = model.predict(photo(64, 128), array)  # a square model takes the middle
    assert wide.points1.shape == (64, 64, 3) and wide.pixels1[0, 0].tolist() == [32.5, 0.5]

    path = tmp_path / "turned.jpg"  # as phones write them: pixels lie on their side, and a tag says so
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(30, 60)).save(path, exif=exif)
    assert model.predict(path, array).image1.shape == (64, 64, 3)
    tall = timm.create_model("dust3r_large_patch16_512_dpt", **SMALL, img_size=(48, 64)).predict(path, path)
    assert tall.points1.shape == (64, 32, 3)


def test_photos_that_cant_be_taken(tmp_path: Path) -> None:
    model = timm.create_model(NANO)
    (tmp_path / "text.jpg").write_text("no photo")
    for bad, message in (
        (tmp_path / "none.jpg", "no image"),
        (tmp_path / "text.jpg", "can be read"),
        (np.zeros((4, 4)), "is uint8"),
    ):
        with pytest.raises(ImageError, match=message):
            model.predict(bad, photo(64, 64))
    wide = timm.create_model("dust3r_large_patch16_512_dpt", **SMALL, img_size=(48, 64))
    with pytest.raises(ImageError, match="too narrow"):
        wide.predict(photo(2, 800), photo(64, 64))


# -------------------------------------------------------------------------------------- initialization


def test_both_decoders_start_from_a_croco_pairs_one(tmp_path: Path) -> None:
    pair = timm.create_model("croco_nano_patch8_64_dec128d4", pretrained=True)
    path = zoo.fetch("croco_nano_patch8_64_dec128d4")
    reference = tmp_path / "CroCo.pth"  # the same under the reference's names
    torch.save({"model": pair.reference_state(), **pair.reference_settings()}, reference)
    for file in (path, reference):
        model = timm.create_model(NANO, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
        own, theirs = model.state_dict(), pair.state_dict()
        for key in own:
            if key.startswith("encoder."):
                assert torch.equal(own[key], theirs[key])
            elif key.startswith("decoder."):
                assert torch.equal(own[key], theirs[key.replace("blocks2", "blocks")])
        first, second = model.decoder.blocks[0].attn.qkv.weight, model.decoder.blocks2[0].attn.qkv.weight
        assert first.data_ptr() != second.data_ptr()
        assert model.heads[0].proj.weight.std() > 0 and not torch.equal(*(h.proj.weight for h in model.heads))
        assert model.ancestor is not None or file == path  # what came from elsewhere keeps its license


def test_other_heads_are_drawn_anew_and_decoders_are_not() -> None:
    linear = small("linear")
    state = linear.state_dict()
    checkpoint = Checkpoint({k: v for k, v in state.items() if "blocks2.0" not in k}, {}, Path("broken"))
    converted = small("dpt").convert(checkpoint)
    assert not any("blocks2.0" in key for key in converted)  # half a decoder is not made up for


# ------------------------------------------------------------------------- settings beside the weights


def test_constructor_text_is_parsed() -> None:
    text = "AsymmetricMASt3R(pos_embed='RoPE100', img_size=(512, 512), depth_mode=('exp', -inf, inf), two_confs=True)"
    assert parse_constructor(text, "x") == dict(
        pos_embed="RoPE100", img_size=[512, 512], depth_mode=["exp", -float("inf"), float("inf")], two_confs=True
    )
    assert parse_constructor("A(b=[1, -2.5, None], c=float('inf'))", "x") == dict(b=[1, -2.5, None], c=float("inf"))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "A(b=__import__('os').system('touch {}'))",
        "A(b=[i for i in range(9)])",
        "A(**dict(b=1))",
        "A(1)",
        "A(b=c)",
        "A(b=",
        "A(b=float('nan'))",
        "A(b=" + "(" * 2000 + ")" * 2000 + ")",
        "A(b='" + "x" * 100_000 + "')",
        "",
        "1",
    ],
)
def test_other_texts_are_refused_and_never_run(text: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(CorruptWeightsError, match="nothing of it was run"):
        parse_constructor(text.replace("{}", str(made)), "x.pth")
    assert not made.exists()


def golden_checkpoint(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    case, tensors = read_case(Path(__file__).parents[1] / "golden" / f"{name}.safetensors")
    return case["config"], {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}


def golden_model(name: str, **more: Any) -> PointmapModel:
    config, _ = golden_checkpoint(name)
    return timm.create_model(
        "mast3r_large_patch16_512" if name == "mast3r" else f"dust3r_large_patch16_512_{config['kind']}",
        img_size=tuple(config["img_size"]),
        **{ours: config[f"enc_{theirs}"] for ours, theirs in (("embed_dim", "embed_dim"), ("depth", "depth"))},
        num_heads=config["enc_num_heads"],
        decoder_dim=config["dec_embed_dim"],
        decoder_depth=config["dec_depth"],
        decoder_num_heads=config["dec_num_heads"],
        descriptor_dim=6,
        **config["head"],
        **more,
    )


@pytest.mark.parametrize("name", ["dust3r_linear", "dust3r_dpt", "mast3r"])
@pytest.mark.parametrize("kept", ["both", "layer_rn.", "_rn.weight"])  # names of the tensors that have two
def test_either_name_of_shared_tensors_and_back(name: str, kept: str, tmp_path: Path) -> None:
    _, tensors = golden_checkpoint(name)

    def is_second(key: str) -> bool:
        return "scratch.layer_rn." in key

    def is_first(key: str) -> bool:
        return key.endswith("_rn.weight") and "scratch.layer" in key and not is_second(key)

    dropped = {"both": lambda key: False, "layer_rn.": is_first, "_rn.weight": is_second}[kept]
    folder = tmp_path / "naver"
    folder.mkdir()
    state = {key: value for key, value in tensors.items() if not dropped(key)}
    save_safetensors(state, folder / "model.safetensors", {"format": "pt"})
    settings = golden_model(name, device="meta").constructor_settings()
    (folder / "config.json").write_text(json.dumps(settings | dict(freeze="none", patch_embed_cls="PatchEmbedDust3R")))
    assert "Infinity" in (folder / "config.json").read_text()  # which strict JSON does not have
    model = golden_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(folder)))
    back = model.reference_state()
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in back)


def test_shared_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    _, tensors = golden_checkpoint("dust3r_dpt")
    tensors["downstream_head1.dpt.scratch.layer_rn.0.weight"] += 1
    path = tmp_path / "model.safetensors"
    save_safetensors(tensors, path, {})
    with pytest.raises(CheckpointMismatchError, match="second name"):
        golden_model("dust3r_dpt", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


@pytest.mark.parametrize("key", ["dec_blocks2.0.mlp.fc1.bias", "downstream_head2.proj.bias", "mask_token"])
def test_a_missing_tensor_is_no_silent_random_start(key: str, tmp_path: Path) -> None:
    _, tensors = golden_checkpoint("dust3r_linear")
    del tensors[key]
    path = tmp_path / "model.safetensors"
    save_safetensors(tensors, path, {})
    with pytest.raises(CheckpointMismatchError, match="lacks 1 of"):
        golden_model("dust3r_linear", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("pos_embed", "RoPE10"),
        ("enc_num_heads", 4),
        ("dec_num_heads", 1),
        ("depth_mode", ["linear", -float("inf"), float("inf")]),
        ("conf_mode", ["exp", 0, float("inf")]),
    ],
)
@pytest.mark.parametrize("where", ["config.json", "args"])
def test_another_function_with_the_same_tensors_is_refused(
    setting: str, value: Any, where: str, tmp_path: Path
) -> None:
    _, tensors = golden_checkpoint("dust3r_linear")
    settings = golden_model("dust3r_linear", device="meta").constructor_settings() | {setting: value}
    if where == "args":
        path = tmp_path / "DUSt3R.pth"
        text = ", ".join(f"{k}={tuple(v) if isinstance(v, list) else v!r}" for k, v in settings.items())
        torch.save({"args": Namespace(model=f"AsymmetricCroCo3DStereo({text})"), "model": tensors}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_safetensors(tensors, path, {})
        (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointMismatchError, match=setting):
        golden_model("dust3r_linear", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


@pytest.mark.parametrize("name", ["dust3r_linear", "mast3r"])
def test_the_references_own_file_and_ours_for_it(name: str, tmp_path: Path) -> None:
    """{'args': Namespace with constructor text, 'model'}: what zoo export writes is what it reads."""
    config, tensors = golden_checkpoint(name)
    model = golden_model(name)
    settings = model.reference_settings()
    parsed = parse_constructor(settings["args"].model, "x")
    assert {k: parsed[k] for k in ("enc_embed_dim", "enc_depth", "dec_depth", "pos_embed")} == {
        k: config[k] for k in ("enc_embed_dim", "enc_depth", "dec_depth", "pos_embed")
    }
    assert settings["args"].model.startswith("AsymmetricMASt3R(" if name == "mast3r" else "AsymmetricCroCo3DStereo(")
    path = tmp_path / "x.pth"
    torch.save({"model": tensors, **settings}, path)
    loaded = golden_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.reference_state().items())


def test_catalog_counts_parameters() -> None:
    for variant in VARIANTS:
        if variant.family == "pointmaps":
            model = timm.create_model(variant.name, device="meta")
            assert sum(p.numel() for p in model.parameters()) == variant.parameters
            assert model.pretrained_cfg["input_size"][1:] == model.encoder.img_size
            assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
