"""Invert: undo a plan on a checkpoint that it has made, as long as nothing new is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.axis_maps import axis_maps
from surgery.edits.execute import constants
from surgery.edits.plan import Plan
from surgery.edits.removal import check_duplicates, check_unread, unit_rows
from surgery.edits.units import SpaceEdit
from surgery.errors import PlanMismatch, Refused
from surgery.graph.layout import units
from surgery.graph.spaces import Analysis
from surgery.interface import Interface
from surgery.ops.build import build

_KNOWN = frozenset({"widen", "extend", "reorder", "adapt"})
_PADDED = ("mean", "zero")
_MEAN = 1e-5
"""How far, relative, the mean of new rows may be from that of the old ones: rounding, not learning."""


def invert(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """The plan that undoes another one.

    New units that no old one reads yet are removed, copies that are still equal are merged (their shares sum to the
    weight that they came from), and what was put into another order is put back; the optimizer's slots likewise.

    Args:
      plan: what was done. checkpoint: its result, or what that has become by training; its weights are read.

    Returns:
      A plan that claims "equivalent": the same function, without the new parts.

    Raises:
      PlanMismatch: the checkpoint is not a result of that plan.
      Refused: a new part is in use, copies have parted, or the plan removed something, which is nowhere kept.
    """
    if plan.operation not in _KNOWN or plan.claim == "changed":
        what = (
            f"a plan of '{plan.operation}'"
            if plan.operation not in _KNOWN
            else "a plan that changed the outputs"
        )
        raise Refused(f"{what} cannot be inverted", hint="go back to the checkpoint from before it")
    analysis = checkpoint.analysis
    edits = [_backwards(analysis, edit) for edit in plan.spaces]
    tensors = constants(analysis.model)
    averaged = _averaged(plan, analysis)
    for edit in averaged:
        _check_mean(analysis, edit, tensors)
    result = build(
        checkpoint, analysis, "invert", edits, arguments={"operation": plan.operation, "of": dict(plan.arguments)},
        claim="changed" if averaged else "equivalent", labels=_labels(plan, checkpoint.interface),
        padded=[edit.space for edit in averaged if edit.start is None],
        notes=[f"'{edit.space}' is averaged over: its mean moves by rounding" for edit in averaged],
    )  # fmt: skip
    check_duplicates(result, tensors)
    check_unread(replace(result, claim="equivalent"), tensors)
    return replace(result, environment=_contract(plan, checkpoint), read=plan.read)


def _averaged(plan: Plan, analysis: Analysis) -> list[SpaceEdit]:
    """Edits whose fresh units take part in a mean, which they leave where it is: centred actions, normalised units."""
    padded = {part.space for t in plan.tensors for part in units(*t.axes) if part.role in _PADDED}
    return [
        edit
        for edit in plan.spaces
        if edit.fresh and (edit.space in padded or (edit.start and analysis.space(edit.space).whole))
    ]


def _backwards(analysis: Analysis, edit: SpaceEdit) -> SpaceEdit:
    space = analysis.by_name.get(edit.space)
    if space is None or space.size != edit.after:
        have = "is not here" if space is None else f"has {space.size} units"
        raise PlanMismatch(
            f"the plan left space '{edit.space}' with {edit.after} units; in this checkpoint it {have}",
            hint="invert the last plan first; after the last one, go back to the checkpoint from before it",
        )
    if edit.gone:
        raise Refused(
            f"the plan removed {len(edit.gone)} units of '{edit.space}', and did not keep their weights",
            hint="go back to the checkpoint from before it, or add new ones: surgery extend, surgery widen",
        )
    if space.indexed:
        raise Refused(
            f"the new rows of '{edit.space}' may be in use: no weight can tell whether an input chooses them",
            hint="go back to the checkpoint from before it",
        )
    if edit.start is not None and edit.start.kind == "split":
        raise Refused(
            f"the new actions of '{edit.space}' share the probability of an old one: they are in use"
        )
    fresh, first = edit.is_fresh, dict[int, int]()
    copies = []
    for new, old in enumerate(edit.source):
        if not fresh[new] and first.setdefault(old, new) != new:
            copies.append((new, old))
    return SpaceEdit(
        edit.space, edit.after, tuple(first[old] for old in range(edit.before)), merged=tuple(copies)
    )


def _check_mean(analysis: Analysis, edit: SpaceEdit, tensors: Mapping[str, ir.TensorProtocol]) -> None:
    """New rows under a mean are still the mean of the old ones, or zero, as they began."""
    started = {edit.space: "mean"} if edit.start is not None else {}
    layouts = analysis.tensors if started else analysis.padded([edit.space])
    for name, axes in layouts.items():
        for k, axis in enumerate(axes):
            for role in {part.role for part in units(axis) if part.space == edit.space} - {"in"}:
                kind = started.get(edit.space, role)
                if kind not in _PADDED or analysis.fills[name] == "donor":
                    continue
                rows = unit_rows(tensors[name].numpy(), k, axis, edit.space, role).astype(np.float64)
                wanted = rows[~edit.is_fresh].mean(0) if kind == "mean" else 0.0
                gap = np.abs(rows[edit.is_fresh] - wanted).max(initial=0.0)
                if gap > _MEAN * np.abs(rows).max(initial=0.0):
                    raise Refused(
                        f"the new units of '{edit.space}' are in use: '{name}' does not hold the {kind} in them",
                        hint="they take part in a mean over all units",
                    )


def _labels(plan: Plan, interface: Interface) -> dict[str, tuple[str, ...]]:
    """The names of the old features; none where the plan had to make them up."""
    found: dict[str, tuple[str, ...]] = {}
    for edit in plan.ports:
        port = interface.input(edit.name) if edit.side == "input" else interface.output(edit.name)
        for axis in axis_maps(edit.axes, plan.edits):
            if axis is None or port.labels is None or len(port.labels) != len(axis.source):
                continue
            first = {
                int(axis.source[k]): k for k in reversed(np.flatnonzero(~(axis.fresh_in | axis.fresh_out)))
            }
            names = tuple(port.labels[first[old]] for old in range(axis.before))
            made_up = tuple(f"{port.name}.{k}" for k in range(axis.before))
            found[edit.name] = () if names == made_up else names
    return found


def _contract(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    """The action mask without the new actions; a mask that forbids nothing is none."""
    masks = checkpoint.environment.settings.get("action_mask")
    if "action_mask" not in plan.environment or not isinstance(masks, Mapping):
        return {}
    left: dict[str, Any] = {}
    for name, mask in masks.items():
        allowed = list(mask) if isinstance(mask, Sequence) else []
        axes = [axis for port in plan.ports if port.name == name for axis in port.axes]
        spaces = {part.space for part in units(*axes)}
        for edit in plan.spaces:
            if edit.space in spaces and edit.start is not None and edit.after == len(allowed):
                allowed = [a for a, new in zip(allowed, edit.added, strict=True) if not new]
        if not all(allowed):
            left[name] = allowed
    return {"action_mask": left or None}
