"""Who acts: the student with ε, and the teacher in its part of an episode."""

from __future__ import annotations

import numpy as np

from surgery.arrays import Array
from surgery.distill.methods import RollIn
from surgery.evaluate import at_random


def epsilon(agent_steps: int, decay: int, end: float) -> float:
    """ε after some steps: linear from 1 to `end` over `decay` steps; `end` at once if `decay` is 0."""
    if agent_steps >= decay:
        return end
    return 1.0 + (end - 1.0) * agent_steps / decay


def explore(actions: Array, chance: float, allowed: Array, generator: np.random.Generator) -> Array:
    """Actions (n,), each replaced by a uniform one of those that are `allowed` with some probability."""
    random = at_random(allowed, generator)(actions)
    return np.where(generator.random(len(actions)) < chance, random, actions)


class Turns:
    """Whose turn it is in each environment, when the teacher acts along (`RollIn`).

    Args:
      roll_in: how.
      longest: α, the largest length of a roll-in at the beginning.
      envs: number of environments.
      generator: draws lengths and turns.
      fraction: of the budget that is spent already.
    """

    def __init__(
        self, roll_in: RollIn, longest: int, envs: int, generator: np.random.Generator, fraction: float = 0.0
    ) -> None:
        self._roll_in, self._first, self._generator = roll_in, longest, generator
        self._age = np.zeros(envs, np.int64)
        self._length = np.zeros(envs, np.int64)
        self.progress(fraction)
        self._draw(np.arange(envs))

    def progress(self, fraction: float) -> None:
        """Shrink the longest roll-in, by how much of the budget is spent: once per tenth, as released."""
        shrunk = self._first
        for _ in range(int(fraction * 10)):
            shrunk = int(shrunk * self._roll_in.shrink)
        self._longest = max(1, shrunk)

    def teacher_acts(self, fraction: float) -> Array:
        """Which environments (n,) the teacher acts in now."""
        within = self._age < self._length
        if self._roll_in.guide == "first":
            return within
        chance = max(0.0, 1.0 - fraction)
        return ~within & (self._generator.random(len(within)) < chance)

    def step(self, over: Array) -> None:
        """Count a step; `over` lists environments whose episode ended with it."""
        self._age += 1
        self._draw(over)

    def _draw(self, envs: Array) -> None:
        self._age[envs] = 0
        self._length[envs] = self._generator.integers(1, self._longest + 1, size=len(envs))
