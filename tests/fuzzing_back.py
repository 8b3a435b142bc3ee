"""The way back: what was widened is inverted, or narrowed, and is the network that it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

import surgery
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import grow, settled
from surgery.errors import PlanMismatch, Refused
from surgery.numeric import run
from surgery.ops.unread import unread
from tests.fuzzing import Case
from tests.fuzzing_verdicts import Tally, outputs

Make = Callable[[Plan, surgery.Checkpoint], Plan]

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Relative: what the stored shares of a weight may miss of it when they are added up."""

SLOT = 1e-12
"""Relative; the slots of the fuzzer are in float64."""


def _narrow(plan: Plan, wide: surgery.Checkpoint) -> Plan:
    """To the old widths, by name."""
    gone = [edit.space for edit in plan.spaces if edit.space not in wide.analysis.by_name]
    if gone:
        raise Refused("spaces that are other ones at the new width")
    return surgery.narrow(wide, widths={edit.space: edit.before for edit in plan.spaces})


WAYS: dict[str, Make] = {
    "narrow all": lambda plan, wide: surgery.narrow(wide),
    "invert": surgery.invert,
    "narrow": _narrow,
}
"""How a widened network becomes smaller again; the first one may find more than was added."""


def back(
    case: Case, checkpoint: surgery.Checkpoint, plan: Plan, tally: Tally, way: str
) -> tuple[str, str] | None:
    """What is wrong with one way back from a checkpoint that a plan has widened, as it is stored."""
    wide = execute(plan, checkpoint)
    try:
        undo = WAYS[way](plan, wide)
    except (Refused, PlanMismatch) as refused:
        tally.refused[f"{way}: {reason(refused.message)}"] += 1
        return None
    except Exception as error:  # a refusal is the only way to say no
        return f"{way}: {type(error).__name__}", f"{error}"
    tally.back[way] += 1
    grown = replace(case, feeds=settled(undo, grow(plan, case.feeds)))
    exact, old = execute(undo, wide, double=True), run(wide.model, grown.feeds)
    wrong = outputs(grown, wide, exact, undo, old, tally) if undo.claim == "equivalent" else None
    if wrong is None and way != "narrow all":
        found = next(_differing(checkpoint, execute(undo, wide), undo), None)
        if found and (way == "invert" or not (_spare(checkpoint) or _copies_are_unread(plan, undo))):
            wrong = "restored", f"{found} is not what it was"
    return wrong and (f"{way}: {wrong[0]}", wrong[1])


def _spare(checkpoint: surgery.Checkpoint) -> bool:
    """Whether a network has units to spare of its own: which ones go is not told by the width."""
    spaces = checkpoint.analysis.spaces
    if any(unread(checkpoint.analysis, [[space] for space in spaces if not space.reasons]).values()):
        return True  # shuffled ones may have to stay
    try:
        surgery.narrow(checkpoint)
    except Refused:
        return False
    return True


def _copies_are_unread(plan: Plan, undo: Plan) -> bool:
    """Whether copies go as units that nothing reads: so is their original, and its slots say nothing."""
    return plan.arguments["init"] == "net2net" and any(
        edit.before - len(edit.source) > len(edit.merged) + len(edit.folded) for edit in undo.spaces
    )


def _differing(before: surgery.Checkpoint, after: surgery.Checkpoint, undo: Plan) -> Iterator[str]:
    """Parameters and slots that are not what they were: to the bit, or but for the rounding of shares and of ε."""
    rounded = any(edit.merged for edit in undo.spaces) or any(edit.scale != 1 for edit in undo.tensors)
    edited = {edit.name for edit in undo.tensors} | {name for name in before.tensors if "." in name}
    for name in sorted(edited & set(before.tensors)):  # a number in the graph may have been written anew
        if not _close(after.tensors.get(name), before.tensors[name], rounded * ROUNDING):
            yield f"'{name}'"
    old, new = before.optimizer, after.optimizer
    for slot, held in old.slots.items() if old and new else ():
        for name, tensor in held.items():
            if not _close(new.slots[slot].get(name), tensor, rounded * SLOT):
                yield f"{slot} of '{name}'"


def _close(one: ir.TensorProtocol | None, other: ir.TensorProtocol, limit: float) -> bool:
    if one is None or one.shape != other.shape:
        return False
    old = other.numpy().astype(np.float64)
    return bool((np.abs(one.numpy() - old) <= limit * np.abs(old)).all())


def reason(message: str) -> str:
    """A refusal's message without names and numbers, so that equal ones can be counted."""
    text = re.sub(r"^space '.*?' cannot grow (to \d+ )?exactly: ", "", message)
    text = re.sub(r"'[^']*'", "…", text)
    return re.sub(r"\d+", "#", text)[:140]
