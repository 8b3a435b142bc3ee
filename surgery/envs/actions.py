"""What an environment takes: one of several actions, several choices at once, switches, or numbers within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from surgery.arrays import Array
from surgery.envs.contract import chosen
from surgery.errors import ArgumentError, shape_text
from surgery.interface import Environment

if TYPE_CHECKING:
    import gymnasium


class ActionSpace(Protocol):
    """The actions of an environment; its text says which and how many.

    Attributes:
      size: how many numbers a network gives of one action: every value of a choice has one, every number is one.
    """

    @property
    def size(self) -> int: ...

    def taken(self, action: Any) -> Any:  # noqa: ANN401
        """A policy's action as the environment takes it."""

    def random(self, count: int, generator: np.random.Generator) -> Array:
        """(count, …) actions, distributed as gymnasium's own `sample`: uniform, where there are bounds."""


@dataclass(frozen=True)
class Discrete:
    """One of several; `numbers` are the environment's own, a policy counts them from 0."""

    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"one of {self.size}"

    @property
    def size(self) -> int:
        return len(self.numbers)

    def taken(self, action: Any) -> int:  # noqa: ANN401
        return self.numbers[int(action)]

    def random(self, count: int, generator: np.random.Generator) -> Array:
        return any_of(np.arange(self.size), count, generator)


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, in order.

    Attributes:
      counts: among how many each is. start: the environment's number of the first of each.
      shape: as the environment takes them; None: as a tuple of numbers.
    """

    counts: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"choices among {', '.join(map(str, self.counts))}"

    @property
    def size(self) -> int:
        return sum(self.counts)

    def taken(self, action: Any) -> Any:  # noqa: ANN401
        numbers = np.asarray(action, np.int64).reshape(-1) + self.start
        return tuple(numbers.tolist()) if self.shape is None else numbers.reshape(self.shape)

    def random(self, count: int, generator: np.random.Generator) -> Array:
        return self.arranged(np.stack([generator.integers(n, size=count) for n in self.counts], 1))

    def arranged(self, choices: Array) -> Array:
        """(n, choices) as actions."""
        return choices if self.shape is None else choices.reshape(-1, *self.shape)


@dataclass(frozen=True)
class MultiBinary:
    """Several switches, each of them on or off; shape: as the environment takes them."""

    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{shape_text(self.shape)} switches"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def taken(self, action: Any) -> Array:  # noqa: ANN401
        return np.asarray(action, np.int8)

    def random(self, count: int, generator: np.random.Generator) -> Array:
        return generator.integers(2, size=(count, *self.shape), dtype=np.int8)

    def arranged(self, switches: Array) -> Array:
        """(n, switches) as actions."""
        return np.asarray(switches.reshape(-1, *self.shape), np.int8)


@dataclass(frozen=True, eq=False)
class Box:
    """Numbers within bounds, which may be infinite; low, high: (*shape) of the environment's element type."""

    low: Array
    high: Array

    def __str__(self) -> str:
        return f"{shape_text(self.low.shape)} number{'s' if self.size > 1 else ''}"

    @property
    def size(self) -> int:
        return self.low.size

    @property
    def bounded(self) -> bool:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(self.high - self.low).all())

    def taken(self, action: Any) -> Array:  # noqa: ANN401
        return np.asarray(action, self.low.dtype)

    def random(self, count: int, generator: np.random.Generator) -> Array:
        shape = (count, *self.low.shape)
        below, above = np.isfinite(self.low), np.isfinite(self.high)
        beyond = generator.exponential(size=shape)
        found = np.where(
            below, self.low + beyond, np.where(above, self.high - beyond, generator.normal(size=shape))
        )
        low, high = np.where(below & above, self.low, 0.0), np.where(below & above, self.high, 1.0)
        return np.where(below & above, generator.uniform(low, high, shape), found).astype(self.low.dtype)


def any_of(allowed: Array, count: int, generator: np.random.Generator) -> Array:
    """(count,) drawn uniformly from some numbers (a,)."""
    return np.asarray(allowed[generator.integers(len(allowed), size=count)])


def action_space(contract: Environment, space: gymnasium.Space[Any]) -> ActionSpace:
    """What an environment takes, with the contract's action set.

    Raises:
      ArgumentError: actions that no policy gives, or an action set where nothing is numbered.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(chosen(contract, tuple(range(int(space.start), int(space.start + space.n)))))
    if contract.settings.get("action_set") is not None:
        raise ArgumentError(
            f"{contract.id} cannot honour an action_set: its actions are {space}",
            hint="surgery annotate MODEL --env-setting action_set=null -o OUT",
        )
    if isinstance(space, spaces.MultiDiscrete):
        counts, start = (tuple(int(n) for n in numbers.reshape(-1)) for numbers in (space.nvec, space.start))
        return MultiDiscrete(counts, start, space.nvec.shape)
    if isinstance(space, spaces.Tuple) and all(isinstance(one, spaces.Discrete) for one in space.spaces):
        counts, start = (tuple(int(getattr(one, of)) for one in space.spaces) for of in ("n", "start"))
        return MultiDiscrete(counts, start)
    if isinstance(space, spaces.MultiBinary):
        return MultiBinary(tuple(int(n) for n in space.shape))
    if isinstance(space, spaces.Box) and space.dtype is not None and np.issubdtype(space.dtype, np.floating):
        return Box(space.low, space.high)
    raise ArgumentError(
        f"the actions of {contract.id} are {space}, which cannot be played here",
        hint="Discrete, MultiDiscrete, MultiBinary, a Tuple of Discrete, or a Box of real numbers",
    )
