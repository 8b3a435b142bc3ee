"""What a graph makes of all actions of a head together: choices, probabilities, and what is read of them.

A graph that was exported for use does not end in values or logits. Behind them stand an ArgMax, a softmax, a draw, the
logarithm of the chosen probability. One action more changes nothing of the old values; what counts all actions counts
the new one, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.errors import Refused
from surgery.graph.atoms import MOST_REASONS, Axis
from surgery.graph.labels import full_label, label
from surgery.graph.layout import units
from surgery.graph.operands import data_of, operands, reads
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Interface
from surgery.numeric.kernels import RANDOM

CHOICES = frozenset({"ArgMax", "ArgMin", "TopK", "Multinomial"})
"""Operators that give the numbers of units."""
_SIZES = frozenset({"Shape", "Size", "RandomNormalLike", "RandomUniformLike"})
"""Operators that read nothing of a value but its size."""
_TOGETHER = CHOICES | {
    "Softmax", "LogSoftmax", "Hardmax", "ReduceMax", "ReduceMin", "ReduceLogSumExp", "GatherElements",
}  # fmt: skip
_MOVES = frozenset({
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Expand", "Slice",
})  # fmt: skip


@dataclass
class Answers:
    """The outputs that every action of a space has a part in.

    Attributes:
      numbers: those that hold the number of an action. drawn: those of them that are sampled.
      counted: the others, such as probabilities, an entropy, the largest value.
      greedy: the nodes that take the largest.
      entries: the values that no action has a part in but its own, and that all of this is made from.
      made: the values that are made of them.
    """

    numbers: list[str] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    greedy: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def answers(analysis: Analysis, space: Space, interface: Interface) -> Answers:
    """What stands behind the actions of a head, if nothing else is in the way of another action.

    Args:
      space: the actions. interface: says which inputs are masks of actions, and which outputs recurrent state.

    Raises:
      Refused: the space is frozen for another reason, or what was chosen is used for more than an answer.
    """
    _check(analysis, space, {port.name for port in interface.inputs if port.kind == "mask"})
    states = {port.name for port in interface.outputs if port.kind == "state"}
    found, walk, live = Answers(), _Walk(analysis, space), _live(analysis.model.graph)
    for node in analysis.model.graph:
        if live.intersection(node.outputs):
            walk.step(node, found)
    found.made = [str(value.name) for value in walk.numbers | walk.counted]
    for output in analysis.model.graph.outputs:
        name = output.name or ""
        if name in states and output in walk.numbers | walk.counted:
            raise _refused(space, f"what is chosen is a state that goes back in ('{name}')")
        if output in walk.numbers:
            found.numbers.append(name)
            found.drawn += [name] if output in walk.drawn else []
        elif output in walk.counted:
            found.counted.append(name)
    return found


def scores(output: ir.Value) -> list[ir.Value]:
    """What the choices that an output holds were made from, in order."""
    found, seen, waiting = list[ir.Value](), {output}, [output]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node.op_type not in CHOICES | _MOVES:
            continue
        read = operands(node) if node.op_type == "Concat" else [data_of(node)]
        if node.op_type in CHOICES:
            found += read
        else:
            waiting += [value for value in reversed(read) if value not in seen]
            seen.update(read)
    return list(dict.fromkeys(found))


def is_drawn(output: ir.Value) -> bool:
    """Whether an output holds other numbers every time."""
    seen, waiting = {output}, [output]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node.op_type in RANDOM:
            return True
        read = [] if node is None else reads(node)
        waiting += [value for value in read if value not in seen]
        seen.update(read)
    return False


def behind(analysis: Analysis, output: str) -> list[str]:
    """The spaces that the choices which an output holds are made among, in order."""
    value = next((value for value in analysis.model.graph.outputs if value.name == output), None)
    each = [analysis.trace.described(one) or [] for one in scores(value)] if value is not None else []
    made = {space.name for space in analysis.spaces if any(ref.makes for ref in space.axes)}
    spaces = [part.space for axes in each for part in units(*map(analysis.layout, axes))]
    return [name for name in dict.fromkeys(spaces) if name in made]


def _check(analysis: Analysis, space: Space, masks: Collection[str]) -> None:
    """That nothing but outputs, masks and what `_Walk` looks at keeps the space from growing."""
    ports = [
        name for side, name, axes in analysis.ports
        if side == "input" and any(part.space == space.name for part in units(*axes))
    ]  # fmt: skip
    for why in space.freezes:
        free = why.kind == "output" or (why.kind == "input" and set(ports) <= set(masks))
        together = why.node is not None and why.kind in ("mixer", "opaque")
        if (not free and not together) or len(space.freezes) >= MOST_REASONS:
            raise _refused(space, why.reason)


@dataclass
class _Walk:
    """Forward through a graph, from where actions meet each other to the outputs.

    Attributes:
      numbers: values that hold the number of an action; drawn: those that are sampled.
      counted: values that every action has a part in.
    """

    analysis: Analysis
    space: Space
    numbers: set[ir.Value] = field(default_factory=set)
    drawn: set[ir.Value] = field(default_factory=set)
    counted: set[ir.Value] = field(default_factory=set)

    def step(self, node: ir.Node, found: Answers) -> None:
        """Raises: Refused: the node does more than to answer."""
        read = set(reads(node))
        why = next((why.reason for why in self.space.freezes if why.node is node), None) or self._extreme(
            node
        )
        if node.op_type in _SIZES:
            return
        if read & self.numbers:
            self._number(node)
        elif why is not None or read & self.counted:
            self._count(node, why, read, found)

    def _number(self, node: ir.Node) -> None:
        data, others = node.inputs[0], [] if node.op_type == "Concat" else node.inputs[1:]
        if node.op_type in _MOVES and not self.numbers.intersection(others):
            self.numbers.update(node.outputs)
            self.drawn.update(node.outputs if self.drawn.intersection(node.inputs) else ())
        elif node.op_type == "GatherElements" and data not in self.numbers and self._has(data):
            self.counted.update(node.outputs)
        else:
            raise _refused(self.space, f"the number of the chosen action goes into {full_label(node)}")

    def _count(self, node: ir.Node, why: str | None, read: set[ir.Value], found: Answers) -> None:
        sums = any(site.node is node and site.kind == "contract" for site in self.analysis.trace.sites)
        unknown = label(node) in self.analysis.trace.opaque and node.op_type not in CHOICES
        if sums or unknown or (why and node.op_type not in _TOGETHER and not read & self.counted):
            where = f"what all actions make together goes into {full_label(node)}"
            raise _refused(self.space, why or where)
        found.entries += [str(v.name) for v in read if v not in self.counted and self._has(v)]
        if node.op_type not in CHOICES:
            self.counted.update(node.outputs)
            return
        chosen = node.outputs[-1:]
        self.numbers.update(chosen)
        self.counted.update(node.outputs[:-1])
        if node.op_type == "Multinomial":
            self.drawn.update(chosen)
        else:
            found.greedy.append(full_label(node))

    def _extreme(self, node: ir.Node) -> str | None:
        """Why the largest action that a node takes counts all of them."""
        taken = (site for site in self.analysis.trace.sites if site.node is node and site.kind == "extreme")
        return self.space.extreme if any(self._among(site.axes) for site in taken) else None

    def _has(self, value: ir.Value | None) -> bool:
        """Whether a value has an axis of the actions."""
        return value is not None and self._among(self.analysis.trace.described(value) or ())

    def _among(self, axes: Sequence[Axis]) -> bool:
        return any(part.space == self.space.name for part in units(*map(self.analysis.layout, axes)))


def _live(graph: ir.Graph) -> set[ir.Value]:
    """The values of which an output needs more than their size."""
    live = set(graph.outputs)
    for node in reversed(list(graph)):
        if live.intersection(node.outputs) and node.op_type not in _SIZES:
            live.update(reads(node))
    return live


def _refused(space: Space, reason: str) -> Refused:
    return Refused(
        f"'{space.name}' cannot be extended exactly: {reason}",
        hint="export the values or logits alone, without what follows them, or teach a new network: surgery distill",
    )
