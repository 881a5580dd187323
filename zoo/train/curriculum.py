"""Settings of a recipe that change with the step: easy data, a coarse target or few hidden patches first."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any

from zoo.errors import RecipeError


class Curriculum:
    """The values that a recipe's `curriculum` gives settings of its `data` and `objective` at a step.

    points: by setting, [step, value] pairs in ascending steps, such as
    {"data.displacement": [[0, [0.02, 0.06]], [2000, [0.03, 0.18]]], "objective.target": [[0, "gray"], [500, None]]}.
    Between two points numbers, and numbers in lists, change linearly; anything else holds from its step on. A value
    is a function of the step alone, so a run can stop and go on anywhere. batch_size: samples of a step.

    Raises RecipeError (a ValueError).
    """

    def __init__(self, points: dict[str, Any], batch_size: int) -> None:
        self.batch_size = batch_size
        self.points: dict[str, dict[str, list[tuple[int, Any]]]] = dict(data={}, objective={})
        for name, pairs in points.items():
            part, _, setting = name.partition(".")
            if part not in self.points or not setting:
                raise RecipeError(f"The curriculum can't change '{name}'; name a setting of data or objective.")
            try:
                steps = [(int(step), tuple(value) if isinstance(value, list) else value) for step, value in pairs]
            except (TypeError, ValueError, OverflowError):
                steps = []
            if not steps or steps[0][0] != 0 or any(a >= b for (a, _), (b, _) in pairwise(steps)):
                raise RecipeError(
                    f"The curriculum's {name} is no list of [step, value] in ascending steps from 0; write "
                    f"{name}: [[0, ...], [1000, ...]]."
                )
            self.points[part][setting] = steps

    def steps(self) -> list[int]:
        """The steps of all points."""
        return sorted({step for part in self.points.values() for pairs in part.values() for step, _ in pairs})

    def objective(self, step: int) -> dict[str, Any]:
        """The objective's changing settings at a step."""
        return {name: _value(pairs, step) for name, pairs in self.points["objective"].items()}

    def data(self, draw: int) -> dict[str, Any]:
        """The data's changing settings for the draw-th sample of a run."""
        return {name: _value(pairs, draw // self.batch_size) for name, pairs in self.points["data"].items()}


def scaled(points: dict[str, Any], share: float) -> dict[str, Any]:
    """A recipe's curriculum for a run that is `share` times as long: its steps are, too."""
    found: dict[str, Any] = {}
    for name, pairs in points.items():
        found[name] = []
        for step, value in pairs:
            first = found[name][-1][0] + 1 if found[name] else 0
            found[name].append([max(first, round(step * share)), value])
    return found


def _value(pairs: list[tuple[int, Any]], step: int) -> Any:
    after = bisect_right([at for at, _ in pairs], step)
    first, low = pairs[after - 1]
    if after == len(pairs):
        return low
    last, high = pairs[after]
    return _between(low, high, (step - first) / (last - first))


def _between(low: Any, high: Any, share: float) -> Any:
    if isinstance(low, tuple) and isinstance(high, tuple) and len(low) == len(high):
        return tuple(_between(a, b, share) for a, b in zip(low, high))
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not isinstance(low, bool):
        return low + (high - low) * share
    return low
