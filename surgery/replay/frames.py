"""Where the frames of a replay lie: in the host's memory (numpy), or on a device (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from surgery.arrays import Array

if TYPE_CHECKING:
    import torch

AT_ONCE = 1 << 26
"""Bytes of frames that travel to or from a device in one piece."""


class Frames(Protocol):
    """Rows of frames that are written and gathered by row number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""

    def write(self, rows: Array, frames: Array | torch.Tensor) -> None:
        """Put frames (B, *frame) at rows (B,)."""

    def placed(self, rows: Array) -> Array | torch.Tensor:
        """Row numbers where the frames lie, for more than one `gather`."""

    def gather(self, rows: Array | torch.Tensor) -> Array | torch.Tensor:
        """The frames (B, *frame) at rows (B,), where they lie."""

    def read(self, rows: Array) -> Array:
        """The frames (B, *frame) at rows (B,), on the host."""


def make_frames(rows: int, frame: Sequence[int], dtype: np.dtype[Any], device: str) -> Frames:
    """Rows for frames: on the host if the device is `cpu`.

    Raises:
      MemoryError: they cannot be reserved.
    """
    return HostFrames(rows, frame, dtype) if device == "cpu" else DeviceFrames(rows, frame, dtype, device)


def some(frames: Array | torch.Tensor, rows: Array) -> Array | torch.Tensor:
    """Rows (B,) of frames, where they lie."""
    if isinstance(frames, np.ndarray):
        return frames[rows]
    from surgery.torch.travel import moved

    return frames.index_select(0, moved(rows, frames.device))


def put(frames: Array | torch.Tensor, rows: Array, others: Array | torch.Tensor) -> None:
    """Write others (B, *frame), which lie in the same place, over rows (B,) of frames."""
    if isinstance(frames, np.ndarray):
        frames[rows] = others
        return
    from surgery.torch.travel import moved

    frames.index_copy_(0, moved(rows, frames.device), moved(others, frames.device))


class HostFrames:
    """Frames as one numpy array; its pages take memory as they are first written.

    Raises:
      MemoryError: the array cannot be reserved.
    """

    def __init__(self, rows: int, frame: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.shape = tuple(frame)
        self._frames = np.zeros((rows, int(np.prod(frame, dtype=np.int64))), dtype)

    def write(self, rows: Array, frames: Array | torch.Tensor) -> None:
        given = frames if isinstance(frames, np.ndarray) else frames.cpu().numpy()
        self._frames[rows] = given.reshape(len(rows), -1)

    def placed(self, rows: Array) -> Array:
        return rows

    def gather(self, rows: Array | torch.Tensor) -> Array:
        return self._frames.take(rows, axis=0).reshape(len(rows), *self.shape)

    read = gather


class DeviceFrames:
    """Frames as one torch tensor on a device; only row numbers travel to it when a batch is gathered."""

    def __init__(self, rows: int, frame: Sequence[int], dtype: np.dtype[Any], device: str) -> None:
        import torch

        from surgery.torch.travel import moved

        self.shape, self._dtype, self._moved = tuple(frame), dtype, moved
        self._kind = torch.from_numpy(np.zeros(1, dtype)).dtype
        self._device = torch.device(device)
        size = int(np.prod(frame, dtype=np.int64))
        self._frames = torch.zeros((rows, size), dtype=self._kind, device=device)
        # The same memory as whole words: a GPU gathers entry by entry.
        self._words = self._frames if size * dtype.itemsize % 8 else self._frames.view(torch.int64)

    def write(self, rows: Array, frames: Array | torch.Tensor) -> None:
        for part in self._parts(len(rows)):
            given = self._moved(frames[part], self._device).reshape(-1, self._frames.shape[1])
            self._frames.index_copy_(0, self._moved(rows[part], self._device), given)

    def placed(self, rows: Array) -> torch.Tensor:
        return self._moved(rows, self._device)

    def gather(self, rows: Array | torch.Tensor) -> torch.Tensor:
        found = self._words.index_select(0, self._moved(rows, self._device))
        return found.view(self._kind).view(len(rows), *self.shape)

    def read(self, rows: Array) -> Array:
        found = np.empty((len(rows), *self.shape), self._dtype)
        for part in self._parts(len(rows)):
            found[part] = self.gather(rows[part]).cpu().numpy()
        return found

    def _parts(self, count: int) -> list[slice]:
        """What travels at once: a whole segment would take as much again on the device, and twice that on the host."""
        step = max(1, AT_ONCE // (self._frames.shape[1] * self._dtype.itemsize))
        return [slice(first, first + step) for first in range(0, count, step)]
