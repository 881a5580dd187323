"""Optimizers of timm besides the usual: a resumed run goes on as if nothing had been, or there is none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.train.test_training import tiny
from zoo.errors import RecipeError
from zoo.train.build import Parts, make_parts
from zoo.train.optimizer_state import take
from zoo.train.run import Run

# Their counts and means are tensors or numbers, of parameters or of groups, in float32 or bfloat16.
RESUMED = ("adamw", "lamb", "adan", "lookahead_sgd", "nadamlegacy", "adafactor", "adafactorbv", "laprop", "muon")


def _step(parts: Parts, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parts.objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    parts.optimizer.step()


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    recipe = tiny(**{"optimizer.name": name})
    first, second = make_parts(recipe), make_parts(recipe)
    runs = [Run(tmp_path, recipe, first.plan, Accelerator(cpu=True)) for _ in range(2)]
    for seed in range(3):
        _step(first, seed)
    runs[0].save(3, first)
    with runs[1].held(second) as done:
        assert done == 3
    for seed in range(3, 6):
        _step(first, seed)
        _step(second, seed)
    pairs = zip(first.objective.parameters(), second.objective.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", ["adahessian", "fusedadam", "bnbadam8bit", "no_such", "_", "adam" * 1000])
def test_optimizer_that_cannot_be_used_is_told_before_the_first_step(name: str) -> None:
    with pytest.raises(RecipeError, match=r"^The optimizer '.*' can't be used \(.*\); choose another of timm") as error:
        make_parts(tiny(**{"optimizer.name": name}))
    assert len(str(error.value)) < 500


def test_state_that_no_checkpoint_holds() -> None:
    """Such as the lists of tensors of timm's kron, which compiles for a minute before it has any."""
    optimizer = torch.optim.SGD([parameter := torch.nn.Parameter(torch.ones(2))])
    optimizer.state[parameter]["Q"] = [torch.ones(2)]
    with pytest.raises(ValueError, match="its Q is a list, which no checkpoint holds"):
        take(optimizer)
