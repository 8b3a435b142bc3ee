"""Two models whose recurrent states differ in size: the same outputs, step by step, from states at rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from surgery.checkpoint import Checkpoint
from surgery.numeric import Unsupported
from surgery.probes import Arrays
from surgery.verify.outputs import float64_outputs

STEPS = 8
"""Observations that follow each other in a comparison."""


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
