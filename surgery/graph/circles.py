"""Zeros that would rely on each other.

What a fresh unit makes of a fresh unit need not be zero: entry (j, i) of a weight that makes units j of units i may be
anything if both are fresh, as those who read the j-th unit start at zero. That holds where the j are still there when
the i are summed over. Where they are not, in Σᵢⱼ xᵢⱼ · yᵢⱼ say, one operand must be zero for all fresh i and for all
fresh j. If x is asked for the i and y for the j, neither is zero where both are fresh.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from surgery.graph.atoms import Atom, Axis, factors, find, leaves, summands
from surgery.graph.demands import Answer
from surgery.graph.labels import full_label
from surgery.graph.trace import Trace

Classes = frozenset[Atom]


def circles(
    trace: Trace, found: Sequence[Answer], consumers: Collection[Atom], uncopied: Collection[Atom]
) -> Iterator[tuple[Atom, str]]:
    """Classes whose new units cannot be zero beside those of another class, and why.

    Args:
      found: who answers where. consumers: the occurrences that are zero.
      uncopied: classes that cannot grow by copies; they are spared where another one can be given up.
    """
    made = {leaf: beside for axes in trace.tensors.values() for leaf, beside in _made(axes, consumers)}
    pairs = {(find(leaf), other) for leaf, beside in made.items() for other in beside}
    relying: dict[tuple[Atom, Atom], Answer] = {}
    left = _left(trace)
    for answer in found:
        still = left[answer.site.node, answer.site.operands[answer.side]]
        for leaf in answer.demand.parameters:
            for other in made.get(leaf, frozenset()) - still:
                if (other, find(leaf)) in pairs and not (leaf.frozen or other.frozen):
                    relying.setdefault((find(leaf), other), answer)
    order = {leaf: k for k, leaf in enumerate(dict.fromkeys(map(find, _leaves(trace))))} if relying else {}
    given_up = set[Atom]()
    for zero, other in sorted(relying, key=lambda pair: (pair[0] in uncopied, *map(order.__getitem__, pair))):
        if not given_up & {zero, other}:
            answer = relying[zero, other]
            given_up.add(zero)
            where = full_label(answer.site.node)
            yield zero, f"{where} sums over it where others are gone that another operand makes zero"


def _leaves(trace: Trace) -> Iterator[Atom]:
    return (leaf for axes in trace.tensors.values() for axis in axes for leaf in leaves(axis))


def _made(axes: Sequence[Axis], consumers: Collection[Atom]) -> Iterator[tuple[Atom, Classes]]:
    """The consumers in a tensor, and the classes whose units the same entries make."""
    own = [frozenset(find(leaf) for leaf in leaves(axis) if leaf not in consumers) for axis in axes]
    for k, axis in enumerate(axes):
        others = frozenset[Atom]().union(*own[:k], *own[k + 1 :])
        yield from _made_in(axis, consumers, others)


def _made_in(axis: Axis, consumers: Collection[Atom], beside: Classes) -> Iterator[tuple[Atom, Classes]]:
    parts = factors(axis)
    own = [frozenset(find(leaf) for leaf in leaves((part,)) if leaf not in consumers) for part in parts]
    for k, part in enumerate(parts):
        others = beside.union(*own[:k], *own[k + 1 :])
        if part in consumers:
            yield part, others
        for inner in (*map(tuple, summands(part)), *(part.woven or [])):
            yield from _made_in(inner, consumers, others)


def _left(trace: Trace) -> dict[tuple[ir.Node, int | None], Classes]:
    """The classes of units that are still there, in an input of a node, after all that is summed over there."""
    mixed: dict[tuple[ir.Node, int | None], set[Atom]] = {}
    for site in trace.sites:
        for place, axis in zip(site.operands, site.axes, strict=True):
            mixed.setdefault((site.node, place), set()).update(leaves(axis))
    left = {}
    for (node, place), gone in mixed.items():
        value = None if place is None else node.inputs[place]
        axes = [] if value is None else trace.known(value)
        left[node, place] = frozenset(
            find(leaf) for axis in axes for leaf in leaves(axis) if leaf not in gone
        )
    return left
