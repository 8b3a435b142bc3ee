"""Spaces whose new units would each rely on the other's being zero.

Entry (j, i) of a weight W that makes units j of units i may be anything if both are new, as whoever reads the new j
starts at zero. That holds for y_j = Σᵢ W_ji x_i, where the j are still there when the i are summed over. In
Σᵢⱼ x_ij · y_ij they are not: if x is asked to be zero for new i, and y for new j, neither is zero where both are new,
and the sum changes. Then one of the two spaces cannot start at zero.
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
    relying = _relying(trace, found, consumers)
    every = leaves(*(axis for axes in trace.tensors.values() for axis in axes)) if relying else ()
    order = {root: k for k, root in enumerate(dict.fromkeys(map(find, every)))}
    given_up = set[Atom]()
    for zero, other in sorted(relying, key=lambda pair: (pair[0] in uncopied, *map(order.__getitem__, pair))):
        if not given_up & {zero, other}:
            given_up.add(zero)
            where = full_label(relying[zero, other].site.node)
            yield (
                zero,
                f"{where} multiplies its new units with those of another space, and neither would be zero",
            )


def _relying(
    trace: Trace, found: Sequence[Answer], consumers: Collection[Atom]
) -> dict[tuple[Atom, Atom], Answer]:
    """Pairs of classes, the first one asked to be zero where the second one is gone, and the reverse elsewhere."""
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
    return relying


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
        left[node, place] = frozenset(find(leaf) for leaf in leaves(*axes) if leaf not in gone)
    return left
