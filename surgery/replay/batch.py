"""What a replay is made of, and what is drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.arrays import Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """The shape of experience.

    Attributes:
      envs: number of environments, each a stream of its own.
      frame: shape of what is new in an observation: without the stack axis when there is one.
      dtype: element type of the observations.
      stack: frames in an observation, newest last on its first axis; 1 if observations are not stacked.
    """

    envs: int
    frame: tuple[int, ...]
    dtype: str
    stack: int = 1

    @property
    def observation(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.frame if self.stack == 1 else (self.stack, *self.frame)

    @staticmethod
    def of(observation: Sequence[int], dtype: np.dtype[Any], *, envs: int, stacked: bool) -> Layout:
        """The layout of observations of a shape, whose first axis is a frame stack if `stacked`."""
        shape = tuple(observation)
        if stacked and shape[0] > 1:
            return Layout(envs, shape[1:], dtype.name, shape[0])
        return Layout(envs, shape, dtype.name)


@dataclass(frozen=True)
class Stretch:
    """What a batch of stretches (`Window`) has beside its transitions; C stretches of T observations.

    Attributes:
      begins: (T, C) bool, where an episode begins: nothing from before is remembered.
      state: (C, S) float32, of the network before the first observation; S may be 0.
      after: (B,) int64, which of the T · C observations, time first, follows n steps after each transition.
    """

    begins: Array
    state: Array | torch.Tensor
    after: Array


@dataclass(frozen=True)
class Batch:
    """Transitions drawn from a replay; B of them, arrays on the host or tensors where the frames lie.

    Of stretches, B is `unroll` · C, time first; `observation` is (T, C, *observation), `next_observation` is empty, and
    `weight` is 0 where there was no transition, with a mean of 1.

    Attributes:
      rows: (B,) the rows drawn, for `Replay.set_priorities`.
      observation: (B, *observation).
      action: (B,) int64.
      returns: (B,) float32, the sum of γ^j r_j over the next n steps, or up to the episode's end.
      discount: (B,) float32, γ^m for the m steps summed; 0 where the episode terminated among them.
      next_observation: (B, *observation) m steps on; what it holds under discount 0 is arbitrary.
      weight: (B,) float32, importance weights, largest 1; all ones without priorities.
      scores: (B, A) float32, what the teacher said at the observation; None where that is not kept.
      stretch: the rest of a batch of stretches; None: transitions are drawn one by one.
    """

    rows: Array
    observation: Array | torch.Tensor
    action: Array
    returns: Array
    discount: Array
    next_observation: Array | torch.Tensor
    weight: Array
    scores: Array | torch.Tensor | None = None
    stretch: Stretch | None = None
