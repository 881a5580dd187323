"""Settings that change with the step: what they are at each, and that a run with them stops and goes on like any."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_training import assert_identical, make_objective, tiny
from zoo.errors import RecipeError, TrainingError
from zoo.layers.patchify import TARGETS, normalize_patches
from zoo.train import build, preview, run
from zoo.train.build import make_curriculum, make_source
from zoo.train.curriculum import Curriculum, scaled
from zoo.train.data.loading import StepSampler, make_loader, to_device
from zoo.train.engine import train
from zoo.train.run import Run, read_log

POINTS = {
    "data.displacement": [[0, [0.02, 0.06]], [4, [0.04, 0.18]]],
    "objective.mask_ratio": [[0, 0.5], [6, 0.9]],
    "objective.target": [[0, "per_channel"], [2, "gray"], [5, None]],
}
SIZES = {"data.image_size": {"cycle": [32, [48, 64], 64]}}


def test_values_at_a_step() -> None:
    curriculum = Curriculum(POINTS, batch_size=8)
    assert curriculum.steps() == [0, 2, 4, 5, 6]
    assert curriculum.data(7) == {"displacement": (0.02, 0.06)}, "draws 0 to 7 are step 0"
    assert curriculum.data(16)["displacement"] == pytest.approx((0.03, 0.12))
    assert curriculum.data(10**6) == {"displacement": (0.04, 0.18)}
    assert curriculum.objective(3) == {"mask_ratio": pytest.approx(0.7), "target": "gray"}
    assert curriculum.objective(100) == {"mask_ratio": 0.9, "target": None}
    assert Curriculum({}, 8).objective(3) == Curriculum({}, 8).data(3) == {}
    switch = Curriculum({"objective.frozen_statistics": [[0, False], [4, True]]}, 8)
    assert [switch.objective(step)["frozen_statistics"] for step in (3, 4)] == [False, True], "a switch isn't a number"
    sizes = Curriculum(SIZES, 8)
    assert [sizes.data(8 * step)["image_size"] for step in range(4)] == [32, (48, 64), 64, 32]
    assert sizes.steps() == [0, 1, 2] and scaled(SIZES, 3) == SIZES


def test_scaled_to_another_length() -> None:
    longer, short, shorter = (scaled(POINTS, share) for share in (10, 0.5, 0.01))
    assert longer["data.displacement"] == [[0, [0.02, 0.06]], [40, [0.04, 0.18]]]
    assert short["objective.target"] == [[0, "per_channel"], [1, "gray"], [2, None]]
    assert [step for step, _ in shorter["objective.target"]] == [0, 1, 2], "points stay apart"
    for points in (longer, short, shorter):
        Curriculum(points, 8)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"optimizer.lr": [[0, 1]]}, "can't change 'optimizer.lr'"),
        ({"data": [[0, 1]]}, "can't change 'data'"),
        ({"objective.mask_ratio": 0.5}, "no list of"),
        ({"objective.mask_ratio": [[1, 0.5]]}, "from 0"),
        ({"objective.mask_ratio": [[0, 0.5], [0, 0.9]]}, "ascending"),
        ({"objective.mask_ratio": [[0, 0.5], [9, 1.0]]}, "hides 64 of 64"),
        ({"objective.target": [[0, "grey"]]}, "target: 'grey'; it must be pixels or"),
        ({"objective.crop": [[0, 32]]}, "no setting crop that can change"),
        ({"data.supersample": [[0, 1]]}, "keep their supersample"),
        ({"data.image_size": [[0, 32], [4, 64]]}, "can't grow"),
        ({"data.image_size": {"cycle": []}}, "no cycle of values"),
        ({"data.image_size": {"cycle": [64], "at": 3}}, "no cycle of values"),
        ({"data.image_size": {"cycle": [64, 0]}}, "image_size: 0"),
        ({"data.image_size": {"cycle": [64, 60]}}, "takes no images of 60x60"),
        ({"data.image_size": {"cycle": [64, 8]}}, "too few to hide"),
        (SIZES | {"objective.mask_ratio": [[0, 0.9], [9, 0.05]]}, "Images of 32x32 have 16 patches, too few to hide"),
        ({"data.image_size": {"cycle": [64, 128]}}, "set model_args.img_size to the largest"),
        ({"data.displacement": [[0, [0.1, 0.2]], [5, [0.2, 0.1]]]}, "the smaller first"),
    ],
)
def test_impossible_curricula(points: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(tiny(curriculum=points), tmp_path, workers=0, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_args.dynamic_img_size": False}, "takes no images of 32x32"),
        ({"objective.crop": 64}, "Crops are of one size"),
        ({"model": "croco_nano_patch8_64_mae", "objective": {"name": "masked_image_modeling"}}, "images of one size"),
    ],
)
def test_trainings_of_one_size(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(tiny(curriculum=SIZES, **settings), tmp_path, workers=0, progress=False)


@pytest.mark.parametrize("render", ["workers", "device"])
def test_steps_of_several_sizes(render: str) -> None:
    recipe = tiny(curriculum=SIZES, batch_size=4, **{"data.render": render})
    parts = build.make_parts(recipe)
    sampler = StepSampler(len(parts.source), 4, 0, 0, 4, 1, 0, 1)
    loader = make_loader(parts.source, parts.objective.transform, sampler, 0, False, parts.curriculum)
    for step, (batch, size) in enumerate(zip(loader, [(32, 32), (48, 64), (64, 64), (32, 32)], strict=True)):
        batch = to_device(batch, parts.source_at(step), torch.device("cpu"))
        img1, img2, mask = parts.objective.views(batch)
        assert img1.shape == img2.shape == (4, 3, *size)
        patches = size[0] * size[1] // 64
        assert mask.shape == (4, patches) and (mask.sum(1) == int(0.9 * patches)).all() and len(mask.unique(dim=0)) > 1
        expected = parts.source.changed(image_size=size)
        if render == "workers":
            assert torch.equal(batch["image1"][1], torch.from_numpy(expected[4 * step + 1]["image1"]).permute(2, 0, 1))
        assert parts.objective(batch)["loss"].isfinite()


def test_photos_have_no_curriculum() -> None:
    with pytest.raises(RecipeError, match="Only scenes"):
        recipe = tiny(curriculum={"data.displacement": POINTS["data.displacement"]})
        make_curriculum(recipe, [], make_objective(recipe))


def test_samples_follow_the_step() -> None:
    recipe = tiny(curriculum=POINTS)
    source, objective = make_source(recipe), make_objective(recipe)
    curriculum = make_curriculum(recipe, source, objective)
    assert objective.hidden == 32 and objective.target == "per_channel", "as at step 0"
    sampler = StepSampler(len(source), 8, 0, 2, 3, 1, 0, 1)
    (batch,) = make_loader(source, objective.transform, sampler, 0, False, curriculum)
    for row, draw in enumerate(range(16, 24)):
        want = source.changed(displacement=curriculum.data(16)["displacement"])[draw]["image2"]
        assert torch.equal(batch["image2"][row], torch.from_numpy(want).permute(2, 0, 1))


def test_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that may change, scenes rendered on the device among it; and the step decides, not the start."""
    recipe = tiny(curriculum=POINTS | SIZES, **{"data.render": "device"})
    train(recipe, tmp_path / "whole", workers=0, progress=False)

    save = Run.save

    def save_and_stop(run: Any, step: int, *state: Any) -> None:
        save(run, step, *state)
        if step == 4:
            raise TrainingError("stopped")

    monkeypatch.setattr(Run, "save", save_and_stop)
    with pytest.raises(TrainingError, match="stopped"):
        train(recipe, tmp_path / "stopped", workers=0, progress=False)
    monkeypatch.undo()
    train(recipe, tmp_path / "stopped", workers=2, progress=False)
    assert_identical(tmp_path / "whole", tmp_path / "stopped")
    losses = [[row["loss"] for row in read_log(tmp_path / name)] for name in ("whole", "stopped")]
    assert losses[0] == losses[1]


def test_runs_of_older_versions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that doesn't know a setting is of a run with its default."""
    train(tiny(), tmp_path, workers=0, progress=False)
    before = run.parse_recipe

    def without_curriculum(settings: dict[str, Any], where: str) -> Any:
        del settings["curriculum"]
        return before(settings, where)

    monkeypatch.setattr(run, "parse_recipe", without_curriculum)
    train(tiny(), tmp_path, workers=0, progress=False)
    with pytest.raises(TrainingError, match=r"other settings \(curriculum\)"):
        train(tiny(curriculum=POINTS), tmp_path, workers=0, progress=False)


def test_targets() -> None:
    patches = torch.rand(2, 5, 16 * 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TARGETS["pixels"](patches, 3), patches)
    assert torch.equal(TARGETS["normalized"](patches, 3), normalize_patches(patches))
    channels = TARGETS["per_channel"](patches, 3).unflatten(2, (16, 3))
    torch.testing.assert_close(channels.mean(2), torch.zeros(2, 5, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(channels.std(2), torch.ones(2, 5, 3), atol=1e-4, rtol=0)
    gray = TARGETS["gray"](patches, 3).unflatten(2, (16, 3))
    assert torch.equal(gray[..., 0], gray[..., 1]) and torch.equal(gray[..., 0], gray[..., 2])
    torch.testing.assert_close(gray[..., 0], normalize_patches(patches.unflatten(2, (16, 3)).mean(3)))


def test_target_is_what_the_loss_is_of() -> None:
    recipe = tiny(batch_size=2)
    model = make_objective(recipe).model.eval()
    images = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(64).expand(2, 64) < 57
    own = model.completion_loss(*images, mask, 57)
    assert torch.equal(own, model.completion_loss(*images, mask, 57, "normalized"))
    assert not torch.equal(own, model.completion_loss(*images, mask, 57, "per_channel"))


def test_picture_shows_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    show = build.OBJECTIVES["cross_view_completion"].show
    monkeypatch.setattr(
        build.OBJECTIVES["cross_view_completion"], "show", lambda *args: seen.append(args) or show(*args)
    )
    recipe = tiny(curriculum=POINTS, **{"data.render": "device"})
    preview.show_batch(recipe, samples=2)
    ((objective, _, batch),) = seen
    assert objective.views(batch)[2].sum(1).tolist() == [32, 32]
    want = make_source(tiny()).changed(displacement=(0.02, 0.06))[1]["image2"]
    assert (batch["image2"][1] != torch.from_numpy(want).permute(2, 0, 1)).float().mean() < 1e-3
