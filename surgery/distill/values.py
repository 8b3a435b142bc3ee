"""What a student's output says about values, and how it is trained on them: expected values, C51, QR-DQN.

Heads and algorithms combine: double and dueling, n-step and prioritised replay work with each; all of them with C51
are Rainbow without noisy layers, which is also what QDagger's configuration of Rainbow is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from surgery.checkpoint import Checkpoint
from surgery.distill import losses
from surgery.errors import ArgumentError

KINDS = ("q_values", "atom_logits", "quantiles")
"""Kinds of output that can learn by temporal differences."""


class Values(Protocol):
    """How to read and to train an output."""

    def expected(self, output: Tensor) -> Tensor:
        """Q-values (B, A) of an output."""

    def loss(self, here: Tensor, there: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
        """The temporal-difference loss per example, (B,), at least 0.

        Args:
          here: (B, …) of the student at the observation, what it says of the action that was taken.
          there: (B, …) of the target network n steps on, what it says of the greedy action.
          returns: (B,) n-step returns.
          discount: (B,) γⁿ, or 0 at the end.
        """


@dataclass(frozen=True)
class Expected(Values):
    """Q-values (B, A): DQN."""

    def expected(self, output: Tensor) -> Tensor:
        return output

    def loss(self, here: Tensor, there: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
        return losses.temporal_difference(here, there, returns, discount)


@dataclass(frozen=True)
class Categorical(Values):
    """Logits (B, A, N) of a distribution over a fixed support: C51."""

    low: float
    high: float

    def support(self, output: Tensor) -> Tensor:
        return torch.linspace(self.low, self.high, output.shape[-1], device=output.device, dtype=output.dtype)

    def expected(self, output: Tensor) -> Tensor:
        return functional.softmax(output, dim=2) @ self.support(output)

    def loss(self, here: Tensor, there: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
        after = functional.softmax(there, dim=1)
        target = losses.projection(self.support(here), after, returns, discount)
        return losses.categorical(here, target)


@dataclass(frozen=True)
class Quantiles(Values):
    """Quantiles (B, A, N) of the return: QR-DQN."""

    def expected(self, output: Tensor) -> Tensor:
        return output.mean(dim=2)

    def loss(self, here: Tensor, there: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
        return losses.quantile_huber(here, there, returns, discount)


def values_of(student: Checkpoint) -> Values:
    """How a student's output is read.

    Raises:
      ArgumentError: it has no output that can learn by temporal differences, or more than one.
    """
    outputs = [port for port in student.interface.outputs if port.kind != "state"]
    ports = [port for port in outputs if port.kind in KINDS]
    if len(ports) != 1 or len(outputs) != 1:
        found = ", ".join(f"{port.name} ({port.kind})" for port in outputs)
        raise ArgumentError(
            f"a student has one output of kind {', '.join(KINDS)}; this one has {found}",
            hint="choose a head with --head q, dueling, c51 or qr",
        )
    if ports[0].kind == "atom_logits":
        low, high = ports[0].low, ports[0].high
        if not isinstance(low, float) or not isinstance(high, float):
            raise ArgumentError(
                f"the support of '{ports[0].name}' is not known",
                hint=f"surgery annotate MODEL --output {ports[0].name}:atom_logits,low=-10,high=10 -o OUT",
            )
        return Categorical(low, high)
    return Quantiles() if ports[0].kind == "quantiles" else Expected()
