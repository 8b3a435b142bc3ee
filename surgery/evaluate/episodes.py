"""Whole episodes, as many in every environment, so that short ones are not preferred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.envs.step import Envs

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Episodes:
    """What was played, environment by environment.

    Attributes:
      returns: (episodes,) float64, undiscounted and unclipped.
      lengths: (episodes,) int64, in agent steps.
      truncated: how many were cut off by a limit of time.
      steps: agent steps that were taken in all, also in environments that had their share.
      low: smallest number in any observation.
      high: largest number in any observation.
    """

    returns: Array
    lengths: Array
    truncated: int
    steps: int
    low: float
    high: float


def play(
    envs: Envs,
    act: Callable[[Array], Array],
    episodes: int,
    *,
    ended: Callable[[Array], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Episodes:
    """Play episodes to their end.

    How many each environment plays is fixed beforehand. The first N to end among many that run at once would be the
    shorter ones, and short episodes have other returns than long ones.

    Args:
      envs: made with `training=False`.
      act: observations (n, …) -> actions (n,).
      episodes: how many in all.
      ended: told which environments (n,) bool start a new episode, for policies with a state.
      progress: told how many episodes are done.
    """
    share = np.full(envs.num_envs, episodes // envs.num_envs)
    share[: episodes % envs.num_envs] += 1
    found: list[list[tuple[float, int]]] = [[] for _ in range(envs.num_envs)]
    done = truncated = steps = 0
    observation = envs.reset()
    low, high = _range(observation)
    while done < episodes:
        step = envs.step(act(observation))
        steps += envs.num_envs
        observation = step.observation
        if steps % (16 * envs.num_envs) == 0:
            least, most = _range(observation)
            low, high = min(low, least), max(high, most)
        if not step.finished:
            continue
        over = np.zeros(envs.num_envs, bool)
        for k, total, length in step.finished:
            over[k] = True
            if len(found[k]) < share[k]:
                found[k].append((total, length))
                truncated += bool(step.truncated[k])
                done += 1
        ended(over)
        progress(done)
    played = [episode for one in found for episode in one]
    returns = np.array([total for total, _ in played], np.float64)
    lengths = np.array([length for _, length in played], np.int64)
    return Episodes(returns, lengths, truncated, steps, low, high)


def _range(observation: Array) -> tuple[float, float]:
    return float(observation.min()), float(observation.max())
