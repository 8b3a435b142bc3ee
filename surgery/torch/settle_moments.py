"""Moments from stored data: gradients of recorded batches, without an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from surgery.errors import ArgumentError, Refused
from surgery.ops.optimizer_moments import collected, window_matched
from surgery.torch.optimizer_state import parameters_of
from surgery.torch.trajectory.follow import Trajectory, ruled_kind

Batch = TypeVar("Batch")
_SLOTS: Mapping[str, tuple[str, str]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("grad_avg", "square_avg"),
}


def warm_moments(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    *,
    which: Literal["empty", "all"] = "empty",
    trajectory: Trajectory | None = None,
) -> int:
    """Fill what an optimizer does not know of the gradients from recorded batches; no weight moves.

    Args:
      optimizer: Adam, AdamW or RMSprop.
      loss: the loss of a batch. It is run once per batch and differentiated; buffers that a forward pass changes
        (running statistics) are the caller's to mind: use `eval()`.
      batches: of stored data; 16 are usually enough.
      which: "empty" fills entries that have no history (E[g²] is 0, and so is every parameter without state), "all"
        fills every entry anew.
      trajectory: of the optimizer, if there is one: entries that are filled are young no more.

    Returns:
      How many entries were filled.

    Raises:
      Refused: an optimizer without second moments. ArgumentError: no batches, or a gradient that is not finite.
    """
    kind = ruled_kind(optimizer)
    if kind not in _SLOTS:
        raise Refused(
            f"'{kind}' has no mean of squares to fill",
            hint=f"{', '.join(_SLOTS)} have; swap the optimizer first",
        )
    sums, count = _statistics(list(dict.fromkeys(parameters_of(optimizer))), loss, batches)
    filled = 0
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight in sums:
                mean, square = (total / count for total in sums[weight])
                mean, square = _seen(trajectory, weight, mean, square)
                filled += _fill(optimizer, kind, group, weight, (mean, square), count, which, trajectory)
    return filled


def _statistics(
    weights: list[Tensor], loss: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> tuple[dict[Tensor, tuple[Tensor, Tensor]], int]:
    """Sums of gradients and of their squares, and the number of batches."""
    sums: dict[Tensor, tuple[Tensor, Tensor]] = {}
    count = 0
    with _gradients_kept(weights):
        for batch in batches:
            for weight in weights:
                weight.grad = None
            loss(batch).backward()  # type: ignore[no-untyped-call]
            count += 1
            for weight in weights:
                if weight.grad is None:
                    continue
                if not bool(torch.isfinite(weight.grad).all()):
                    raise ArgumentError(f"batch {count} gives gradients that are not finite")
                first, second = sums.get(weight, (torch.zeros_like(weight), torch.zeros_like(weight)))
                sums[weight] = (first + weight.grad, second + weight.grad.square())
    if not count:
        raise ArgumentError("no batches to fill moments from")
    return {weight: (first.detach(), second.detach()) for weight, (first, second) in sums.items()}, count


@contextmanager
def _gradients_kept(weights: list[Tensor]) -> Iterator[None]:
    held = [weight.grad for weight in weights]
    try:
        yield
    finally:
        for weight, grad in zip(weights, held, strict=True):
            weight.grad = grad


def _seen(
    trajectory: Trajectory | None, weight: Tensor, mean: Tensor, square: Tensor
) -> tuple[Tensor, Tensor]:
    """Statistics in the coordinates that the optimizer's state is in."""
    for tracked in trajectory.tracked.values() if trajectory is not None else ():
        if tracked.weight is weight:
            return mean / tracked.factors.gradient, square / tracked.factors.gradient.square()
    return mean, square


@torch.no_grad()
def _fill(
    optimizer: torch.optim.Optimizer,
    kind: str,
    group: Mapping[str, Any],
    weight: Tensor,
    statistics: tuple[Tensor, Tensor],
    count: int,
    which: str,
    trajectory: Trajectory | None,
) -> int:
    first, second = _SLOTS[kind]
    state = optimizer.state[weight]
    new = second not in state
    if new:
        state.update(_empty(kind, group, weight, _count(kind, group, count)))
    mask = torch.ones_like(weight, dtype=torch.bool) if new or which == "all" else state[second] == 0
    decays = (group["alpha"],) * 2 if kind == "rmsprop" else group["betas"]
    for slot, statistic, decay in zip((first, second), statistics, decays, strict=True):
        if slot in state:
            known = float(collected(float(decay), float(state["step"])))
            state[slot].copy_(torch.where(mask, statistic * known, state[slot]))
    if "max_exp_avg_sq" in state:
        torch.maximum(state["max_exp_avg_sq"], state[second], out=state["max_exp_avg_sq"])
    _come_of_age(trajectory, weight, mask)
    return int(mask.sum())


def _empty(kind: str, group: Mapping[str, Any], weight: Tensor, steps: float) -> dict[str, Tensor]:
    """The state of a parameter that was never updated, as PyTorch lays it out."""
    first, second = _SLOTS[kind]
    wanted = {
        second: True,
        first: kind != "rmsprop" or group.get("centered"),
        "max_exp_avg_sq": kind != "rmsprop" and group.get("amsgrad"),
        "momentum_buffer": kind == "rmsprop" and group.get("momentum"),
    }
    device = weight.device if group.get("capturable") or group.get("fused") else torch.device("cpu")
    slots = {slot: torch.zeros_like(weight) for slot, there in wanted.items() if there}
    return {"step": torch.tensor(steps, device=device), **slots}


def _come_of_age(trajectory: Trajectory | None, weight: Tensor, mask: Tensor) -> None:
    """Entries whose moments are known count with their tensor from now on."""
    for tracked in trajectory.tracked.values() if trajectory is not None else ():
        if tracked.weight is weight and tracked.counts is not None:
            counts = tracked.counts.masked_fill(mask, torch.inf)
            tracked.counts = None if bool(torch.isinf(counts).all()) else counts


def _count(kind: str, group: Mapping[str, Any], batches: int) -> float:
    """The step count of a state that was made of this many batches: the next gradient weighs as one among them."""
    decay = float(group["alpha"] if kind == "rmsprop" else group["betas"][1])
    return float(window_matched(1 / (batches + 1), decay, float("inf")))
