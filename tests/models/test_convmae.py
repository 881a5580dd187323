"""ConvMAE's sparse identity: convolutions on visible patches alone, the same function at a fraction of the work."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo  # noqa: F401  (registers the models)
from zoo.layers.masking import random_mask
from zoo.models import convmae
from zoo.models.convmae import ConvMAEPretraining, VisiblePatches, WindowConv

SMALL: dict[str, Any] = dict(embed_dim=(8, 12, 24), depths=(2, 1, 1), num_heads=2, decoder_dim=16, decoder_depth=1)


def small(**kwargs: Any) -> ConvMAEPretraining:
    torch.manual_seed(0)
    model = ConvMAEPretraining(decoder_num_heads=2, **SMALL, **kwargs)
    for parameter in model.parameters():  # biases too
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("size, hidden", [((80, 64), 15), ((80, 64), 1), ((80, 64), 19), ((16, 96), 3), ((48, 16), 2)])
def test_sparse_is_dense(size: tuple[int, int], hidden: int) -> None:
    model = small(img_size=size)
    patches = size[0] * size[1] // 256
    image = torch.randn(3, 3, *size)
    mask = random_mask(3, patches, hidden / patches + 1e-6, torch.Generator().manual_seed(1))
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for sparse in (True, False):
        model.sparse = sparse
        model.zero_grad()
        prediction, _ = model.predict(image, mask, hidden)
        (prediction * torch.linspace(-1, 1, prediction.numel()).view_as(prediction)).sum().backward()
        results.append((prediction.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}))  # type: ignore[union-attr]
    (ours, gradients), (dense, dense_gradients) = results
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)
    for key, want in dense_gradients.items():
        torch.testing.assert_close(gradients[key], want, rtol=1e-4, atol=1e-5 * float(want.abs().max() + 1))


def test_order_of_patches_does_not_matter() -> None:
    model = small(img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    visible = torch.tensor([[0, 1, 5, 6, 15]])
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(model.encode(image, visible[:, order]), model.encode(image, visible)[:, order])


def test_everything_visible_is_the_unmasked_encoder() -> None:
    model = small(img_size=64).eval()
    image = torch.randn(2, 3, 64, 64)
    tokens, (stage1, _) = model.encoder.forward_visible(image, torch.arange(16).expand(2, -1))
    final, (map1,) = model.encoder.forward_intermediates(image, [0])
    torch.testing.assert_close(tokens, final)
    first = map1[:, :, :4, 4:8].permute(0, 2, 3, 1)  # the patch in row 0, column 1
    torch.testing.assert_close(stage1[:, 1], first)


def test_gradients_of_the_window_convolution() -> None:
    windows = VisiblePatches(torch.tensor([[0, 1, 4, 3], [2, 5, 1, 4]]), (2, 3)).windows(2)
    x = torch.randn(8, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: WindowConv.apply(x, weight, windows), (x, weight))


@pytest.mark.parametrize("cached", [1, 200])
def test_window_convolution_in_parts(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By single patches, and by parts of which the last is smaller."""
    windows = VisiblePatches(torch.tensor([[0, 1, 4, 3, 2], [2, 5, 1, 4, 0]]), (2, 3)).windows(2)
    torch.manual_seed(0)
    x, grad = torch.randn(2, 10, 2, 2, 2, dtype=torch.float64)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    whole = _convolved(x, weight, windows, grad)
    monkeypatch.setattr(convmae, "_CACHED", cached)
    torch.testing.assert_close(_convolved(x, weight, windows, grad), whole)


def test_window_convolution_adds_parts_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the sum of many equal parts would stand still."""
    windows = VisiblePatches(torch.zeros(512, 1, dtype=torch.long), (1, 1)).windows(2)
    monkeypatch.setattr(convmae, "_CACHED", 1)
    x = torch.ones(512, 2, 2, 1, dtype=torch.bfloat16)
    *_, grad = _convolved(x, torch.ones(1, 1, 5, 5, dtype=torch.bfloat16), windows, x)
    assert grad.dtype == torch.bfloat16 and grad[0, 0, 2, 2] == 4 * 512


def test_window_convolution_of_no_samples() -> None:
    windows = VisiblePatches(torch.zeros(0, 3, dtype=torch.long), (2, 3)).windows(2)
    x = torch.zeros(0, 2, 2, 2)
    y, grad_x, grad = _convolved(x, torch.ones(2, 1, 5, 5), windows, x)
    assert y.shape == grad_x.shape == x.shape and (grad == 0).all()


def _convolved(x: Tensor, weight: Tensor, windows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the gradients of x and weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y: Tensor = WindowConv.apply(x, weight, windows)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def test_arithmetic_of_a_step() -> None:
    """The whole pretraining step of the base model on a batch of 4; a dense one takes over 500 GFLOP."""
    model = timm.create_model("convmae_base_patch16_224_mae", device="meta")
    image = torch.empty(4, 3, 224, 224, device="meta")
    mask = random_mask(4, 196, 0.75).to("meta")
    with FlopCounterMode(display=False) as counter:
        model.completion_loss(image, mask, 147).backward()
    assert counter.get_total_flops() <= 310e9
