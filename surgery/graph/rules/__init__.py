"""One small rule per operator: how the axes of its results follow from the axes of its operands."""

from __future__ import annotations

from surgery.graph.rules import (
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalise,
    recurrent,
    reduction,
    selection,
)
from surgery.graph.rules.table import Rule, Table

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **convolution.RULES,
    **normalise.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **movement.RULES,
    **selection.RULES,
    **indexing.RULES,
    **attention.RULES,
}
"""Operator type (default ONNX domain) -> rule."""

__all__ = ["RULES", "Rule", "Table"]
