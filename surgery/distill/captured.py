"""A step of learning as one CUDA graph, and numbers on their way between host and device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from surgery.arrays import Array
from surgery.errors import first_line

if TYPE_CHECKING:
    Array = Array

WARM_UP = 3
_LOG = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records a step that reads and writes tensors that stay where they are.

    Attributes:
      failures: recordings that failed. What was recorded before one of them must be recorded anew.
    """

    failures: int

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """Run a step as it is."""

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What replays the step, and what it gives, without running it.

        Raises:
          RuntimeError: something in it cannot be recorded.
        """


class CudaGraphs(Recorder):
    """CUDA graphs, warmed up on a stream of their own as PyTorch asks for: launched as a whole.

    A recording that fails leaves stream and random numbers as they were, so that the step can still run by itself. But
    what was recorded before belongs to a generator that nobody draws from any more: its random numbers would be drawn
    twice, and before PyTorch 2.13 it cannot be replayed at all.
    """

    def __init__(self) -> None:
        # One for all, as each stream keeps the memory that was freed on it.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.failures = 0

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = step()
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        untouched = generator.clone_state()
        # torch.cuda.graph goes back to this stream only where recording succeeds, and a generator that was left in the
        # midst of it refuses to draw.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with torch.cuda.graph(graph, pool=pool):
                    output = step()
            except BaseException:
                self.failures += 1
                generator.graphsafe_set_state(untouched)
                _give_up(graph, pool)
                raise
        return graph.replay, output


_FAILED: list[torch.cuda.CUDAGraph] = []
"""For as long as the process lives: allocators outlive whoever records."""


def _give_up(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Tell the allocator of the device that a recording is over.

    Before PyTorch 2.12 neither that one nor the one of pinned memory is told of a recording that fails. They keep on
    asking the graph whose memory is whose, which therefore must stay, and the device's gives nothing back to it.
    """
    _FAILED.append(graph)
    with contextlib.suppress(AttributeError, RuntimeError):  # it knows
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


def recorder_of(device: str) -> Recorder | None:
    """What records steps on a device; None where nothing does: on a CPU."""
    return CudaGraphs() if device == "cuda" else None


class Captured:
    """A step that is recorded once and replayed from then on, on buffers that stay where they are.

    The first calls run as they are (they are real steps, not copies), as capturing demands: they make the optimizer's
    state and choose algorithms. Should recording fail, every step runs as it is; should another one of the same
    recorder fail, this one is recorded anew.

    Args:
      step: what is recorded; whatever it reads must be in its arguments, whose shapes stay, or lie at fixed places.
      recorder: how.
      what: the step, in a message.
      failed: told why, if recording fails.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        recorder: Recorder,
        *,
        what: str = "a gradient step",
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._step, self._recorder, self._what, self._failed = step, recorder, what, failed
        self._calls = self._failures = 0
        self._able = True
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._output: Tensor | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Take one step; what it gives is overwritten by the next one."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._recorder.warm_up(lambda: self._step(*tensors))
        if self._able and (self._replay is None or self._failures != self._recorder.failures):
            self._capture(tensors)
        if self._replay is None or self._output is None:
            return self._step(*tensors)
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        self._replay()
        return self._output

    def _capture(self, tensors: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._replay = self._output = None
        try:
            self._replay, self._output = self._recorder.record(lambda: self._step(*self._inputs))
        except RuntimeError as error:
            self._able = False
            # ending a recording that something has broken fails, too, and says less
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            if not isinstance(first, Exception):  # somebody's wish to stop
                raise first from None
            reason = first_line(first)
            _LOG.info("%s cannot be captured: %s", self._what, reason, exc_info=True)
            self._failed(f"{self._what} cannot be one CUDA graph, and runs kernel by kernel: {reason}")
        self._failures = self._recorder.failures


class Staging:
    """Columns of a batch on their way to a device: packed into one copy from pinned memory, never waited for.

    A few buffers take turns; one is written again only after the copy out of it is done, which it long is.

    Args:
      device: `cpu` hands the columns over as they are.
    """

    def __init__(self, device: str, *, turns: int = 4) -> None:
        self._device, self._turns = device, turns
        self._pinned = torch.device(device).type == "cuda"
        self._buffers: list[tuple[Tensor, Array, torch.cuda.Event | None]] = []
        self._next = 0

    def send(self, columns: list[Array]) -> list[Tensor]:
        """Columns of any shapes and numeric types as tensors of the same ones on the device."""
        arrays = [np.ascontiguousarray(column) for column in columns]
        if self._device == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        begins, end = [], 0
        for array in arrays:
            begins.append(end)
            end += -(-array.nbytes // 16) * 16  # aligned for every type
        host, flat, event = self._buffer(end)
        for array, begin in zip(arrays, begins, strict=True):
            flat[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
        there = host[:end].to(self._device, non_blocking=True, copy=True)
        if event is not None:
            event.record()
        return [
            there[begin : begin + array.nbytes].view(_kind_of(array.dtype)).reshape(array.shape)
            for array, begin in zip(arrays, begins, strict=True)
        ]

    def _buffer(self, size: int) -> tuple[Tensor, Array, torch.cuda.Event | None]:
        """A buffer as a tensor and as the array of the same memory, and the end of the copy out of it."""
        turn = self._next % self._turns
        self._next += 1
        if turn < len(self._buffers) and len(self._buffers[turn][0]) >= size:
            found = self._buffers[turn]
            if found[2] is not None:
                found[2].synchronize()
            return found
        event = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]
        host = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        made = (host, host.numpy(), event)
        self._buffers[turn : turn + 1] = [made]
        return made


@cache
def _kind_of(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, dtype)).dtype


class Arriving:
    """Numbers on their way from the device to the host; on the CPU they are there."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cpu":
            return
        pinned = tensor.device.type == "cuda"
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        self._host.copy_(tensor, non_blocking=pinned)
        if pinned:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> Array:
        """The numbers; waits for those still on their way."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
