"""What is particular to HiViT: patches that are left out, relative-position bias, other image sizes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table, set_fused_attn
from torch import Tensor
from torch._subclasses import FakeTensorMode

import zoo  # noqa: F401  (registers the models)
from zoo.errors import ImageError
from zoo.layers.masking import random_mask, split_mask, take_tokens
from zoo.layers.positions.relative import RelativeBias
from zoo.layers.remember import once_a_grid
from zoo.models.hivit import HiViT, HiViTMAE

TINY: dict[str, Any] = dict(embed_dim=32, depths=(1, 2, 3), num_heads=2)


def tiny(**args: Any) -> HiViT:
    torch.manual_seed(0)
    return HiViT(**{"img_size": 64, **TINY, **args}).eval()


def tiny_mae(**args: Any) -> HiViTMAE:
    torch.manual_seed(0)
    return HiViTMAE(**{"img_size": 64, "decoder_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, **TINY, **args})


@pytest.mark.parametrize("rel_pos", [False, True])
def test_leaving_patches_out_is_not_seeing_them(rel_pos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped patches against a full run in which no query attends to a hidden key."""
    model = tiny(rel_pos=rel_pos, img_size=(48, 80))
    images = torch.randn(2, 3, 48, 80)
    visible, _ = split_mask(random_mask(2, 15, 0.6, torch.Generator().manual_seed(1)), 9)
    high, mid, tokens = model.encode(images, visible)
    assert (high.shape, mid.shape, tokens.shape) == ((2, 6, 4, 4, 8), (2, 6, 2, 2, 16), (2, 6, 32))

    block = type(model.blocks[-1])
    never = torch.full((2, 1, 1, 15), -torch.inf).scatter(3, visible[:, None, None], 0.0)  # B, 1, 1, N: by key

    def attend(self: Any, x: Tensor, relative: Any = None) -> Tensor:
        bias = never if self.rel_pos is None else never + self.rel_pos(relative)
        x = x + self.attn(self.norm1(x), bias=bias)
        return x + self.mlp(self.norm2(x))

    monkeypatch.setattr(block, "forward", attend)
    whole = model.encode(images)
    for got, want in zip((high, mid, tokens), whole):
        torch.testing.assert_close(got.flatten(2), take_tokens(want.flatten(2), visible))


def test_nothing_comes_from_hidden_pixels() -> None:
    model = tiny_mae()
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    mask = random_mask(2, 16, 0.75)
    model(images, mask, 12).sum().backward()
    assert images.grad is not None
    seen = images.grad.unfold(2, 16, 16).unfold(3, 16, 16).abs().sum((1, 4, 5)).flatten(1) > 0
    assert torch.equal(seen, ~mask)


def test_relative_bias() -> None:
    """Query minus key, row-major, and the rows of a rectangle's table."""
    bias = RelativeBias(2, (2, 3))
    with torch.no_grad():
        bias.table.copy_(torch.arange(30.0).view(3, 5, 2))
    matrix = bias(bias.read_on((2, 3)))
    assert matrix.shape == (2, 6, 6)
    for query in range(6):
        for key in range(6):
            dy, dx = query // 3 - key // 3, query % 3 - key % 3
            assert torch.equal(matrix[:, query, key], bias.table[dy + 1, dx + 2])


def test_geometry_is_computed_once() -> None:
    counted: Any = Counter()

    @once_a_grid
    def make(*grid: int) -> torch.Tensor:
        counted[grid] += 1
        return torch.arange(math.prod(grid))

    with torch.inference_mode():
        assert make(6, 5) is make(6, 5)
    assert not make(6, 5).is_inference(), "what inference left is good for training"
    for rows in range(20):
        make(rows, 1)
    make(19, 1)
    assert set(counted.values()) == {1}
    model = tiny(img_size=(112, 80), dynamic_img_size=True)
    with torch.inference_mode():
        model(torch.randn(1, 3, 96, 80))
    model.train()(torch.randn(1, 3, 96, 80)).sum().backward()


def test_caches_keep_ordinary_tensors_only() -> None:
    """A shape estimate, a functorch transform or a default device leaves nothing behind in the process."""
    images = torch.randn(1, 3, 80, 48)
    model = tiny(img_size=(80, 48))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(images)
    assert type(model(images)) is type(tiny(img_size=(80, 48))(images)) is torch.Tensor
    torch.func.functionalize(tiny(img_size=(48, 80)))(images.mT)
    torch.func.vmap(tiny(img_size=(16, 96)))(torch.randn(2, 1, 3, 16, 96))
    for size in ((48, 80), (16, 96)):
        made = tiny(img_size=size)(torch.randn(1, 3, *size))
        assert not torch._is_functional_tensor(made) and not torch._C._functorch.is_functorch_wrapped_tensor(made)
    with torch.device("meta"):
        tiny(img_size=(96, 16), dynamic_img_size=True)(torch.randn(1, 3, 16, 112))
    assert tiny(img_size=(96, 16), dynamic_img_size=True)(torch.randn(1, 3, 16, 112)).isfinite().all()


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (14, 7), (9, 9), (4, 6), (1, 2)])
def test_bias_tables_are_resampled_as_timm_does(grid: tuple[int, int]) -> None:
    bias = RelativeBias(3, (4, 4))
    bias.init_weights()
    rows, columns = 2 * grid[0] - 1, 2 * grid[1] - 1
    flat = bias.table.detach().flatten(0, 1)
    want = resize_rel_pos_bias_table(flat, grid, (rows * columns, 3), (4, 4)).view(rows, columns, 3)

    other = RelativeBias(3, grid)
    torch.testing.assert_close(other.fit(bias.table.detach()), want)
    other.table.data = want
    torch.testing.assert_close(bias(bias.read_on(grid)), other(other.read_on(grid)))
    bias(bias.read_on(grid)).sum().backward()
    assert bias.table.grad is not None and bias.table.grad.abs().sum() > 0
    bias.set_grid(grid)
    torch.testing.assert_close(bias.table.detach(), want)


@pytest.mark.parametrize("size", [(48, 96), (128, 128)])
def test_sizes_at_creation_at_call_and_afterwards_agree(size: tuple[int, int]) -> None:
    dynamic = tiny(dynamic_img_size=True)
    made, moved = tiny(img_size=size), tiny()
    made.load_state_dict(made.adapt_state(dict(dynamic.state_dict())))
    moved.load_state_dict(dynamic.state_dict())
    moved.set_input_size(size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(made(images), dynamic(images))
        torch.testing.assert_close(moved(images), dynamic(images))
    # a rectangle's file tells its grid, also where a square has as many patches
    state = tiny(img_size=(32, 128)).state_dict()
    square = tiny()
    assert torch.equal(tiny(img_size=(32, 128)).adapt_state(dict(state))["pos_embed.table"], state["pos_embed.table"])
    assert square.adapt_state(dict(state))["pos_embed.table"].shape == square.pos_embed.table.shape


def test_impossible_images() -> None:
    with pytest.raises(ImageError, match="64x80 pixels came to a model made for 64x64"):
        tiny()(torch.randn(1, 3, 64, 80))
    with pytest.raises(ImageError, match="multiples of 16"):
        tiny(dynamic_img_size=True)(torch.randn(1, 3, 64, 72))
    with pytest.raises(ImageError, match="16 patches, but image 1 has 4 x 5"):
        tiny_mae().completion_loss(torch.randn(1, 3, 64, 80), random_mask(1, 16, 0.75), 12)


def test_fused_attention_is_the_same_function() -> None:
    images = torch.randn(2, 3, 64, 64)
    results = []
    for fused in (True, False):
        set_fused_attn(fused)
        model = tiny(init_values=0.5)
        set_fused_attn(True)
        assert all(block.attn.fused_attn is fused for block in model.blocks[-3:])
        features = model(images)
        features.square().sum().backward()
        results.append((features.detach(), {key: p.grad for key, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 64, 64)
    model, mae = tiny(), tiny_mae()
    exact = model(images)
    with torch.autocast("cpu", dtype):
        rough = model(images)
        loss = mae.completion_loss(images, random_mask(2, 16, 0.75), 12)
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert loss.dtype == torch.float32
    loss.backward()


def test_compile_has_no_graph_breaks() -> None:
    model, mae = tiny(depths=(1, 1, 1)), tiny_mae(depths=(1, 1, 1))
    images, mask = torch.randn(2, 3, 64, 64), random_mask(2, 16, 0.75)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
    loss = torch.compile(mae.completion_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss(images, mask, 12), mae.completion_loss(images, mask, 12))


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_torch_export(size: tuple[int, int]) -> None:
    model = tiny(dynamic_img_size=True, depths=(1, 1, 1))
    images = torch.randn(2, 3, *size)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = torch.randn(3, 3, *size)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-4)
    model.train()(images).sum().backward()  # the export left nothing of its own behind


def test_mae_completes_images() -> None:
    model = timm.create_model("hivit_nano_patch16_64_mae").eval()
    images = torch.randn(2, 3, 64, 96)
    result = model.complete(images, generator=torch.Generator().manual_seed(0))
    assert result.image.shape == images.shape and result.mask.sum(1).tolist() == [18, 18]
    seen = ~result.mask.view(2, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3).expand_as(images)
    assert torch.equal(result.image[seen], images[seen])
