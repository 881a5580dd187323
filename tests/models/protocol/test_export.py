"""Autocast, torch.compile without graph breaks, torch.export and ONNX."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import zoo  # noqa: F401  (registers the models)

# one architecture for each kind of positions and of decoder block; depth does not matter here
ENCODERS = {
    "croco_nano_patch8_64": dict(depth=1),
    "croco_base_patch16_224": dict(img_size=64, depth=1),
    "crocov2_base_patch16_224": dict(img_size=(32, 64), depth=1),
    "convmae_nano_patch16_64": dict(depths=(1, 1, 1)),
    "hivit_nano_patch16_64": dict(depths=(1, 1, 1), rel_pos=True),
    "itpn_nano_patch16_64": dict(depths=(1, 1, 1)),
    "fast_itpn_tiny_patch16_224": dict(depths=(1, 1, 1), img_size=64),
}
PAIRS = {
    "croco_nano_patch8_64_dec128d4": dict(depth=1, decoder_depth=1),
    "croco_base_patch16_224_cat512d8": dict(img_size=64, depth=1, decoder_depth=1),
}
MASKED = ["convmae_nano_patch16_64_mae", "hivit_nano_patch16_64_mae", "itpn_nano_patch16_64_pixel"]


def image_size(model: nn.Module) -> tuple[int, int]:
    model = getattr(model, "encoder", model)
    return model.img_size if hasattr(model, "img_size") else model.patch_embed.img_size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ENCODERS | PAIRS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **(ENCODERS | PAIRS)[name]).eval()
    images = [torch.randn(2, 3, *image_size(model))] * (2 if name in PAIRS else 1)
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
    size = image_size(model)
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


@pytest.mark.parametrize("name", MASKED)
def test_masked_steps(name: str) -> None:
    """A pretraining step under autocast, and compiled without graph breaks."""
    torch.manual_seed(0)
    model = timm.create_model(name, depths=(1, 1, 1), decoder_depth=1)
    image = torch.randn(2, 3, *image_size(model))
    mask = torch.arange(16).expand(2, -1) % 4 != 0
    exact = model.completion_loss(image, mask, 12)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.completion_loss(image, mask, 12)
    rough.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)
    gradients = [p.grad.clone() for p in model.parameters()]
    torch._dynamo.reset()
    model.zero_grad()
    loss = torch.compile(model.completion_loss, fullgraph=True, backend="aot_eager")(image, mask, 12)
    torch.testing.assert_close(loss, exact)
    loss.backward()
    for p, rough_gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad - rough_gradient).norm() < 0.1 * p.grad.norm() + 1e-6


@pytest.mark.parametrize("name", ENCODERS | PAIRS)
def test_torch_export(name: str) -> None:
    model = timm.create_model(name, **(ENCODERS | PAIRS)[name]).eval()
    size = image_size(model)
    images = tuple(torch.randn(2, 3, *size) for _ in range(2 if name in PAIRS else 1))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, images, dynamic_shapes=tuple({0: batch} for _ in images))
    more = tuple(torch.randn(3, 3, *size) for _ in images)
    torch.testing.assert_close(program.module()(*more), model(*more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = timm.create_model(name, **ENCODERS[name]).eval()
    images = torch.randn(2, 3, *image_size(model))
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(copy.deepcopy(model), (images,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(features, model(images).detach().numpy(), rtol=1e-3, atol=1e-4)
