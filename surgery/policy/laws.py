"""Actions from what a network gives: greedy, sampled and random, for every kind of action space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from surgery.arrays import Array
from surgery.envs.actions import Box, MultiBinary, MultiDiscrete, any_of
from surgery.errors import ArgumentError, Refused


class Law(Protocol):
    """The distribution of actions (n, …) that a network gives for n observations."""

    def greedy(self, said: Array) -> Array: ...

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        """Raises: Refused: nothing says how the network would draw them."""

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        """Uniform over the allowed actions. Raises: Refused: they have no bounds."""

    def random(self, count: int, generator: np.random.Generator) -> Array:
        """Random play, also where actions have no bounds."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several actions, of scores (n, actions).

    Attributes:
      allowed: (a,) numbers of those that may be taken. temperature: what scores are divided by before a softmax.
    """

    allowed: Array
    temperature: float

    def greedy(self, said: Array) -> Array:
        return np.asarray(said.argmax(-1))

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        # The largest of log p + Gumbel noise is distributed as p.
        return np.asarray((said / self.temperature + generator.gumbel(size=said.shape)).argmax(-1))

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        return any_of(self.allowed, count, generator)

    random = uniform


@dataclass(frozen=True, eq=False)
class Choices:
    """Several choices at once, of the scores of all of them one behind the other, (n, sum of counts).

    Attributes:
      space: the environment's. choices: each of them.
    """

    space: MultiDiscrete
    choices: tuple[Choice, ...]

    def greedy(self, said: Array) -> Array:
        return self._each([one.greedy(scores) for one, scores in self._parts(said)])

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        return self._each([one.sample(scores, generator) for one, scores in self._parts(said)])

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        return self._each([one.uniform(count, generator) for one in self.choices])

    random = uniform

    def _parts(self, said: Array) -> Iterator[tuple[Choice, Array]]:
        return zip(self.choices, np.split(said, np.cumsum(self.space.counts)[:-1], axis=-1), strict=True)

    def _each(self, chosen: list[Array]) -> Array:
        return self.space.arranged(np.stack(chosen, axis=1))


@dataclass(frozen=True)
class Switches:
    """Switches, of the logit of each, (n, switches)."""

    space: MultiBinary
    temperature: float

    def greedy(self, said: Array) -> Array:
        return self.space.arranged(said > 0)

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        with np.errstate(over="ignore"):
            on = generator.random(said.shape) < 1 / (1 + np.exp(-said / self.temperature))
        return self.space.arranged(on)

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        return self.space.random(count, generator)

    random = uniform


@dataclass(frozen=True)
class Named:
    """Choices or switches that the network names itself, (n, choices)."""

    output: str
    space: MultiDiscrete | MultiBinary

    def greedy(self, said: Array) -> Array:
        return self.space.arranged(said)

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        raise Refused(
            f"output '{self.output}' names its choices: nothing says how they are drawn", hint="--mode greedy"
        )

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        return self.space.random(count, generator)

    random = uniform


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers within bounds, of (1, n, numbers), or with them a mean and the logarithm of a deviation, (3, n, numbers).

    Attributes:
      output: what gives the numbers. space: the environment's.
      ends: (numbers,) twice: what of the output stands for `reach`; None: it is in the environment's own units.
      reach: (numbers,) twice; None: the bounds.
      squashed: whether the numbers are tanh of the mean. unsampled: why nothing is drawn, if so.
    """

    output: str
    space: Box
    ends: tuple[Array, Array] | None
    reach: tuple[Array, Array] | None
    squashed: bool
    unsampled: str

    def __post_init__(self) -> None:
        if self.ends is not None and self.reach is None and not self.space.bounded:
            raise ArgumentError(
                f"output '{self.output}' has a range of its own, and the environment's actions have no bounds for it",
                hint="bound the actions in a wrapper of the environment (gymnasium.wrappers.RescaleAction)",
            )

    def greedy(self, said: Array) -> Array:
        return self._settled(said[0])

    def sample(self, said: Array, generator: np.random.Generator) -> Array:
        if self.unsampled:
            raise Refused(self.unsampled, hint="--mode greedy")
        mean, deviation = said[1], np.exp(said[2])
        drawn = mean + deviation * generator.standard_normal(mean.shape, np.float32)
        return self._settled(np.tanh(drawn) if self.squashed else drawn)

    def uniform(self, count: int, generator: np.random.Generator) -> Array:
        if not self.space.bounded:
            raise Refused(
                "the environment's actions have no bounds: none can be drawn uniformly", hint="--mode greedy"
            )
        return self.space.random(count, generator)

    def random(self, count: int, generator: np.random.Generator) -> Array:
        return self.space.random(count, generator)

    def _settled(self, numbers: Array) -> Array:
        """(n, numbers) as the environment takes them: (n, *shape) within its bounds."""
        low, high = self.space.low, self.space.high
        x = numbers.reshape(-1, *low.shape)
        if self.ends is not None:
            first, last = (end.reshape(low.shape) for end in self.ends)
            least, most = (end.reshape(low.shape) for end in self.reach or (low, high))
            x = least + (x - first) / (last - first) * (most - least)
        return np.asarray(np.clip(x, low, high), low.dtype)
