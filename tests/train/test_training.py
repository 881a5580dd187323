"""The engine: the loss falls, a killed run ends with the same weights, two processes compute what one does."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.forks import TRAINING, forks
from tests.support.two_processes import ROOT, by_torchrun
from zoo.errors import DataError, DivergedError, ImageError, RecipeError, TrainingError, UnknownVariantError
from zoo.train import build
from zoo.train.build import make_source
from zoo.train.data.loading import ENDLESS, StepSampler, make_loader
from zoo.train.data.pairs import ImagePairs
from zoo.train.engine import train
from zoo.train.objectives.objective import Objective
from zoo.train.preview import dry_run
from zoo.train.recipe import Recipe, load_recipe, recipe_names
from zoo.train.run import read_log
from zoo.train.schedule import make_plan

TINY = {
    "model_args": dict(embed_dim=32, depth=2, num_heads=2, decoder_dim=32, decoder_depth=2, decoder_num_heads=2),
    "batch_size": 8,
    "schedule": {"unit": "steps", "warmup": 2, "length": 8},
    "log_steps": 2,
    "checkpoint_steps": 2,
}


def tiny(**changes) -> Recipe:
    return load_recipe("croco_nano", TINY | changes)


def make_objective(recipe: Recipe) -> Objective:
    return build.make_objective(recipe, make_source(recipe))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_identical(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny(), folder, workers=0, progress=False)
    return folder


def test_loss_falls(tmp_path: Path) -> None:
    recipe = tiny(**{"schedule.length": 60, "schedule.warmup": 5, "optimizer.lr": 3e-3, "log_steps": 10})
    train(recipe, tmp_path, workers=0, progress=False)
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert losses[-1] < 1.0 < losses[0], "below the loss of predicting zeros"


def test_run_folder(reference_run: Path) -> None:
    rows = read_log(reference_run)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(math.isfinite(row["loss"]) and row["images_per_second"] > 0 for row in rows)
    assert any((reference_run / "tensorboard").iterdir())
    with Image.open(reference_run / "loss.png") as picture:
        assert picture.width > 400
    assert load_recipe(reference_run / "recipe.yaml").to_dict() == tiny().to_dict()


def test_model_loads_back(reference_run: Path) -> None:
    import timm

    args = TINY["model_args"]
    overlay = dict(file=str(reference_run / "model.safetensors"))
    pair = timm.create_model("croco_nano_patch8_64_dec128d4", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    args = {key: args[key] for key in ("embed_dim", "depth", "num_heads")}
    encoder = timm.create_model("croco_nano_patch8_64", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.forward_features(x), pair.encoder.forward_features(x))


def test_workers_do_not_matter(reference_run: Path, tmp_path: Path) -> None:
    train(tiny(), tmp_path, workers=2, progress=False)
    assert_identical(reference_run, tmp_path)


def test_killed_run_goes_on(reference_run: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, then the same command: bit-identical weights and the same log."""
    command = f"""
from tests.train.test_training import tiny
from zoo.train import engine
from zoo.train.run import Run
import os, signal
save = Run.save
def save_and_die(run, step, *state):
    save(run, step, *state)
    if step == 4:
        with open(run.folder / "log.jsonl", "a") as log:
            log.write('{{"step": 5, "lo')  # what a kill in the middle of a write leaves
        os.kill(os.getpid(), signal.SIGKILL)
Run.save = save_and_die
engine.train(tiny(), {str(tmp_path)!r}, workers=0, progress=False)
"""
    assert forks(TRAINING).run(command, ROOT).statuses == [-signal.SIGKILL]
    assert not (tmp_path / "model.safetensors").exists()
    train(tiny(), tmp_path, workers=0, progress=False)
    assert_identical(reference_run, tmp_path)
    strip = [{k: row[k] for k in ("step", "loss", "lr")} for row in read_log(tmp_path)]
    assert strip == [{k: row[k] for k in ("step", "loss", "lr")} for row in read_log(reference_run)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_saves(number: signal.Signals, tmp_path: Path) -> None:
    command = (
        "from tests.train.test_training import *\n"
        f"train(tiny(**{{'schedule.length': 100000}}), {str(tmp_path)!r}, progress=False)"
    )
    (process,) = forks(TRAINING).start(command, ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):  # what it said is looked at below
        if number == signal.SIGINT:
            os.killpg(process, number)  # as a terminal's Ctrl-C: to the data workers too
        else:
            os.kill(process, number)
    errors = forks(TRAINING).wait().errors
    assert "with everything saved" in errors
    last = read_log(tmp_path)[-1]["step"]
    assert f"after step {last} of 100000" in errors


def test_finished_run_is_left_alone(reference_run: Path) -> None:
    before = (reference_run / "checkpoint.safetensors").stat().st_mtime_ns
    train(tiny(), reference_run, workers=0, progress=False)
    assert (reference_run / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_bfloat16_and_any_vit(tmp_path: Path) -> None:
    """Autocast, and a decoder for a frozen timm ViT, through the same engine."""
    recipe = tiny(
        model="create_pair_model",
        model_args=dict(encoder="vit_tiny_patch16_224", decoder="cross32d1", freeze_encoder=True, img_size=64, depth=1),
        precision="bf16",
        **{"schedule.length": 2},
    )
    with pytest.warns(UserWarning, match="frozen with random weights"):
        start = make_objective(recipe).model.state_dict()
        train(recipe, tmp_path, workers=0, progress=False)
    trained = weights_of(tmp_path)
    moved = {key.split(".")[0] for key, value in trained.items() if not torch.equal(value, start[key])}
    assert moved == {"decoder", "head"}


def test_other_settings_are_refused(reference_run: Path) -> None:
    with pytest.raises(TrainingError, match="seed"):
        train(tiny(seed=1), reference_run, workers=0, progress=False)


def test_divergence_stops(tmp_path: Path) -> None:
    recipe = tiny(**{"optimizer.lr": 1e4, "optimizer.clip_grad": None, "schedule.warmup": 0})
    with pytest.raises(DivergedError, match=r"at step \d of 8, learning rate .* lower learning rate"):
        train(recipe, tmp_path, workers=0, progress=False)


def test_dry_run() -> None:
    plan = dry_run(tiny(), steps=1)
    assert plan["steps"] == 8 and plan["samples"] == 64 and plan["epochs"] is None
    assert plan["seconds_per_step"] > 0 and plan["memory_bytes"] > 1e8


# ------------------------------------------------------------------------------ several processes, several parts


def one_step(accumulate: int, folder: Path) -> None:
    """One step of plain SGD with learning rate 1, so that the change of the weights is the gradient."""
    changes = {
        "optimizer": dict(name="sgd", lr=1.0, weight_decay=0.0),
        "schedule": dict(unit="steps", warmup=0, length=1),
    }
    train(tiny(**changes), folder, workers=0, accumulate=accumulate, progress=False)


def gradient(folder: Path) -> dict[str, torch.Tensor]:
    start = make_objective(tiny()).model.state_dict()
    return {key: start[key] - value for key, value in weights_of(folder).items()}


def assert_same_gradient(one: Path, other: Path) -> None:
    a, b = gradient(one), gradient(other)
    largest = max(value.abs().max().item() for value in a.values())
    assert largest > 1e-3
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5 * largest, msg=lambda m, key=key: f"{key}: {m}")


def test_accumulation_is_the_same_step(tmp_path: Path) -> None:
    one_step(1, tmp_path / "whole")
    one_step(4, tmp_path / "parts")
    assert_same_gradient(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_are_the_same_step(tmp_path: Path) -> None:
    one_step(1, tmp_path / "one")
    program = f"""
from pathlib import Path
from tests.train.test_training import one_step
one_step(1, Path({str(tmp_path / "two")!r}))
"""
    by_torchrun(program, tmp_path)
    assert_same_gradient(tmp_path / "one", tmp_path / "two")


# ------------------------------------------------------------------------------------------------ recipes, data


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_whole(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.learning_rate() > 0
    import timm

    assert timm.is_model(recipe.model)


def test_published_schedules() -> None:
    v1 = load_recipe("croco_base")
    plan = make_plan(v1, 1_800_000)
    steps = 1_800_000 // 256
    assert plan.steps == 400 * steps, "the cosine over 800 epochs is stopped at 400"
    assert plan.lr == pytest.approx(1.5e-4)
    assert plan.learning_rate(20 * steps) == pytest.approx(plan.lr / 2)
    assert plan.learning_rate(40 * steps) == pytest.approx(plan.lr)
    assert plan.learning_rate(420 * steps) == pytest.approx(plan.lr / 2)
    v2 = make_plan(load_recipe("crocov2_large"), 7_100_000)
    assert v2.steps == 125 * (7_100_000 // 512) and v2.lr == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bach_size": 3}, "unknown settings bach_size"),
        ({"optimizer.base_lr": 1.0}, "exactly one"),
        ({"schedule.unit": "years"}, "epochs or steps"),
        ({"precision": "fp8"}, "fp32 or bf16"),
        ({"batch_size.x": 1}, "single value"),
        ({"optimizer.lr": "fast"}, "lr: 'fast'"),
        ({"batch_size": 2.5}, "batch_size: 2.5"),
        ({"schedule": 3}, "schedule: 3"),
        ({"log_steps": 0}, "from 1 to"),
    ],
)
def test_wrong_recipes(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("croco_nano", changes)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="croco_nano"):
        load_recipe("croco_nan")
    with pytest.raises(UnknownVariantError, match="croco_nano_patch8_64_dec128d4"):
        make_objective(tiny(model="croco_nano_patch8_64_dec"))
    with pytest.raises(RecipeError, match="cross_view_completion"):
        make_objective(tiny(**{"objective.name": "guess"}))
    with pytest.raises(RecipeError, match="mask_share; known are mask_ratio"):
        make_objective(tiny(**{"objective.mask_share": 0.5}))
    with pytest.raises(RecipeError, match="don't fit"):
        make_objective(tiny(model_args=dict(width=3)))
    with pytest.raises(RecipeError, match="optimizer 'adamx'"):
        train(tiny(**{"optimizer.name": "adamx"}), tmp_path)
    with pytest.raises(RecipeError, match="Crops of 96 pixels"):
        make_objective(tiny(**{"objective.crop": 96}))
    with pytest.raises(RecipeError, match="binocular"):
        make_objective(load_recipe("croco_nano", {"model": "croco_nano_patch8_64"}))
    with pytest.raises(RecipeError, match="--data"):
        train(load_recipe("croco_base"), tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder in ("habitat_release", "arkitscenes"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            for view in (1, 2):
                pixels = generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / f"{i}_{view}.jpg")
    (tmp_path / "habitat_release" / "pairs.txt").write_text("0_1.jpg 0_2.jpg\n1_1.jpg 1_2.jpg\n\n2_1.jpg 2_2.jpg\n")
    (tmp_path / "arkitscenes" / "listing.txt").write_text("0\n1\n2\n")
    return tmp_path


def test_pair_lists(photos: Path, tmp_path: Path) -> None:
    habitat = ImagePairs(photos / "habitat_release")
    assert habitat.paths(1) == (photos / "habitat_release" / "1_1.jpg", photos / "habitat_release" / "1_2.jpg")
    assert ImagePairs(photos / "habitat_release" / "pairs.txt").paths(2) == habitat.paths(2)
    assert len(habitat) == 3 and len(ImagePairs(photos)) == 6
    both = ImagePairs(f"{photos / 'habitat_release'},{photos / 'arkitscenes'}")
    assert both.paths(2) == habitat.paths(2) and both.paths(3)[0] == photos / "arkitscenes" / "0_1.jpg"
    assert both.paths(5)[1] == photos / "arkitscenes" / "2_2.jpg" and both[5]["image2"].shape == (70, 80, 3)

    with pytest.raises(DataError, match="no training data"):
        ImagePairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"pairs\.txt"):
        ImagePairs(tmp_path / "empty")
    (tmp_path / "empty" / "pairs.txt").write_text("a b\na b c\n")
    with pytest.raises(DataError, match="Line 2"):
        ImagePairs(tmp_path / "empty")
    (tmp_path / "empty" / "a").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        (tmp_path / "empty" / "pairs.txt").write_text("a a\n")
        ImagePairs(tmp_path / "empty")[0]


def test_training_on_photos(photos: Path, tmp_path: Path) -> None:
    recipe = tiny(
        data=dict(source="pairs", path=str(photos)),
        batch_size=3,
        objective=dict(name="cross_view_completion", crop=64, color_jitter=0.4),
        schedule=dict(unit="epochs", warmup=0, length=2, stop=1),
    )
    assert make_plan(recipe, 6).steps == 2
    train(recipe, tmp_path / "run", workers=0, progress=False)
    assert len(weights_of(tmp_path / "run")) > 10
    too_large = tiny(data=recipe.data, **{"model_args.img_size": [64, 128]})
    for workers in (0, 1):  # a worker's traceback is left out
        with pytest.raises(DataError, match=r"^A training image of 73x83 pixels is smaller than the crop of 64x128"):
            train(too_large, tmp_path / "b", workers=workers, progress=False)


def test_sampler_covers_each_epoch_once() -> None:
    seen = [key for rank in range(2) for batch in StepSampler(12, 4, 7, 0, 3, 1, rank, 2) for key in batch]
    assert sorted(index for index, _ in seen) == list(range(12))
    assert sorted(draw for _, draw in seen) == list(range(12))
    later = list(StepSampler(12, 4, 7, 2, 6, 1, 0, 1))
    assert later == list(StepSampler(12, 4, 7, 0, 6, 1, 0, 1))[2:], "starting later changes nothing"
    with pytest.raises(RecipeError, match="3 processes"):
        StepSampler(12, 4, 7, 0, 3, 1, 0, 3)


def test_samples_depend_on_the_draw_only() -> None:
    recipe = tiny()
    source, objective = make_source(recipe), make_objective(recipe)
    batches = []
    for workers in (0, 2):
        loader = make_loader(source, objective.transform, StepSampler(ENDLESS, 4, 0, 5, 7, 1, 0, 1), workers, False)
        batches.append(list(loader))
    for a, b in zip(*batches, strict=True):
        assert a["image1"].dtype == torch.uint8 and a["image1"].shape == (4, 3, 64, 64)
        assert (objective.views(a)[2].sum(1) == 57).all()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_log_is_json_lines(reference_run: Path) -> None:
    for line in (reference_run / "log.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"step", "loss", "lr", "images_per_second", "seconds"}
