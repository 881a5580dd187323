"""Graphs of every encoder: torch.fx, TorchScript, and torch.export and torch.compile at sizes left open."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureGraphNet
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

import zoo  # noqa: F401  (registers the models)
from tests.support.kinds import first_of_each
from zoo.catalog import VARIANTS
from zoo.layers.positions.tables import resample_table, stretch_table

ENCODERS = {variant.architecture: variant for variant in VARIANTS if variant.form == "encoder"}


def is_resnet(name: str) -> bool:
    return "resnet" in name or "layers" in ENCODERS[name].args


def shallow(name: str, **more: Any) -> dict[str, Any]:
    """Arguments that leave the kinds of layers and make few and narrow ones."""
    args = ENCODERS[name].args
    if is_resnet(name):
        return dict(layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), **more)
    if isinstance(args.get("embed_dim"), int):
        more = dict(embed_dim=64, num_heads=2) | more
    return dict(depths=(1, 1, 2)) | more if "depths" in args else dict(depth=2) | more


def make(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    p = ENCODERS[name].args.get("patch_size", 16)
    if not is_resnet(name):
        more = dict(img_size=(4 * p, 4 * p), dynamic_img_size=True) | more
    return timm.create_model(name, **shallow(name, **more)).eval()


def images(name: str, rows: int, columns: int) -> Tensor:
    p = ENCODERS[name].args.get("patch_size", 16)
    return torch.randn(2, 3, rows * p, columns * p, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


SIZES = {"embed_dim", "depth", "depths", "num_heads", "patch_size", "layers", "channels"}


def graph(name: str) -> tuple[Any, ...]:
    """What is left of an architecture in its shallow form."""
    variant = ENCODERS[name]
    rest = sorted((key, str(value)) for key, value in variant.args.items() if key not in SIZES)
    return ("resnet" if is_resnet(name) else variant.family, *rest)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_level(name: str) -> None:
    model = make(name)
    x = images(name, 4, 4)
    _, maps = model.forward_intermediates(x)
    assert len(maps) == len(model.feature_info) == len({info["module"] for info in model.feature_info})
    for level, info in zip(maps, model.feature_info, strict=True):
        assert level.shape[1:] == (info["num_chs"], x.shape[2] // info["reduction"], x.shape[3] // info["reduction"])


@pytest.mark.parametrize("name", first_of_each(ENCODERS, graph))
def test_fx(name: str) -> None:
    model = make(name)
    x, other = images(name, 4, 4), images(name, 3, 5)
    nodes = [info["module"] for info in model.feature_info]
    extractor = create_feature_extractor(model, nodes)
    for level, info in zip(extractor(x).values(), model.feature_info, strict=True):
        assert info["num_chs"] in level.shape
    assert len(extractor(other)) == len(nodes)
    network = FeatureGraphNet(model, tuple(range(len(nodes))))
    for level, want in zip(network(x), extractor(x).values(), strict=True):
        assert torch.equal(level, want)
    traced = torch.fx.symbolic_trace(model)
    close(traced(x), model(x))
    close(traced(other), model(other))


@pytest.mark.parametrize("name", first_of_each(ENCODERS, graph))
def test_script(name: str) -> None:
    model = make(name, scriptable=True, num_classes=3)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for x in (images(name, 4, 4), images(name, 3, 5)):
        close(loaded(x), model(x))
    if not is_resnet(name):
        fixed = torch.jit.script(make(name, dynamic_img_size=False))
        with pytest.raises(torch.jit.Error, match="dynamic_img_size=True"):
            fixed(images(name, 3, 5))


# one of each kind of positions
KINDS = {
    "croco_base_patch16_224": {},
    "crocov2_base_patch16_224": {},
    "convmae_nano_patch16_64": {},
    "hivit_nano_patch16_64": dict(rel_pos=True),
    "itpn_nano_patch16_64": {},
    "fast_itpn_tiny_patch16_224": {},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_export_with_open_sizes(name: str) -> None:
    """From an example at the model's own size, which is then one of many."""
    model = make(name, **KINDS[name])
    height, width = (torch.export.Dim(side, min=2, max=12) for side in ("h", "w"))
    shapes = ({2: 16 * height, 3: 16 * width},)
    program = torch.export.export(model, (images(name, 4, 4),), dynamic_shapes=shapes).module()
    for size in ((4, 4), (6, 2), (4, 7)):
        close(program(images(name, *size)), model(images(name, *size)))


@pytest.mark.parametrize("resample", [resample_table, stretch_table])
def test_compiled_gradients_at_a_second_size(resample: Callable[..., torch.Tensor]) -> None:
    """Of tables of positions, the only trained parameters whose part in a model depends on the image's size."""
    table = torch.randn(16, 8, requires_grad=True)

    def positions(x: torch.Tensor) -> torch.Tensor:
        return resample(table, (4, 4), (x.shape[2] // 16, x.shape[3] // 16))

    torch._dynamo.reset()
    compiled = torch.compile(positions, backend="aot_eager")
    for rows, columns in ((6, 3), (5, 2), (7, 9)):
        x = torch.zeros(1, 3, 16 * rows, 16 * columns)
        expected, found = positions(x), compiled(x)
        close(found, expected)
        weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
        close(*(torch.autograd.grad((y * weights).sum(), table)[0] for y in (found, expected)))
