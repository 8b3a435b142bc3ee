"""Whole cases, drawn from a seed and a number."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tests import (
    fuzzing_layers,
    fuzzing_motifs,
    fuzzing_movement,
    fuzzing_nets,
    fuzzing_operators,
    fuzzing_rare,
)
from tests.fuzzing import Case, Unfit, finished, sketch
from tests.fuzzing_operators import DRAWINGS, Drawing

DRAWN_BY = (fuzzing_operators, fuzzing_layers, fuzzing_movement, fuzzing_motifs, fuzzing_nets, fuzzing_rare)
"""Importing them fills DRAWINGS."""


def drawings(operators: Collection[str] = ()) -> list[Drawing]:
    """All drawings, or those that may add one of these operators, and layers to go with them."""
    if not operators:
        return DRAWINGS
    layers = frozenset(["Gemm", "MatMul", "Relu"])
    return [d for d in DRAWINGS if d.operators & set(operators) or d.operators <= layers]


def draw(seed: int, number: int, operators: Collection[str] = ()) -> Case | None:
    """A random graph with inputs; None if it came out invalid, or without one of the operators."""
    rng = np.random.default_rng([seed, number])
    s, options = sketch(rng), drawings(operators)
    shares = np.array([d.share for d in options])
    try:
        fuzzing_motifs.begin(s)
    except Unfit:
        return None
    for _ in range(int(rng.integers(3, 22))):
        try:
            with s.attempt():
                options[int(rng.choice(len(options), p=shares / shares.sum()))].draw(s)
        except Unfit:
            continue
    fuzzing_motifs.end(s)
    s.outputs = list(dict.fromkeys(s.outputs))
    case = finished(s, seed, number)
    return case if case and (not operators or case.operators & set(operators)) else None
