"""Who acts: the student with ε, and the teacher in its part of an episode; games that are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgery.arrays import Array
from surgery.distill.methods import RollIn
from surgery.evaluate import at_random, shares

if TYPE_CHECKING:
    from surgery.envs import Envs

Act = Callable[[Array], Array]
"""Observations (n, *observation) -> actions (n,)."""


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


@dataclass(frozen=True)
class Games:
    """Games that were played to be counted.

    Attributes:
      returns: of each, true and undiscounted, environment by environment.
      cut: how many of them were still going on when the steps ran out; they count as they stood.
    """

    returns: tuple[float, ...]
    cut: int


def play_games(
    envs: Envs, act: Act, count: int, limit: int, *, ended: Callable[[Array], None] = lambda _: None
) -> Games:
    """Play whole games, a fixed number in each environment, within a limit of steps.

    A student that does not know yet how to serve the ball stands still for half an hour in every game; without the
    limit its evaluation would take longer than its training.

    Args:
      envs: made for evaluation; reset here.
      act: the policy.
      count: games to play.
      ended: told which environments (n,) bool start a new episode, for policies with a memory.
      limit: steps of each environment. A game that goes on then counts as it stands, if it is one of those to be
        played.
    """
    share = shares(count, envs.num_envs)
    returns: list[list[float]] = [[] for _ in range(envs.num_envs)]
    running = np.zeros(envs.num_envs)
    observation = envs.reset()
    for _ in range(limit):
        step = envs.step(act(observation))
        ended(step.begins)
        running += step.reward
        for env, total, _ in step.finished:
            running[env] = 0.0
            if len(returns[env]) < share[env]:
                returns[env].append(total)
        if all(len(some) == wanted for some, wanted in zip(returns, share, strict=True)):
            return Games(tuple(total for some in returns for total in some), 0)
        observation = step.observation
    open_games = [env for env in range(envs.num_envs) if len(returns[env]) < share[env]]
    for env in open_games:
        returns[env].append(float(running[env]))
    return Games(tuple(total for some in returns for total in some), len(open_games))
