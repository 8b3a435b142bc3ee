"""Walk a graph once, in order: facts first, then the operator's rule, then a check of one against the other."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from surgery.errors import ArgumentError
from surgery.graph.atoms import Atom, Freeze, Mismatch, find, freeze, leaves, size_of
from surgery.graph.axes import unify
from surgery.graph.facts import Facts
from surgery.graph.labels import full_label, label
from surgery.graph.operands import operands, reads
from surgery.graph.prepare import prepared
from surgery.graph.rules import RULES
from surgery.graph.singles import follows, is_single, may_grow, one_each
from surgery.graph.symbols import bound
from surgery.graph.trace import Opaque, Trace
from surgery.graph.unknown import unknown_shape
from surgery.interface import Interface


def walk(model: ir.Model, interface: Interface, sizes: Mapping[str, int] | None = None) -> Trace:
    """Describe every axis of every value of a graph.

    Where a node needs two symbolic sizes to be equal, they are, and the graph is walked again.

    Args:
      model: any valid graph; functions must have been inlined.
      interface: says which inputs and outputs are recurrent state, which may grow.
      sizes: of symbolic dimensions, by name, as far as they are known.

    Returns:
      The trace; what no rule describes is frozen in it, with the node's name.

    Raises:
      GraphError: if an input has no shape or an axis of size 0.
    """
    known = dict(sizes or {})
    while True:
        trace = _walk(model, interface, known)
        more = bound(trace.facts.symbols, known, trace.equations)
        if more == known:
            return trace
        known = more


def lengths(model: ir.Model, interface: Interface, wanted: Mapping[str, int]) -> dict[str, int]:
    """Sizes of symbolic dimensions, by name, with which a graph can be run.

    Args:
      wanted: a size for every symbol; those that the graph derives from others, or fixes, get that size instead.
    """
    if len(wanted) < 2:
        return dict(wanted)
    model = prepared(model)
    derived = walk(model, interface).facts.sizes
    if not derived:
        return dict(wanted)
    free = {name: size for name, size in wanted.items() if name not in derived}
    return dict(wanted) | walk(model, interface, free).facts.sizes


def _walk(model: ir.Model, interface: Interface, sizes: Mapping[str, int]) -> Trace:
    trace = Trace(Facts(model, sizes=sizes))
    states = {port.name for port in (*interface.inputs, *interface.outputs) if port.kind == "state"}
    for value in model.graph.inputs:
        if value not in trace.facts.constant:
            _interface(trace, value, value.name in states)
    for node in model.graph:
        trace.facts.step(node)
        if all(value in trace.facts.known for value in node.outputs) and not _made_of_one(trace, node):
            _as_lengths(trace, node)
            _measured(trace, node)
            continue
        if node.op_type == "Constant" and not node.domain:
            continue
        _describe(trace, node)
    for value in model.graph.outputs:
        _output(trace, value, value.name in states)
    _pair(trace, interface)
    _freeze_unpaired(trace, states)
    return trace


def _made_of_one(trace: Trace, node: ir.Node) -> bool:
    """Whether a node computes one known number from parameters that may get company (an exponent of a deviation)."""
    values = [v for v in operands(node) if set(trace.facts.shapes.get(v) or ()) == {1}]
    return follows(node) and any(
        may_grow(value) if value.producer() is None else any(map(is_single, trace.described(value) or ()))
        for value in values
    )


def _interface(trace: Trace, value: ir.Value, state: bool) -> None:
    axes = []
    for k, n in enumerate(trace.shape(value)):
        if trace.facts.symbolic(value, k):
            axes.append(trace.fixed(n, "symbolic", f"axis {k} of input '{value.name}' is symbolic"))
        elif state:
            axes.append(trace.new(n))
        elif n == 1 and k:
            axes.append((Atom(1, single=True),))
            freeze(axes[-1], Freeze("input", f"axis {k} of input '{value.name}'"))
        else:
            axes.append(trace.fixed(n, "input", f"axis {k} of input '{value.name}'"))
    trace.ports.append(("input", value.name or "", axes))
    trace.put(value, axes)


def _output(trace: Trace, value: ir.Value, state: bool) -> None:
    if trace.sequence(value) is not None:
        for axis in trace.touched(value):
            freeze(axis, Freeze("output", f"a member of output '{value.name}'"))
        return
    try:
        axes = trace.axes(value)
    except Opaque:
        return
    trace.ports.append(("output", value.name or "", axes))
    if state:
        return
    trace.freeze_measured(value)
    for k, axis in enumerate(axes):
        freeze(axis, Freeze("output", f"axis {k} of output '{value.name}'"))
        if k == 0 and len(axes) > 1 and size_of(axis) == 1:
            freeze(axis, Freeze("single", f"axis 0 of output '{value.name}' counts samples"))


def _pair(trace: Trace, interface: Interface) -> None:
    """What comes out of a step goes into the next one: unit for unit, in the same order (a shifted history is not)."""
    try:
        pairs = interface.states()
    except ArgumentError:
        return
    ports = {(side, name): axes for side, name, axes in trace.ports}
    for given, result in pairs.items():
        ends = ports.get(("input", given), []), ports.get(("output", result), [])
        if [size_of(axis) for axis in ends[0]] != [size_of(axis) for axis in ends[1]]:
            continue
        for axes in zip(*ends, strict=True):
            try:
                unify(*axes)
            except Mismatch as mismatch:
                why = Freeze(
                    "mismatch", f"{mismatch}, as the state '{given}' goes in and comes out as '{result}'"
                )
                freeze(axes[0], why)
                freeze(axes[1], why)


def _freeze_unpaired(trace: Trace, states: set[str]) -> None:
    """A state that goes in must come out again: units on one side alone keep their number."""
    sides = {
        side: {
            find(leaf)
            for own, name, axes in trace.ports
            if own == side and name in states
            for leaf in leaves(*axes)
        }
        for side in ("input", "output")
    }
    for side, name, axes in trace.ports:
        for k, axis in enumerate(axes if name in states else ()):
            for leaf in leaves(axis):
                if not all(find(leaf) in classes for classes in sides.values()):
                    freeze((leaf,), Freeze(side, f"axis {k} of {side} '{name}'"))


def _describe(trace: Trace, node: ir.Node) -> None:
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is None:
        _give_up(
            trace, node, f"no rule for operator {node.domain + '.' if node.domain else ''}{node.op_type}"
        )
        return
    trace.node = None if follows(node) else node
    try:
        rule.describe(trace, node)
        trace.pin(node)
        wrong = _disagreement(trace, node)
    except Opaque as reason:
        _give_up(trace, node, str(reason))
    except Mismatch as mismatch:
        _give_up(trace, node, str(mismatch))
    except (IndexError, KeyError, ValueError, TypeError, AssertionError) as error:
        # a form of the operator that its rule did not foresee: refusing is always right
        _give_up(trace, node, f"a form that its rule does not know ({type(error).__name__}: {error})")
    else:
        if wrong:
            _give_up(trace, node, wrong)
    _as_lengths(trace, node)
    trace.node = None


def _as_lengths(trace: Trace, node: ir.Node) -> None:
    """Single units that a node reads, and that its rule does not follow, stay single."""
    if not follows(node) and node.op_type not in ("Shape", "Size"):
        for value in reads(node):
            one_each(node, trace.known(value))


def _measured(trace: Trace, node: ir.Node) -> None:
    """A number that is no size any more, and was computed from the length of one unit, would not follow it."""
    if all(trace.facts.known[value].dtype.kind != "f" for value in node.outputs):
        return
    for source, dim in (at for value in operands(node) for at in trace.facts.taint(value)):
        if (trace.facts.shapes.get(source) or ())[dim : dim + 1] == (1,):
            one_each(node, trace.axes(source)[dim : dim + 1])


def _disagreement(trace: Trace, node: ir.Node) -> str | None:
    """A rule whose axes do not have the inferred shape is not believed."""
    for value in node.outputs:
        if trace.sequence(value) is not None:
            continue
        shape = trace.facts.shapes.get(value)
        found = trace.described(value)
        if shape is None or found is None:
            if value.uses() or value.is_graph_output():
                return unknown_shape(trace.facts, value)
            continue
        if tuple(size_of(axis) for axis in found) != shape:
            return f"the rule gives {[size_of(axis) for axis in found]} where shapes say {list(shape)}"
    return None


def _give_up(trace: Trace, node: ir.Node, reason: str) -> None:
    """Freeze everything that a node touches."""
    trace.opaque[label(node)] = reason
    why = Freeze("opaque", f"{reason}: {full_label(node)}", node)
    for value in reads(node):
        trace.freeze_measured(value)
        for axis in trace.touched(value):
            freeze(axis, why)
    for value in node.outputs:
        shape = trace.facts.shapes.get(value)
        axes = None if shape is None else [trace.fixed(n, why.kind, why.reason) for n in shape]
        trace.leave(value, axes)
