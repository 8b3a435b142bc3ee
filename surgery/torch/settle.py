"""Let an optimizer settle after surgery: nothing moves for some steps while its statistics adjust.

OpenAI restarted with a learning rate of zero "for the first several hours", so that Adam's moments fit the new network
(arXiv:1912.06680, appendix B). Step counts of their own (`surgery.torch.follow`) make that unnecessary for new entries;
this is for whatever else makes a state unfit: another environment, another batch size, a swap of the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.errors import ArgumentError
from surgery.torch.optimizer_state import is_nested


class Settling:
    """The handle that `settle` gives.

    Attributes:
      left: steps that are left.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, *, ramp: bool) -> None:
        self.left, self._steps, self._ramp = steps, steps, ramp
        self._optimizer = optimizer
        self._rates: list[Any] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._lower),
            optimizer.register_step_post_hook(self._raise),
        ]

    @property
    def fraction(self) -> float:
        """The part of the learning rate that the next step is made with."""
        if not self.left:
            return 1.0
        return (self._steps - self.left) / self._steps if self._ramp else 0.0

    def stop(self) -> None:
        """Full steps from now on."""
        self.left = 0
        self._give_back()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _lower(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        if is_nested(optimizer):
            return
        self._give_back()  # where the step before this one failed half-way
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.fraction

    def _raise(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        if is_nested(optimizer):
            return
        self._give_back()
        self.left -= 1
        if self.left <= 0:
            self.stop()

    def _give_back(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []


def settle(optimizer: torch.optim.Optimizer, steps: int, *, ramp: bool = False) -> Settling:
    """Make the next steps with a learning rate of zero, or (`ramp`) with one that grows linearly to its own.

    Moments, counts and schedules go on as always; between steps the learning rates read as they are set.

    Args:
      optimizer: any.
      steps: how many.
      ramp: grow from zero instead of waiting.

    Returns:
      The handle, which removes itself when it is done.

    Raises:
      ArgumentError: fewer than one step.
    """
    if steps < 1:
        raise ArgumentError(f"{steps} steps to settle", hint="a whole number, 1 or more")
    return Settling(optimizer, steps, ramp=ramp)
