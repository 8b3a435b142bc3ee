"""What all environments look like from outside, and the counting of returns that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import ActionSpace
from surgery.envs.parts import Part
from surgery.errors import RunFailed, SurgeryError, first_line
from surgery.interface import Environment


@dataclass(frozen=True)
class Step:
    """What one action did in each of n environments.

    Attributes:
      observation: (n, *observation) to act on next: the first one of the new episode where one has ended.
      next_observation: (n, *observation) what the action led to, also at the end of an episode.
      reward: (n,) float32, as the environment gives it: not clipped, also in training.
      terminated: (n,) bool: nothing follows, so that nothing is bootstrapped. In training this includes the loss of
        a life where the contract says so; the episode itself goes on then.
      truncated: (n,) bool: the episode was cut off by a limit of time.
      finished: (environment, return, length in agent steps) of every episode that ended with this step.
    """

    observation: Array
    next_observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    finished: tuple[tuple[int, float, int], ...]

    @property
    def begins(self) -> Array:
        """(n,) bool: where `observation` is the first one of an episode; what a policy remembers ends there."""
        found = np.zeros(len(self.reward), bool)
        found[[env for env, _, _ in self.finished]] = True
        return found


class Envs(Protocol):
    """n environments that are stepped together and reset themselves.

    Attributes:
      num_envs: n.
      observation_shape: of one observation.
      observation_dtype: uint8 for Atari, bool for MinAtar, the space's own elsewhere.
      takes: what may be done.
      actions: number of actions, which are numbered as the policy's outputs are; of others its numbers.
      action_meanings: a name per action, where the environment has names.
      stacked: whether axis 0 of an observation is a stack of frames, the newest last.
      parts: of a dictionary or tuple that was flattened, in their order; empty where an observation is an array.
      contract: what these environments follow, with every setting and the action set stated.
    """

    @property
    def num_envs(self) -> int: ...
    @property
    def observation_shape(self) -> tuple[int, ...]: ...
    @property
    def observation_dtype(self) -> np.dtype[Any]: ...
    @property
    def takes(self) -> ActionSpace: ...
    @property
    def actions(self) -> int: ...
    @property
    def action_meanings(self) -> tuple[str, ...] | None: ...
    @property
    def stacked(self) -> bool: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def contract(self) -> Environment: ...

    def reset(self) -> Array:
        """Start new episodes everywhere; (n, *observation)."""

    def step(self, actions: Array) -> Step:
        """Act in every environment; actions (n, …), each of `takes`: integers (n,), where it is one of several."""

    def begin(self, actions: Array) -> Callable[[], Step]:
        """What, called once, gives what `step` gives; until then environments with threads of their own run beside."""

    def close(self) -> None: ...


@contextmanager
def alive(name: str | None) -> Iterator[None]:
    """Turn whatever an environment, which is anyone's code, raises in this context into an error of ours.

    Raises:
      RunFailed: it threw something.
    """
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:
        raise RunFailed(
            f"the environment {name} failed: {first_line(error, typed=True)}", hint="--debug shows where"
        ) from error


class Ledger:
    """True returns and lengths of the running episodes."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)

    def clear(self) -> None:
        self._returns[:] = 0
        self._lengths[:] = 0

    def add(self, reward: Array, over: Array) -> tuple[tuple[int, float, int], ...]:
        """Count one step; the episodes that are over with it, as in `Step.finished`."""
        self._returns += reward
        self._lengths += 1
        ended = np.flatnonzero(over)
        finished = tuple((int(k), float(self._returns[k]), int(self._lengths[k])) for k in ended)
        self._returns[ended] = 0
        self._lengths[ended] = 0
        return finished


def seeds(seed: int, count: int) -> Array:
    """One seed per environment, (count,) int32, at least 0.

    Runs with neighbouring seeds share no environment, as they would if seeds were counted up.
    """
    return (np.random.SeedSequence(seed).generate_state(count) & 0x7FFFFFFF).astype(np.int32)
