"""A result beside what it was made from: the same inputs through both, and what comes out of them compared."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array, Arrays
from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Claim, Plan
from surgery.edits.ports import settled
from surgery.errors import GraphError
from surgery.graph.layout import units
from surgery.probes import probes
from surgery.verify.choices import comparable
from surgery.verify.new_actions import NewActions, taken
from surgery.verify.outputs import (
    FLOAT32_LIMIT,
    FLOAT64_LIMIT,
    KL_LIMIT,
    UnfitGraph,
    compare_double,
    difference,
    float32_outputs,
    float32_tool,
    float64_outputs,
    magnitude,
    noise,
    policy_checks,
)
from surgery.verify.report import Check, Report, measured
from surgery.verify.slots import check_slots
from surgery.verify.structure import check_structure

ROWS = {"outputs": 16, "slots": 4}
"""Numbers of observations that each comparison runs on."""

UNCHANGED = Plan("verify", {}, "equivalent", (), (), ())
"""The plan that changes nothing."""

Recorded = Mapping[str, Array]


def judge(
    plan: Plan,
    before: Checkpoint,
    after: Checkpoint,
    exact: Checkpoint | None,
    *,
    observations: Recorded | None,
    seed: int,
) -> Report:
    """Compare a result with what a plan has made it from.

    Args:
      exact: the result in float64, before rounding, to judge optimizer slots by, too; None: two files, which have been
        rounded already.
    """
    actions = NewActions.of(plan, before)
    inputs = settled(plan, probes(before, ROWS["outputs"], seed, observations))
    structure = check_structure(after.model, before.model)
    first, last, unrounded = comparable(
        before, after, exact or after, values=actions.entries, apart=actions.made
    )
    old, tool = _before(first, last, inputs)
    try:
        new = float32_outputs(last.model, actions.grown(inputs, seed), tool)
    except UnfitGraph as error:
        return _unfit(plan.claim, structure, error, context(seed, observations))
    exactly = float64_outputs(first.model, inputs)
    floor = noise(exactly, old)
    limit = limit_of(plan.claim, floor + _cancelled(plan, old))
    had, has = actions.common(old), actions.shrunk(new)
    absolute, relative, worst = difference(had, has)
    strict = plan.claim != "changed"
    double = None if not strict else limit if exact is None else FLOAT64_LIMIT
    carry = (lambda arrays: actions.grown(arrays, seed)), actions.shrunk, actions.common
    checks = [
        structure,
        measured("outputs, float32", relative, limit, f"{tool}; own rounding {floor:.1e}{worst_text(worst)}"),
        *compare_double(first.model, unrounded.model, inputs, carry, double, exactly),
        *policy_checks(first, had, has, KL_LIMIT if strict else None),
        *actions.checks(old, new),
        *taken(plan, last, new),
    ]
    if exact is not None and strict and before.optimizer is not None:
        rows = _rows(first.model, inputs, ROWS["slots"])
        checks += check_slots(actions.plan, first, unrounded, rows, seed, apart=actions.apart)
    return Report(
        plan.claim, tuple(checks), absolute, relative, context(seed, observations), apart=actions.counted
    )


def _unfit(claim: Claim, structure: Check, error: UnfitGraph, context: Mapping[str, Any]) -> Report:
    """The report on a result that cannot be evaluated, where what it was made from can."""
    why = f"cannot be evaluated: {error}"
    structure = Check("structure", False, 1.0, 0.0, why) if structure.ok else structure
    broken = Check("outputs, float32", False, float("inf"), 0.0, why)
    return Report(claim, (structure, broken), float("inf"), float("inf"), context)


def limit_of(claim: Claim, floor: float) -> float | None:
    """How far the float32 outputs may lie apart: not a bit, or as far as rounding takes them."""
    return {"identical": 0.0, "equivalent": max(FLOAT32_LIMIT, 4 * floor), "changed": None}[claim]


def _cancelled(plan: Plan, outputs: Arrays) -> float:
    """Rounding, relative, of logits that are moved by −log n and back when a probability is split."""
    found = 0.0
    for port in plan.ports:
        spaces = {part.space for part in units(*port.axes)}
        starts = [edit.start for edit in plan.spaces if edit.start is not None and edit.space in spaces]
        moved = max((abs(start.bias) for start in starts if start.kind == "split"), default=0.0)
        if moved and port.name in outputs:
            largest = magnitude(outputs[port.name]) or 1.0
            found = max(found, float(np.finfo(np.float32).eps) * moved / largest)
    return found


def _before(before: Checkpoint, after: Checkpoint, inputs: Arrays) -> tuple[Arrays, str]:
    """The outputs to compare with, and what computed them: our evaluator where onnxruntime lacks an operator."""
    tool = float32_tool(before.model, after.model)
    try:
        return float32_outputs(before.model, inputs, tool), tool
    except UnfitGraph as first:
        try:
            return float32_outputs(before.model, inputs, "numpy"), "numpy"
        except UnfitGraph as second:
            raise GraphError(
                "the model cannot be evaluated, so nothing can be proved about it",
                where={"onnxruntime": first, "numpy": second},
                hint="change it without a proof with --no-verify",
            ) from None


def context(seed: int, observations: Recorded | None) -> dict[str, Any]:
    """What is needed to repeat a comparison."""
    return {
        "seed": seed,
        "rows": dict(ROWS),
        "observations": "recorded" if observations else "random",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What a witness was made with."""
    return {name: version(name) for name in ("policy-surgery", "numpy", "onnx", "onnx-ir", "onnxruntime")}


def _rows(model: ir.Model, arrays: Arrays, count: int) -> Arrays:
    """The first rows of arrays that all have the same number of them, and may have any; others are left whole."""
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(lengths) != 1 or any(value.shape and isinstance(value.shape[0], int) for value in inputs):
        return dict(arrays)
    return {name: array[:count] for name, array in arrays.items()}


def worst_text(name: str) -> str:
    return f", worst '{name}'" if name else ""
