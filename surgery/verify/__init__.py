"""Judge a result against what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Claim, Plan
from surgery.edits.ports import grow, kept, settled, shrink
from surgery.errors import ArgumentError, GraphError, shape_text
from surgery.graph.layout import units
from surgery.numeric import Unsupported
from surgery.probes import Arrays, probes
from surgery.verify.choices import comparable
from surgery.verify.new_actions import NewActions
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
    new_actions,
    noise,
    policy_checks,
)
from surgery.verify.over_time import STEPS, exactly_over_time, outputs_over_time
from surgery.verify.report import Check, Report, measured
from surgery.verify.slots import check_slots
from surgery.verify.structure import check_structure

ROWS = {"outputs": 16, "slots": 4}
"""Numbers of observations that each comparison runs on."""

Shape = tuple[int | None, ...]
Recorded = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def verify(
    before: Checkpoint, after: Checkpoint, *, observations: Recorded | None = None, seed: int = 0
) -> Report:
    """Compare two models that should be the same function.

    Recurrent states of other sizes (the models were made wider) begin at zero, and the models are compared over
    `STEPS` observations.

    Args:
      before, after: models with the same inputs and outputs, but for the sizes of recurrent states.
      observations: recorded inputs by name, rows first; random ones in the declared range otherwise.
      seed: of the inputs.

    Returns:
      The report; `ok` says whether they are equal within rounding.

    Raises:
      ArgumentError: if their inputs or outputs differ.
    """
    if _same_interfaces(before, after):
        return _judge(before, after, after, None, observations, seed)
    return _judge_over_time(before, after, observations, seed)


def prove(
    plan: Plan,
    before: Checkpoint,
    after: Checkpoint,
    exact: Checkpoint,
    *,
    observations: Recorded | None,
    seed: int,
) -> Report:
    """Judge the result of a plan, its optimizer slots included.

    Args:
      after: the result as it would be stored.
      exact: the result in float64, before rounding.
    """
    return _judge(before, after, exact, plan, observations, seed)


def _judge(
    before: Checkpoint,
    after: Checkpoint,
    exact: Checkpoint,
    plan: Plan | None,
    observations: Recorded | None,
    seed: int,
) -> Report:
    claim: Claim = plan.claim if plan else "equivalent"
    strict = claim != "changed"
    inputs = probes(before, ROWS["outputs"], seed, observations)
    inputs = settled(plan, inputs) if plan else inputs
    grown = (lambda arrays: grow(plan, arrays, np.random.default_rng(seed))) if plan else dict
    new_ones = NewActions.of(plan, before) if plan else None
    shrunk = (lambda arrays: new_ones.without(shrink(new_ones.plan, arrays))) if new_ones else dict
    common = (lambda arrays: new_ones.without(kept(new_ones.plan, arrays))) if new_ones else dict
    structure = check_structure(after.model, before.model)
    shown = (new_ones.entries, new_ones.made) if new_ones else ((), ())
    before, after, exact = comparable(before, after, exact, values=shown[0], apart=shown[1])
    old, tool = _before(before, after, inputs)
    try:
        found = float32_outputs(after.model, grown(inputs), tool)
    except UnfitGraph as error:
        why = f"cannot be evaluated: {error}"
        structure = Check("structure", False, 1.0, 0.0, why) if structure.ok else structure
        broken = Check("outputs, float32", False, float("inf"), 0.0, why)
        return Report(claim, (structure, broken), float("inf"), float("inf"), _context(seed, observations))
    exactly = float64_outputs(before.model, inputs)
    floor = noise(exactly, old)
    counted = new_ones.checks(old, found) if new_ones else []
    old, new = common(old), shrunk(found)
    absolute, relative, worst = difference(old, new)
    limit = _limit(claim, floor + (_cancelled(plan, old) if plan else 0.0))
    checks = [
        structure,
        measured("outputs, float32", relative, limit, f"{tool}; own rounding {floor:.1e}{_worst(worst)}"),
    ]
    # two files have been rounded already: only a plan can be judged before rounding
    double = (FLOAT64_LIMIT if plan else limit) if strict else None
    checks += compare_double(before.model, exact.model, inputs, (grown, shrunk, common), double, exactly)
    checks += policy_checks(before, old, new, KL_LIMIT if strict else None)
    checks += [*counted, *new_actions(plan, after, found)] if plan else []
    if new_ones is not None and strict and before.optimizer is not None:
        rows = _rows(before.model, inputs, ROWS["slots"])
        checks += check_slots(new_ones.plan, before, exact, rows, seed, apart=new_ones.apart)
    return Report(
        claim, tuple(checks), absolute, relative, _context(seed, observations),
        apart=new_ones.counted if new_ones else (),
    )  # fmt: skip


def _judge_over_time(
    before: Checkpoint, after: Checkpoint, observations: Recorded | None, seed: int
) -> Report:
    """Compare models whose states differ in size, each beginning with its own at zero."""
    steps = [probes(before, ROWS["outputs"], seed + step, observations) for step in range(STEPS)]
    states = probes(after, ROWS["outputs"], seed)
    grown = [{**step, **{name: states[name] for name in after.interface.states()}} for step in steps]
    structure = check_structure(after.model, before.model)
    before, after = comparable(before, after)
    sides = (before, steps), (after, grown)
    tool = float32_tool(before.model, after.model)
    try:
        old, new = (
            outputs_over_time(*side, partial(float32_outputs, side[0].model, tool=tool)) for side in sides
        )
    except UnfitGraph as error:
        raise GraphError(
            "the models cannot be evaluated, so nothing can be said of them", where={tool: error}
        ) from None
    exactly, other = exactly_over_time(before, steps), exactly_over_time(after, grown)
    absolute, relative, worst = difference(old, new)
    floor = noise(exactly, old)
    limit = _limit("equivalent", floor)
    where = f"{STEPS} steps from states at rest; {tool}; own rounding {floor:.1e}{_worst(worst)}"
    checks = [structure, measured("outputs, float32", relative, limit, where)]
    if not isinstance(exactly, Unsupported) and not isinstance(other, Unsupported):
        checks.append(measured("outputs, float64", difference(exactly, other)[1], limit))
    checks += policy_checks(before, old, new, KL_LIMIT)
    return Report("equivalent", tuple(checks), absolute, relative, _context(seed, observations))


def _limit(claim: Claim, floor: float) -> float | None:
    """How far the float32 outputs may lie apart: not a bit, or as far as rounding takes them."""
    return {"identical": 0.0, "equivalent": max(FLOAT32_LIMIT, 4 * floor), "changed": None}[claim]


def _cancelled(plan: Plan, outputs: Arrays) -> float:
    """Rounding, relative, of logits that are moved by −log n and back when a probability is split."""
    found = 0.0
    for port in plan.ports:
        spaces = {part.space for axis in port.axes for part in units(axis)}
        starts = [edit.start for edit in plan.spaces if edit.start is not None and edit.space in spaces]
        moved = max((abs(start.bias) for start in starts if start.kind == "split"), default=0.0)
        if moved and port.name in outputs:
            largest = float(np.abs(outputs[port.name]).max(initial=0.0))
            found = max(found, float(np.finfo(np.float32).eps) * moved / (largest or 1.0))
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
                "the model cannot be evaluated, so nothing can be proved of it",
                where={"onnxruntime": first, "numpy": second},
                hint="change it without a proof with --no-verify",
            ) from None


def _context(seed: int, observations: Recorded | None) -> dict[str, Any]:
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


def _worst(name: str) -> str:
    return f", worst '{name}'" if name else ""


def _same_interfaces(before: Checkpoint, after: Checkpoint) -> bool:
    """Whether all sizes are the same; false if those of recurrent states are not.

    Raises:
      ArgumentError: others are not, either.
    """
    same = True
    for side in ("inputs", "outputs"):
        old = [(p.name, _shape(before, side, p.name)) for p in getattr(before.interface, side)]
        new = [(p.name, _shape(after, side, p.name)) for p in getattr(after.interface, side)]
        same &= old == new
        states = [
            {p.name for p in getattr(each.interface, side) if p.kind == "state"} for each in (before, after)
        ]
        if _beside(old, states[0]) != _beside(new, states[1]):
            raise ArgumentError(
                f"the models have different {side}",
                where={"before": _text(old), "after": _text(new)},
                hint="surgery diff shows what differs",
            )
    return same


def _beside(ports: list[tuple[str, Shape]], states: set[str]) -> list[tuple[str, Shape | int]]:
    """Names and shapes; of states the rank alone."""
    return [(name, len(shape) if name in states else shape) for name, shape in ports]


def _shape(checkpoint: Checkpoint, side: str, name: str) -> Shape:
    value = next(v for v in getattr(checkpoint.model.graph, side) if v.name == name)
    return tuple(d if isinstance(d, int) else None for d in value.shape or ())


def _text(ports: list[tuple[str, Shape]]) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in ports)


__all__ = ["Check", "Report", "prove", "verify", "versions"]
