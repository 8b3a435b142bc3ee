"""Who acts: the student with ε, the teacher in its part of an episode, and both when they are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.distill.methods import RollIn

if TYPE_CHECKING:
    from surgery.envs import Envs

Array = np.ndarray[Any, np.dtype[Any]]
Act = Callable[[Array], Array]
"""Observations (n, *observation) -> actions (n,)."""


def epsilon(agent_steps: int, decay: int, end: float) -> float:
    """ε after some steps: linear from 1 to `end` over `decay` steps; `end` at once if `decay` is 0."""
    if agent_steps >= decay:
        return end
    return 1.0 + (end - 1.0) * agent_steps / decay


def explore(actions: Array, chance: float, count: int, generator: np.random.Generator) -> Array:
    """Actions (n,), each replaced by a uniform one of `count` with some probability."""
    random = generator.integers(count, size=len(actions))
    return np.where(generator.random(len(actions)) < chance, random, actions)


class Turns:
    """Whose turn it is in each environment, when the teacher acts along (`RollIn`).

    Args:
      roll_in: how.
      envs: number of environments.
      generator: draws lengths and turns.
    """

    def __init__(self, roll_in: RollIn, envs: int, generator: np.random.Generator) -> None:
        self._roll_in, self._generator = roll_in, generator
        self._age = np.zeros(envs, np.int64)
        self._length = np.zeros(envs, np.int64)
        self._longest = roll_in.length
        self._draw(np.arange(envs))

    def progress(self, fraction: float) -> None:
        """Shrink the longest roll-in, by how much of the budget is spent: once per tenth, as released."""
        shrunk = float(self._roll_in.length)
        for _ in range(int(fraction * 10)):
            shrunk = int(shrunk * self._roll_in.shrink)
        self._longest = max(1, int(shrunk))

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


@dataclass(frozen=True)
class Score:
    """True returns of whole episodes.

    Attributes:
      returns: one per episode.
      steps: agent steps that they took together.
    """

    returns: tuple[float, ...]
    steps: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 for one episode."""
        count = len(self.returns)
        return float(np.std(self.returns, ddof=1) / count**0.5) if count > 1 else 0.0


def play(envs: Envs, act: Act, episodes: int, ended: Callable[[Array], None] = lambda _: None) -> Score:
    """Play whole episodes, as many in each environment: taking the first to finish would favour short ones.

    Args:
      envs: made for evaluation; reset here.
      act: the policy.
      episodes: at least this many are played.
      ended: called with the environments whose episode has just ended.
    """
    quota = -(-episodes // envs.num_envs)
    returns: list[list[float]] = [[] for _ in range(envs.num_envs)]
    observation, steps = envs.reset(), 0
    while min(map(len, returns)) < quota:
        step = envs.step(act(observation))
        steps += envs.num_envs
        for env, total, _ in step.finished:
            if len(returns[env]) < quota:
                returns[env].append(total)
        if step.finished:
            ended(np.array([env for env, _, _ in step.finished]))
        observation = step.observation
    return Score(tuple(total for some in returns for total in some), steps)
