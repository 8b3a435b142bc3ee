"""Transitions that somebody recorded, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.arrays import Array


@dataclass(frozen=True)
class Stacked:
    """Observations as stacks of frames that are kept once.

    Attributes:
      frames: (n, *frame). rows: (N, stack) which of them each observation is made of, newest last.
    """

    frames: Array
    rows: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, stack, *frame), or (N, *frame) without a stack."""
        stack = self.rows.shape[1:] if self.rows.shape[1] > 1 else ()
        return (len(self.rows), *stack, *self.frames.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.frames.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Array:  # noqa: ANN401
        rows = self.rows[index]
        found: Array = self.frames[rows if self.rows.shape[1] > 1 else rows[..., 0]]
        return found


@dataclass(frozen=True)
class Transitions:
    """What was recorded, N transitions in order.

    Attributes:
      observation: (N, *observation).
      action: (N,) whole numbers.
      reward: (N,)
      terminated: (N,) true where the episode ended by its own rules.
      next_observation: (N, *observation) the true successors.
      begins: (N,) where an episode begins, even if what was observed does not show it; None: after each terminated one.
    """

    observation: Array | Stacked
    action: Array
    reward: Array
    terminated: Array
    next_observation: Array | Stacked
    begins: Array | None = None

    def __len__(self) -> int:
        return len(self.action)
