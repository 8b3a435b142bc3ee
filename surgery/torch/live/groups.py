"""Param groups and schedules that follow a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from surgery.errors import ArgumentError, Refused
from surgery.torch.live.journal import Journal

Factors = tuple[float, float, float]
"""Of the learning rate, of ε, of the weight decay."""
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCALED_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
_OTHER_LISTS = ("_schedulers", "_milestones", "_schedule_phases")
"""Lists of PyTorch's schedules that have no entry per group, however many they have."""
_SCHEDULED = "_wrapped_by_lr_sched"
"""A mark that PyTorch's schedules put on the optimizer's `step`."""
_FLOOR = "eta_min"
"""A learning rate of cosine schedules that is one number for all groups."""


def regroup(
    journal: Journal,
    optimizer: torch.optim.Optimizer,
    factors: Mapping[int, Factors],
    schedulers: Sequence[Any],
) -> None:
    """Split an optimizer's groups so that every parameter has the settings of its factors, and its schedules with them.

    Args:
      journal: makes the changes.
      optimizer: its groups stay the same objects; new ones come after them.
      factors: by id of the parameter; 1 for all others.
      schedulers: learning-rate schedules of this optimizer.

    Raises:
      Refused: a schedule with one lowest rate for all groups, which would need one for each.
      ArgumentError: the optimizer has a schedule that is not given.
    """
    groups = optimizer.param_groups
    kept: list[tuple[int, Factors]] = []
    split: list[tuple[int, Factors]] = []
    added: list[dict[str, Any]] = []
    for at, group in enumerate(list(groups)):
        parts: dict[Factors, list[Any]] = {}
        for parameter in group["params"]:
            parts.setdefault(factors.get(id(parameter), (1.0, 1.0, 1.0)), []).append(parameter)
        (first, members), *rest = sorted(parts.items(), key=lambda part: part[0] != (1.0, 1.0, 1.0)) or [
            ((1.0, 1.0, 1.0), [])
        ]
        kept.append((at, first))
        names = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        for other, others in rest:
            added.append({**_scaled(group, other), **_members(others, names)})
            split.append((at, other))
        for key, value in {**_scaled(group, first), **_members(members, names)}.items():
            journal.item(group, key, value)
    journal.contents(groups, [*groups, *added])
    own = [scheduler for scheduler in _all(schedulers) if scheduler.optimizer is optimizer]
    rescaled = any(first[0] != 1 for _, first in kept)
    if (added or rescaled) and not own and hasattr(optimizer.step, _SCHEDULED):
        raise ArgumentError(
            f"the {type(optimizer).__name__} has a learning-rate schedule, which has to know its new groups and rates",
            hint="schedulers=[…]",
        )
    for scheduler in own:
        _check_floor(scheduler, [*kept, *split])
        _extend(journal, scheduler, len(kept), [*kept, *split])


def _members(parameters: list[Any], names: Mapping[int, str]) -> dict[str, Any]:
    members: dict[str, Any] = {"params": parameters}
    if names:
        members["param_names"] = [names[id(parameter)] for parameter in parameters]
    return members


def _scaled(group: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """A group's settings with the factors applied."""
    lr, eps, decay = factors
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    for key, factor in [*((rate, lr) for rate in _RATES), ("eps", eps), ("weight_decay", decay)]:
        if factor != 1 and settings.get(key) is not None:
            settings[key] = settings[key] * factor
    return settings


def _all(schedulers: Sequence[Any]) -> list[Any]:
    """Schedulers and those inside them."""
    found = []
    for scheduler in schedulers:
        found += [scheduler, *_all(getattr(scheduler, "_schedulers", ()))]
    return found


def _check_floor(scheduler: Any, order: Sequence[tuple[int, Factors]]) -> None:  # noqa: ANN401
    floor = getattr(scheduler, _FLOOR, 0)
    if floor and any(factors[0] != 1 for _, factors in order):
        raise Refused(
            f"the {type(scheduler).__name__} ends at one rate for all groups ({_FLOOR}={floor:g}), and the "
            "trajectory needs several",
            hint=f"{_FLOOR}=0, or without follow_recipe: surgery.torch.follow needs no other groups and schedules",
        )


def _extend(journal: Journal, scheduler: Any, before: int, order: Sequence[tuple[int, Factors]]) -> None:  # noqa: ANN401
    """Lists with an entry per group get an entry for every new one."""
    for name, value in list(vars(scheduler).items()):
        if type(value) is list and len(value) == before and name not in _OTHER_LISTS:
            scaled = name in _SCALED_LISTS
            new = [value[at] * factors[0] if scaled else value[at] for at, factors in order]
            journal.attribute(scheduler, name, new)
