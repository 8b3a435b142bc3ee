"""Two models whose recurrent states differ in size: the same outputs, step by step, from states at rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from surgery.arrays import Arrays
from surgery.checkpoint import Checkpoint
from surgery.errors import GraphError
from surgery.numeric import Unsupported
from surgery.probes import probes
from surgery.verify.choices import comparable
from surgery.verify.judge import ROWS, Recorded, context, limit_of, worst_text
from surgery.verify.outputs import (
    KL_LIMIT,
    UnfitGraph,
    difference,
    float32_outputs,
    float32_tool,
    float64_outputs,
    noise,
    policy_checks,
)
from surgery.verify.report import Report, measured
from surgery.verify.structure import check_structure

STEPS = 8
"""Observations that follow each other in a comparison."""


def judge_over_time(
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
            "the models cannot be evaluated, so nothing can be proved about them", where={tool: error}
        ) from None
    exactly, other = exactly_over_time(before, steps), exactly_over_time(after, grown)
    absolute, relative, worst = difference(old, new)
    floor = noise(exactly, old)
    limit = limit_of("equivalent", floor)
    where = f"{STEPS} steps from states at rest; {tool}; own rounding {floor:.1e}{worst_text(worst)}"
    checks = [structure, measured("outputs, float32", relative, limit, where)]
    if not isinstance(exactly, Unsupported) and not isinstance(other, Unsupported):
        checks.append(measured("outputs, float64", difference(exactly, other)[1], limit))
    checks += policy_checks(before, old, new, KL_LIMIT)
    return Report("equivalent", tuple(checks), absolute, relative, context(seed, observations))


def outputs_over_time(
    checkpoint: Checkpoint, inputs: Sequence[Arrays], evaluate: Callable[[Arrays], Arrays]
) -> Arrays:
    """What a model gives for observations that follow each other, beside its states.

    Args:
      checkpoint: says which inputs and outputs are states.
      inputs: of each step; of the states only the shapes, which begin at zero.
      evaluate: the model.

    Returns:
      output name -> the steps' outputs one behind the other, rows first.
    """
    states = checkpoint.interface.states()
    held = {name: np.zeros_like(inputs[0][name]) for name in states}
    found: list[Arrays] = []
    for given in inputs:
        outputs = evaluate({**given, **held})
        held = {name: outputs.pop(output) for name, output in states.items()}
        found.append(outputs)
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def exactly_over_time(checkpoint: Checkpoint, inputs: Sequence[Arrays]) -> Arrays | Unsupported:
    """The same in float64, or the reason why it cannot be told."""

    def evaluate(given: Arrays) -> Arrays:
        found = float64_outputs(checkpoint.model, given)
        if isinstance(found, Unsupported):
            raise found
        return dict(found)

    try:
        return outputs_over_time(checkpoint, inputs, evaluate)
    except Unsupported as reason:
        return reason
