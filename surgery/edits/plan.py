"""A plan: what an operation will do, said completely and without touching a number of the model.

Plans print, serialise to JSON, and can be applied to every checkpoint with the same graph: target and averaged
networks, past opponents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from surgery.edits.arithmetic import SpaceEdit, natural
from surgery.edits.insertion import Insertion, chained
from surgery.edits.insertion import from_json as insertion_from_json
from surgery.edits.parts import Fold, OperandEdit, PortEdit, TensorEdit, nonnegative
from surgery.edits.rewiring import Rewiring
from surgery.edits.rewiring import from_json as rewiring_from_json
from surgery.errors import PlanMismatch, shape_text
from surgery.graph import layout

SCHEMA = 1
Claim = Literal["identical", "equivalent", "changed"]
"""What a plan promises: the same bits, the same function within rounding, or a measured difference."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part of the summary: a space, its sizes, and how many tensors and optimizer slots follow."""

    space: str
    before: int
    after: int
    tensors: int
    slots: int

    def __str__(self) -> str:
        if self.before == 0:
            return f"new {self.space} {self.after}"
        if self.before == self.after:
            return f"{self.space} rearranged"
        return f"{self.space} {self.before}→{self.after}"


@dataclass(frozen=True)
class Plan:
    """Everything an operation will do.

    Attributes:
      operation: its name. arguments: as they were given.
      claim: what must hold of the result; enforced when the plan is applied.
      spaces: the edited spaces.
      tensors: the tensors that follow.
      operands: numbers in the graph that follow.
      seed: of every random number.
      noise: added to copies, as a fraction of a tensor's standard deviation.
      frozen: spaces that were asked for in general terms (a factor) but cannot change, each with the reason.
      ports: inputs and outputs that follow.
      inexact_slots: spaces whose new units change the gradient of the old ones (a mean over more of them, a maximum
        among equals).
      environment: settings of the environment's contract that change; None takes one away.
      slots: optimizer slots that will follow, by tensor.
      insertions: new layers, put in after everything else, in order.
      folds: where constants that go leave their contribution.
      notes: what else the user should know, a sentence each.
      copies: prefix of parameter names -> prefix of their originals, whose random numbers they take.
      rewiring: tensors that are untied or renamed.
      read: whether it was read, from what anyone may have changed, and not made by an operation.
    """

    operation: str
    arguments: Mapping[str, Any]
    claim: Claim
    spaces: tuple[SpaceEdit, ...]
    tensors: tuple[TensorEdit, ...]
    operands: tuple[OperandEdit, ...]
    seed: int = 0
    noise: float = 0.0
    frozen: tuple[tuple[str, str], ...] = ()
    ports: tuple[PortEdit, ...] = ()
    inexact_slots: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)
    insertions: tuple[Insertion, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    rewiring: Rewiring = field(default_factory=Rewiring)
    read: bool = field(default=False, compare=False)

    @property
    def edits(self) -> dict[str, SpaceEdit]:
        """The edited spaces by name."""
        return {edit.space: edit for edit in self.spaces}

    @property
    def sizes(self) -> dict[str, int]:
        """New sizes of the edited spaces."""
        return {edit.space: edit.after for edit in self.spaces}

    @property
    def changes(self) -> tuple[Change, ...]:
        """A line per space and new layer; a tensor counts for the first edited space that occurs in it."""
        counted: dict[str, list[str]] = {edit.space: [] for edit in self.spaces}
        for tensor in self.tensors:
            first = next(u.space for u in layout.units(*tensor.axes) if u.space in counted)
            counted[first].append(tensor.name)
        edited = zip(self.spaces, counted.values(), strict=True)
        lines = [(e.space, e.before, e.after, names) for e, names in edited]
        lines += [(new.name, 0, new.units, [t.name for t in new.tensors]) for new in self.insertions]
        return tuple(
            Change(space, before, after, len(names), sum(self.slots.get(name, 0) for name in names))
            for space, before, after, names in lines
        )

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """The plan in words, line by line."""
        lines = [f"{self.operation}: claim {self.claim}"]
        for edit in self.spaces:
            lines.append(f"  {edit.space} {edit.before} → {edit.after} ({_how(edit)})")
        for tensor in self.tensors:
            before, after = shape_text(tensor.before), shape_text(tensor.after(self.sizes))
            slots = f", {self.slots[tensor.name]} slots" if self.slots.get(tensor.name) else ""
            scaled = f" · {tensor.scale:.6g}" if tensor.scale != 1 else ""
            lines.append(f"  {tensor.name} {before} → {after}{scaled}{slots}")
        for operand in self.operands:
            where = operand.where if isinstance(operand.where, str) else f"operand {operand.where}"
            shown = ", ".join("…" if n is None else str(n) for n in operand.value)
            lines.append(f"  node of '{operand.node}': {where} = [{shown}]")
        for port in self.ports:
            before, after = (
                "×".join(str(layout.size(axis, sizes)) if axis else "…" for axis in port.axes)
                for sizes in (None, self.sizes)
            )
            lines.append(f"  {port.side} '{port.name}' {before} → {after}")
        lines.extend(self.rewiring.describe())
        lines.extend(f"  new layer {new.describe()}" for new in self.insertions)
        for fold in self.folds if any(edit.folded for edit in self.spaces) else ():
            into = (
                "must be zero"
                if fold.bias is None
                else f"added to operand {fold.bias[1]} of '{fold.bias[0]}'"
            )
            lines.append(f"  constants read by the node of '{fold.node}': {into}")
        lines.extend(f"  frozen: {space}: {reason}" for space, reason in self.frozen)
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, complete: `from_json` gives an equal plan."""
        return {
            "schema": SCHEMA,
            "operation": self.operation,
            "arguments": dict(self.arguments),
            "claim": self.claim,
            "seed": self.seed,
            "noise": self.noise,
            "spaces": [edit.to_json() for edit in self.spaces],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "operands": [operand.to_json() for operand in self.operands],
            "frozen": [{"space": space, "reason": reason} for space, reason in self.frozen],
            "ports": [port.to_json() for port in self.ports],
            "inexact_slots": list(self.inexact_slots),
            "environment": dict(self.environment),
            "slots": dict(self.slots),
            "insertions": [new.to_json() for new in self.insertions],
            **({"folds": [fold.to_json() for fold in self.folds]} if self.folds else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            "copies": dict(self.copies),
            **({"rewiring": self.rewiring.to_json()} if self.rewiring != Rewiring() else {}),
        }

    def digest(self) -> str:
        """SHA-256 of what the plan does; slots are left out, which depend on the checkpoint."""
        record = {key: value for key, value in self.to_json().items() if key not in ("slots", "notes")}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(data: object) -> Plan:
        """Read a plan.

        Raises:
          PlanMismatch: if the data is not a plan of this version.
        """
        if not isinstance(data, dict) or "operation" not in data:
            raise PlanMismatch("not a plan", hint="plans are written by --dry-run --json")
        if data.get("schema") != SCHEMA:
            raise PlanMismatch(f"a plan of schema {data.get('schema')!r}; this version reads schema {SCHEMA}")
        try:
            plan = _parse(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatch(f"a damaged plan: {type(error).__name__}: {error}") from None
        _check(plan)
        return plan


def _parse(data: Mapping[str, Any]) -> Plan:
    claim = data["claim"]
    if claim not in ("identical", "equivalent", "changed"):
        raise ValueError(f"claim {claim!r}")
    return Plan(
        operation=str(data["operation"]),
        arguments=dict(data["arguments"]),
        claim=claim,
        spaces=tuple(SpaceEdit.from_json(edit) for edit in data["spaces"]),
        tensors=tuple(TensorEdit.from_json(tensor) for tensor in data["tensors"]),
        operands=tuple(OperandEdit.from_json(operand) for operand in data["operands"]),
        seed=natural(data["seed"]),
        noise=nonnegative(data["noise"]),
        frozen=tuple((str(f["space"]), str(f["reason"])) for f in data["frozen"]),
        ports=tuple(PortEdit.from_json(port) for port in data["ports"]),
        inexact_slots=tuple(str(name) for name in data["inexact_slots"]),
        environment=dict(data["environment"]),
        slots={str(name): int(count) for name, count in data["slots"].items()},
        insertions=tuple(insertion_from_json(new) for new in data.get("insertions", ())),
        folds=tuple(Fold.from_json(fold) for fold in data.get("folds", ())),
        notes=tuple(str(note) for note in data.get("notes", ())),
        copies={str(copy): str(original) for copy, original in data.get("copies", {}).items()},
        rewiring=rewiring_from_json(data.get("rewiring", Rewiring().to_json())),
        read=True,
    )


def _how(edit: SpaceEdit) -> str:
    """What happens to the units of a space, in words."""
    copies = int(edit.added.sum()) - len(edit.fresh)
    counts = {
        "fresh units": len(edit.fresh), "copies": copies, "merged": len(edit.merged),
        "constant, folded": len(edit.folded), "removed": len(edit.dropped),
    }  # fmt: skip
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    order = [k for k, added in zip(edit.source, edit.added, strict=True) if not added]
    return ", ".join([*parts, *(["reordered"] if order != sorted(order) else [])]) or "as it was"


def _check(plan: Plan) -> None:
    edits = plan.edits
    if len(edits) != len(plan.spaces):
        raise PlanMismatch("a plan that edits one space twice")
    chained(plan.insertions)
    for tensor in plan.tensors:
        if not _checked(tensor.axes, edits):
            raise PlanMismatch(f"a plan that lists '{tensor.name}' but edits no space in it")
    for port in plan.ports:
        sizes = [layout.size(axis, plan.sizes) for axis in port.axes if axis]
        if _checked(port.axes, edits) and port.labels and len(port.labels) not in sizes:
            raise PlanMismatch(
                f"a plan that gives '{port.name}' {len(port.labels)} names; it will have {sizes[-1]} units"
            )


def _checked(axes: Sequence[layout.Layout], edits: Mapping[str, SpaceEdit]) -> bool:
    """Whether edited spaces occur in some axes; raises PlanMismatch unless they do so in the size before the edit."""
    found = [part for part in layout.units(*axes) if part.space in edits]
    for part in found:
        if part.size != edits[part.space].before:
            have, want = edits[part.space].before, part.size
            raise PlanMismatch(f"space '{part.space}' has {have} units in one place and {want} in another")
    return bool(found)
