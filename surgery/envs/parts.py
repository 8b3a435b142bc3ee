"""Which numbers of a flattened observation are which entry of the dictionary that the environment shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Part:
    """One array of an observation.

    Attributes:
      name: its keys with dots between them, or its place in a tuple; "" where the observation is this array.
      shape: without a batch; (n,) of one of n values, which is shown as a one-hot vector.
      dtype: its own element type; numbers of a flattened observation have one that holds all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def parts_of(space: gymnasium.Space[Any], name: str = "") -> tuple[Part, ...]:
    """The parts of a space that can be flattened, in the order of `gymnasium.spaces.flatten`."""
    from gymnasium import spaces

    inner = members(space)
    if inner is not None:
        return tuple(part for key, one in inner.items() for part in parts_of(one, below(name, key)))
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return (Part(name, tuple(int(n) for n in space.shape), np.dtype(space.dtype)),)
    return (Part(name, (spaces.flatdim(space),), np.dtype(np.int64)),)


def members(space: gymnasium.Space[Any]) -> dict[str, gymnasium.Space[Any]] | None:
    """The spaces in a dictionary by key, or in a tuple by place; None of a space that is neither."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    if isinstance(space, spaces.Tuple):
        return {str(k): member for k, member in enumerate(space.spaces)}
    return None


def below(name: str, key: str) -> str:
    """What a member of a space is called."""
    return f"{name}.{key}" if name else key
