"""Transitions that others recorded: an `.npz` with `obs`, `action`, `reward`, `terminated` and, best, `next_obs`.

The arrays are a ring buffer in storage order. Between index i and i + 1 lies a seam (the end of an episode, a cut, the
ring's own end) wherever `terminated[i]`, `truncated[i]` or `next_obs[i] != obs[i + 1]`: no return reaches across one.
An episode begins after `terminated` or `truncated`, or, should losses of lives be among those, where `begins` says so.
With `packed` true the observations are bits (`np.packbits`) of the shape `obs_shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgery.arrays import Array
from surgery.errors import ArgumentError, CorruptFile, shape_text
from surgery.replay.batch import Layout
from surgery.replay.buffer import Replay
from surgery.replay.logged import is_logged, read_logged
from surgery.replay.npz import read_npz
from surgery.replay.transitions import Transitions

if TYPE_CHECKING:
    import torch

Label = Callable[[Array, Array], "Array | torch.Tensor"]
"""Observations (envs, *observation), and which of them do not follow from those before (envs,) bool -> a teacher's
scores (envs, A)."""


def read_transitions(path: Path) -> Transitions:
    """Read a recorded replay; nothing in it is executed.

    Args:
      path: an `.npz`, or a column of a replay that Dopamine logged (`surgery.replay.logged`).

    Raises:
      FileError: the file cannot be read.
      CorruptFile: damaged, or without the arrays that make a transition.
    """
    if is_logged(path):
        return read_logged(path)
    arrays = read_npz(path, "recorded replay")
    try:
        return _transitions(arrays)
    except KeyError as error:
        raise CorruptFile(f"{path} is not a recorded replay: it has no array {error}") from error
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{path} is not a recorded replay: {error}") from error


def _transitions(arrays: dict[str, Array]) -> Transitions:
    shape = tuple(int(size) for size in arrays.get("obs_shape", np.array(arrays["obs"].shape)))
    packed = bool(arrays.get("packed", np.array(False)))
    observation, after = (_observations(arrays[name], shape, packed) for name in ("obs", "next_obs"))
    terminated = arrays["terminated"] != 0
    ended = terminated | (arrays["truncated"] != 0) if "truncated" in arrays else terminated
    begins = arrays["begins"] != 0 if "begins" in arrays else _after(ended)
    columns = [arrays["action"], arrays["reward"], terminated, begins]
    if any(column.shape != shape[:1] for column in columns):
        raise ValueError(f"{shape[0]} observations, but {[column.shape for column in columns]} of the rest")
    action, reward = columns[:2]
    if not np.issubdtype(action.dtype, np.integer):
        raise ValueError(f"actions are {action.dtype}, not whole numbers")
    return Transitions(
        observation, action.astype(np.int64), reward.astype(np.float32), terminated, after, begins
    )


def _observations(array: Array, shape: Sequence[int], packed: bool) -> Array:
    if packed:
        array = np.unpackbits(array, count=int(np.prod(shape, dtype=np.int64)))
    return array.reshape(shape)


def check_fits(recorded: Transitions, layout: Layout, *, actions: int) -> None:
    """Refuse a replay of another game.

    Raises:
      ArgumentError: observations of another shape, or actions that the environment does not have.
    """
    shape = layout.observation
    if recorded.observation.shape[1:] != shape:
        raise ArgumentError(
            f"a replay of another environment: its observations are {shape_text(recorded.observation.shape[1:])}, "
            f"the environment's {shape_text(shape)}"
        )
    if len(recorded) and not 0 <= int(recorded.action.min()) <= int(recorded.action.max()) < actions:
        raise ArgumentError(
            f"a replay of another environment: it holds action {int(recorded.action.max())}, "
            f"the environment has {actions} actions"
        )


def fill(replay: Replay, recorded: Transitions, *, actions: int, label: Label | None = None) -> None:
    """Append recorded transitions to a replay, an equal share to each of its streams.

    Args:
      replay: its layout is that of the environment that the student will learn in.
      recorded: what to append.
      actions: number of actions of that environment.
      label: asks the teacher; called in the order of each stream, for teachers with a memory.

    Raises:
      ArgumentError: a replay of another game.
    """
    layout = replay.layout
    check_fits(recorded, layout, actions=actions)
    begins = _after(recorded.terminated) if recorded.begins is None else recorded.begins
    share = -(-len(recorded) // layout.envs)
    first, never = np.arange(layout.envs) * share, np.zeros(layout.envs, np.bool_)
    for age in range(share):
        index = np.minimum(first + age, len(recorded) - 1)
        observation = recorded.observation[index]
        new = ~never if age == 0 else begins[index] | _apart(observation, recorded, index - 1)
        scores = None if label is None else label(observation, new)
        replay.add(
            observation,
            recorded.action[index],
            recorded.reward[index],
            recorded.terminated[index],
            never,
            recorded.next_observation[index],
            first + age < len(recorded),
            scores,
            begins=new,
        )
    replay.cut()


def _after(ended: Array) -> Array:
    """Where the transition before is one at which an episode ended (N,); the first one follows none."""
    return np.concatenate([np.ones(min(len(ended), 1), np.bool_), ended[:-1]])


def _apart(observation: Array, recorded: Transitions, before: Array) -> Array:
    """Whether observations are others than those that some transitions led to."""
    differs = observation != recorded.next_observation[before]
    found: Array = differs.any(axis=tuple(range(1, differs.ndim)))
    return found
