"""Autocast, torch.compile without graph breaks, torch.export and ONNX."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import zoo  # noqa: F401  (registers the models)

# one architecture for each kind of positions and of decoder block; depth does not matter here
ENCODERS = {
    "croco_nano_patch8_64": {},
    "croco_base_patch16_224": dict(img_size=64, depth=2),
    "crocov2_base_patch16_224": dict(img_size=(32, 64), depth=2),
}
PAIRS = {
    "croco_nano_patch8_64_dec128d4": {},
    "croco_base_patch16_224_cat512d8": dict(img_size=64, depth=2, decoder_depth=2),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ENCODERS | PAIRS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **(ENCODERS | PAIRS)[name]).eval()
    size = model.pretrained_cfg["input_size"][1:] if not (ENCODERS | PAIRS)[name] else None
    size = size or model.encoder.patch_embed.img_size if name in PAIRS else model.patch_embed.img_size
    images = [torch.randn(2, 3, *size)] * (2 if name in PAIRS else 1)
    exact = model(*images)
    with torch.autocast("cpu", dtype):
        rough = model(*images)
        if name in PAIRS:
            mask = torch.arange(model.encoder.patch_embed.num_patches).expand(2, -1) % 2 == 0
            loss = model.completion_loss(*images, mask, int(mask[0].sum()))
            assert loss.dtype == torch.float32
            loss.backward()
    assert rough.isfinite().all()
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", ENCODERS | PAIRS)
def test_compile_has_no_graph_breaks(name: str) -> None:
    args = (ENCODERS | PAIRS)[name]
    model = timm.create_model(name, **args).eval()
    size = model.encoder.patch_embed.img_size if name in PAIRS else model.patch_embed.img_size
    images = [torch.randn(2, 3, *size) for _ in range(2 if name in PAIRS else 1)]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*images), model(*images), rtol=1e-4, atol=1e-4)
    if name in PAIRS:
        mask = torch.arange(model.encoder.patch_embed.num_patches).expand(2, -1) % 2 == 0
        loss = torch.compile(model.completion_loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            loss(*images, mask, int(mask[0].sum())), model.completion_loss(*images, mask, int(mask[0].sum()))
        )


@pytest.mark.parametrize("name", ENCODERS | PAIRS)
def test_torch_export(name: str) -> None:
    model = timm.create_model(name, **(ENCODERS | PAIRS)[name]).eval()
    size = model.encoder.patch_embed.img_size if name in PAIRS else model.patch_embed.img_size
    images = tuple(torch.randn(2, 3, *size) for _ in range(2 if name in PAIRS else 1))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, images, dynamic_shapes=tuple({0: batch} for _ in images))
    more = tuple(torch.randn(3, 3, *size) for _ in images)
    torch.testing.assert_close(program.module()(*more), model(*more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = timm.create_model(name, **ENCODERS[name]).eval()
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(copy.deepcopy(model), (images,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(features, model(images).detach().numpy(), rtol=1e-3, atol=1e-4)
