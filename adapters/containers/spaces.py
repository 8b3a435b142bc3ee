"""Gymnasium spaces inside a pickle: read and changed as data, without gymnasium.

Source: https://github.com/Farama-Foundation/Gymnasium, `gymnasium/spaces`; gym's spaces have the same fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile, Refused
from surgery.interface import Bound as Bound
from surgery.interface import Port
from surgery_adapters.containers.pickle_tree import Made, Name
from surgery_adapters.containers.pickled_arrays import read_array, read_dtype, read_integer, write_array

Source = Sequence[int | None]
"""For every entry of an axis the old one that it was, or None for a new one."""


@dataclass(frozen=True)
class Space:
    """One space.

    Attributes:
      kind: "Box", "Discrete", "MultiDiscrete", "MultiBinary" or "Dict".
      shape: of an element; () for Discrete.
      dtype: of its entries.
      low, high: bounds of a Box, of its shape.
      counts: number of values of each entry (Discrete: one; MultiDiscrete: nvec).
      spaces: of a Dict, in its order.
      node: where it stands in its pickle.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    node: Made = field(repr=False)
    low: Array | None = None
    high: Array | None = None
    counts: tuple[int, ...] = ()
    spaces: Mapping[str, Space] = field(default_factory=dict)

    @property
    def image(self) -> bool:
        """Whether it is what Stable-Baselines3 takes for an image: uint8 from 0 to 255 with three axes."""
        if self.low is None or self.high is None:
            return False
        bounds = bool((self.low == 0).all() and (self.high == 255).all())
        return self.kind == "Box" and len(self.shape) == 3 and self.dtype == "uint8" and bounds

    @property
    def features(self) -> int:
        """Number of features of an element once it is preprocessed and flattened."""
        return sum(self.counts) if self.counts else math.prod(self.shape)


def read_space(node: object, deep: int = 4) -> Space:
    """The space that a node of a pickle makes.

    Args:
      node: of a tree. deep: how many spaces may lie within each other.

    Raises:
      Refused: a space of a kind that policies of this framework cannot take.
      CorruptFile: not a space.
    """
    if not deep:
        raise CorruptFile("spaces lie within each other more deeply than any policy takes them")
    if not isinstance(node, Made) or not isinstance(node.state, dict):
        raise CorruptFile("a space is stored in a way that cannot be read")
    kind, state = _kind(node), node.state
    try:
        if kind == "Dict":
            entries = state["spaces"]
            named = entries.keyed if isinstance(entries, Made) else entries
            inner = {str(key): read_space(value, deep - 1) for key, value in named.items()}
            return Space(kind, (), "", node, spaces=inner)
        dtype = read_dtype(state["dtype"])
        if kind == "Discrete":
            return Space(kind, (), str(dtype), node, counts=(_integer(state["n"]),))
        shape = tuple(int(size) for size in state[_shape_key(state)])
        if kind == "MultiDiscrete":
            counts = tuple(int(count) for count in read_array(state["nvec"]).reshape(-1))
            return Space(kind, shape, str(dtype), node, counts=counts)
        if kind == "MultiBinary":
            return Space(kind, shape, str(dtype), node)
        return Space(kind, shape, str(dtype), node, read_array(state["low"]), read_array(state["high"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"a space of the file is damaged: {type(error).__name__}: {error}") from error


def _shape_key(state: Mapping[str, Any]) -> str:
    return "_shape" if "_shape" in state else "shape"  # before gym 0.18


def _kind(node: Made) -> str:
    name = node.maker if isinstance(node.maker, Name) else None
    if name is None or name.module.partition(".")[0] not in ("gymnasium", "gym"):
        # before protocol 2 made objects are called through copyreg
        name = next((item for item in node.arguments if isinstance(item, Name)), name)
    if name is None or name.name not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict"):
        raise Refused(f"there is no reader for the space '{name}'")
    return str(name.name)


def change_box(space: Space, sources: Mapping[int, Source], low: Bound, high: Bound) -> None:
    """Give a Box's node new entries along some axes, in place.

    Args:
      space: the Box.
      sources: axis -> where its entries come from.
      low, high: of the new entries: one for all, or one for each entry of the axis; None where there is none.
    """
    for name, old, given, unbounded in (("low", space.low, low, -np.inf), ("high", space.high, high, np.inf)):
        assert old is not None
        array = old
        for axis, source in sources.items():
            each = given if isinstance(given, tuple) else [given]
            fresh = np.array([unbounded if value is None else value for value in each])
            array = _taken(array, axis, source, fresh if isinstance(given, tuple) else fresh[0])
        set_bound(space, name, array)


def set_bound(space: Space, name: str, array: Array) -> None:
    """Give a Box's node a bound (`low` or `high`), its shape included, in place."""
    state = space.node.state
    assert isinstance(state, dict)
    state[_shape_key(state)] = tuple(array.shape)
    state[name] = write_array(state[name], array)
    flag = {"low": "bounded_below", "high": "bounded_above"}[name]
    if flag in state:
        finite = np.isfinite(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)
        state[flag] = write_array(state[flag], finite)
    if isinstance(state.get(f"{name}_repr"), str):
        state[f"{name}_repr"] = _shown(array)


def _shown(array: Array) -> str:
    """A bound as gymnasium prints it: one number where all are equal."""
    smallest = array.min() if array.size else 0
    return str(smallest) if (array == smallest).all() else str(array)


def change_count(space: Space, count: int) -> None:
    """Give a Discrete's node another number of values, in place."""
    state = space.node.state
    assert isinstance(state, dict)
    old = state["n"]
    if isinstance(old, Made):
        dtype = read_dtype(old.arguments[0])
        old.arguments = (old.arguments[0], np.asarray(count, dtype).tobytes())
    else:
        state["n"] = count


def _taken(array: Array, axis: int, source: Source, fresh: float | Array) -> Array:
    index = np.array([0 if k is None else k for k in source])
    new = np.array([k is None for k in source])
    taken = np.take(array, index, axis=axis)
    moved, values = np.moveaxis(taken, axis, 0), np.asarray(fresh)
    if values.shape == new.shape:
        values = values[new].reshape(-1, *[1] * (moved.ndim - 1))
    if array.dtype.kind in "iu":
        values = np.clip(values, np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
    moved[new] = values
    return taken


def _integer(node: object) -> int:
    number: int | None = read_integer(node)
    if number is None:
        raise CorruptFile("a space has no number of values")
    return number


def box_port(name: str, space: Space) -> Port:
    """The port of a Box: its bounds where they are numbers, and a label per feature of a short vector."""
    low, high = (_uniform(bound) for bound in (space.low, space.high))
    return Port(name, "observation", low, high, declared=True)


def _uniform(array: object) -> float | tuple[float, ...] | None:
    if (
        not isinstance(array, np.ndarray)
        or not np.isfinite(array).all()
        or np.abs(array).max(initial=0) > 1e6
    ):
        return None
    if (array == array.flat[0]).all():
        return float(array.flat[0])
    return tuple(map(float, array)) if array.ndim == 1 else None
