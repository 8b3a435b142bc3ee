"""From edited spaces to a complete plan: the tensors and the numbers in the graph that must follow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import SpaceEdit
from surgery.edits.copies import related, with_copies
from surgery.edits.execute import edited_tensors, grow_ports
from surgery.edits.parts import Fold, OperandEdit, PortEdit, TensorEdit
from surgery.edits.plan import Claim, Plan
from surgery.errors import Refused
from surgery.graph import layout
from surgery.graph.readers import readers
from surgery.graph.rewrite import regenerate
from surgery.graph.spaces import Analysis
from surgery.interface import Interface
from surgery.optimizer import slots_of_each


def build(
    checkpoint: Checkpoint,
    analysis: Analysis,
    operation: str,
    edits: Sequence[SpaceEdit],
    *,
    arguments: Mapping[str, Any],
    claim: Claim,
    seed: int = 0,
    noise: float = 0.0,
    frozen: Sequence[tuple[str, str]] = (),
    labels: Mapping[str, tuple[str, ...]] | None = None,
    padded: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Plan:
    """Complete a plan.

    Args:
      checkpoint: what the plan is for. analysis: of its graph.
      operation: its name; arguments: as the user gave them.
      edits: of the spaces; those of their copies are added.
      claim: what must hold of the result.
      frozen: (space, reason) to report.
      labels: names of the features of an input afterwards.
      padded: the edited spaces whose fresh units vanish under their normalisers.
      notes: what else the user should know.

    Raises:
      Refused: if a number in the graph cannot follow, or a copy of a space.
    """
    edits = with_copies(edits, analysis, checkpoint.copies)
    _check_linked(analysis, {edit.space: edit.after for edit in edits})
    padded = related(padded, analysis, checkpoint.copies)
    edited = frozenset(edit.space for edit in edits)
    scales, epsilons = _rescaled(analysis, {edit.space: edit for edit in edits}, padded)
    tensors = tuple(
        TensorEdit(name, axes, analysis.fills[name], scales.get(name, 1.0))
        for name, axes in analysis.padded(padded).items()
        if any(_changes(axis, edited) for axis in axes)
    )
    ports = _ports(analysis, edited, labels or {})
    plan = Plan(
        operation=operation,
        arguments=dict(arguments),
        claim=claim,
        spaces=tuple(edits),
        tensors=tensors,
        operands=(),
        seed=seed,
        noise=noise,
        frozen=tuple(frozen),
        ports=ports,
        slots=slots_of_each(checkpoint.optimizer, [tensor.name for tensor in tensors]),
        folds=folds(analysis, edits),
        notes=(*notes, *_staying(checkpoint.interface, ports)),
        copies=dict(checkpoint.copies),
    )
    operands = epsilons
    model = analysis.model.clone()
    edited_tensors(model, plan)
    grow_ports(model, plan)
    regenerate(analysis, model, plan.sizes, lambda *number: operands.append(OperandEdit(*number)))
    return replace(plan, operands=tuple(operands))


def _check_linked(analysis: Analysis, sizes: Mapping[str, int]) -> None:
    """What is shuffled with each other must stay equally wide.

    Raises:
      Refused: if some of it would not.
    """
    for name, size in sizes.items():
        for other in analysis.by_name[name].linked:
            if sizes.get(other, analysis.by_name[other].size) != size:
                raise Refused(f"'{name}' is shuffled with '{other}': they can only change together")


def _rescaled(
    analysis: Analysis, edits: Mapping[str, SpaceEdit], padded: Collection[str]
) -> tuple[dict[str, float], list[OperandEdit]]:
    """The factors √(D/D') of every γ, and the new ε, of the normalisers over padded spaces."""
    scales: dict[str, float] = {}
    epsilons: list[OperandEdit] = []
    for space in padded:
        padding, ratio = analysis.padding(space), edits[space].before / edits[space].after
        scales |= dict.fromkeys(padding.scales, math.sqrt(ratio))
        for node, where, epsilon, scalar in padding.epsilons:
            plain = scalar and not isinstance(where, str)
            epsilons.append(OperandEdit(node.outputs[0].name or "", where, (epsilon * ratio,), plain))
    return scales, epsilons


def _changes(axis: layout.Layout, edited: Collection[str]) -> bool:
    return any(part.space in edited for part in layout.units(axis))


def _ports(
    analysis: Analysis, edited: Collection[str], labels: Mapping[str, tuple[str, ...]]
) -> tuple[PortEdit, ...]:
    """The inputs and outputs in which an edited space occurs."""
    return tuple(
        PortEdit(
            side, name, tuple(axis if _changes(axis, edited) else () for axis in axes), labels.get(name, ())
        )
        for side, name, axes in analysis.ports
        if labels.get(name) or any(_changes(axis, edited) for axis in axes)
    )


def _staying(interface: Interface, ports: Sequence[PortEdit]) -> list[str]:
    """What there is to know of the inputs of critics that stay while an observation or an action changes."""
    changed = {(port.side, port.name) for port in ports}
    seen = [port.name for port in interface.inputs if port.kind == "observation"]
    taken = [port.name for port in interface.outputs if port.kind in ("mean", "action")]
    if changed.isdisjoint({*(("input", name) for name in seen), *(("output", name) for name in taken)}):
        return []
    return [
        f"'{port.name}' is a separate input, and stays as it is: if your code gives it the same features or "
        f"actions, extend it too, at their place: {port.name}+K@AT"
        for port in interface.inputs
        if port.kind == "other" and "observation" in port.name and ("input", port.name) not in changed
    ]


def folds(analysis: Analysis, edits: Sequence[SpaceEdit]) -> tuple[Fold, ...]:
    """Where the constant units that go are read."""
    return tuple(
        Fold(
            str(reader.node.outputs[0].name), reader.operand, reader.axis, reader.layout,
            None if reader.bias is None else (str(reader.bias[0].outputs[0].name), reader.bias[1]), reader.sign,
        )
        for edit in edits if edit.folded
        for reader in readers(analysis, edit.space)
    )  # fmt: skip
