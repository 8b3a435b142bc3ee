"""Step counts of their own for entries that are younger than their tensor.

Adam divides its means by 1 − βᵗ with one t per tensor. Entries that start at zero beside an old t are taken for old
ones, and move up to 6.57 times too far (β 0.9 and 0.999, at the twelfth update). What they would have done with their
own count n differs from what the optimizer did by a sum that the state tells, and that is added after each update.
RMSProp corrects nothing: the same count divides the squares of young entries by 1 − αⁿ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CORRECTED = frozenset({"adam", "adamw", "rmsprop"})
"""Kinds whose young entries are corrected; the others have no count, or no squares."""
GROWN_UP = 1e-7
"""Largest part of a mean's start that an entry may still hold to count as an old one."""


def grown_up(kind: str, group: Mapping[str, Any], counts: Tensor) -> bool:
    """Whether the youngest entry has forgotten that it started at zero; counts are infinite for old entries."""
    decay = float(group["alpha"]) if kind == "rmsprop" else max(map(float, group["betas"]))
    return bool(decay ** float(counts.min()) < GROWN_UP)


def correct(
    kind: str, group: Mapping[str, Any], state: dict[str, Any], gradient: Tensor, counts: Tensor
) -> Tensor:
    """What is to be added to a parameter after its update, so that young entries moved by their own count.

    Args:
      kind: of `CORRECTED`. group: the settings. state: after the update; a momentum buffer is corrected in place.
      gradient: as the optimizer used it, L2 decay included, in the parameter's shape.
      counts: updates of each entry, this one included; infinite for entries as old as the tensor.

    Returns:
      A tensor of the parameter's shape, zero for old entries.
    """
    young = torch.isfinite(counts)
    n = counts[young]
    change = (
        _adam(group, state, young, n) if kind != "rmsprop" else _rmsprop(group, state, gradient, young, n)
    )
    whole: Tensor = torch.zeros_like(gradient).masked_scatter_(young, change.to(gradient.dtype))
    return whole


def _adam(group: Mapping[str, Any], state: dict[str, Any], young: Tensor, n: Tensor) -> Tensor:
    first, second = map(float, group["betas"])
    mean, squares = state["exp_avg"][young], state.get("max_exp_avg_sq", state["exp_avg_sq"])[young]
    t = torch.as_tensor(float(state["step"]), dtype=n.dtype, device=n.device)

    def step(count: Tensor) -> Tensor:
        root: Tensor = (squares / (1 - second**count)).sqrt() + float(group["eps"])
        change: Tensor = mean / (1 - first**count) / root
        return change

    return float(group["lr"]) * (step(t) - step(n))


def _rmsprop(
    group: Mapping[str, Any], state: dict[str, Any], gradient: Tensor, young: Tensor, n: Tensor
) -> Tensor:
    squares, g, eps = state["square_avg"][young], gradient[young], float(group["eps"])
    # E[g]² is left as it is: corrected like the squares, it would leave nothing under the root at the first update
    centre = state["grad_avg"][young].square() if group.get("centered") else torch.zeros_like(squares)

    def step(total: Tensor) -> Tensor:
        root: Tensor = (total - centre).clamp_min(0).sqrt() + eps
        change: Tensor = g / root
        return change

    less = step(squares) - step(squares / (1 - float(group["alpha"]) ** n))
    if float(group.get("momentum", 0.0)):
        state["momentum_buffer"][young] -= less
    return float(group["lr"]) * less
