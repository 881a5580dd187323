"""`zoo train` and `zoo recipes`: what a new user types first."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run
from tests.train.data.test_images import png, write_shard
from tests.train.test_training import TINY, assert_identical
from zoo.errors import RecipeError
from zoo.train.engine import train as train_recipe
from zoo.train.recipe import Recipe, load_recipe, recipe_names
from zoo.train.run import read_log

TINY_SETS = [f"--set={key}={value}" for key, value in TINY.items() if key != "schedule"]
TINY_SETS += ["--set=schedule={unit: steps, warmup: 2, length: 8}"]
QUIET = ("--workers", "0")


def photo(path: Path, size: tuple[int, int] = (90, 70), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Photos of one's own, larger than the model's images, with spaces in their names."""
    folder = tmp_path / "my pairs"
    for i in range(8):
        photo(folder / f"left {i}.png", seed=i)
        photo(folder / f"right {i}.png", seed=i + 100)
    lines = [f'"left {i}.png" "right {i}.png"' for i in range(8)]
    (folder / "pairs.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for kind in ("a", "b"):
            for i in range(8):
                photo(tmp_path / "images" / split / kind / f"{i}.png", seed=i)
    return tmp_path / "images"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "0.tar", {f"{i}.png": png(10 * i) for i in range(8)})
    return tmp_path / "shards"


def test_own_pairs_in_a_recipe_of_scenes(zoo: Run, pairs: Path, tmp_path: Path) -> None:
    """`--data` is what is trained on: photos of 90x70 pixels, resized and cropped to the model's 64."""
    code, out, err = zoo("train", "croco_nano", "--data", pairs, "-o", tmp_path / "run", *TINY_SETS, *QUIET)
    assert code == 0, err
    assert "data        pairs, path" in out and "8 samples" in out
    recipe = load_recipe(tmp_path / "run")
    assert recipe.data == dict(source="pairs", path=str(pairs)), "none of the scenes' settings"
    assert len(read_log(tmp_path / "run")) == 4


def test_crops_of_a_pair_overlap(pairs: Path) -> None:
    from zoo.train.build import make_objective, make_source

    recipe = load_recipe("croco_nano", dict(data=dict(source="pairs", path=str(pairs))))
    transform = make_objective(recipe, make_source(recipe)).transform
    assert (transform.size, transform.resize) == ((64, 64), 73), "the published 256 for 224"
    published = load_recipe("crocov2_large", {"data.path": str(pairs), "model": "croco_nano_patch8_64_dec128d4"})
    published = load_recipe("croco_nano", dict(data=published.data, objective=dict(published.objective, crop=64)))
    assert make_objective(published, make_source(published)).transform.resize == 73


def test_strangers_are_told(pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    from zoo.train.build import make_objective, make_source

    settings = {"data": dict(source="pairs", path=str(pairs)), "objective.resize": 140}
    recipe = load_recipe("croco_nano", settings)
    source = make_source(recipe)
    row = make_objective(recipe, source).transform({"index": 0, **source[0]}, 0)
    assert row["image1"].shape == (3, 64, 64)
    assert "may have nothing in common; set objective.resize lower" in caplog.text


def data_of(zoo: Run, recipe: str, *arguments: object) -> tuple[Recipe, str]:
    """The recipe that a command trains."""
    seen: list[Recipe] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.engine.train", lambda recipe, *args, **options: seen.append(recipe))
        code, out, err = zoo("train", recipe, *arguments, *QUIET)
    assert code == 0, err
    return seen[0], out


def test_data_chooses_the_source(zoo: Run, images: Path, shards: Path) -> None:
    recipe, out = data_of(zoo, "classify_nano", "--data", images, "--set", "model_args.num_classes=2")
    assert recipe.data == dict(source="images", path=str(images)) and recipe.validation == dict(split="val")
    assert "2 classes" in out
    recipe, _ = data_of(zoo, "mae_nano", "--data", shards)
    assert recipe.data == dict(source="webdataset", path=str(shards))
    recipe, _ = data_of(zoo, "mae_nano", "--data", f"{shards}/*.tar")
    assert recipe.data["source"] == "webdataset"
    recipe, _ = data_of(zoo, "mae_nano", "--data", images, "--set", "data.split=val")
    assert recipe.data == dict(source="images", path=str(images), split="val")
    recipe, _ = data_of(zoo, "mae_nano", "--data", images, "--set", "data.source=images")
    assert recipe.data == dict(source="images", path=str(images)), "a source that is named is taken"


def test_data_with_depth_and_cameras(zoo: Run, tmp_path: Path) -> None:
    from tests.train.data.test_posed import write

    write(tmp_path, (64, 64))
    recipe, out = data_of(zoo, "dust3r_nano", "--data", tmp_path, "--set", "batch_size=2")
    assert recipe.data == dict(source="posed", path=str(tmp_path), image_size=64), "of the scenes only their size"
    assert "2 samples" in out


def test_a_list_of_pairs_holds_nothing_out(zoo: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is it validated on: the best weights would be those that know it by heart."""
    from tests.train.test_show_batch import matching_list
    from zoo.train.build import make_validation_source

    mine = matching_list(tmp_path, "stereo", (32, 64))
    command = ("crocostereo_base_smalldec", "--data", mine, "--set", "model=croco_nano_patch8_dec128d4_stereo")
    command += ("--set=init=''", "--set=objective.crop=[32, 64]", "--set=batch_size=2")
    recipe, out = data_of(zoo, *command)
    assert recipe.data == dict(source="matching", path=str(mine), mix="list") and "mix list" in out
    assert (recipe.validation, recipe.export) == ({}, "last")
    assert "holds nothing out" in caplog.text

    other = mine.with_name("held_out.txt")
    other.write_text(mine.read_text().splitlines()[0])
    recipe, _ = data_of(zoo, *command, "--set", f"validation.path={other}")
    assert recipe.export == "best" and len(make_validation_source(recipe)) == 1

    with pytest.raises(RecipeError, match=r"validated on what it trains on; name another list with --set validation"):
        make_validation_source(load_recipe("crocostereo_base_smalldec", {"data.path": str(mine)}))
    with pytest.raises(RecipeError, match="validated on what it trains on"):
        make_validation_source(dataclasses.replace(recipe, validation=recipe.validation | dict(path=str(mine))))


def test_another_source_has_other_settings(zoo: Run, images: Path) -> None:
    """Neither the scenes' image_size nor the validation's samples are what the user set."""
    for recipe in ("mae_nano", "classify_nano"):
        arguments = ("--set", "data.source=images", "--set", f"data.path={images}", "--set=model_args.num_classes=2")
        found, _ = data_of(zoo, recipe, *arguments[: 4 if recipe == "mae_nano" else 5])
        assert found.data == dict(source="images", path=str(images)) and found.validation == {}


@pytest.mark.parametrize(
    "recipe, path, problem",
    [
        ("croco_nano", "images", "nothing that pairs can be read from; give a folder with pairs.txt"),
        ("mae_nano", "no/such/folder", "nothing that images can be read from"),
        ("dust3r_nano", "images", "nothing that pairs with depth and cameras can be read from; give a folder with"),
        ("croco_base", "no_such_folder", "There is no training data at no_such_folder"),
        ("convmae_base", "no_such_folder", "There is no folder of images no_such_folder"),
    ],
)
def test_data_that_does_not_fit(
    zoo: Run, recipe: str, path: str, problem: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    code, _, err = zoo("train", recipe, "--data", path, *QUIET)
    assert code == 2 and problem in err and "Traceback" not in err


def test_a_path_for_what_is_made(zoo: Run) -> None:
    for recipe in ("croco_nano", "classify_nano"):
        code, _, err = zoo("train", recipe, "--set", "data.path=mine", *QUIET)
        assert code == 2 and "are made, not read" in err


def test_run_folder_goes_on(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any of the settings that it was begun with."""
    from tests.train.objectives.labels.test_classify import train_until_saved
    from tests.train.test_training import tiny

    train_recipe(tiny(), tmp_path / "whole", workers=0, progress=False)
    train_until_saved(tiny(), tmp_path / "killed", monkeypatch)
    code, out, err = zoo("train", tmp_path / "killed", *QUIET)
    assert code == 0, err
    assert f"output      {tmp_path / 'killed'}" in out
    assert_identical(tmp_path / "whole", tmp_path / "killed")
    code, _, err = zoo("train", tmp_path / "killed", "--set", "schedule.length=99", *QUIET)
    assert code == 2 and "is finished after 8 steps" in err and "--init" in err
    (tmp_path / "empty").mkdir()
    code, _, err = zoo("train", tmp_path / "empty", *QUIET)
    assert code == 2 and "There is no recipe" in err


def test_recipes_are_listed(zoo: Run) -> None:
    code, out, _ = zoo("recipes")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == recipe_names()
    code, out, _ = zoo("recipes", "crocov2_large")
    assert code == 0 and out.startswith("# CroCo v2 large") and "batch_size: 512" in out
    code, out, _ = zoo("recipes", "--settings")
    assert code == 0
    assert "schedule.warmup_lr" in out and "Learning rate at the first step." in out
    code, _, err = zoo("recipes", "nonsense")
    assert code == 2 and "There is no recipe 'nonsense'" in err


def test_every_setting_is_described() -> None:
    from dataclasses import fields

    from zoo.train.recipe import Optimizer, Schedule, describe_settings

    names = [setting.name for setting in describe_settings()]
    expected = []
    for field in fields(Recipe):
        of = dict(schedule=Schedule, optimizer=Optimizer).get(field.name)
        expected += [f"{field.name}.{inner.name}" for inner in fields(of)] if of else [field.name]
    assert names == expected and all(setting.meaning for setting in describe_settings())


def test_error_has_a_line_of_its_own(tmp_path: Path, pairs: Path) -> None:
    """Not glued onto the progress bar's."""
    import contextlib

    from zoo.errors import ImageError

    for file in pairs.glob("*.png"):
        file.write_bytes(b"no photo")
    stderr = io.StringIO()
    recipe = load_recipe("croco_nano", TINY | dict(data=dict(source="pairs", path=str(pairs))))
    with contextlib.redirect_stderr(stderr), pytest.raises(ImageError):
        train_recipe(recipe, tmp_path / "run", workers=0)
    assert stderr.getvalue().endswith("\n")
