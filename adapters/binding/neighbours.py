"""Which layer a constant of a graph belongs to: the one of the constants before it, or the one that its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

_PATH = re.compile(r"[/.:]")
_COUNTER = re.compile(r"_\d+$")


class Neighbours:
    """The constants of a graph by where they are used.

    Attributes:
      constants: name -> its value.
    """

    def __init__(self, model: ir.Model) -> None:
        self.constants: dict[str, ir.Value] = {
            str(name): value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        }
        self._constant = set(model.graph.initializers.values())
        for node in model.graph:  # a constant that is only reshaped is still one
            if all(value is None or value in self._constant for value in node.inputs):
                self._constant.update(node.outputs)

    def uses(self, name: str) -> Iterator[tuple[ir.Node, int]]:
        """The nodes that compute with a constant, and with which of their inputs."""
        pending = [self.constants[name]]
        while pending:
            value = pending.pop()
            for use in value.uses():
                if use.node.outputs and use.node.outputs[0] in self._constant:
                    pending += use.node.outputs
                else:
                    yield use.node, use.idx

    def beside(self, node: ir.Node) -> Iterator[str]:
        """The constants that a node computes with."""
        pending = [value for value in node.inputs if value is not None and value in self._constant]
        while pending:
            value = pending.pop()
            if value.name in self.constants:
                yield value.name
            if (producer := value.producer()) is not None:
                pending += [value for value in producer.inputs if value is not None]

    def groups(self, name: str, known: Mapping[str, str]) -> set[str]:
        """The layers of the nearest constants that are known: of the same node, before it, behind it.

        Args:
          name: of a constant. known: constant -> the layer that it belongs to.
        """
        nodes = [node for node, _ in self.uses(name)]
        for step in (_before, _behind):
            frontier, seen = nodes, set(nodes)
            while frontier:
                found = {
                    known[other]
                    for node in frontier
                    for other in self.beside(node)
                    if other != name and other in known
                }
                if found:
                    return found
                frontier = list(dict.fromkeys(n for node in frontier for n in step(node) if n not in seen))
                seen.update(frontier)
        return set()

    def names(self, name: str) -> set[str]:
        """The parts of the names of a constant, and of what is computed with it, counters left out."""
        texts = [name, *(str(out.name) for node, _ in self.uses(name) for out in node.outputs)]
        parts = {part for text in texts for part in _PATH.split(text)}
        return parts | {_COUNTER.sub("", part) for part in parts}


def _before(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer


def _behind(node: ir.Node) -> Iterator[ir.Node]:
    for out in node.outputs:
        for use in out.uses():
            yield use.node
