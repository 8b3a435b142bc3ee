"""Hidden states of running rollouts, and example inputs, carried over to the changed network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from surgery.edits import ports
from surgery.edits.plan import Plan
from surgery.torch.live.report import Operation
from surgery.torch.stored import to_numpy, to_torch


def grow_states(operation: Operation | Plan, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of the old network as inputs of the new one: recurrent states that rollouts hold, stored observations.

    Args:
      operation: what was done.
      states: input name (the argument of `forward`, or as `operate` was told) -> tensor in its old width; the batch is
        free. New units start at zero, copies with what they copy.

    Returns:
      The same, grown, on the same devices; what the plan leaves alone is returned as it is.

    Raises:
      ArgumentError: a tensor does not have the old width.
    """
    plan = operation.plan if isinstance(operation, Operation) else operation
    return _carried(ports.grow, plan, "input", states)


def grow_inputs(plan: Plan, inputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same with random numbers in the new features of observations: they must not matter."""
    return _carried(partial(ports.grow, rng=np.random.default_rng(seed)), plan, "input", inputs)


def settled_inputs(plan: Plan, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs for which the plan promises equal outputs: a retired observation holds its constant."""
    return _carried(ports.settled, plan, "input", inputs)


def kept_outputs(plan: Plan, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the old network's outputs that the new one still has."""
    return _carried(ports.kept, plan, "output", outputs)


def shrink_outputs(plan: Plan, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the new network's outputs that the old one has."""
    return _carried(ports.shrink, plan, "output", outputs)


def _carried(
    carry: Callable[..., dict[str, Any]], plan: Plan, side: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors with those that the plan edits, on one side of the network, carried over; the others as they are."""
    edited = {port.name for port in plan.ports if port.side == side}
    arrays = carry(plan, {name: to_numpy(x) for name, x in tensors.items() if name in edited})
    return {
        name: to_torch(arrays[name]).to(x.device, x.dtype) if name in arrays else x
        for name, x in tensors.items()
    }
