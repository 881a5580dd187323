"""What the objective reports in each step, kept on the device until it is logged."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class Reports:
    """The objective's values since the row of the log before; reading each step's would make the device wait."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.names: list[str] = []  # the loss first
        self._parts: list[Tensor] = []  # of the step that is being computed
        self._steps: list[Tensor] = []

    def add(self, outcome: dict[str, Tensor]) -> None:
        """Take what the objective gave for a part of a batch."""
        self.names = self.names or ["loss", *sorted(outcome.keys() - {"loss"})]
        self._parts.append(torch.stack([outcome[name].detach().float() for name in self.names]))

    def end_step(self) -> None:
        """The step's values are the means of its parts'."""
        self._steps.append(torch.stack(self._parts).mean(dim=0))
        self._parts.clear()

    def read(self, wished: bool) -> tuple[dict[str, list[float]], bool]:
        """Each name's values in the steps since the last reading, over all processes; and whether one of those
        wishes to stop, which travels with the values, so that all stop at the same step."""
        wish = torch.full((1, len(self.names)), float(wished), device=self.accelerator.device)
        *rows, wishes = self.accelerator.reduce(torch.cat((torch.stack(self._steps), wish)), "mean").tolist()
        self._steps.clear()
        return {name: list(values) for name, values in zip(self.names, zip(*rows))}, wishes[0] > 0
