"""Saved positions serve another grid as they should, or are refused: never as those of a grid with as many patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import CheckpointMismatchError
from zoo.layers.positions.relative import RelativeBias
from zoo.layers.positions.rope import rope_on, rope_table
from zoo.layers.positions.sincos import SincosPositions, _grid_of_values, sincos_table
from zoo.layers.positions.tables import LearnedPositions, resample_table, stretch_table
from zoo.models import ZooModel
from zoo.weights import Checkpoint, save_safetensors

SMALL = dict(depth=1, embed_dim=64, num_heads=2)
DECODER = dict(decoder_dim=64, decoder_depth=1, decoder_num_heads=2)
STAGES = dict(depths=(1, 1, 1))
# one of each kind of table: computed, trained and bias, of encoders and of decoders
MODELS: dict[str, dict[str, Any]] = {
    "croco_base_patch16_224": SMALL,
    "croco_base_patch16_224_dec512d8": SMALL | DECODER,
    "croco_base_patch16_224_cat512d8": SMALL | DECODER,
    "croco_nano_patch8_64_mae": SMALL | DECODER,
    "convmae_nano_patch16_64": STAGES,
    "convmae_nano_patch16_64_mae": STAGES | DECODER,
    "hivit_nano_patch16_64": STAGES | dict(rel_pos=True),
    "hivit_nano_patch16_64_mae": STAGES | DECODER,
    "itpn_nano_patch16_64_pixel": STAGES | DECODER,
    "fast_itpn_tiny_patch16_224": STAGES | dict(embed_dim=64, num_heads=2),
}


def created(name: str, path: Path, img_size: tuple[int, int]) -> Any:
    overlay = dict(file=str(path))
    return timm.create_model(name, img_size=img_size, pretrained=True, pretrained_cfg_overlay=overlay, **MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_as_many_patches_on_another_grid(name: str, tmp_path: Path) -> None:
    """2 x 8 patches are as many as 4 x 4; a file of the one loads as what the model becomes when it moves there."""
    p = 8 if "patch8" in name else 16
    path = tmp_path / "own.safetensors"
    made: Any = timm.create_model(name, img_size=(2 * p, 8 * p), **MODELS[name])
    save_safetensors(made.state_dict(), path, {})
    there, back = created(name, path, (4 * p, 4 * p)), created(name, path, (2 * p, 8 * p))
    tables = [key for key in made.state_dict() if key.endswith(".table")]
    assert tables
    for key in tables:
        module = made.get_submodule(key.removesuffix(".table"))
        assert torch.equal(back.state_dict()[key], module.table)
        module.set_grid((4, 4))
        torch.testing.assert_close(there.state_dict()[key], module.table)


def test_sincos_values_tell_their_grid() -> None:
    """The references' layout: rows and columns in one axis."""
    positions = SincosPositions(32, (24, 24))
    for grid in ((18, 32), (24, 24), (1, 576), (576, 1), (3, 5), (14, 14)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            saved = sincos_table(32, *grid).to(dtype)
            want = saved.float() if grid == (24, 24) else sincos_table(32, 24, 24)
            assert torch.equal(positions.fit(saved).flatten(0, 1).float(), want)
    resampled = SincosPositions(32, (24, 24), resample="bicubic").fit(sincos_table(32, 18, 32))
    torch.testing.assert_close(resampled.flatten(0, 1), resample_table(sincos_table(32, 18, 32), (18, 32), (24, 24)))
    other = torch.randn(576, 32)  # trained on, or of another kind: kept for the square grid, computed for none
    assert torch.equal(positions.fit(other).flatten(0, 1), other)
    for grid in ((18, 32), (12, 12)):
        with pytest.raises(CheckpointMismatchError, match=r"576 places doesn't tell its grid|can't be computed"):
            SincosPositions(32, grid).fit(other)


def test_trained_tables_are_square_or_refused() -> None:
    saved = torch.randn(576, 8)
    assert torch.equal(LearnedPositions(8, (24, 24)).fit(saved).flatten(0, 1), saved)
    torch.testing.assert_close(
        LearnedPositions(8, (6, 9), "stretch").fit(saved).flatten(0, 1), stretch_table(saved, (24, 24), (6, 9))
    )
    for grid, count in (((18, 32), 576), ((6, 10), 60), ((10, 6), 60), ((4, 4), 60)):
        with pytest.raises(CheckpointMismatchError, match="doesn't tell its grid"):
            LearnedPositions(8, grid).fit(torch.randn(count, 8))
    bias = torch.randn(81, 2)  # 5 x 5 patches, or 2 x 14
    assert torch.equal(RelativeBias(2, (5, 5)).fit(bias).flatten(0, 1), bias)
    with pytest.raises(CheckpointMismatchError, match="doesn't tell its grid"):
        RelativeBias(2, (2, 14)).fit(bias)


@pytest.mark.parametrize("compiled", [False, True])
def test_own_grid_is_shifted_on_every_device(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """As torch's interpolation does on a CPU, gradients of an unshifted table included; on a GPU it would copy."""
    tables = [torch.randn(20, 8, requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        tables[1].copy_(tables[0])
    maps = tables[0].view(1, 4, 5, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, scale_factor=(4.1 / 4, 5.1 / 5), mode="bicubic").flatten(2)[0].T
    monkeypatch.setattr(F, "interpolate", lambda maps, **_: maps)  # the CUDA kernel's, for a size that is already there
    torch._dynamo.reset()
    stretch = torch.compile(stretch_table, backend="aot_eager") if compiled else stretch_table
    found = stretch(tables[1], (4, 5), (4, 5))
    torch.testing.assert_close(found, expected)
    assert (found - tables[1]).abs().max() > 0.01
    weights = torch.randn(20, 8)
    for output in (expected, found):
        (output * weights).sum().backward()
    torch.testing.assert_close(tables[1].grad, tables[0].grad)


@pytest.mark.parametrize("name", ["hivit_nano_patch16_64", "croco_base_patch16_224"])
def test_export_of_a_rectangle(name: str) -> None:
    """Under the reference's names a rectangle of trained tables is not exported; computed ones tell their grid."""
    model: ZooModel = timm.create_model(name, img_size=(32, 128), **MODELS[name])
    if name.startswith("hivit"):
        with pytest.raises(CheckpointMismatchError, match="don't tell a grid"):
            model.reference_state()
        return
    pair: Any = timm.create_model("croco_base_patch16_224_dec512d8", img_size=(32, 128), **(SMALL | DECODER))
    state = pair.reference_state()
    assert state["enc_pos_embed"].ndim == state["dec_pos_embed"].ndim == 2
    square: Any = timm.create_model("croco_base_patch16_224_dec512d8", img_size=64, **(SMALL | DECODER))
    fitted = square.adapt_state(square.convert(Checkpoint(state, {}, Path("x"))))
    for key in ("encoder.pos_embed.table", "decoder.pos_embed.table"):
        torch.testing.assert_close(fitted[key], square.state_dict()[key])


def test_no_float64_on_the_device() -> None:
    """Some devices have none: tables are computed on the CPU and moved."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                    assert value.device.type == "cpu", function
            return result

    for name, args in MODELS.items():
        p = 8 if "patch8" in name else 16
        with Watch():
            model = timm.create_model(name, device="meta", img_size=(2 * p, 8 * p), dynamic_img_size=True, **args)
            if "dec" not in name and "mae" not in name and "pixel" not in name and "cat" not in name:
                model(torch.empty(1, 3, 4 * p, 3 * p, device="meta"))


def test_rotary_tables_are_computed_once_a_grid() -> None:
    device = torch.device("cpu")
    first = rope_on(32, 4, 6, 100.0, device)
    assert rope_on(32, 4, 6, 100.0, device) is first
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, rope_table(32, 4, 6, 100.0)))
    assert rope_on(32, 6, 4, 100.0, device) is not first and rope_on(32, 4, 6, 10.0, device) is not first
    assert rope_on(32, 4, 6, 100.0, torch.device("meta"))[0].is_meta, "each device its own"
    with FakeTensorMode():
        assert rope_on(32, 4, 6, 100.0, device) is not first
    assert rope_on(32, 4, 6, 100.0, device) is first


def test_tables_that_are_larger_than_their_file(tmp_path: Path) -> None:
    """One row, repeated for 83,160 places: nothing of that size is made, whichever of its 127 widths it may have."""
    row = torch.zeros(128)
    row[32] = 1.0  # every place looks like the beginning of a row
    table = row.expand(83_160, 128)
    parts: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                parts.append(out.untyped_storage().nbytes())
            return out

    with Watched():
        assert _grid_of_values(table) is None
    assert max(parts) < 10_000_000
    model = timm.create_model("croco_nano_patch8_64_mae", device="meta")
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    state["decoder.pos_embed.table"] = row.expand(724, 724, 128)
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(CheckpointMismatchError):
        model.load_pretrained(tmp_path / "own.pth")
    rows, columns = 3, 5
    assert _grid_of_values(sincos_table(128, rows, columns)) == (rows, columns)
