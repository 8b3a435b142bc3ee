"""Outputs that score actions: which of several, the values of several choices at once, or switches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from surgery.envs.actions import ActionSpace, Discrete, MultiBinary, MultiDiscrete
from surgery.errors import ArgumentError, shape_text
from surgery.policy.arrays import Arrays
from surgery.policy.laws import Choice, Choices, Law, Switches

Kind = Literal["logits", "probabilities", "q_values", "atom_logits", "quantiles", "action"]

TEMPERATURE: Mapping[Kind, float] = {
    "logits": 1.0,
    "probabilities": 1.0,
    "q_values": 0.1,
    "atom_logits": 0.1,
    "quantiles": 0.1,
    "action": 1.0,
}
"""By which scores are divided before a softmax: values as in QDagger (Agarwal et al., 2022, arXiv:2206.01626)."""


@dataclass(frozen=True)
class Scores:
    """The output that scores actions, or the values of several choices; or several outputs, of a choice each.

    Attributes:
      output: the first one's name.
      kind: what its numbers are.
      actions: how many there are, forbidden ones included.
      allowed: which of them may be taken; None: all.
      support: (atoms,) the returns that the atoms of a distribution stand for.
      branches: the outputs and how many numbers each has, where there are several.
    """

    output: str
    kind: Kind
    actions: int
    allowed: tuple[bool, ...] | None = None
    support: tuple[float, ...] | None = None
    branches: tuple[tuple[str, int], ...] = ()

    @property
    def scored(self) -> bool:
        return not self.branches

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.branches) or (self.output,)

    @property
    def temperature(self) -> float:
        return TEMPERATURE[self.kind]

    @property
    def draws(self) -> bool:
        return self.kind in ("logits", "probabilities")

    def reader(self, arrays: Arrays) -> Reading:
        return Reading(self, arrays)

    def law(self, space: ActionSpace | None, temperature: float) -> Law:
        make = _LAWS.get(type(space))
        law = None if make is None else make(self, space, temperature)
        if law is None:
            several = f"{len(self.branches)} outputs are {self.kind} ({', '.join(self.outputs)})"
            chooses = (
                several if self.branches else f"output '{self.output}' chooses among {self.actions} actions"
            )
            takes = "is not known yet: policy.meet" if space is None else f"takes {space}"
            raise ArgumentError(f"{chooses}, the environment {takes}")
        return law


def _choice(head: Scores, space: Discrete | None, temperature: float) -> Law | None:
    allowed = head.allowed or (True,) * head.actions
    return None if head.branches else Choice(np.flatnonzero(allowed), temperature)


def _choices(head: Scores, space: MultiDiscrete, temperature: float) -> Law | None:
    sizes = tuple(count for _, count in head.branches)
    if head.kind == "action" or head.actions != space.size or (sizes and sizes != space.counts):
        return None
    parts = np.split(np.array(head.allowed or (True,) * head.actions), np.cumsum(space.counts)[:-1])
    if not all(part.any() for part in parts):
        raise ArgumentError(
            f"the contract's action_mask of '{head.output}' leaves a choice without any value"
        )
    return Choices(space, tuple(Choice(np.flatnonzero(part), temperature) for part in parts))


def _switches(head: Scores, space: MultiBinary, temperature: float) -> Law | None:
    if head.kind != "logits" or head.branches or head.actions != space.size:
        return None
    if head.allowed is not None:
        raise ArgumentError(
            f"the contract's action_mask of '{head.output}' is of choices, these are switches"
        )
    return Switches(space, temperature)


_LAWS: Mapping[type, Callable[[Scores, Any, float], Law | None]] = {
    type(None): _choice, Discrete: _choice, MultiDiscrete: _choices, MultiBinary: _switches,
}  # fmt: skip
"""What an environment takes -> how scores become that; None if they do not."""


@dataclass(frozen=True)
class Reading:
    """An output as scores (n, actions); forbidden actions have -inf."""

    head: Scores
    arrays: Arrays

    def __call__(self, outputs: Mapping[str, Any], count: int) -> Any:  # noqa: ANN401
        """Raises: ArgumentError: the output is not what it was taken for."""
        head, parts = self.head, []
        for name, actions in head.branches or ((head.output, head.actions),):
            parts.append(self._scores(name, actions, outputs[name], count))
        scores = parts[0] if len(parts) == 1 else self.arrays.joined([part.T for part in parts]).T
        return scores if self._forbidden is None else self.arrays.forbidden(scores, self._forbidden)

    @cached_property
    def _forbidden(self) -> Any:  # noqa: ANN401
        """(A,) bool or None, made once: a number that travels to a device waits for it."""
        allowed = self.head.allowed
        return None if allowed is None else self.arrays.take(~np.array(allowed))

    @cached_property
    def _support(self) -> Any:  # noqa: ANN401
        """(atoms,) or None"""
        support = self.head.support
        return None if support is None else self.arrays.take(np.array(support, np.float32))

    def _scores(self, name: str, actions: int, output: Any, count: int) -> Any:  # noqa: ANN401
        kind = self.head.kind
        wide = kind in ("atom_logits", "quantiles")
        wanted = count * (1 if kind == "action" else actions)
        size = math.prod(output.shape)
        if size % wanted or (not wide and size != wanted):
            raise ArgumentError(
                f"output '{name}' gives {shape_text(output.shape)} for {count} observations: not {kind}",
                hint=f"say what it is: surgery annotate MODEL --output {name}:quantiles -o OUT",
            )
        if kind == "action":
            return self.arrays.one_hot(output.reshape(count), actions)
        if wide:
            spread = self.arrays.cast(output.reshape(count, actions, -1), ir.DataType.FLOAT)
            support = self._support
            return spread.mean(-1) if support is None else (self.arrays.softmax(spread) * support).sum(-1)
        scores = self.arrays.cast(output.reshape(count, actions), ir.DataType.FLOAT)
        return self.arrays.log(scores) if kind == "probabilities" else scores
