"""What actions have a part in that a plan adds, or takes back: it is measured, and what it is made from is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from surgery.arrays import Arrays
from surgery.checkpoint import Checkpoint
from surgery.edits.parts import PortEdit
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, kept, shrink
from surgery.edits.units import SpaceEdit
from surgery.graph.choices import answers
from surgery.graph.layout import units
from surgery.graph.spaces import Space
from surgery.verify.choices import shown
from surgery.verify.outputs import difference, log_softmax
from surgery.verify.report import Check, measured

_ACTING = ("extend", "adapt", "invert")
"""Operations that may change the number or the order of actions."""


@dataclass(frozen=True)
class NewActions:
    """What the actions have a part in that a plan adds, or takes back: it is measured, and not compared.

    Attributes:
      plan: with the scores behind choices as outputs of the model.
      numbers: output that holds the number of an action -> the edit of its actions.
      counted: outputs that all actions have a part in.
      entries: the names of the values that these are made from, which are compared; made: of those made of them.
    """

    plan: Plan
    numbers: Mapping[str, SpaceEdit]
    counted: tuple[str, ...]
    entries: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    @staticmethod
    def of(plan: Plan, before: Checkpoint) -> NewActions:
        """Of a plan, which may have none, for the checkpoint that it was made for."""
        if plan.operation not in _ACTING:
            return NewActions(plan, {}, ())
        analysis = before.analysis
        edits = [edit for edit in plan.spaces if _compared(analysis.space(edit.space))]
        all_made = [answers(analysis, analysis.space(edit.space), before.interface) for edit in edits]
        numbers = {name: edit for edit, made in zip(edits, all_made, strict=True) for name in made.numbers}
        counted, entries, inside = (
            tuple(dict.fromkeys(name for made in all_made for name in getattr(made, kind)))
            for kind in ("counted", "entries", "made")
        )
        ports = [
            PortEdit(
                "output", name, tuple(analysis.layout(axis) for axis in analysis.trace.described(value) or ())
            )
            for name, value in shown(analysis.model, entries, inside).items()
        ]
        return NewActions(replace(plan, ports=(*plan.ports, *ports)), numbers, counted, entries, inside)

    @property
    def apart(self) -> tuple[str, ...]:
        """The outputs that are not compared."""
        return (*self.numbers, *self.counted)

    def grown(self, inputs: Arrays, seed: int) -> Arrays:
        """Inputs of the old model as inputs of the new one, whatever new ones hold."""
        return grow(self.plan, inputs, np.random.default_rng(seed))

    def shrunk(self, outputs: Arrays) -> Arrays:
        """The new model's outputs as those of the old one, without what is not compared."""
        return self._without(shrink(self.plan, outputs))

    def common(self, outputs: Arrays) -> Arrays:
        """The part of the old model's outputs that is compared."""
        return self._without(kept(self.plan, outputs))

    def _without(self, arrays: Arrays) -> Arrays:
        return {name: array for name, array in arrays.items() if name not in self.apart}

    @property
    def _split(self) -> bool:
        return any(edit.start is not None and edit.start.kind == "split" for edit in self.plan.spaces)

    def checks(self, before: Arrays, after: Arrays) -> list[Check]:
        """That no old action is chosen in place of another one; how often new ones are, and what else changes."""
        found = []
        for name, edit in self.numbers.items():
            old, new = before[name].astype(np.int64), after[name].astype(np.int64)
            place = np.clip(new, 0, edit.after - 1)
            fresh = edit.is_fresh[place]
            was = np.where(fresh | (new >= edit.after), new, np.array(edit.source)[place])
            other = (fresh & (old != was)) | ((old < edit.before) & ~np.isin(old, edit.source))
            wrong = int(((old != was) & ~other).sum())
            detail = f"{wrong} of {old.size} differ; {other.sum()} are new or gone"
            found.append(measured(f"actions of '{name}'", wrong, 0.0, detail))
        shrunk, had = shrink(self.plan, after), kept(self.plan, before)
        for name in self.counted:
            if name in {port.name for port in self.plan.ports} and self._split:
                continue  # a copy has less of what the old one had
            change = difference({name: had[name]}, shrunk)[1]
            detail = "computed from all actions, including new ones"
            found.append(measured(f"change of '{name}'", change, None, detail))
        return found


def taken(plan: Plan, after: Checkpoint, outputs: Arrays) -> list[Check]:
    """What the policy does with actions that a plan has added: how often they are greedy, and how likely."""
    checks = []
    starts = {edit.space: edit for edit in plan.spaces if edit.start is not None}  # an operation on actions
    for edit in (port for port in plan.ports if port.side == "output"):
        found = [part.space for part in units(edit.axes[-1]) if part.space in starts] if edit.axes else []
        kind = after.interface.output(edit.name).kind
        if not found or len(edit.axes[-1]) != 1 or kind not in ("q_values", "logits", "probabilities"):
            continue
        fresh, values = starts[found[0]].added, outputs[edit.name].astype(np.float64)
        greedy = float(fresh[values.argmax(-1)].mean())
        checks.append(measured(f"new actions of '{edit.name}', greedy", greedy, None, "share of the rows"))
        if kind != "q_values":
            each = np.exp(log_softmax(values)) if kind == "logits" else values
            likely = float(each[..., fresh].sum(-1).mean())
            checks.append(
                measured(f"new actions of '{edit.name}', sampled", likely, None, "mean probability")
            )
    return checks


def _compared(space: Space) -> bool:
    """Whether nodes compare its units with each other, which are no layer's own."""
    compared = space.extreme is not None or any(why.node is not None for why in space.freezes)
    return bool(space.freezes) and compared and not space.indexed
