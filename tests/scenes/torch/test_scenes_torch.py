"""Scenes rendered in torch are those of numpy, whatever the batch; and so are the batches that training gets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from zoo.errors import RecipeError
from zoo.scenes import SceneConfig, SceneImages, ScenePairs, render_pair
from zoo.scenes.torch.pairs import DrawnScenes, NumberedScenes
from zoo.scenes.torch.render import (
    SceneBatch,
    ScenePairBatch,
    draw_batch,
    render,
    render_in_torch,
    render_views,
    render_views_in_torch,
)
from zoo.train.build import make_objective, make_source
from zoo.train.curriculum import Curriculum
from zoo.train.data.loading import StepSampler, make_loader, to_device
from zoo.train.recipe import load_recipe

CONFIG = SceneConfig()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        SceneConfig(image_size=(24, 40), supersample=2, displacement=(0.15, 0.3), texture_scale=(0.05, 0.1)),
        SceneConfig(image_size=(24, 40), rectified=True),
    ],
    ids=["default", "supersampled", "rectified"],
)
@pytest.mark.parametrize("way", [render, render_in_torch])
def test_same_scenes_as_numpy(config: SceneConfig, way: Callable[[SceneConfig, SceneBatch], ScenePairBatch]) -> None:
    count = 24
    got = way(config, draw_batch(config, 7, range(count)))
    pairs = [render_pair(config, 7, index) for index in range(count)]
    images = np.stack([np.stack((pair.img1, pair.img2)) for pair in pairs]).transpose(0, 1, 4, 2, 3)
    off = np.abs(got.images.numpy().astype(int) - images)
    assert got.images.dtype == torch.uint8 and off.shape == (count, 2, 3, config.height, config.width)
    assert np.mean(off > 0) < 1e-3, "rounding to 8 bits"
    assert np.mean(off > 1) < 1e-4, "pixels at the edges of objects"
    depth = np.stack([np.stack((pair.depth1, pair.depth2)) for pair in pairs])
    assert np.mean(np.abs(got.depth.numpy() / depth - 1) > 1e-4) < 1e-4
    flow = np.stack([pair.flow for pair in pairs]).transpose(0, 3, 1, 2)
    assert np.mean(np.abs(got.flow.numpy() - flow) > 1e-2) < 1e-3
    assert np.mean(got.covisible.numpy() != np.stack([pair.covisible for pair in pairs])) < 1e-3
    truths = got.truths(("flow", "points1", "points2", "depth2", "intrinsics", "pose", "covisible"))
    if config.rectified:
        truths |= got.truths(("disparity",))
    for name, found in truths.items():
        want = np.stack([getattr(pair, name) for pair in pairs])
        assert found.shape == want.shape
        assert np.mean(np.abs(found.numpy() - want.astype(np.float32)) > 1e-2) < 1e-3, name


def test_photos_are_put_where_numpy_puts_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(2, 300, 200, 3), dtype=np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).resize((400, 600)).save(tmp_path / f"{i}.png")
    config = replace(CONFIG, textures=str(tmp_path))
    count = 8
    images, _ = render_views_in_torch(config, draw_batch(config, 7, range(count)))
    pairs = [render_pair(config, 7, index) for index in range(count)]
    want = np.stack([np.stack((pair.img1, pair.img2)) for pair in pairs]).transpose(0, 1, 4, 2, 3)
    off = np.abs(images.numpy().astype(int) - want)
    assert np.mean(off > 1) < 1e-3, "pixels at edges, and where two levels of detail meet"
    plain, _ = render_views_in_torch(CONFIG, draw_batch(CONFIG, 7, range(count)))
    assert (images != plain).float().mean() > 0.2


@pytest.mark.parametrize("way", [render_views, render_views_in_torch])
def test_batches_are_scenes_one_by_one(way: Callable[[SceneConfig, SceneBatch], tuple[Tensor, Tensor]]) -> None:
    scenes = draw_batch(CONFIG, 0, range(5))
    images, depth = way(CONFIG, scenes)
    single = [way(CONFIG, SceneBatch(*part)) for part in zip(*(x.split(1) for x in scenes))]
    alone, alone_depth = (torch.cat(parts) for parts in zip(*single))
    assert (images.int() - alone.int()).abs().max() <= 1
    torch.testing.assert_close(depth, alone_depth, rtol=1e-5, atol=0)


def test_drawn_scenes_become_the_pairs() -> None:
    pairs = ScenePairs(CONFIG, seed=3, length=4)
    drawn = DrawnScenes(pairs)
    batch = torch.utils.data.default_collate([drawn[i] | dict(order=np.arange(2)) for i in (2, 0)])
    got = drawn.render_batch(batch)
    assert set(got) == {"image1", "image2", "order"} and len(drawn) == 4
    for place, index in enumerate((2, 0)):
        for view in ("image1", "image2"):
            want = torch.from_numpy(pairs[index][view]).permute(2, 0, 1)
            assert (got[view][place] != want).float().mean() < 1e-3


def test_training_batches_are_those_of_the_workers() -> None:
    """data.render changes where scenes are rendered, and nothing else: not the masks, not the color jitter."""
    batches = []
    for where in ("workers", "device"):
        recipe = load_recipe("croco_nano", {"data.render": where, "batch_size": 4})
        source = make_source(recipe)
        objective = make_objective(recipe, source)
        loader = make_loader(source, objective.transform, StepSampler(len(source), 4, 0, 5, 6, 1, 0, 1), 0, False)
        batches.append(objective.views(to_device(next(iter(loader)), source, torch.device("cpu"))))
    for one, other in zip(*batches, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one != other).float().mean() < 1e-3
    assert batches[0][2].sum(1).tolist() == [57] * 4


def test_batches_of_numbered_scenes() -> None:
    """Drawn on the device, masks and jitter with them: a function of the draw alone, whatever workers and batches."""
    recipe = load_recipe("croco_nano", {"data.render": "device", "data.draw": "device"})
    source = make_source(recipe)
    objective = make_objective(recipe, source)
    curriculum = Curriculum({"data.displacement": [[0, [0.02, 0.03]], [2, [0.1, 0.2]]]}, 4)

    def views(batch_size: int, start: int, workers: int) -> list[tuple[Tensor, ...]]:
        sampler = StepSampler(len(source), batch_size, 5, start, start + 2, 1, 0, 1)
        loader = make_loader(source, objective.transform, sampler, workers, False, curriculum)
        return [objective.views(to_device(batch, source, torch.device("cpu"))) for batch in loader]

    first, second = views(4, 1, 0)
    for mask in (first[2], second[2]):
        assert mask.sum(1).tolist() == [57] * 4
    assert (first[2] != second[2]).any() and (first[0] != second[0]).any()
    again = views(4, 2, 2)[0]
    for a, b in zip(second, again, strict=True):
        assert torch.equal(a, b)
    easy, hard = views(4, 0, 0)[0], again
    moved = [(x[0].float() - x[1].float()).abs().mean() for x in (easy, hard)]
    assert moved[0] < moved[1], "the curriculum's displacement"


def test_single_views_on_the_device() -> None:
    settings = {"data.render": "device", "data.draw": "device", "batch_size": 4}
    recipe = load_recipe("mae_nano", settings)
    source = make_source(recipe)
    objective = make_objective(recipe, source)
    loader = make_loader(source, objective.transform, StepSampler(len(source), 4, 0, 5, 6, 1, 0, 1), 0, False)
    batch = to_device(next(iter(loader)), source, torch.device("cpu"))
    assert objective.drawn(batch)["mask"].sum(1).tolist() == [48] * 4
    assert objective(batch)["loss"].isfinite()
    with pytest.raises(RecipeError, match=r"set objective\.scale"):
        recipe = load_recipe("mae_nano", settings | {"objective.scale": [0.2, 1.0]})
        make_objective(recipe, make_source(recipe))


def test_impossible_settings() -> None:
    for settings, message in (
        ({"data.render": "moon"}, "it must be workers or device"),
        ({"data.draw": "device"}, "drawn by the device can.t be rendered by workers"),
        ({"data.render": "device", "objective.crop": 64}, r"leave out objective\.crop"),
    ):
        recipe = load_recipe("croco_nano", settings)
        with pytest.raises(RecipeError, match=message):
            make_objective(recipe, make_source(recipe))


def test_changed_scenes_keep_the_rest() -> None:
    easy = dict(displacement=(0.02, 0.04), texture_scale=(1.0, 1.5))
    pairs = ScenePairs(CONFIG, seed=3, length=9)
    for make in (lambda pairs: pairs, DrawnScenes, NumberedScenes, SceneImages):
        source, want, got = make(pairs), make(pairs.changed(**easy)), make(pairs).changed(**easy)
        assert len(got) == 9 and all(np.array_equal(got[4][key], want[4][key]) for key in got[4])
        assert any(not np.array_equal(got[4][key], source[4][key]) for key in got[4])
        with pytest.raises(RecipeError, match="keep their supersample"):
            source.changed(supersample=1)
