"""An If whose condition is known takes the place of the branch that it takes.

Exporters write one where they could not know a rank or a size that is fixed after all: `squeeze` of a dimension, say.
The condition is known if it is a constant, or computed from sizes that no symbolic dimension moves; that is tried out
with two sizes of every symbolic one. What is computed from a size keeps its old value when that size grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from surgery.graph.facts import PRIMES, Facts, Source
from surgery.graph.unused import drop_unused


def settle_branches(model: ir.Model) -> None:
    """Replace every If of the main graph with a known condition by its branch, in place; branches of branches, too.

    Raises:
      GraphError: if an input has no shape or an axis of size 0.
    """
    if any(_is_branch(node) for node in model.graph):
        _Settled(model).walk(list(model.graph))


def _is_branch(node: ir.Node) -> bool:
    return node.op_type == "If" and not node.domain


class _Settled:
    """The walk over a graph, and what is known of its values on the way."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.facts = Facts(model), Facts(model, primes=PRIMES[::-1])
        nodes = list(model.graph.all_nodes())
        graphs = {node.graph for node in nodes if node.graph is not None} | {model.graph}
        self.names = Counter(str(v.name) for node in nodes for v in node.outputs)
        self.names.update(name for graph in graphs for name in graph.initializers)
        self.names.update(str(value.name) for value in model.graph.inputs)

    def walk(self, nodes: Iterable[ir.Node]) -> None:
        """Settle the branches among nodes, which are in order."""
        for node in nodes:
            taken = self._taken(node) if _is_branch(node) else None
            if taken is None:
                for facts in self.facts:
                    facts.step(node)
            else:
                self.walk(self._in_place(node, taken))

    def _taken(self, node: ir.Node) -> ir.Graph | None:
        """The branch that an If always takes, or None."""
        condition = node.inputs[0]
        if condition is None or condition.is_graph_input():
            return None
        first, second = (facts.known.get(condition) for facts in self.facts)
        one, other = self.facts
        if first is None or second is None or not np.array_equal(first, second):
            return None
        if any(_size(one, at) != _size(other, at) for at in one.taint(condition)):
            return None
        return node.attributes["then_branch" if bool(first.reshape(-1)[0]) else "else_branch"].as_graph()

    def _in_place(self, node: ir.Node, taken: ir.Graph) -> list[ir.Node]:
        """Move the nodes of a branch in front of its If, which goes; returns them."""
        graph, results = self.model.graph, list(taken.outputs)
        inner, constants = list(taken), list(taken.initializers.values())
        taken.outputs.clear()
        taken.initializers.clear()
        taken.remove(inner)
        for value in (*constants, *(out for moved in inner for out in moved.outputs)):
            if value.name:
                value.name = self._unique(value.name)
        for value in constants:
            if value.const_value is not None:
                value.const_value.name = value.name
            graph.register_initializer(value)
            for facts in self.facts:
                facts.tensor(value, value.const_value)
        condition = node.inputs[0]
        for old, new in zip(list(node.outputs), results, strict=True):
            if old.is_graph_output():
                inner.append(self._result(old, new))
            else:
                old.replace_all_uses_with(new)
        graph.insert_before(node, inner)
        graph.remove(node, safe=True)
        drop_unused(self.model, condition)
        return inner

    def _result(self, old: ir.Value, new: ir.Value) -> ir.Node:
        """A copy under the name of an output of the graph."""
        name = str(old.name)
        copy = ir.node("Identity", [new])
        result = copy.outputs[0]
        result.shape, result.type = old.shape, old.type
        old.name, result.name = self._unique(f"{name}.branch"), name
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        return copy

    def _unique(self, name: str) -> str:
        """A name that no other value of any graph has: branches may use the same ones."""
        found, k = name, 1
        while self.names[found] > (k == 1):
            k += 1
            found = f"{name}.{k}"
        self.names[found] = 1
        return found


def _size(facts: Facts, at: Source) -> int | None:
    value, dim = at
    shape = facts.shapes.get(value)
    return None if shape is None else shape[dim]
