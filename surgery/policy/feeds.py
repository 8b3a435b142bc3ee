"""What goes into a model: observations as it wants them, and the recurrent state that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, shape_text
from surgery.graph.symbols import symbol
from surgery.interface import Port
from surgery.policy.arrays import Arrays

KNOWN = frozenset(
    ir.DataType[name]
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "UINT8", "INT8", "INT32", "INT64", "BOOL")
)
"""Element types that observations and states may have."""


@dataclass(frozen=True)
class StatePort:
    """An input that carries what an output gave in the step before.

    Attributes:
      shape: of the input; the batch is None.
      batch: which axis the batch is.
      fixed: the batch that the graph insists on; None: any.
    """

    input: str
    output: str
    shape: tuple[int | None, ...]
    batch: int
    dtype: ir.DataType
    fixed: int | None

    def zeros(self, count: int, arrays: Arrays) -> Any:  # noqa: ANN401
        return arrays.zeros([count if size is None else size for size in self.shape], self.dtype)

    def cleared(self, state: Any, rows: Any, arrays: Arrays) -> Any:  # noqa: ANN401
        """The state with some rows of the batch at zero; rows (n,) bool."""
        along = [1] * state.ndim
        along[self.batch] = -1
        return arrays.cleared(state, rows.reshape(along))


@dataclass(frozen=True)
class ObservationPort:
    """The input that observations go to.

    Attributes:
      shape: as the graph has it, the batch included; None where a size is free.
      high: the largest value that the model expects, if it was declared.
      scale: what observations are multiplied by, as the contract says; None: nothing is said.
      last: whether the channels, or the stacked frames, come last.
      time: which of the first two axes counts steps of time, if there is one more than observations have.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: ir.DataType
    high: float | None
    scale: float | None
    last: bool
    time: int

    def feed(self, observation: Any, arrays: Arrays) -> Any:  # noqa: ANN401
        """Observations (n, …) as the environment gives them, as the graph takes them.

        A step of time that the graph has beside the batch is one step long.

        Raises:
          ArgumentError: observations of another shape.
        """
        x = arrays.take(observation)
        if self._one_of(tuple(x.shape[1:])):
            x = x.argmax(-1)
        scale = self._factor(str(x.dtype).endswith("uint8"))
        if self.last and x.ndim > 2:
            x = arrays.channels_last(x)
        if scale != 1:
            x = arrays.cast(x, ir.DataType.FLOAT) * scale
        self.check(tuple(x.shape[1:]))
        if len(self.shape) == x.ndim + 1:
            x = x.reshape(*x.shape[: self.time], 1, *x.shape[self.time :])
        return arrays.cast(x, self.dtype)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse an observation (without batch) that the input does not take."""
        if not self.takes(shape):
            wanted = self._wanted(len(shape))
            raise ArgumentError(
                f"input '{self.name}' takes observations of shape {shape_text(wanted)}, got {shape_text(shape)}"
            )

    def check_moved(self, shape: tuple[int, ...]) -> None:
        """The same for an observation as the environment shows it, channels first."""
        self.check((*shape[1:], shape[0]) if self.last and len(shape) > 1 else shape)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the input takes an observation (without batch)."""
        wanted = self._wanted(len(shape))
        return self._one_of(shape) or (
            len(wanted) == len(shape) and all(w in (None, s) for w, s in zip(wanted, shape, strict=True))
        )

    def _wanted(self, ndim: int) -> tuple[int | None, ...]:
        return self.shape[2:] if len(self.shape) == ndim + 2 else self.shape[1:]

    def settled(self, dtype: np.dtype[Any]) -> ObservationPort:
        """With its scale stated, for observations of an element type, whatever they are kept as."""
        return replace(self, scale=self._factor(dtype == np.uint8))

    def plain(self, shape: tuple[int, ...]) -> bool:
        """Whether observations of a shape go in as they are, but for their element type; of a settled one."""
        return self.scale == 1 and not self.last and len(self.shape) == len(shape) + 1

    def _factor(self, whole_bytes: bool) -> float:
        """What observations are multiplied with; bytes for a network that takes 0 … 1 are by default scaled."""
        return self.scale if self.scale is not None else 1 / 255 if whole_bytes and self.high == 1 else 1.0

    def _one_of(self, shape: tuple[int, ...]) -> bool:
        """Whether the network takes one whole number where the environment shows it as a one-hot vector."""
        return len(self.shape) == 1 == len(shape) and self.high is not None and shape[0] == self.high + 1

    def batch(self, ndim: int) -> int | None:
        """The batch that the graph insists on; ndim: of an observation, without batch."""
        return self.shape[1 - self.time] if len(self.shape) == ndim + 2 else self.shape[0]


def observation_port(checkpoint: Checkpoint) -> ObservationPort:
    """The one input that observations go to.

    Raises:
      ArgumentError: as `observation_ports`, or there are several.
    """
    found = observation_ports(checkpoint)
    if len(found) > 1:
        names = ", ".join(port.name for port in found)
        raise ArgumentError(
            f"a student has one input for observations, this model has {len(found)} ({names})",
            hint="distill it into one that has: surgery distill MODEL --to ARCH -o DIR",
        )
    return found[0]


def observation_ports(checkpoint: Checkpoint) -> tuple[ObservationPort, ...]:
    """Raises: ArgumentError: no inputs are observations, or another input must be fed."""
    ports = checkpoint.interface.inputs
    found = [port for port in ports if port.kind == "observation"]
    if not found or any(port.kind == "other" for port in ports):
        listed = ", ".join(f"{port.name} ({port.kind})" for port in ports)
        raise ArgumentError(
            f"the inputs of a policy are observations, states and masks; here they are: {listed}",
            hint="surgery annotate MODEL --input NAME:observation -o OUT",
        )
    frames = checkpoint.environment.settings.get("preprocessing", {})
    assert isinstance(frames, Mapping)
    scale, layout = frames.get("scale"), frames.get("layout", "CHW")
    if scale is not None and not isinstance(scale, int | float):
        raise ArgumentError(f"the preprocessing's scale is a number, got {scale!r}")
    if layout not in ("CHW", "HWC"):
        raise ArgumentError(f"the preprocessing's layout is CHW or HWC, got {layout!r}")
    return tuple(
        _observation(port, checkpoint.value(port.name), None if scale is None else float(scale), layout)
        for port in found
    )


def _observation(port: Port, value: ir.Value, scale: float | None, layout: str) -> ObservationPort:
    high = port.high if port.declared and isinstance(port.high, float) else None
    shape = _shape(value)
    return ObservationPort(port.name, shape, _dtype(value), high, scale, layout == "HWC", _time(value))


def mask_inputs(checkpoint: Checkpoint) -> dict[str, tuple[ir.DataType, int]]:
    """Inputs that say which actions are legal: their type and width."""
    found = {}
    for port in checkpoint.interface.inputs:
        if port.kind == "mask":
            value = checkpoint.value(port.name)
            width = _shape(value)[-1] if _shape(value) else None
            if width is None:
                raise ArgumentError(f"input '{port.name}' is a mask, but nothing says of how many actions")
            found[port.name] = (_dtype(value), width)
    return found


def state_ports(checkpoint: Checkpoint) -> tuple[StatePort, ...]:
    """The recurrent state: inputs and outputs of that kind, paired in order.

    Raises:
      ArgumentError: they do not pair, or nothing says which axis is the batch.
    """
    states = checkpoint.interface.states().items()
    return tuple(_state(checkpoint, name, output) for name, output in states)


def _state(checkpoint: Checkpoint, name: str, output: str) -> StatePort:
    value, batches = checkpoint.value(name), _batches(checkpoint)
    assert value.shape is not None
    shape = _shape(value)
    free = [k for k, size in enumerate(shape) if size is None]
    same = [k for k in free if symbol(value, k) in batches]
    found = same or free
    if len(found) > 1 or (not found and len(shape) not in (2, 3)):
        raise ArgumentError(f"nothing says which axis of the state '{name}' {shape_text(shape)} is the batch")
    batch = found[0] if found else len(shape) - 2  # (batch, units), or (layers, batch, units) as in torch
    sizes = tuple(None if k == batch else 1 if size is None else size for k, size in enumerate(shape))
    return StatePort(name, output, sizes, batch, _dtype(value), shape[batch])


def _batches(checkpoint: Checkpoint) -> set[str]:
    """The names of the free sizes of the observation."""
    port = next(port for port in checkpoint.interface.inputs if port.kind == "observation")
    value = checkpoint.value(port.name)
    return {symbol(value, k) for k, size in enumerate(_shape(value)) if size is None}


def _time(value: ir.Value) -> int:
    """Axis 1 if it is 1 long or named after time, else axis 0."""
    shape = _shape(value)
    return int(len(shape) > 1 and (shape[1] == 1 or symbol(value, 1).lower().startswith(("time", "seq"))))


def _shape(value: ir.Value) -> tuple[int | None, ...]:
    if value.shape is None:
        raise ArgumentError(f"input '{value.name}' has no shape")
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _dtype(value: ir.Value) -> ir.DataType:
    dtype = value.dtype or ir.DataType.FLOAT
    if dtype not in KNOWN:
        raise ArgumentError(f"input '{value.name}' is of type {dtype.name}, which no observation has")
    return dtype
