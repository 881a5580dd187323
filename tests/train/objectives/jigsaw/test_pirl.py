"""PIRL: the losses are the formulas at a fraction of their memory, the bank is what it should be on every process."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.support.two_processes import ROOT, in_two_processes
from tests.train.test_training import weights_of
from zoo.errors import RecipeError
from zoo.train import build
from zoo.train.build import make_source
from zoo.train.engine import train
from zoo.train.objectives.jigsaw import pirl
from zoo.train.objectives.jigsaw.pirl import (
    MemoryBank,
    Pirl,
    PirlTransform,
    bank_loss,
    draw_negatives,
    infonce,
    mean_exp,
    nce,
)
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import read_log

TINY_ARGS = dict(layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), dim=8, norm_layer="groupnorm1")
TINY = {
    "model_args": TINY_ARGS,
    "data": dict(source="scenes", samples=24, image_size=36),
    "objective": dict(name="pirl", negatives=40, image_size=32, crop_size=36, patch_size=8),
    "batch_size": 8,
    "schedule": dict(unit="steps", warmup=0, length=1),
    "optimizer": dict(name="sgd", lr=1.0, weight_decay=0.0),
}


def tiny(**changes) -> Recipe:
    return load_recipe("pirl_nano", TINY | changes)


def make_objective(recipe: Recipe) -> Pirl:
    objective = build.make_objective(recipe, make_source(recipe))
    assert isinstance(objective, Pirl)
    return objective


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


# ---------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("loss", ["nce", "infonce"])
@pytest.mark.parametrize("dense", [0, 100], ids=["gathered", "dense"])
def test_loss_and_gradient(loss: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups, either way, under autocast too: what autograd makes of the formula in double precision."""
    monkeypatch.setattr(pirl, "_DENSE", dense)
    monkeypatch.setattr(pirl, "_BUFFER", 2 * 31 * 16)
    bank, embedding = units(50, 16), units(7, 16)
    candidates = torch.randint(50, (7, 31), generator=torch.Generator().manual_seed(0))

    exact = embedding.double().requires_grad_()
    scores = torch.einsum("bkd,bd->bk", bank.double()[candidates], exact) / 0.07
    normalizer = 50 * scores.detach().exp().mean()
    torch.testing.assert_close(50 * mean_exp(embedding, bank, candidates, 0.07), normalizer.float())
    if loss == "nce":
        share = scores.exp() / normalizer
        noise = 30 / 50
        terms = torch.cat(((share / (share + noise)).log()[:, :1], (noise / (share + noise)).log()[:, 1:]), dim=1)
        expected = -terms.sum(dim=1).mean()
    else:
        expected = (scores.logsumexp(dim=1) - scores[:, 0]).mean()
    (3 * expected).backward()

    criterion = partial(nce, normalizer=normalizer.float(), images=50) if loss == "nce" else infonce
    ours = embedding.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got, hit = bank_loss(ours, bank, candidates, 0.07, criterion)
    assert got.dtype == torch.float32
    kept = bank.clone()
    bank.zero_()  # an update before the backward pass
    (3 * got).backward()
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(hit, scores.argmax(dim=1) == 0)
    with torch.no_grad():
        torch.testing.assert_close(bank_loss(ours, kept, candidates, 0.07, criterion)[0], got.detach())


MEMORY = """
import torch
from zoo.train.objectives.jigsaw.pirl import bank_loss, nce
from functools import partial
def peak():  # of this program; what getrusage says begins with the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def step(bank, embedding, candidates):
    criterion = partial(nce, normalizer=torch.tensor(1e5), images=len(bank))
    bank_loss(embedding, bank, candidates, 0.07, criterion)[0].backward()
step(torch.zeros(1000, 128), torch.zeros(2, 128).requires_grad_(), torch.zeros(2, 2000, dtype=torch.int64))
bank = torch.zeros({images}, 128)  # pages that nobody has written to take no memory
embedding, candidates = torch.randn(32, 128).requires_grad_(), torch.randint({images}, (32, 32_001))
before = peak()
step(bank, embedding, candidates)
print(peak() - before)
"""


@pytest.mark.parametrize("images", [200_000, 1_280_000])
def test_memory(images: int) -> None:
    """Forward and backward at the paper's size in at most 64 MB; all rows together would be 524 MB."""
    program = MEMORY.format(images=images)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) <= 64e6


def test_negatives() -> None:
    """Uniform, and a function of the sample's seed alone."""
    seeds = torch.tensor([0, 1, 2**62 + 12345, 2**63 - 1])
    drawn = draw_negatives(seeds, 50_000, 20)
    assert drawn.shape == (4, 50_000) and drawn.min() == 0 and drawn.max() == 19
    assert torch.equal(drawn[2:3], draw_negatives(seeds[2:3], 50_000, 20))
    assert torch.equal(drawn[:, :7], draw_negatives(seeds, 7, 20))
    counts = torch.stack([row.bincount(minlength=20) for row in drawn])
    assert ((counts - 2500).float().square() / 2500).sum(dim=1).max() < 50, "chi-squared with 19 degrees of freedom"
    assert (drawn[0] == drawn[1]).float().mean() < 0.06 and (drawn[0, 1:] == drawn[1, :-1]).float().mean() < 0.06


# ------------------------------------------------------------------------------------------------ the bank


def test_bank() -> None:
    bank = MemoryBank(10, 4)
    torch.testing.assert_close(bank.vectors.norm(dim=1), torch.ones(10))
    before = bank.vectors.clone()
    index, embedding = torch.tensor([3, 7, 3, 0, 3]), units(5, 4)
    bank.update(index, embedding)
    for place, row in ((7, 1), (0, 3), (3, 4)):  # of the three for 3, the last counts
        torch.testing.assert_close(bank.vectors[place], F.normalize(before[place] + embedding[row], dim=0))
    others = [1, 2, 4, 5, 6, 8, 9]
    assert torch.equal(bank.vectors[others], before[others])


def test_normalizer_is_fixed_once_and_kept(tmp_path: Path) -> None:
    recipe = tiny(**{"objective.loss": "nce", "schedule.length": 2, "checkpoint_steps": 1, "optimizer.lr": 0.01})
    objective = make_objective(recipe)
    embeddings, candidates = (units(8, 8), units(9, 8)[:8]), objective.candidates(torch.arange(8), torch.arange(8))
    objective.losses(*embeddings, *candidates)
    normalizer = objective.normalizer.clone()
    torch.testing.assert_close(
        normalizer, 24 * mean_exp(embeddings[1], objective.bank.vectors, candidates[1], objective.temperature)
    )
    objective.losses(*reversed(embeddings), *candidates)
    assert torch.equal(objective.normalizer, normalizer)
    resumed = make_objective(recipe)
    resumed.load_state_dict(objective.state_dict())
    resumed.losses(*reversed(embeddings), *candidates)
    assert torch.equal(resumed.normalizer, normalizer)

    train(recipe, tmp_path, workers=0, progress=False)
    state = load_file(tmp_path / "checkpoint.safetensors")
    assert state["objective.normalizer"] > 0 and state["objective.bank.vectors"].shape == (24, 8)

    overlay, args = dict(file=str(tmp_path / "model.safetensors")), {k: v for k, v in TINY_ARGS.items() if k != "dim"}
    encoder = timm.create_model("pirl_nano_48", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    assert torch.equal(encoder.conv1.weight, weights_of(tmp_path)["encoder.conv1.weight"])


# ---------------------------------------------------------------------------------- several processes


def one_step(folder: Path, rank: int = 0) -> None:
    """A step of SGD with learning rate 1; its change of the weights is the gradient. Every process's bank is kept."""
    made = []
    make = build.make_objective
    build.make_objective = lambda *args: made.append(make(*args)) or made[-1]
    try:
        train(tiny(**{"objective.loss": "nce"}), folder, workers=0, progress=False)
    finally:
        build.make_objective = make
    state = dict(bank=made[0].bank.vectors, normalizer=made[0].normalizer)
    torch.save({key: value.clone() for key, value in state.items()}, folder / f"bank{rank}.pt")


def test_two_processes_are_the_same_step(tmp_path: Path) -> None:
    """Loss, gradients, Z and bank of the whole batch; bank and Z the same bit for bit on both processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    one_step(one)
    program = f"""
import os
from pathlib import Path
from tests.train.objectives.jigsaw.test_pirl import one_step
one_step(Path({str(two)!r}), int(os.environ["RANK"]))
"""
    in_two_processes(program)
    single, first, second = (torch.load(path) for path in (one / "bank0.pt", two / "bank0.pt", two / "bank1.pt"))
    for key in single:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], single[key])
    start = make_objective(tiny())
    changed = (start.bank.vectors != first["bank"]).any(dim=1)
    assert changed.sum() == 8, "the images of the batch"
    before = start.model.state_dict()
    gradients = [{key: before[key] - value for key, value in weights_of(run).items()} for run in (one, two)]
    largest = max(value.abs().max().item() for value in gradients[0].values())
    assert largest > 1e-3
    for key, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][key], expected, rtol=1e-4, atol=1e-5 * largest, msg=lambda m, key=key: f"{key}: {m}"
        )
    losses = [read_log(run)[0] for run in (one, two)]
    for key in ("loss", "image_loss", "view_loss", "view_accuracy"):
        assert losses[0][key] == pytest.approx(losses[1][key], rel=1e-5), key


# ------------------------------------------------------------------------------------- transform, settings


def test_jigsaw_transform() -> None:
    """Nine patches out of nine cells, in the order that is told; a pure function of the worker's seed."""
    transform = PirlTransform("jigsaw", 32, 36, 8, blur=False)
    transform.distort = transform.jigsaw_crop = lambda image: image
    cells = np.arange(9, dtype=np.uint8).reshape(3, 3).repeat(12, 0).repeat(12, 1)
    sample = dict(image=np.stack([cells * 20] * 3, axis=-1), index=5)
    out = transform(sample, seed=3)
    assert out["image"].shape == (3, 32, 32) and out["patches"].shape == (9, 3, 8, 8)
    assert out["order"].sort().values.tolist() == list(range(9)) != out["order"].tolist()
    assert torch.equal(out["patches"].float().mean(dim=(1, 2, 3)), out["order"] * 20.0)
    assert out["index"] == 5 and out["seed"] == 3

    noise = dict(image=np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8), index=0)
    whole = PirlTransform("jigsaw", 32, 36, 8, blur=True)
    torch.manual_seed(0)
    one, two = whole(noise, 0), whole(noise, 0)
    torch.manual_seed(0)
    assert all(torch.equal(value, one[key]) for key, value in whole(noise, 0).items())
    assert not torch.equal(one["patches"], two["patches"]) and one["patches"].dtype == torch.uint8


def test_strength() -> None:
    """Without color distortion, patches are pixels of their cells, perhaps flipped."""
    pixels = np.arange(36 * 36, dtype=np.uint8).reshape(36, 36)
    sample = dict(image=np.stack([pixels] * 3, axis=-1), index=0)
    transform = PirlTransform("jigsaw", 36, 36, 12, scale=(1.0, 1.0), strength=0.0)
    transform.jigsaw_crop = lambda image: image
    out = transform(sample, 0)
    for patch, place in zip(out["patches"], out["order"].tolist()):
        top, left = 12 * (place // 3), 12 * (place % 3)
        cell = torch.from_numpy(pixels[top : top + 12, left : left + 12]).expand(3, -1, -1)
        assert torch.equal(patch, cell) or torch.equal(patch.flip(2), cell)


def test_rotation_transform() -> None:
    transform = PirlTransform("rotation", 32, 36, 8, blur=False)
    transform.distort = transform.crop = lambda image: image
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    turns = set()
    for _ in range(20):
        out = transform(dict(image=image, index=0), 0)
        turns.add(int(out["order"]))
        assert np.array_equal(out["patches"][0].permute(1, 2, 0).numpy(), np.rot90(image, int(out["order"])))
    assert turns == {0, 1, 2, 3}


def test_other_settings_train(tmp_path: Path) -> None:
    """Rotation, MLP heads, blur and bfloat16 through the engine."""
    recipe = tiny(
        model="pirl_resnet50_mlp128",
        precision="bf16",
        **{"objective.view": "rotation", "objective.loss": "infonce", "model_args.patches": 1, "objective.blur": True},
    )
    train(recipe, tmp_path, workers=0, progress=False)
    assert "heads.image.2.weight" in weights_of(tmp_path)
    assert load_file(tmp_path / "checkpoint.safetensors")["objective.bank.vectors"].dtype == torch.float32


def test_frozen_statistics(tmp_path: Path) -> None:
    """From the curriculum's step on, the running statistics stay, and the weights still learn."""
    statistics = []
    for length in (1, 2, 3):
        recipe = tiny(
            **{
                "model_args.norm_layer": "batchnorm2d",
                "schedule.length": length,
                "curriculum": {"objective.frozen_statistics": [[0, False], [2, True]]},
            }
        )
        train(recipe, tmp_path / str(length), workers=0, progress=False)
        weights = weights_of(tmp_path / str(length))
        statistics.append([weights["encoder.bn1.running_mean"], weights["encoder.conv1.weight"]])
    (one, _), (two, before), (three, after) = statistics
    assert not torch.equal(one, two) and torch.equal(two, three) and not torch.equal(before, after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "pirl_resnet50", "model_args": {}}, "--form pretraining"),
        ({"objective.view": "mirror"}, "view: 'mirror'; it must be jigsaw or rotation"),
        ({"objective.view": "rotation"}, "set model_args.patches"),
        ({"objective.patch_size": 13}, "don't fit into the cells"),
        ({"data": dict(source="scenes", image_size=36)}, "data.samples"),
    ],
)
def test_wrong_settings(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_objective(tiny(**changes))


def test_colors_of_the_later_recipe() -> None:
    """SimCLR's: a fifth of the images are gray, and hues change; none are posterized or solarized."""
    transform = PirlTransform("jigsaw", 48, 54, 14, colors="simclr")
    image = torch.full((3, 48, 48), 40, dtype=torch.uint8)
    image[0] = 200
    seen = []
    for seed in range(300):
        torch.manual_seed(seed)
        seen.append(transform.distort(image)[:, 24, 24])
    gray = torch.stack([color.max() == color.min() for color in seen]).float().mean()
    assert 0.13 < gray < 0.28
    with pytest.raises(RecipeError, match="has no colors"):
        PirlTransform("jigsaw", 48, 54, 14, colors="simclr", strength=0.5)
