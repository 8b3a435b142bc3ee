"""Continuous actions: which outputs give them, and their deviations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.actions import ActionSpace, Box
from surgery.errors import ArgumentError, shape_text
from surgery.graph.choices import is_drawn
from surgery.interface import Port
from surgery.json_values import Json, dumps, thaw
from surgery.policy.arrays import Arrays, Read
from surgery.policy.laws import Law, Numbers

Ends = tuple[Array, Array]
"""The smallest and the largest of each number."""


@dataclass(frozen=True, eq=False)
class Moves:
    """The outputs that give continuous actions.

    Attributes:
      output: the numbers themselves. kind: `action` or `mean`, as it is declared.
      actions: how many numbers there are.
      ends: what of the output stands for `reach`; None: it is in the environment's own units.
      reach: low and high, as the contract says; None: the environment's bounds.
      gaussian: the mean and the logarithm of the deviation, where they are known.
      squashed: whether the output is tanh of that mean.
      unsampled: why actions cannot be drawn, if so.
    """

    output: str
    kind: str
    actions: int
    ends: Ends | None = None
    reach: Ends | None = None
    gaussian: tuple[str, str] | None = None
    squashed: bool = False
    unsampled: str = ""

    draws = False
    scored = False
    allowed = None
    temperature = 1.0

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output, *(self.gaussian or ()))

    def reader(self, arrays: Arrays) -> Read:
        return partial(self._read, arrays)

    def law(self, space: ActionSpace | None, temperature: float) -> Law:
        """Raises: ArgumentError: the environment takes other actions, or has no bounds."""
        if space is None:
            raise ArgumentError(
                f"output '{self.output}' gives numbers, whose bounds are the environment's",
                hint="let the policy meet it: policy.meet(envs.observation_shape, envs.parts, envs.takes)",
            )
        if not isinstance(space, Box):
            numbers = f"{self.actions} number{'s' if self.actions > 1 else ''}"
            raise ArgumentError(f"output '{self.output}' gives {numbers}, the environment takes {space}")
        return Numbers(self.output, space, self.ends, self.reach, self.squashed, self.unsampled)

    def _read(self, arrays: Arrays, outputs: Mapping[str, Any], count: int) -> Any:  # noqa: ANN401
        """(1 or 3, n, numbers): what is played, and the mean and the deviation's logarithm."""
        return arrays.joined([self._rows(name, arrays, outputs[name], count)[None] for name in self.outputs])

    def _rows(self, name: str, arrays: Arrays, output: Any, count: int) -> Any:  # noqa: ANN401
        if math.prod(output.shape) not in (self.actions, count * self.actions):
            raise ArgumentError(
                f"output '{name}' gives {shape_text(output.shape)} for {count} observations: not {self.actions} "
                "numbers each"
            )
        rows = arrays.cast(output.reshape(-1, self.actions), ir.DataType.FLOAT)
        return rows if len(rows) == count else arrays.repeated(rows, count)


def candidates(checkpoint: Checkpoint) -> list[Port]:
    """The outputs that may be continuous actions: an action itself before the mean that it is made of.

    One that the graph draws comes after the mean that it is drawn around.
    """
    ports = checkpoint.interface.outputs
    actions = [port for port in ports if port.kind == "action" and is_number(checkpoint.value(port.name))]
    settled = [port for port in actions if not is_drawn(checkpoint.value(port.name))]
    means = [port for port in ports if port.kind == "mean"]
    return settled or means or actions


def is_number(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def moves(checkpoint: Checkpoint, port: Port) -> Moves:
    """The head that an output makes.

    Raises:
      ArgumentError: nothing says how many numbers it gives, or half of a range is declared.
    """
    actions = _count(port, checkpoint.value(port.name))
    ends, reach = _ends(port, actions), _reach(checkpoint, port, actions)
    if reach is not None and ends is None:
        raise ArgumentError(
            f"the contract's action_range of '{port.name}' maps the output's own range, which is not declared",
            hint=_declare(port),
        )
    _check_unmasked(checkpoint, port)
    mean, squashed = _mean_of(checkpoint, port)
    deviation, why = _deviation(checkpoint, actions)
    if mean is None:
        why = f"'{port.name}' is the action itself: nothing says how it would be drawn"
    gaussian = None if mean is None or why else (mean, deviation)
    return Moves(port.name, port.kind, actions, ends, reach, gaussian, squashed, why)


def _count(port: Port, value: ir.Value) -> int:
    """How many numbers an example has; sizes that are not stated are those of time."""
    if value.shape is None or not len(value.shape):
        raise ArgumentError(f"output '{port.name}' has no shape, and {port.kind} is batch×actions")
    return math.prod(size for size in value.shape.dims[1:] if isinstance(size, int))


def _ends(port: Port, actions: int) -> Ends | None:
    """The declared range of an output."""
    if port.low is None and port.high is None:
        return None
    found = _numbers(port.low, actions), _numbers(port.high, actions)
    if found[0] is None or found[1] is None or not (found[0] < found[1]).all():
        raise ArgumentError(
            f"the range of output '{port.name}' does not fit its {actions} actions: low {port.low}, high {port.high}",
            hint=_declare(port),
        )
    return found[0], found[1]


def _reach(checkpoint: Checkpoint, port: Port, actions: int) -> Ends | None:
    """What that range stands for, if the contract says so."""
    told = checkpoint.environment.settings.get("action_range", {})
    given = told.get(port.name, {}) if isinstance(told, Mapping) else told
    if not given:
        return None
    low, high = (given.get(side) if isinstance(given, Mapping) else None for side in ("low", "high"))
    found = _numbers(low, actions), _numbers(high, actions)
    if found[0] is None or found[1] is None:
        raise ArgumentError(
            f"the contract's action_range of '{port.name}' does not fit its {actions} actions: {dumps(thaw(given))}",
            hint="surgery annotate MODEL --env-setting action_range=null -o OUT",
        )
    return found[0], found[1]


def _numbers(given: Json, actions: int) -> Array | None:
    """One number for all actions, or one for each."""
    values = given if isinstance(given, tuple) else (given,) * actions
    if len(values) != actions or not all(isinstance(one, int | float) for one in values):
        return None
    return np.array(values, np.float32)


def _declare(port: Port) -> str:
    return f"surgery annotate MODEL --output {port.name}:{port.kind},low=-1,high=1 -o OUT"


def _check_unmasked(checkpoint: Checkpoint, port: Port) -> None:
    if checkpoint.environment.action_mask(port.name) is not None:
        raise ArgumentError(
            f"the contract's action_mask forbids actions of '{port.name}', which are numbers: a mask cannot forbid "
            "numbers",
            hint="surgery annotate MODEL --env-setting action_mask=null -o OUT",
        )


def _mean_of(checkpoint: Checkpoint, port: Port) -> tuple[str | None, bool]:
    """The output whose mean an output is, and whether it is tanh of it; None if that cannot be told."""
    if port.kind == "mean":
        return port.name, False
    node = _origin(checkpoint.value(port.name)).producer()
    made = _origin(node.inputs[0]) if node is not None and node.op_type == "Tanh" and node.inputs[0] else None
    means = [one.name for one in checkpoint.interface.outputs if one.kind == "mean"]
    return next((name for name in means if _origin(checkpoint.value(name)) is made), None), True


def _origin(value: ir.Value) -> ir.Value:
    """What a value is another name of."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _deviation(checkpoint: Checkpoint, actions: int) -> tuple[str, str]:
    """The output that holds the logarithm of the deviation; or why there is none."""
    found = [port for port in checkpoint.interface.outputs if port.kind == "log_std"]
    if len(found) != 1:
        return (
            "",
            f"{len(found) or 'no'} outputs are log_std: nothing says how far actions are drawn from the mean",
        )
    [port] = found
    if not port.declared and "log" not in port.name.lower():
        hint = f"surgery annotate MODEL --output {port.name}:log_std"
        return "", f"nothing says whether '{port.name}' is the logarithm of a deviation (if so: {hint})"
    if _count(port, checkpoint.value(port.name)) != actions:
        return "", f"output '{port.name}' is not the deviation of {actions} actions"
    return port.name, ""
