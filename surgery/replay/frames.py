"""Where the frames of a replay lie: in the host's memory (numpy), or on a device (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]


class Frames(Protocol):
    """Rows of frames that are written and gathered by row number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""

    def write(self, rows: Array, frames: Array | torch.Tensor) -> None:
        """Put frames (B, *frame) at rows (B,)."""

    def gather(self, rows: Array) -> Array | torch.Tensor:
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

    def gather(self, rows: Array) -> Array:
        return self._frames.take(rows, axis=0).reshape(len(rows), *self.shape)

    read = gather


class DeviceFrames:
    """Frames as one torch tensor on a device; only row numbers travel to it when a batch is gathered."""

    def __init__(self, rows: int, frame: Sequence[int], dtype: np.dtype[Any], device: str) -> None:
        import torch

        from surgery.torch.travel import moved

        self.shape, self._moved = tuple(frame), moved
        self._kind = torch.from_numpy(np.zeros(1, dtype)).dtype
        self._device = torch.device(device)
        size = int(np.prod(frame, dtype=np.int64))
        self._frames = torch.zeros((rows, size), dtype=self._kind, device=device)
        # The same memory as whole words: a GPU gathers entry by entry.
        self._words = self._frames if size * dtype.itemsize % 8 else self._frames.view(torch.int64)

    def write(self, rows: Array, frames: Array | torch.Tensor) -> None:
        given = self._moved(frames, self._device).reshape(len(rows), -1)
        self._frames.index_copy_(0, self._moved(rows, self._device), given)

    def gather(self, rows: Array) -> torch.Tensor:
        found = self._words.index_select(0, self._moved(rows, self._device))
        return found.view(self._kind).view(len(rows), *self.shape)

    def read(self, rows: Array) -> Array:
        return self.gather(rows).cpu().numpy()
