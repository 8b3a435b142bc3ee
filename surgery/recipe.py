"""Settings of the optimizer under which a widened network goes on exactly as the old one would have.

A widened tensor is w' = s·w and its gradient g' = t·g, where s is the product of the shares of the axes that consume
units and t that of the axes that make them. With equal shares 1/c both are one number per tensor, and the update of w'
is s times that of w if

    optimizer                 lr       ε outside, inside the root     L2 decay    decoupled decay
    SGD                       · s/t    –                              · t/s       –
    Adam, AdamW, RMSProp …    · s      · t, · t²                      · t/s       · 1/s

It rests on the scale invariance of m/√v (Kingma, Ba, 2015, section 2.1); docs/mathematics.md derives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.edits.arithmetic import AxisMap, SpaceEdit, axis_maps
from surgery.edits.plan import Plan
from surgery.errors import some_text
from surgery.json_values import Json
from surgery.optimizer import WHOLE, OptimizerState, ParamGroup

NORMALISED = frozenset({"adam", "adamw", "nadam", "adamax", "rmsprop", "adagrad"})
"""Optimizers whose step does not change when all gradients are multiplied by one number, ε aside."""


@dataclass(frozen=True, slots=True)
class RecipeGroup:
    """Parameters that go on with the same settings.

    Attributes:
      parameters: their names, in the optimizer's order.
      lr, eps, weight_decay: factors of the old settings.
      hyper: the settings with the factors applied.
    """

    parameters: tuple[str, ...]
    lr: float
    eps: float
    weight_decay: float
    hyper: Mapping[str, Json]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "parameters": list(self.parameters),
            "factors": {"lr": self.lr, "eps": self.eps, "weight_decay": self.weight_decay},
            "hyper": dict(self.hyper),
        }


@dataclass(frozen=True, slots=True)
class Recipe:
    """Param groups that continue the same trajectory, or why there are none.

    Attributes:
      groups: they cover every parameter of the optimizer; empty if there are none.
      exact: whether they continue the same trajectory.
      reason: why they do not exist.
    """

    groups: tuple[RecipeGroup, ...]
    exact: bool
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "exact": self.exact,
            "reason": self.reason,
            "groups": [group.to_json() for group in self.groups],
        }

    def describe(self) -> str:
        """A line per group, or one with the reason."""
        if self.reason is not None:
            return f"keep your own settings; no settings continue training exactly as before: {self.reason}"
        return "\n".join(f"{_settings(group)}: {some_text(group.parameters, 4)}" for group in self.groups)


def recipe(plan: Plan, state: OptimizerState) -> Recipe:
    """The param groups that continue the trajectory of the network before the plan.

    Args:
      plan: a widening; its recipe exists if every space is copied a whole number of times in equal shares.
      state: of the optimizer, before or after the plan; its settings are those before.

    Returns:
      The recipe. Clipping by the norm of all gradients is not part of any param group: in the widened network that
      norm is another one.
    """
    reason = _no_rule(plan, state)
    if reason is not None:
        return Recipe((), False, reason)
    scales: dict[str, tuple[float, float]] = {}
    for tensor in plan.tensors:
        found = _scales(axis_maps(tensor.axes, plan.edits))
        if found is None and tensor.name in state.parameters:
            return Recipe((), False, f"the entries of '{tensor.name}' would need different settings")
        scales[tensor.name] = found or (1.0, 1.0)
    groups = [part for group in state.groups for part in _divided(state.kind, group, scales)]
    return Recipe(tuple(groups), True)


def _no_rule(plan: Plan, state: OptimizerState) -> str | None:
    if state.kind in WHOLE:
        return WHOLE[state.kind]
    if state.kind not in NORMALISED | {"sgd"}:
        return f"there is no rule for '{state.kind}'"
    if any(
        group.hyper.get("buffer_holds_lr")
        and (group.hyper.get("momentum") or "momentum_buffer" in state.slots)
        for group in state.groups
    ):
        return "the momentum buffer holds whole steps, which no setting can scale"
    if plan.noise:
        return "the copies are noisy"
    if plan.insertions:
        return (
            f"the new layer '{plan.insertions[0].name}' learns from the first step (with a learning rate of 0 "
            "for it, everything else continues as before)"
        )
    if plan.operation == "widen" and plan.inexact_slots:
        return f"the gradient of a maximum goes to only some of the equal copies in '{plan.inexact_slots[0]}'"
    return next((why for edit in plan.spaces if (why := _uneven(edit)) is not None), None)


def _uneven(edit: SpaceEdit) -> str | None:
    """Why the units of a space do not all go on alike."""
    if edit.fresh:
        return f"the new units of '{edit.space}' learn from the first step"
    if edit.merged:
        return f"the merged units of '{edit.space}' no longer learn separately"
    if edit.gone:
        return f"the removed units of '{edit.space}' no longer learn"
    if len(set(np.bincount(edit.source, minlength=edit.before))) > 1:
        return f"'{edit.space}' {edit.before}→{edit.after} copies some units more often than others"
    if not _constant(edit.share):
        return f"the copies in '{edit.space}' have unequal shares"
    return None


def _scales(maps: list[AxisMap | None]) -> tuple[float, float] | None:
    """The factors s of a tensor and t of its gradient; None if they differ from entry to entry."""
    axes = [axis for axis in maps if axis is not None]
    if not all(_constant(axis.value) and _constant(axis.grad) for axis in axes):
        return None
    return math.prod(float(axis.value[0]) for axis in axes), math.prod(float(axis.grad[0]) for axis in axes)


def _constant(factors: Array) -> bool:
    return bool(np.allclose(factors, factors[0], rtol=1e-15, atol=0))


def _divided(kind: str, group: ParamGroup, scales: Mapping[str, tuple[float, float]]) -> list[RecipeGroup]:
    """One group of the optimizer as the groups that it becomes."""
    members: dict[tuple[float, float, float], list[str]] = {}
    for name in group.parameters:
        members.setdefault(_factors(kind, group.hyper, *scales.get(name, (1.0, 1.0))), []).append(name)
    return [
        RecipeGroup(tuple(names), *factors, _applied(group.hyper, *factors))
        for factors, names in members.items()
    ]


def _factors(kind: str, hyper: Mapping[str, Json], s: float, t: float) -> tuple[float, float, float]:
    """Of lr, ε and weight decay; 1 for a setting that the optimizer does not have or that is 0."""
    normalised = kind in NORMALISED
    lr = s if normalised else s / t
    # a setting that the file does not say is not 0
    eps = t ** (2 if hyper.get("eps_inside_root") else 1) if normalised and hyper.get("eps", 1) else 1.0
    decoupled = kind == "adamw" or bool(hyper.get("decoupled_weight_decay"))
    decay = 1 / lr if decoupled else t / s
    return lr, eps, decay if hyper.get("weight_decay") else 1.0


def _applied(hyper: Mapping[str, Json], lr: float, eps: float, weight_decay: float) -> dict[str, Json]:
    out = dict(hyper)
    # a schedule starts from initial_lr
    for name, factor in (("lr", lr), ("initial_lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        value = out.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and factor != 1:
            out[name] = value * factor
    return out


def _settings(group: RecipeGroup) -> str:
    factors = {"lr": group.lr, "eps": group.eps, "weight_decay": group.weight_decay}
    shown = [f"{name} {_number(group.hyper[name])}" for name in factors if group.hyper.get(name)]
    unknown = [f"{name} × {_number(f)}" for name, f in factors.items() if name not in group.hyper and f != 1]
    return " · ".join(shown + unknown) or "as before"


def _number(value: Json) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
