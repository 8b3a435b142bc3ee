"""Replays that Dopamine's agents logged, such as the DQN Replay dataset: one gzip file per column of a ring buffer.

`$store$_observation_ckpt.N.gz` holds single frames, `…_action_…`, `…_reward_…`, `…_terminal_…` what was done on them,
`add_count_ckpt.N.gz` how many were added, `episode_end_indices_ckpt.N.gz` where episodes were cut off. Before every
episode stand as many frames of zeros as its first stack needs. (https://github.com/google/dopamine,
dopamine/tf/replay_memory/circular_replay_buffer.py; Agarwal et al., 2020, arXiv:1907.04543)
"""

from __future__ import annotations

import gzip
import math
import pickletools
import re
import zlib
from pathlib import Path

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile, FileError, shape_text
from surgery.files import check_readable
from surgery.replay.memory import check_memory, estimate
from surgery.replay.transitions import Stacked, Transitions

STACK = 4
"""Frames in an observation of Dopamine's agents, where frames are images."""
_COLUMN = re.compile(r"(?:\$store\$_\w+|add_count)_ckpt\.(?P<number>\d+)\.gz")
_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG")
_MOST = 1 << 24
"""Bytes of a list of episode ends."""


def is_logged(path: Path) -> bool:
    """Whether a file is, by its name, a column of a logged replay."""
    return _COLUMN.fullmatch(path.name) is not None


def read_logged(path: Path, stack: int | None = None) -> Transitions:
    """Read the log that a column belongs to; nothing in it is executed.

    Args:
      path: any of its columns. stack: frames in an observation; None for Dopamine's 4 where frames are images, else 1.

    Returns:
      Transitions whose frames are all there; what was overwritten in the ring, and the last step of an episode that
      was cut off, are left out.

    Raises:
      FileError: a column is missing. CorruptFile: damaged, or the columns do not fit each other.
      ArgumentError: the frames do not fit into memory.
    """
    match = _COLUMN.fullmatch(path.name)
    if match is None:
        raise FileError(f"{path} is not a column of a logged replay, such as '$store$_action_ckpt.0.gz'")
    number = match["number"]

    def column(name: str) -> Array:
        return _read(path.with_name(f"$store$_{name}_ckpt.{number}.gz"))

    action, reward, terminal = column("action"), column("reward"), column("terminal")
    frames = column("observation")
    if not action.shape == reward.shape == terminal.shape == frames.shape[:1] or action.ndim != 1:
        raise CorruptFile(
            f"the columns of {path.parent} have different lengths: {len(action)} and {len(frames)}"
        )
    if not np.issubdtype(action.dtype, np.integer):
        raise CorruptFile(f"actions of {path.parent} are {action.dtype}, not whole numbers")
    count = path.with_name(f"add_count_ckpt.{number}.gz")
    added = int(_read(count).item()) if count.is_file() else len(action)
    ends = terminal != 0
    cut = _ends(path.with_name(f"episode_end_indices_ckpt.{number}.gz"), len(ends))
    size = stack or (STACK if frames.ndim > 2 else 1)
    rows, following, begins = _whole(ends, cut, added, size)
    newest = rows[:, -1]
    return Transitions(
        Stacked(frames, rows),
        action[newest].astype(np.int64),
        reward[newest].astype(np.float32),
        ends[newest],
        Stacked(frames, following),
        begins,
    )


def _whole(terminal: Array, cut: Array, added: int, stack: int) -> tuple[Array, Array, Array]:
    """The frames of every transition that is whole, and those of its successor, each (N, stack), newest last.

    The third is where an episode begins, (N,).

    Args:
      terminal, cut: (n,) of the ring: where episodes ended, and where they were cut off.
      added: how many rows were ever added.
    """
    length = len(terminal)
    start = added % length if added > length else 0
    order = (start + np.arange(min(added, length))) % max(length, 1)
    ends = (terminal | cut)[order]
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.concatenate([[True], ends[:-1]]), places, 0))
    goes_on = ~ends & (places + 1 < len(order))
    # the first frames of an episode are its padding; of what is left of the oldest one, they have no whole stack
    whole = (places - first >= stack - 1) & (terminal[order] | goes_on)
    newest = np.flatnonzero(whole)
    back = np.arange(stack)[::-1]
    step = np.where(ends[newest], 0, 1)
    begins = (newest - first[newest]) == stack - 1
    return order[newest[:, None] - back], order[(newest + step)[:, None] - back], begins


def _read(path: Path) -> Array:
    """One array; its header is read before anything is reserved for it."""
    check_readable(path)
    try:
        with gzip.open(path) as file:
            version = np.lib.format.read_magic(file)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = header(file)
            if dtype.hasobject or fortran:
                raise CorruptFile(f"{path} holds '{dtype}', which are not numbers in order")
            count = math.prod(shape)
            if shape:
                check_memory(shape[0], estimate(shape[0], shape[1:], dtype), setting=None)
            array = np.empty(count, dtype)
            view, at = array.view(np.uint8).data, 0
            while at < len(view) and (got := file.readinto(view[at:])):
                at += got
            if at != len(view) or file.read(1):
                raise CorruptFile(f"{path} does not have the length of its shape {shape_text(shape)}")
            return array.reshape(shape)
    except (OSError, EOFError, ValueError, TypeError, zlib.error, OverflowError, MemoryError) as error:
        raise CorruptFile(f"{path} is not a column of a logged replay: {error}") from error


def _ends(path: Path, length: int) -> Array:
    """Where episodes were cut off, (length,); old logs have no list of them.

    The list is a pickled set of numbers. It is not unpickled: its numbers are what it holds.
    """
    found = np.zeros(length, np.bool_)
    if not path.is_file():
        return found
    try:
        with gzip.open(path) as file:
            data = file.read(_MOST)
        codes = list(pickletools.genops(data))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CorruptFile(f"{path} is not a list of episode ends: {error}") from error
    values = [(code.name, argument) for code, argument, _ in codes if argument is not None]
    numpy = [int.from_bytes(a, "little") for name, a in values if name == "SHORT_BINBYTES" and len(a) == 8]
    # what describes the type of NumPy's numbers has numbers, too
    plain = [int(argument) for name, argument in values if name in _INTEGERS]
    numbers = numpy or plain
    if any(not 0 <= number < length for number in numbers):
        raise CorruptFile(f"{path} names an episode's end that the replay does not have")
    found[numbers] = True
    return found
