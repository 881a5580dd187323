"""Jigsaw and Jigsaw Clustering: what is cut, shuffled and asked for, and that two processes compute what one does."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.checkpoints import FileServer
from tests.support.two_processes import in_two_processes
from tools.make_permutations import make_permutations
from zoo.errors import CorruptWeightsError, DownloadError, RecipeError
from zoo.evaluate.pretext import evaluate
from zoo.models.resnet import JigsawClusteringModel
from zoo.train import build, engine, run
from zoo.train.data import loading
from zoo.train.objectives.jigsaw import permutations as permutations_module
from zoo.train.objectives.jigsaw.clustering import QuarterTransform, cluster_loss, shuffle
from zoo.train.objectives.jigsaw.jigsaw import PuzzleTransform
from zoo.train.objectives.jigsaw.permutations import read_permutations
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import Recipe, load_recipe

NARROW = dict(channels=(4, 4, 4, 8), dim=8)
NANO = ("jigclu_nano", "jigsaw_nano")


def tiny(name: str, **changes) -> Recipe:
    settings = {"model_args": NARROW, "batch_size": 4, "data.samples": 12, "log_steps": 1, "checkpoint_steps": 2}
    return load_recipe(name, settings | changes)


def make_objective(recipe: Recipe) -> Objective:
    return build.make_objective(recipe, build.make_source(recipe))


def batch_of(recipe: Recipe, objective: Objective) -> dict[str, Tensor]:
    source = build.make_source(recipe)
    sampler = loading.StepSampler(len(source), recipe.batch_size, 0, 0, 1, 1, 0, 1)
    return next(iter(loading.make_loader(source, objective.transform, sampler, 0, False)))


# ---------------------------------------------------------------------------------------- Jigsaw Clustering


def test_quarters_are_cut_where_they_stand() -> None:
    rows, columns = np.mgrid[:40, :60]
    image = np.stack((rows, columns, rows), axis=-1).astype(np.uint8)
    quarters = QuarterTransform(0.25, nn.Identity())(dict(image=image), 0)["quarters"]
    assert quarters.shape == (4, 3, 30, 45)
    corners = [(0, 0), (10, 0), (0, 15), (10, 15)]  # top left, bottom left, top right, bottom right
    assert [tuple(quarter[:2, 0, 0].tolist()) for quarter in quarters] == corners


def test_montages_and_labels_agree() -> None:
    quarters = torch.arange(6 * 4).view(6, 4, 1, 1, 1).expand(6, 4, 3, 2, 2)  # 4 * image + location
    permutation = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    parts = [shuffle(quarters, permutation, process, 3) for process in range(3)]
    for process, part in enumerate(parts):
        cells = part.montages[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)  # B, 4, 4 pixels
        said = 4 * part.image[process] + part.location[process]
        assert torch.equal(cells, said[..., None].expand_as(cells))
    whole = shuffle(quarters, permutation)
    assert torch.equal(whole.montages, torch.cat([part.montages for part in parts]))
    assert torch.equal(whole.image.flatten(), parts[0].image.flatten())
    assert torch.equal((4 * whole.image + whole.location).flatten().sort().values, torch.arange(24))


def test_cluster_loss_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    z = nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1).double()
    image = torch.arange(12) % 3
    each = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        denominator = sum(torch.exp(z[i] @ z[j] / 0.3) for j in others)
        logs = [torch.log(torch.exp(z[i] @ z[j] / 0.3) / denominator) for j in others if image[j] == image[i]]
        each.append(-0.3 / 0.07 * sum(logs) / len(logs))
    torch.testing.assert_close(cluster_loss(z, image, 0.3, 0.07).double(), sum(each) / 12, rtol=1e-5, atol=0)
    part = cluster_loss(z, image, 0.3, 0.07, slice(4, 8))
    torch.testing.assert_close(part.double(), sum(each[4:8]) / 4, rtol=1e-5, atol=0)


def test_cells_are_the_montages_quarters() -> None:
    """A 7x7 map, as at 224 pixels: each cell's feature is mostly of its own quarter, row by row."""
    model = timm.create_model("jigclu_nano_64_mlp64", **NARROW)
    maps = torch.zeros(1, 1, 7, 7)
    maps[..., :3, 4:], maps[..., 4:, :3], maps[..., 4:, 4:] = 1.0, 2.0, 3.0
    model.encoder.forward_features = lambda montages: maps
    cells = model.forward_cells(torch.zeros(1, 3, 224, 224))
    assert cells.shape == (1, 4, 1)
    assert [round(value / 0.77) for value in cells.flatten().tolist()] == [0, 1, 2, 3]


def test_public_checkpoint_resumes(tmp_path: Path) -> None:
    """The reference's layout, heads included, and back; a checkpoint without heads gets new ones."""
    name = "jigclu_nano_64_mlp64"
    model = timm.create_model(name, **NARROW)
    theirs = {
        f"module.encoder.{key.removeprefix('encoder.').removeprefix('heads.')}": value.clone()
        for key, value in model.state_dict().items()
    }
    assert "module.encoder.fc_clu.2.bias" in theirs and "module.encoder.layer4.0.bn3.running_var" in theirs
    torch.save({"state_dict": theirs, "epoch": 200, "arch": "resnet50"}, tmp_path / "JigClu.pth")
    overlay = dict(file=str(tmp_path / "JigClu.pth"))
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert isinstance(loaded, JigsawClusteringModel)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    back = loaded.reference_state()
    assert back.keys() == theirs.keys() and all(torch.equal(back[key], theirs[key]) for key in back)


# --------------------------------------------------------------------------------------------------- Jigsaw


@pytest.mark.parametrize(("count", "distance"), [(100, 6), (2_000, 4), (10_000, 3)])
def test_permutations_are_far_apart(count: int, distance: int) -> None:
    permutations = read_permutations(count)
    assert torch.equal(permutations.sort(dim=1).values, torch.arange(9).expand(count, 9))
    places = nn.functional.one_hot(permutations, 9).flatten(1).float()
    for start in range(0, count, 2_000):
        same = places[start : start + 2_000] @ places.T
        same[torch.arange(len(same)), torch.arange(start, start + len(same))] = 0
        assert 9 - same.max().item() >= distance, "itself apart, no two agree in more places"


def test_permutations_are_made_by_their_generator() -> None:
    assert np.array_equal(make_permutations(100), read_permutations(100).numpy())


def test_patches_come_in_the_labels_order() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(3, 3).repeat(8, axis=0).repeat(8, axis=1)[..., None].repeat(3, axis=2)
    puzzle = PuzzleTransform(100, 20, nn.Identity(), 6, nn.Identity())(dict(image=image), 0)
    assert torch.equal(puzzle["patches"].long(), torch.arange(9).view(9, 1, 1, 1).expand(9, 3, 6, 6))
    assert len(puzzle["permutation"].unique()) > 10

    objective = make_objective(tiny("jigsaw_nano"))
    seen = []
    objective.model.embed = lambda patches: torch.arange(9.0).view(1, 9, 1)
    objective.model.classify = lambda puzzles: seen.append(puzzles) or torch.zeros(len(puzzles), 100)
    objective({key: value[None] for key, value in puzzle.items()})
    assert torch.equal(seen[0][..., 0].long(), read_permutations(100)[puzzle["permutation"]])


def test_whole_image_is_gray_as_published() -> None:
    """VISSL's Jigsaw: resized, mirrored and cropped images, of which two thirds are gray in all of their patches."""
    recipe = tiny(
        "jigsaw_nano", **{"objective.resize": 76, "objective.grayscale": 0.0, "objective.image_grayscale": 0.66}
    )
    transform = make_objective(recipe).transform
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    torch.manual_seed(0)
    gray = [
        [bool((patch == patch[:1]).all()) for patch in transform(dict(image=image), seed)["patches"]]
        for seed in range(300)
    ]
    assert all(len(set(patches)) == 1 for patches in gray), "either all patches of an image or none"
    assert 0.58 < np.mean([patches[0] for patches in gray]) < 0.74
    with pytest.raises(RecipeError, match="don't fit into images"):
        make_objective(tiny("jigsaw_nano", **{"objective.resize": 70}))


def test_heads_are_normed_on_request() -> None:
    plain, normed = (timm.create_model("jigsaw_nano_64_perm100", head_norm=norm) for norm in (False, True))
    assert normed.state_dict().keys() - plain.state_dict().keys() >= {"heads.patch.1.running_mean"}
    features = normed.train().heads.patch[:2](torch.randn(64, 512) * 5 + 3)
    torch.testing.assert_close(features.mean(0), torch.zeros(64), atol=1e-5, rtol=0)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A list of permutations that counts the places from 1, as a published one may."""
    content = io.BytesIO()
    np.save(content, read_permutations(100).numpy() + 1)
    with FileServer({"/perms.npy": content.getvalue()}) as server:
        monkeypatch.setitem(permutations_module.PUBLISHED, 100, f"{server.url}/perms.npy")
        yield server


def test_published_permutations(published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched once, recognized ever after, and no other list is taken in their place."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    for _ in range(2):
        assert torch.equal(read_permutations(100, "published"), read_permutations(100))
    assert published.gets("/perms.npy") == 1
    (kept,) = tmp_path.rglob("perms.npy")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(CorruptWeightsError, match="not the file that was fetched first"):
        read_permutations(100, "published")
    kept.unlink()
    published.files["/perms.npy"] = whole[:-8] + bytes(8)
    with pytest.raises(DownloadError):
        read_permutations(100, "published")
    with pytest.raises(RecipeError, match="No list of 500"):
        read_permutations(500, "published")


@pytest.mark.parametrize(
    "rows", [np.zeros((100, 9), int), np.ones((100, 8), int), np.random.rand(100, 9), np.array([None, "x"])]
)
def test_files_that_are_no_permutations(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows, allow_pickle=True)
    with pytest.raises(RecipeError, match=r"rows\.npy (holds rows|is no list)"):
        read_permutations(100, str(tmp_path / "rows.npy"))
    with pytest.raises(RecipeError, match="There is no list"):
        read_permutations(100, str(tmp_path / "none.npy"))


# ------------------------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("name", NANO)
def test_training(name: str, tmp_path: Path) -> None:
    engine.train(tiny(name, **{"schedule.length": 3}), tmp_path, workers=0, progress=False)
    rows = run.read_log(tmp_path)
    accuracy = "location_accuracy" if name == "jigclu_nano" else "accuracy"
    assert len(rows) == 3 and all(0 <= row[accuracy] <= 1 for row in rows)
    state = load_file(tmp_path / "model.safetensors")
    assert {key.split(".")[0] for key in state} == {"encoder", "heads"}
    overlay, channels = dict(file=str(tmp_path / "model.safetensors")), NARROW["channels"]
    encoder = timm.create_model(f"{name}_64", pretrained=True, pretrained_cfg_overlay=overlay, channels=channels)
    assert all(torch.equal(value, state[f"encoder.{key}"]) for key, value in encoder.state_dict().items())
    result = evaluate(tmp_path, samples=8)
    assert result["samples"] == 8 and result["steps"] == 3 and result["chance"] in (0.25, 0.01)
    assert 0 <= result["location_accuracy" if name == "jigclu_nano" else "permutation_accuracy"] <= 1


@pytest.mark.parametrize("name", NANO)
def test_samples_depend_on_the_draw_only(name: str) -> None:
    recipe = tiny(name)
    objective = make_objective(recipe)
    torch.manual_seed(1)
    one = batch_of(recipe, objective)
    torch.manual_seed(2)
    other = batch_of(recipe, objective)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NANO)
def test_wrong_settings(name: str) -> None:
    with pytest.raises(RecipeError, match="--form pretraining"):
        make_objective(tiny(name, model="resnet10t", model_args={}))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match="permutations"):
        read_permutations(10_001)
    with pytest.raises(RecipeError, match="Patches of 30 pixels"):
        make_objective(tiny("jigsaw_nano", **{"objective.patch": 30}))


def one_step(folder: Path) -> None:
    """A step's loss and gradients of each objective with frozen BatchNorm, on this process's share of one batch."""
    for name in NANO:
        recipe = tiny(name)
        objective = make_objective(recipe)
        batch = batch_of(recipe, objective)
        for norm in objective.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)  # those that end a block are zero in a new ResNet
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
        objective.eval()
        wrapped: nn.Module = objective
        rank, world = 0, 1
        if torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            wrapped = nn.parallel.DistributedDataParallel(objective)
        torch.manual_seed(rank)  # as the engine seeds each process on its own
        outcome = wrapped({key: value.chunk(world)[rank] for key, value in batch.items()})
        outcome["loss"].backward()
        results = {f"gradient.{key}": value.grad for key, value in objective.named_parameters()}
        results |= {f"outcome.{key}": value.detach() for key, value in outcome.items()}
        if name == "jigclu_nano":
            torch.manual_seed(rank)
            shuffled = objective.shuffle(batch["quarters"].chunk(world)[rank])
            results |= {"image": shuffled.image.flatten(), "location": shuffled.location.flatten()}
        save_file({key: value.contiguous() for key, value in results.items()}, folder / f"{name}.{world}.{rank}")


def test_two_processes_are_the_same_step(tmp_path: Path) -> None:
    one_step(tmp_path)
    in_two_processes(
        "import torch\n"
        "from pathlib import Path\n"
        "from tests.train.objectives.jigsaw.test_jigsaw import one_step\n"
        "torch.distributed.init_process_group('gloo')\n"
        f"one_step(Path({str(tmp_path)!r}))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    for name in NANO:
        one, *two = (load_file(tmp_path / f"{name}.{part}") for part in ("1.0", "2.0", "2.1"))
        for key, want in one.items():
            if key.startswith("gradient."):
                assert want.abs().max() > 0, key
                tolerance = dict(rtol=1e-4, atol=1e-5 * want.abs().max().item())
                torch.testing.assert_close(two[0][key], want, **tolerance, msg=lambda m, key=key: f"{key}: {m}")
                assert torch.equal(two[0][key], two[1][key])
            elif key.startswith("outcome."):
                torch.testing.assert_close((two[0][key] + two[1][key]) / 2, want)
            else:
                assert torch.equal(two[0][key], want) and torch.equal(two[1][key], want), "one permutation for all"
