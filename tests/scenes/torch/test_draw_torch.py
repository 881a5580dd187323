"""Scenes drawn in torch: of the same kind as numpy's, each a function of (seed, index) alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zoo.scenes import SceneConfig, ScenePairs
from zoo.scenes.torch.draw import draw_scenes
from zoo.scenes.torch.pairs import NumberedScenes
from zoo.scenes.torch.random import Draws
from zoo.scenes.torch.render import SceneBatch, draw_batch, render

CONFIG = SceneConfig(image_size=32)


@pytest.fixture(scope="module")
def drawn() -> SceneBatch:
    return draw_scenes(CONFIG, 7, torch.arange(400))


def test_random_numbers_are_uniform_and_independent() -> None:
    draws = Draws(3, torch.arange(1000))
    first, second = draws.unit(50), draws.unit(4, 5)
    assert first.shape == (1000, 50) and second.shape == (1000, 4, 5)
    assert first.min() >= 0 and first.max() < 1
    counts = torch.histc(first, 10, 0, 1) / first.numel()
    assert (counts - 0.1).abs().max() < 0.01
    columns = torch.cat((first, second.flatten(1)), dim=1)
    others = Draws(4, torch.arange(1000)).unit(50), Draws(3, torch.arange(1000) + 1).unit(50)
    for x in (columns, columns.mT, *(torch.cat((first, other), dim=1) for other in others)):
        off = torch.corrcoef(x.mT) - torch.eye(x.shape[1])
        assert off.abs().max() < 6 / len(x) ** 0.5
    normal = draws.normal(50)
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02 and normal.isfinite().all()
    assert len(torch.unique(Draws(2**63 + 5, torch.arange(9)).unit())) == 9, "any seed"


def test_a_scene_depends_on_seed_and_index_alone(drawn: SceneBatch) -> None:
    for places in ([5, 300, 17], [17, 300, 5], [300]):
        index = torch.tensor(places)
        for got, want in zip(draw_scenes(CONFIG, 7, index), drawn):
            torch.testing.assert_close(got, want[index], rtol=1e-4, atol=1e-4)
    other = draw_scenes(CONFIG, 8, index)
    assert not torch.isclose(other.focal, drawn.focal[index]).any()


def test_same_layout_and_kind_as_numpy(drawn: SceneBatch) -> None:
    want = draw_batch(CONFIG, 7, range(400))
    for name, a, b in zip(SceneBatch._fields, drawn, want):
        assert a.shape == b.shape and a.dtype.is_floating_point == b.dtype.is_floating_point
        if name != "lattice" and name != "image":
            a, b = (x.float().reshape(400, -1) for x in (a, b))
            spread = b.std(0).mean() + 1e-3
            assert abs(a.mean() - b.mean()) < 0.15 * spread, name
            assert abs(a.std() - b.std()) < 0.1 * b.std() + 1e-3, name
    one, two = render(CONFIG, drawn), render(CONFIG, want)
    for find in (
        lambda pairs: pairs.covisible.float().mean((1, 2)),
        lambda pairs: pairs.depth.log().mean((1, 2, 3)),
        lambda pairs: pairs.images.float().std((1, 2, 3, 4)) / 255,
        lambda pairs: torch.stack([f[m].median() for f, m in zip(pairs.flow.norm(dim=1) / 32, pairs.covisible)]),
    ):
        a, b = find(one), find(two)
        assert abs(a.mean() - b.mean()) < 5 * b.std() / 400**0.5
        assert abs(a.std() / b.std() - 1) < 0.2
    assert one.covisible.float().mean((1, 2)).min() > 0.4


def test_rectified_pairs() -> None:
    config = replace(CONFIG, rectified=True, displacement=(0.1, 0.3))
    pairs = render(config, draw_scenes(config, 0, torch.arange(50)))
    assert (pairs.pose[:, 0, 3] < 0).all() and pairs.pose[:, 1:3, 3].abs().max() < 1e-5
    assert (pairs.disparity + pairs.flow[:, 0]).abs().max() < 1e-3
    assert pairs.flow[:, 1].abs().max() < 1e-3
    assert pairs.covisible.float().mean((1, 2)).min() > 0.35


def test_each_scene_may_have_ranges_of_its_own() -> None:
    index = torch.arange(40)
    displacement = torch.tensor([[0.02, 0.03], [0.2, 0.25]]).repeat_interleave(20, dim=0)
    scale = torch.tensor([[0.2, 0.2], [0.9, 0.9]]).repeat_interleave(20, dim=0)
    scenes = draw_scenes(CONFIG, 1, index, displacement, scale)
    pairs = render(CONFIG, scenes)
    moved = torch.stack([f[m].median() for f, m in zip(pairs.flow.norm(dim=1) / 32, pairs.covisible)])
    assert moved[:20].median() < 0.04 and 0.15 < moved[20:].median() < 0.3
    density = scenes.cells[..., 0].square() + scenes.cells[..., 1].square()
    assert density[:20].median() > 5 * density[20:].median()


def test_numbered_scenes_give_what_workers_give() -> None:
    """The same keys, shapes and types as rendered pairs have, and the scenes of a number whatever the batch."""
    source = ScenePairs(replace(CONFIG, rectified=True), seed=3, length=9, truths=("disparity", "points1"))
    numbered = NumberedScenes(source)
    batch = torch.utils.data.default_collate([numbered[i] | dict(order=np.arange(2)) for i in (2, 0)])
    assert {key: tuple(x.shape) for key, x in batch.items() if key != "order"} == dict(
        scene=(2,), displacement=(2, 2), texture_scale=(2, 2)
    )
    got, item = numbered.render_batch(batch), source[0]
    assert set(got) == set(item) | {"order"}
    for key, want in item.items():
        found = got[key].movedim(1, -1) if key.startswith("image") else got[key]
        assert found.shape == (2, *want.shape) and found[0].numpy().dtype == want.dtype
    alone = numbered.render_batch(torch.utils.data.default_collate([numbered[0]]))
    assert (got["image1"][1:].int() - alone["image1"].int()).abs().float().mean() < 0.1
    single = NumberedScenes(source, views=1).render_batch(batch)
    assert set(single) == {"image", "order"} and single["image"].shape == (2, 3, 32, 32)
    assert (single["image"].int() - got["image1"].int()).abs().float().mean() < 0.1
