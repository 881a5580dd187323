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
    Between two points numbers, and numbers in lists, change linearly; anything else holds from its step on. In place
    of points, {"cycle": [64, 96, 128]} are values that the steps take in turn. A value is a function of the step alone,
    so a run can stop and go on anywhere. batch_size: samples of a step.

    Raises RecipeError (a ValueError).
    """

    def __init__(self, points: dict[str, Any], batch_size: int) -> None:
        self.batch_size = batch_size
        self.points: dict[str, dict[str, list[tuple[int, Any]]]] = dict(data={}, objective={})
        self.cycles: dict[str, dict[str, list[Any]]] = dict(data={}, objective={})
        for name, pairs in points.items():
            part, _, setting = name.partition(".")
            if part not in self.points or not setting:
                raise RecipeError(f"The curriculum can't change '{name}'; name a setting of data or objective.")
            if isinstance(pairs, dict):
                self.cycles[part][setting] = _cycle(name, pairs)
                continue
            if setting == "image_size":
                raise RecipeError(f"The curriculum's {name} can't grow; write {name}: {{cycle: [64, 128]}}.")
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
        """The steps of all points, and of one turn of the longest cycle."""
        points = {step for part in self.points.values() for pairs in part.values() for step, _ in pairs}
        longest = max((len(values) for part in self.cycles.values() for values in part.values()), default=0)
        return sorted(points | set(range(longest)))

    def values(self, part: str) -> list[tuple[str, Any]]:
        """The settings of "data" or "objective" with each of their values."""
        points = [(name, value) for name, pairs in self.points[part].items() for _, value in pairs]
        return points + [(name, value) for name, values in self.cycles[part].items() for value in values]

    def objective(self, step: int) -> dict[str, Any]:
        """The objective's changing settings at a step."""
        return self._at("objective", step)

    def data(self, draw: int) -> dict[str, Any]:
        """The data's changing settings for the draw-th sample of a run."""
        return self._at("data", draw // self.batch_size)

    def _at(self, part: str, step: int) -> dict[str, Any]:
        found = {name: _value(pairs, step) for name, pairs in self.points[part].items()}
        return found | {name: values[step % len(values)] for name, values in self.cycles[part].items()}


def scaled(points: dict[str, Any], share: float) -> dict[str, Any]:
    """A recipe's curriculum for a run that is `share` times as long: its steps are, too."""
    found: dict[str, Any] = {}
    for name, pairs in points.items():
        if isinstance(pairs, dict):
            found[name] = pairs
            continue
        found[name] = []
        for step, value in pairs:
            first = found[name][-1][0] + 1 if found[name] else 0
            found[name].append([max(first, round(step * share)), value])
    return found


def _cycle(name: str, given: dict[str, Any]) -> list[Any]:
    values = given.get("cycle")
    if len(given) != 1 or not isinstance(values, (list, tuple)) or not values:
        raise RecipeError(f"The curriculum's {name} is no cycle of values; write {name}: {{cycle: [64, 96, 128]}}.")
    return [tuple(value) if isinstance(value, list) else value for value in values]


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
