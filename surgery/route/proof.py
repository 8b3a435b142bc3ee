"""The end of a route against its start: the plans one after the other are one change, and are judged as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from surgery.arrays import Array, Arrays
from surgery.checkpoint import Checkpoint
from surgery.edits.execute import execute
from surgery.edits.ports import grow, shrink
from surgery.errors import ClaimFailed, ProofFailed
from surgery.operate import Result
from surgery.probes import probes
from surgery.verify import Report, versions
from surgery.verify.choices import comparable
from surgery.verify.outputs import (
    FLOAT32_LIMIT,
    FLOAT64_LIMIT,
    compare_double,
    difference,
    float32_outputs,
    float32_tool,
    float64_outputs,
    noise,
)
from surgery.verify.report import Check, measured
from surgery.verify.slots import check_slots
from surgery.verify.structure import check_structure

ROWS, SLOT_ROWS = 16, 4


def end_to_end(
    results: Sequence[Result],
    before: Checkpoint,
    *,
    observations: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Report:
    """Judge a sequence of plans by their ends, in float32 as stored and in float64 before any rounding.

    The optimizer's slots are judged plan by plan.

    Args:
      results: of the plans, in order. before: what the first one was made for.
      observations: recorded inputs; random ones otherwise. seed: of those.

    Raises:
      ClaimFailed, ProofFailed: the ends differ.
    """
    inputs, after = probes(before, ROWS, seed, observations), results[-1].checkpoint
    plans = [result.plan for result in results]

    def given(arrays: Arrays) -> Arrays:
        grown = reduce(lambda x, plan: grow(plan, x, np.random.default_rng(seed)), plans, dict(arrays))
        return _complete(grown, after, seed)

    def kept(arrays: Arrays) -> Arrays:
        shrunk = reduce(lambda x, plan: shrink(plan, x), reversed(plans), dict(arrays))
        return {name: array for name, array in shrunk.items() if name in old}

    structure = check_structure(after.model, before.model)
    exact = reduce(lambda checkpoint, plan: execute(plan, checkpoint, double=True), plans, before)
    first, last, exact = comparable(before, after, exact)
    tool = float32_tool(first.model, last.model)
    old = float32_outputs(first.model, inputs, tool)
    new = kept(float32_outputs(last.model, given(inputs), tool))
    absolute, relative, worst = difference(old, new)
    exactly = float64_outputs(first.model, inputs)
    limit = max(FLOAT32_LIMIT, 4 * noise(exactly, old))
    checks = [
        structure,
        measured("outputs, float32", relative, limit, f"{tool}{', worst ' + worst if worst else ''}"),
        *compare_double(first.model, exact.model, inputs, (given, kept, dict), FLOAT64_LIMIT, exactly),
    ]
    if before.optimizer is not None:
        checks += _slots(results, before, inputs, seed)
    context = {"seed": seed, "rows": ROWS, "plans": len(plans), "versions": versions()}
    report = Report("equivalent", tuple(checks), absolute, relative, context)
    _enforce(report)
    return report


def _slots(results: Sequence[Result], before: Checkpoint, inputs: Arrays, seed: int) -> list[Check]:
    """The state that follows a plan is that of the new network, for every plan that changes some."""
    checks: list[Check] = []
    arrays = {name: array[:SLOT_ROWS] if _batched(before, name) else array for name, array in inputs.items()}
    for result in results:
        if result.plan.tensors:
            exact = execute(result.plan, before, double=True)
            checks += check_slots(result.plan, before, exact, arrays, seed)
        arrays = _complete(grow(result.plan, arrays, np.random.default_rng(seed)), result.checkpoint, seed)
        before = result.checkpoint
    return checks


def _batched(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the first axis of an input is free, and the only one that is."""
    shape = list(checkpoint.value(name).shape or ())
    free = [k for k, size in enumerate(shape) if not isinstance(size, int)]
    return free == [0]


def _complete(arrays: Arrays, after: Checkpoint, seed: int) -> Arrays:
    """Inputs that the route brought, the states of new recurrent layers, drawn at random."""
    rng, rows, out = np.random.default_rng(seed), len(next(iter(arrays.values()))), dict(arrays)
    for value in after.model.graph.inputs:
        name = str(value.name)
        if name not in out and value.shape is not None:
            dims = [size if isinstance(size, int) else rows for size in value.shape]
            out[name] = rng.standard_normal(dims).astype(np.float32)
    return out


def _enforce(report: Report) -> None:
    if report.ok:
        return
    if any("float64" in check.name or check.name == "structure" for check in report.failed):
        raise ProofFailed("the ends of the route differ, though no plan of it failed", where=report.failures)
    raise ClaimFailed(
        "the ends of the route differ by more than rounding",
        where=report.failures,
        hint="write it anyway: --no-verify",
    )
