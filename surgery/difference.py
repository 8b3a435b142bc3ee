"""What differs between two checkpoints: interface, nodes, tensors, optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.execute import constants
from surgery.errors import shape_text
from surgery.tensors import equal, shape_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One difference.

    Attributes:
      what: "input", "output", "node", "tensor", "slot", "optimizer", "environment".
      name: which one.
      before, after: what it is on each side; None where it does not exist.
    """

    what: str
    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """All differences; `same` counts the tensors whose bytes are equal."""

    entries: tuple[Entry, ...]
    same: int

    def describe(self) -> str:
        """Line by line: + only after, - only before, ~ changed."""
        if not self.entries:
            return f"no difference ({self.same} tensors with equal bytes)"
        lines = []
        for entry in self.entries:
            sign = "+" if entry.before is None else "-" if entry.after is None else "~"
            shown = " → ".join(text for text in (entry.before, entry.after) if text is not None)
            lines.append(f"{sign} {entry.what} {entry.name}: {shown}")
        return "\n".join([*lines, f"= {self.same} tensors with equal bytes"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "differences": [
                {"what": e.what, "name": e.name, "before": e.before, "after": e.after} for e in self.entries
            ],
            "equal_tensors": self.same,
        }


def diff(before: Checkpoint, after: Checkpoint) -> Difference:
    """Compare two checkpoints part by part; tensors by their bytes, streamed."""
    entries: list[Entry] = []
    for side in ("inputs", "outputs"):
        entries += _compare(side[:-1], _ports(before, side), _ports(after, side))
    entries += _compare("node", _nodes(before.model), _nodes(after.model))
    tensors, same = _tensors("tensor", constants(before.model), constants(after.model))
    slots, kept = _tensors("slot", _slots(before), _slots(after))
    entries += tensors + slots + _compare("optimizer", _settings(before), _settings(after))
    entries += _compare("environment", _environment(before), _environment(after))
    return Difference(tuple(entries), same + kept)


def _compare(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[Entry]:
    names = dict.fromkeys([*before, *after])
    return [Entry(what, n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def _tensors(
    what: str, before: Mapping[str, ir.TensorProtocol], after: Mapping[str, ir.TensorProtocol]
) -> tuple[list[Entry], int]:
    entries, same = [], 0
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and shape_of(old) == shape_of(new) and old.dtype == new.dtype:
            if equal(old, new):
                same += 1
            else:
                entries.append(Entry(what, name, _tensor(old), f"other values{_apart(old, new)}"))
        else:
            entries.append(Entry(what, name, _tensor(old), _tensor(new)))
    return entries, same


def _tensor(tensor: ir.TensorProtocol | None) -> str | None:
    if tensor is None:
        return None
    return f"{tensor.dtype.name.lower()} {shape_text(shape_of(tensor))}"


def _apart(old: ir.TensorProtocol, new: ir.TensorProtocol) -> str:
    if not old.dtype.is_floating_point():
        return ""
    return f", max |Δ| {np.abs(old.numpy().astype(np.float64) - new.numpy()).max():.2g}"


def _ports(checkpoint: Checkpoint, side: str) -> dict[str, str]:
    kinds = {port.name: port.kind for port in getattr(checkpoint.interface, side)}
    found = {}
    for value in getattr(checkpoint.model.graph, side):
        shape = shape_text(value.shape or ())
        found[value.name or ""] = f"{kinds.get(value.name or '', '?')} {shape}"
    return found


def _nodes(model: ir.Model) -> dict[str, str]:
    found = {}
    for node in model.graph:
        if node.op_type == "Constant":
            continue
        inputs = ", ".join(value.name or "" if value is not None else "" for value in node.inputs)
        attributes = ", ".join(
            f"{name}={attribute.value}" for name, attribute in sorted(node.attributes.items())
        )
        found[node.outputs[0].name or ""] = (
            f"{node.op_type}({inputs}){' ' + attributes if attributes else ''}"
        )
    return found


def _slots(checkpoint: Checkpoint) -> dict[str, ir.TensorProtocol]:
    state = checkpoint.optimizer
    return {f"{slot}/{name}": t for slot, m in state.slots.items() for name, t in m.items()} if state else {}


def _settings(checkpoint: Checkpoint) -> dict[str, str]:
    state = checkpoint.optimizer
    if state is None:
        return {}
    groups = {
        f"group {k}": f"{len(g.parameters)} parameters, {dict(g.hyper)}" for k, g in enumerate(state.groups)
    }
    counts = sorted(set(state.steps.values()))
    steps = (
        {"steps": " to ".join(f"{count:,.0f}" for count in dict.fromkeys((counts[0], counts[-1])))}
        if counts
        else {}
    )
    return {"kind": state.kind, **groups, **steps}


def _environment(checkpoint: Checkpoint) -> dict[str, str]:
    record = checkpoint.environment.to_json()
    return {name: repr(value) for name, value in record.items()} if isinstance(record, Mapping) else {}
