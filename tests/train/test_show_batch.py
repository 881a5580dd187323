"""`zoo show-batch`: a picture for every recipe, of what its transform really gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.kinds import first_of_each
from tests.train.data.test_posed import write as write_posed_pairs
from zoo.pictures import Frame, Panel, draw_panels, save_figure
from zoo.train import build, preview
from zoo.train.data import loading
from zoo.train.objectives import masked
from zoo.train.objectives.cross_view import CrossViewCompletion
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import load_recipe, recipe_names


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(folder / name)
    return folder


def matching_list(folder: Path, task: str, crop: tuple[int, int]) -> Path:
    """A list of one pair, a little larger than the crop, and its truth."""
    height, width = crop[0] + 8, crop[1] + 24
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for name in ("one.png", "two.png"):
        Image.fromarray(coarse).resize((width, height)).save(folder / name)
    ramp = np.repeat(np.linspace(1, 30, width, dtype=np.float32)[None], height, 0)
    np.save(folder / "truth.npy", ramp if task == "stereo" else np.stack((ramp, ramp[:, ::-1]), -1))
    (folder / "pairs.txt").write_text("one.png two.png truth.npy\n" * 3)
    return folder / "pairs.txt"


def task(name: str) -> tuple[str, ...]:
    recipe = load_recipe(name)
    return recipe.objective["name"], recipe.data["source"], recipe.model


@pytest.mark.parametrize("name", first_of_each(recipe_names(), task))
def test_every_recipe_has_a_picture(name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published ones too, whose models take memory and time only where weights are drawn: here they aren't."""
    changes: dict[str, Any] = {}
    recipe = load_recipe(name)
    if recipe.data["source"] == "pairs":
        changes["data"] = dict(source="scenes", image_size=recipe.objective["crop"])
    if recipe.data["source"] == "images":
        changes["data.path"] = str(photos)
        if recipe.objective["name"] in ("classification", "linear_probe", "linear_heads"):
            changes["model_args.num_classes"] = 2
    if recipe.data["source"] == "matching":
        changes["data.path"] = str(matching_list(tmp_path, recipe.objective["name"], recipe.objective["crop"]))
    if recipe.data["source"] == "posed":
        write_posed_pairs(tmp_path / "posed", (96, 128))
        changes["data.path"] = str(tmp_path / "posed")
    monkeypatch.setattr(masked, "make_teacher", lambda *args: lambda images: torch.zeros(1, 196, 512))  # else fetched
    figure = preview.show_batch(load_recipe(name, changes), samples=3)
    with Image.open(save_figure(figure, tmp_path / "batch.png")) as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGBA")).view(np.uint32))) > 500  # colors


def test_picture_is_of_the_first_samples() -> None:
    """The batch that the objective draws is the beginning of what a run sees."""
    recipe = load_recipe("jigsaw_nano", {"model_args": dict(channels=[4, 4, 4, 8]), "batch_size": 3, "data.samples": 9})
    seen = []

    def note(objective: Objective, samples: list, batch: dict[str, torch.Tensor]) -> Any:
        seen.append((samples, batch))
        return draw_panels([[Panel(sample["image"] / 255)] for sample in samples], "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.objectives.jigsaw.jigsaw.Jigsaw.show", note)
        preview.show_batch(recipe, samples=3)
    (samples, batch) = seen[0]
    source = build.make_source(recipe)
    sampler = loading.StepSampler(len(source), 3, recipe.seed, 0, 1, 1, 0, 1)
    transform = build.make_objective(recipe, source).transform
    first = next(iter(loading.make_loader(source, transform, sampler, 0, False)))
    assert all(torch.equal(first[key], batch[key]) for key in first)
    (keys,) = sampler
    assert all(np.array_equal(sample["image"], source[i]["image"]) for sample, (i, _) in zip(samples, keys))


def test_completion_hides_what_the_mask_hides() -> None:
    recipe = load_recipe("croco_nano")
    objective = build.make_objective(recipe, build.make_source(recipe))
    assert isinstance(objective, CrossViewCompletion)
    objective.hidden = 58  # of 8x8 patches; the last six of the last row are visible
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    figure = objective.show([], dict(image1=images, image2=images, order=torch.arange(64)[None]))
    seen = figure.axes[1].images[0].get_array()
    gray = np.asarray(seen).mean(axis=-1) > 0.5
    expected = np.ones((64, 64), dtype=bool)
    expected[56:, 16:] = False
    assert np.array_equal(gray, expected)


def test_frames_are_drawn_where_they_say(tmp_path: Path) -> None:
    figure = draw_panels([[Panel(np.zeros((40, 40, 3)), "title", [Frame(10, 20, 20, 10, "#ff0000", "7")])]], "", "")
    (ax,) = figure.axes
    (rectangle,) = ax.patches
    assert rectangle.get_bbox().bounds == (9.5, 19.5, 20, 10), "pixel centers are whole numbers"
    assert ax.get_title() == "title" and [text.get_text() for text in ax.texts] == ["7"]
