"""Settings of speed and memory compute the same; a step reads nothing back from the device."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.conftest import Run
from zoo.errors import RecipeError
from zoo.layers.attention import CrossAttention
from zoo.models.making.compiling import compile_blocks
from zoo.train import build
from zoo.train.data.loading import StepSampler, make_loader, to_device
from zoo.train.engine import train
from zoo.train.machines import speed
from zoo.train.objectives.objective import Objective
from zoo.train.recipe import Recipe, load_recipe
from zoo.train.run import read_log

CROCO = dict(embed_dim=32, depth=2, num_heads=2, decoder_dim=32, decoder_depth=2, decoder_num_heads=2)
RECIPES: dict[str, dict[str, Any]] = {
    "croco_nano": dict(model_args=CROCO),
    "mae_nano": dict(model_args=CROCO),
    "convmae_nano": {},
    "hivit_nano": {},
    "itpn_nano_pixel": {},
    "itpn_nano_ema": {},
    "jigsaw_nano": {},
    "jigclu_nano": {},
    "pirl_nano": {"data.samples": 16, "objective.negatives": 10},
    "classify_nano": {},
}

DEVICE = {"data.draw": "device", "data.render": "device"}


def small(name: str, **changes: Any) -> Recipe:
    steps = {"batch_size": 4, "schedule": dict(unit="steps", warmup=1, length=4), "log_steps": 1, "validation": {}}
    return load_recipe(name, steps | RECIPES[name] | changes)


def losses(recipe: Recipe, folder: Path, **options: Any) -> list[float]:
    train(recipe, folder, workers=0, progress=False, **options)
    return [row["loss"] for row in read_log(folder)]


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces, guards and differentiates as the real one, but writes no code, which takes minutes on a CPU."""
    monkeypatch.setattr(speed, "compile_blocks", partial(compile_blocks, backend="aot_eager"))


@pytest.mark.parametrize("name", ["croco_nano", "convmae_nano", "jigclu_nano"])
def test_compiled_run_has_the_same_losses_and_goes_on_without(name: str, tmp_path: Path, quick_compiler: None) -> None:
    recipe = small(name, checkpoint_steps=2)
    plain = losses(recipe, tmp_path / "plain")
    assert losses(recipe, tmp_path / "compiled", compiled=True) == pytest.approx(plain, rel=1e-5)

    class Killed(Exception):
        pass

    def die_in_the_third_step(self: Objective, progress: float) -> None:
        if progress > 0.7:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.objective_class(recipe), "after_step", die_in_the_third_step)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "both", workers=0, progress=False, compiled=True)
    assert losses(recipe, tmp_path / "both") == pytest.approx(plain, rel=1e-5)


def test_compiled_resnets_compute_the_same_in_another_memory_format() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("jigclu_nano_64").eval()
    training = timm.create_model("jigclu_nano_64").train()
    compiled = timm.create_model("jigclu_nano_64").eval()
    compiled.load_state_dict(plain.state_dict())
    for model in (compiled, training):
        compile_blocks(model, backend="aot_eager")
    last = [
        model.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last) for model in (compiled, training)
    ]
    assert last == [True, False], "only where it is quicker"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, setting",
    [
        ("croco_nano", "grad_checkpointing"),
        ("convmae_nano", "grad_checkpointing"),
        ("convmae_nano", "channels_last"),
        ("pirl_nano", "channels_last"),
        ("pirl_nano", "tf32"),
    ],
)
def test_setting_changes_no_loss(name: str, setting: str, tmp_path: Path) -> None:
    plain = losses(small(name), tmp_path / "plain")
    assert losses(small(name, **{setting: True}), tmp_path / setting) == pytest.approx(plain, rel=1e-4)


def test_checkpointing_would_count_images_twice(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="^jigsaw_nano_64_perm100 has batch norms, .* leave out grad_checkpointing.$"):
        losses(small("jigsaw_nano", grad_checkpointing=True), tmp_path)


@pytest.mark.parametrize("name", ["croco_nano", "mae_nano", "jigclu_nano"])
def test_float32_heads(name: str) -> None:
    recipe = small(name, precision="bf16", float32_heads=True)
    objective = make_objective(recipe)
    kinds: list[tuple[torch.dtype, torch.dtype]] = []
    for head in speed.find_heads(objective.model):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda layer, given, out: kinds.append((given[0].dtype, out.dtype)))
    batch = first_batch(recipe, objective)
    for set_up, kind in (((), torch.bfloat16), ((recipe,), torch.float32)):
        for setting in set_up:
            speed.set_up(setting, objective)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(batch)["loss"]
        loss.backward()
        assert kinds and {out for _, out in kinds} == {kind}
        kinds.clear()


def test_no_head_to_keep_in_float32() -> None:
    headless = nn.Module()
    headless.model = timm.create_model("croco_nano_patch8_64", depth=1)
    with pytest.raises(RecipeError, match="no head to keep in float32"):
        speed.set_up(small("croco_nano", float32_heads=True), headless)


def make_objective(recipe: Recipe) -> Objective:
    return build.make_objective(recipe, build.make_source(recipe))


def first_batch(recipe: Recipe, objective: Objective, device: str = "cpu") -> dict[str, torch.Tensor]:
    source = build.make_source(recipe)
    sampler = StepSampler(len(source), recipe.batch_size, recipe.seed, 0, 1, 1, 0, 1, getattr(source, "order", None))
    (batch,) = make_loader(source, objective.transform, sampler, workers=0, pin_memory=False)
    return to_device(batch, source, torch.device(device))


@pytest.mark.parametrize(
    "name, scenes", [*((name, {}) for name in RECIPES), ("croco_nano", DEVICE), ("mae_nano", DEVICE)]
)
def test_a_step_reads_nothing_from_the_device(
    name: str, scenes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device there is nothing to read: whoever asks for a value there raises."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no meta device
    recipe = small(name, **scenes)
    objective = make_objective(recipe).train().to("meta")
    optimizer = build.make_optimizer(recipe, objective)
    loss = objective(first_batch(recipe, objective, "meta"))["loss"]
    loss.backward()
    nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    assert any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    recipe = small(name, **(DEVICE if name == "croco_nano" else {}))
    objective = make_objective(recipe).train().cuda()
    optimizer = build.make_optimizer(recipe, objective, fused=True)
    batch = first_batch(recipe, objective, "cuda")
    for mode in ("default", "error"):  # the first step may fill caches
        torch.cuda.set_sync_debug_mode(mode)
        try:
            objective(batch)["loss"].backward()
            nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_engine_reads_losses_when_it_logs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def counted(function: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            return function(self, *args, **kwargs)

        return call

    fused = partial(build.make_optimizer, fused=True)  # as on a GPU
    monkeypatch.setattr(build, "make_optimizer", lambda recipe, objective, **_: fused(recipe, objective))
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    counts = []
    for length in (4, 8):
        reads = 0
        recipe = small("croco_nano", schedule=dict(unit="steps", warmup=1, length=length), log_steps=length)
        train(recipe, tmp_path / str(length), workers=1, progress=False)  # who draws samples is another process
        counts.append(reads)
    assert 0 < counts[0] == counts[1]


def test_a_run_that_fits_a_time(tmp_path: Path, zoo: Run) -> None:
    milestones = "schedule.milestones=[1500, 2250]"
    settings = ("batch_size=4", f"model_args={CROCO}", "log_steps=5", "schedule.length=3000", milestones)
    settings += ("schedule.staircase=true",)
    folder = tmp_path / "run"
    command = ("train", "croco_nano", "--minutes", 0.2, "--workers", 0, *(f"--set={setting}" for setting in settings))
    code, _, err = zoo(*command, "--output", folder)
    assert code == 0, err
    schedule = load_recipe(folder / "recipe.yaml").schedule
    assert schedule.length == read_log(folder)[-1]["step"] > 10, "more than the trial"
    assert schedule.warmup == min(200, schedule.length / 4)
    assert not schedule.staircase, "it would stay on its first step"
    assert schedule.milestones == pytest.approx((schedule.length / 2, schedule.length * 3 / 4))

    code, _, err = zoo(*command, "--output", folder)
    assert code != 0 and "has its length already; leave out --minutes" in err


def test_attention_in_bfloat16_on_a_cpu_is_the_same_with_gradients() -> None:
    """There it goes by plain products, whose backward pass is quick."""
    attention = CrossAttention(32, 4)
    x, memory = torch.randn(2, 2, 9, 32)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = attention(x, memory)
        with torch.no_grad():
            fused = attention(x, memory)
    torch.testing.assert_close(with_gradients, fused, atol=1e-2, rtol=2e-2)
    with_gradients.float().square().sum().backward()
    expected = attention(x, memory)
    torch.testing.assert_close(with_gradients.float(), expected, atol=1e-2, rtol=5e-2)
