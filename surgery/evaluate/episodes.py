"""Whole episodes, as many in every environment, so that short ones are not preferred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import any_of
from surgery.envs.step import Envs, alive
from surgery.errors import RunFailed
from surgery.interface import Environment


@dataclass(frozen=True)
class Episodes:
    """What was played, environment by environment.

    Attributes:
      returns: (episodes,) float64, undiscounted and unclipped.
      lengths: (episodes,) int64, in agent steps.
      truncated: how many were cut off by a limit of time; they count as they stood.
      cut: how many were still going on when the steps ran out; they count as they stood.
      steps: agent steps that were taken in all, also in environments that had their share.
      low: smallest number in an observation, of one step in 16.
      high: largest number in an observation, of one step in 16.
    """

    returns: Array
    lengths: Array
    truncated: int
    steps: int
    low: float
    high: float
    cut: int = 0


def play(
    envs: Envs,
    act: Callable[[Array], Array],
    episodes: int,
    *,
    limit: int | None = None,
    ended: Callable[[Array], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Episodes:
    """Play episodes to their end, or as far as some steps reach.

    How many each environment plays is fixed beforehand: the first N to end among many that run at once would be the
    shorter ones, and short episodes have other returns than long ones. An agent that never serves the ball plays on to
    the limit of its contract (`max_episode_steps`: 27,000 steps of an Atari game are 108,000 frames), where its
    environment cuts it off. Training does not wait that long for a student that cannot serve yet, and gives a `limit`.

    Args:
      envs: made with `training=False`.
      act: observations (n, …) -> actions (n, …).
      episodes: how many in all.
      limit: steps of each environment; an episode that goes on then counts as it stands, if it is one of those to be
        played.
      ended: told which environments (n,) bool start a new episode, for policies with a state.
      progress: told how many episodes are done.

    Raises:
      RunFailed: an environment fails, or goes on beyond the limit of its contract.
    """
    share, ages = shares(episodes, envs.num_envs), np.zeros(envs.num_envs, np.int64)
    returns = np.zeros(envs.num_envs)
    found: list[list[tuple[float, int]]] = [[] for _ in range(envs.num_envs)]
    done = truncated = steps = 0
    with alive(envs.contract.id):
        observation = envs.reset()
    low, high = _range(observation)
    while done < episodes and (limit is None or steps < limit * envs.num_envs):
        actions = act(observation)
        with alive(envs.contract.id):
            step = envs.step(actions)
        steps += envs.num_envs
        observation = step.observation
        if steps % (16 * envs.num_envs) == 0:
            least, most = _range(observation)
            low, high = min(low, least), max(high, most)
        ages = np.where(step.begins, 0, ages + 1)
        returns = np.where(step.begins, 0.0, returns + step.reward)
        _check_age(int(ages.max()), envs.contract)
        if not step.finished:
            continue
        for k, total, length in step.finished:
            if len(found[k]) < share[k]:
                found[k].append((total, length))
                truncated += bool(step.truncated[k])
                done += 1
        ended(step.begins)
        progress(done)
    going_on = [k for k, own in enumerate(found) if len(own) < share[k]]
    for k in going_on:
        found[k].append((float(returns[k]), int(ages[k])))
    played = [episode for own in found for episode in own]
    totals = np.array([total for total, _ in played], np.float64)
    lengths = np.array([length for _, length in played], np.int64)
    return Episodes(totals, lengths, truncated, steps, low, high, len(going_on))


def shares(episodes: int, envs: int) -> Array:
    """How many of some episodes each environment plays (n,)."""
    found = np.full(envs, episodes // envs)
    found[: episodes % envs] += 1
    return found


def _check_age(steps: int, contract: Environment) -> None:
    limit = contract.settings.get("max_episode_steps")
    if isinstance(limit, int) and steps > limit:
        raise RunFailed(
            f"an episode of {contract.id} has taken {steps:,} steps: the contract says that episodes end after "
            f"{limit:,}"
        )


def at_random(allowed: Array, generator: np.random.Generator) -> Callable[[Array], Array]:
    """Random play: uniform over the allowed actions (a,)."""
    return lambda observation: any_of(allowed, len(observation), generator)


def _range(observation: Array) -> tuple[float, float]:
    return float(observation.min()), float(observation.max())
