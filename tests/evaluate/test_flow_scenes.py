"""How flow is measured beside what knows less."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.evaluate import flow_scenes


def test_the_best_shift_is_the_geometric_median_of_what_is_known() -> None:
    flow = torch.tensor([3.0, -4.0]).view(2, 1, 1).repeat(1, 6, 8)
    flow[:, 0] = torch.tensor([200.0, 90.0])[:, None]  # a sixth is far off, and a sixth unknown
    flow[:, 1] = math.inf
    torch.testing.assert_close(flow_scenes.best_shift(flow), torch.tensor([3.0, -4.0]), rtol=0, atol=0.02)
    corners = torch.tensor([[0.0, 6.0, 0.0, 6.0], [0.0, 0.0, 2.0, 2.0]])[:, None]  # where a rectangle's diagonals meet
    torch.testing.assert_close(flow_scenes.best_shift(corners), torch.tensor([3.0, 1.0]), rtol=0, atol=0.05)


def test_figures_beside_what_knows_less() -> None:
    truth = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).repeat(1, 1, 6, 8)
    truth[..., :4] *= 2
    found = flow_scenes.compare(truth + torch.tensor([0.0, 2.0]).view(2, 1, 1), truth)
    assert found["model"]["EPE"] == pytest.approx(2) and found["no_flow"]["EPE"] == pytest.approx(7.5)
    assert found["best_shift"]["EPE"] == pytest.approx(2.5, abs=0.01)
    assert found["model"]["s40+"] is None  # and not NaN, which JSON doesn't know
    assert flow_scenes.compare(truth, torch.full_like(truth, math.inf))["best_shift"]["EPE"] is None
