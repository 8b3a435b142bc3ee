"""The forward walk over a graph: one rule per operator describes its axes; what no rule can describe is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from surgery.graph.atoms import UNIT, Atom, Axis, Freeze, Link, Mismatch, factors, freeze, leaves, size_of
from surgery.graph.axes import cut, derive, guarded, take, unify
from surgery.graph.facts import Facts
from surgery.graph.labels import full_label, label
from surgery.graph.operands import readers
from surgery.graph.records import Kind, Number, Operand, Resize, Site
from surgery.graph.singles import Column, alone, is_single, may_grow, meeting, one_each
from surgery.graph.unknown import unknown_shape


class Opaque(Exception):
    """A rule cannot describe this node; everything it touches is frozen with this reason."""


@dataclass
class Trace:
    """What the rules found out, value by value. Rules read operands with `axes` and write results with `put`.

    Attributes:
      facts: shapes and folded values.
      tensors: parameter or constant tensor -> its axes.
      sites: where units are mixed.
      literals: numbers in the graph which follow the axes, in node order.
      productions: (axis of a constant operand, the activation axis it became).
      uses: ("weight" | "bias" | "scale", axes of a constant operand), what a constant is for.
      limits: (axis, "zero" | "net2net", reason): an initialisation that an axis cannot take.
      domains: (axis of a constant operand, reason): its elements must not become zero.
      shuffles: the axes that a channel shuffle takes units from in turn; they stay equally long.
      apart: a value in the middle of a shuffle -> these axes.
      opaque: nodes that no rule described, with the reason.
      equations: pairs of sizes that a node needs to be equal, and that are not.
      ports: (side, name, axes) of every input and output.
      node: the one that is being described, if it reads single units as fixed lengths.
    """

    facts: Facts
    tensors: dict[str, list[Axis]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    literals: list[Operand] = field(default_factory=list)
    productions: list[tuple[Axis, Axis]] = field(default_factory=list)
    uses: list[tuple[str, list[Axis]]] = field(default_factory=list)
    limits: list[tuple[Axis, str, str]] = field(default_factory=list)
    domains: list[tuple[Axis, str]] = field(default_factory=list)
    shuffles: list[list[Axis]] = field(default_factory=list)
    apart: dict[ir.Value, list[Axis]] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    equations: list[tuple[int, int]] = field(default_factory=list)
    ports: list[tuple[Literal["input", "output"], str, list[Axis]]] = field(default_factory=list)
    node: ir.Node | None = None
    _of: dict[ir.Value, list[Axis] | None] = field(default_factory=dict)
    _sequences: dict[ir.Value, list[list[Axis]]] = field(default_factory=dict)

    # ---- reading operands -----------------------------------------------------------------------------------

    def axes(self, value: ir.Value) -> list[Axis]:
        """The axes of an operand used as data, outermost first.

        Raises:
          Opaque: if its shape is not known.
        """
        self._freeze_sources(value)
        if value not in self._of:
            self._of[value] = self._constant_axes(value)
        axes = self._of[value]
        if axes is None:
            raise Opaque(unknown_shape(self.facts, value))
        if self.node is not None:
            one_each(self.node, axes)
        return [axis if size_of(axis) != 1 or is_single(axis) else UNIT for axis in axes]

    def described(self, value: ir.Value) -> list[Axis] | None:
        """The axes that a rule has put for a value, or None."""
        return self._of.get(value)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The concrete shape of a value.

        Raises:
          Opaque: if it is not known.
        """
        shape = self.facts.shapes.get(value)
        if shape is None:
            raise Opaque(unknown_shape(self.facts, value))
        return shape

    def constant(self, value: ir.Value | None) -> bool:
        """Whether a value depends on parameters and constants only."""
        return value is None or value in self.facts.constant

    def numbers(self, node: ir.Node, index: int, attribute: str | None = None) -> list[int] | None:
        """An integer operand that is an attribute in old opsets and an input in new ones; None if absent.

        Raises:
          Opaque: if it is an input whose value is not known.
        """
        if attribute is not None and attribute in node.attributes:
            value = node.attributes[attribute].value
            return [int(n) for n in (value if isinstance(value, Sequence) else [value])]
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        found = self.facts.ints(node.inputs[index])
        if found is None:
            raise Opaque(f"operand {index} of node '{label(node)}' is only known at run time")
        self.keep(node, node.inputs[index])
        return found

    def keep(self, node: ir.Node, value: ir.Value | None) -> None:
        """A stored operand that is read number by number keeps its size, whatever else reads it."""
        if value is not None and value.producer() is None and len(readers(value)) > 1:
            for axis in self.axes(value):
                self.freeze(node, axis, "literal", "its elements are read as numbers")

    def scalar(self, value: ir.Value | None) -> np.ndarray | None:
        """A folded value, or None."""
        return None if value is None else self.facts.known.get(value)

    def _freeze_sources(self, value: ir.Value) -> None:
        """A size that is used as data would change the function when the axis grows; scalars can be pinned."""
        if value in self.facts.known and self.facts.known[value].dtype.kind == "f":
            return
        self.freeze_measured(value)

    def freeze_measured(self, value: ir.Value) -> None:
        """Freeze what a folded value was computed from the size of."""
        for axis in self.measured(value):
            freeze(axis, Freeze("shape", f"its size is used as a number ('{value.name}')"))

    def measured(self, value: ir.Value) -> list[Axis]:
        """The axes whose sizes a folded value was computed from (symbolic ones cannot change, and are left out)."""
        found = []
        for source, dim in sorted(self.facts.taint(value), key=lambda at: (at[0].name or "", at[1])):
            if not self.facts.symbolic(source, dim):
                with suppress(Opaque):
                    found.append(self.axes(source)[dim])
        return found

    def follows_symbol(self, value: ir.Value | None, element: int) -> bool:
        """Whether an element of a folded operand was read from a symbolic dimension."""
        sources = self.facts.sources.get(value, ()) if value is not None else ()
        for source, dim in sources[element] if element < len(sources) else ():
            axes = self._of.get(source)
            if self.facts.symbolic(source, dim) or (axes is not None and is_symbolic(axes[dim])):
                return True
        return False

    def pin(self, node: ir.Node) -> None:
        """Numbers that were computed from sizes (1/√d) keep their value when the sizes change."""
        for k, value in enumerate(node.inputs):
            known = None if value is None else self.facts.known.get(value)
            if value is None or known is None or known.dtype.kind != "f" or not known.size:
                continue
            axes = self.measured(value)
            if self.follows_symbol(value, 0):
                self.freeze_measured(value)
                continue
            number = float(self.facts.exact.get(value, known).reshape(-1)[0])
            if axes:
                one_each(node, self.known(value))
                self.literal(node, k, _pinned(axes, number))

    def _constant_axes(self, value: ir.Value) -> list[Axis] | None:
        shape = self.facts.shapes.get(value)
        if shape is None:
            return None
        producer = value.producer()
        if producer is None or (producer.op_type == "Constant" and not producer.inputs):
            name = value.name or ""
            single = may_grow(value)
            self.tensors[name] = [
                (Atom(n, tensor=name, single=n == 1),) if n != 1 or single else () for n in shape
            ]
            computed = len(readers(value)) > 1 and any(n.op_type not in _PASSIVE for n in readers(value))
            return guarded(self.tensors[name], value.name) if computed else self.tensors[name]
        why = f"computed from literals by node '{label(producer)}'"
        return [self.fixed(n, "literal", why) for n in shape]

    # ---- making axes ----------------------------------------------------------------------------------------

    def put(self, value: ir.Value, axes: Sequence[Axis]) -> None:
        """Set the axes of a result; scales travel back through it only if all its readers expect them."""
        axes = [UNIT if size_of(axis) == 1 and not is_single(axis) else axis for axis in axes]
        several = len(readers(value)) + value.is_graph_output() > 1
        self._of[value] = guarded(axes, value.name) if several and not self.constant(value) else list(axes)
        self._moved(value, axes)

    def leave(self, value: ir.Value, axes: list[Axis] | None) -> None:
        """Set what is left of a result that no rule describes: frozen axes, or nothing."""
        self._of[value] = axes

    def _moved(self, value: ir.Value, axes: Sequence[Axis]) -> None:
        """What is no more than a parameter, repeated as often as an input says, is units all the same."""
        node = value.producer()
        first = node.inputs[0] if node is not None and node.inputs else None
        if first in self.facts.constant and not self.constant(value):
            own = set(leaves(*self.known(first)))
            pairs = zip(axes, self.known(value), strict=True)
            self.productions.extend((axis, unit) for axis, unit in pairs if own.intersection(leaves(axis)))

    def handed_on(self, value: ir.Value, axes: Sequence[Axis]) -> list[Axis]:
        """Axes of an operand that several results have in common: no scale travels back through one of them alone."""
        return list(axes) if self.constant(value) else guarded(axes, value.name)

    def put_sequence(self, value: ir.Value, members: Sequence[Sequence[Axis]]) -> None:
        """Set the axes of every member of a sequence."""
        self._sequences[value] = [list(axes) for axes in members]

    def sequence(self, value: ir.Value) -> list[list[Axis]] | None:
        """The axes of every member of a sequence, or None."""
        return self._sequences.get(value)

    def known(self, value: ir.Value) -> list[Axis]:
        """The axes of a value that a rule has described or read, or of every member of a sequence; else none."""
        return [
            *(self._of.get(value) or []),
            *(axis for row in self._sequences.get(value, []) for axis in row),
        ]

    def touched(self, value: ir.Value) -> list[Axis]:
        """All axes of a value, or of every member of a sequence; none where they are not known."""
        if value in self._sequences:
            return [axis for member in self._sequences[value] for axis in member]
        try:
            return list(self.axes(value))
        except Opaque:
            return []

    def every(self) -> Iterator[list[Axis]]:
        """The axes of every value that a rule has described or read; see `known`."""
        yield from (self.known(value) for value in (*self._of, *self._sequences))

    def new(self, size: int) -> Axis:
        """A free axis."""
        return UNIT if size == 1 else (Atom(size),)

    def fixed(self, size: int, kind: str, reason: str) -> Axis:
        """An axis that keeps its size; one that comes from a symbolic dimension is symbolic, too."""
        axis = self.new(size)
        freeze(axis, Freeze(kind, reason))
        if kind != "symbolic" and self.facts.stands_in(size):
            freeze(axis, Freeze("symbolic", reason))
        return axis

    def freeze(self, node: ir.Node, axis: Axis, kind: str, reason: str) -> None:
        """Freeze an axis, naming the node."""
        freeze(axis, Freeze(kind, f"{reason} by {full_label(node)}", node))

    def same(self, node: ir.Node, *axes: Axis) -> bool:
        """Unify axes; where that is impossible freeze just these axes, naming the node."""
        for axis in axes if not all(map(is_single, axes)) else ():
            alone(node, axis, "it meets an axis that cannot grow")
        self.equations.extend((size_of(axes[0]), n) for n in map(size_of, axes[1:]) if n != size_of(axes[0]))
        try:
            for other in axes[1:]:
                unify(axes[0], other)
        except Mismatch as mismatch:
            for axis in axes:
                freeze(axis, Freeze("mismatch", f"{mismatch} at {full_label(node)}"))
            return False
        return True

    def merge(
        self,
        node: ir.Node,
        operands: Sequence[tuple[ir.Value, Axis]],
        *,
        mode: Literal["all", "any"] = "all",
        passes: int = 2,
        linear: bool | None = None,
        flat: bool = False,
    ) -> Axis:
        """The axis of a result computed from these operands' axes, unit by unit; those of size 1 drop out."""
        operands = [(value, axis) for value, axis in operands if axis]
        axes = [axis for _, axis in operands]
        if not axes:
            return UNIT
        linear = passes == 2 if linear is None else linear
        where = full_label(node)
        barrier = None if passes == 2 else f"{where} lies in between"
        link = Link(mode, passes, barrier, where if flat else None, linear)
        differ = f"operands differ at node '{label(node)}'"
        if not self.same(node, *axes):
            return self.fixed(size_of(axes[0]), "mismatch", differ)
        try:
            result = derive(axes, link)
        except Mismatch as mismatch:
            for axis in axes:
                freeze(axis, Freeze("mismatch", f"{mismatch} at {full_label(node)}"))
            return self.fixed(size_of(axes[0]), "mismatch", differ)
        if not self.constant(node.outputs[0]):
            self.productions.extend((axis, result) for value, axis in operands if self.constant(value))
        return result

    def broadcast(
        self,
        node: ir.Node,
        values: Sequence[ir.Value],
        *,
        mode: Literal["all", "any"] = "all",
        passes: int = 2,
        linear: bool | None = None,
        flat: bool = False,
    ) -> list[Axis]:
        """The axes of an elementwise result, operands aligned at the right; what is repeated imposes nothing."""
        return [
            self.merge(node, column, mode=mode, passes=passes, linear=linear, flat=flat)
            for column in self.columns(node, [(value, self.axes(value)) for value in values])
        ]

    def columns(self, node: ir.Node, rows: Sequence[tuple[ir.Value, Sequence[Axis]]]) -> Iterator[Column]:
        """The axes that meet where operands are aligned at the right, without those that are repeated."""
        for k in range(-max(len(axes) for _, axes in rows), 0):
            column = [(value, axes[k]) for value, axes in rows if len(axes) >= -k]
            yield meeting(node, column, [self.constant(value) for value, _ in column])

    def cut(self, node: ir.Node, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Cut an axis; where that is impossible freeze it and return frozen pieces."""
        try:
            return cut(axis, sizes)
        except Mismatch as mismatch:
            why = Freeze("mismatch", f"{mismatch} at {full_label(node)}")
            freeze(axis, why)
            return [self.fixed(size, why.kind, why.reason) for size in sizes]

    def split(self, node: ir.Node, axis: Axis, outer: int) -> tuple[Axis, Axis]:
        """Read an axis as outer · inner; where that is impossible freeze it."""
        try:
            head, tail = take(factors(axis), outer)
            return tuple(head), tuple(tail)
        except Mismatch as mismatch:
            why = Freeze("mismatch", f"{mismatch} at {full_label(node)}")
            freeze(axis, why)
            inner = size_of(axis) // outer
            return self.fixed(outer, why.kind, why.reason), self.fixed(inner, why.kind, why.reason)

    # ---- recording ------------------------------------------------------------------------------------------

    def contract(self, node: ir.Node, *operands: tuple[ir.Value, Axis]) -> None:
        """Two operands, or more, in their order, are multiplied and summed over this axis."""
        axes, inputs = tuple(axis for _, axis in operands), enumerate(node.inputs)
        if self.same(node, *axes):
            places = tuple(next(k for k, other in inputs if other is value) for value, _ in operands)
            constant = tuple(self.constant(value) for value, _ in operands)
            self.sites.append(Site("contract", node, places, axes, constant))

    def mix(self, node: ir.Node, kind: Kind, value: ir.Value, axis: Axis) -> None:
        """One operand is reduced over this axis."""
        if axis:
            self.sites.append(Site(kind, node, (node.inputs.index(value),), (axis,), (self.constant(value),)))

    def use(self, kind: Literal["weight", "bias", "scale"], value: ir.Value, axes: Sequence[Axis]) -> None:
        """Say what a constant operand is for (it decides how new entries are filled)."""
        if self.constant(value):
            self.uses.append((kind, list(axes)))

    def literal(
        self,
        node: ir.Node,
        where: int | str,
        value: Callable[[Resize], Sequence[Number]],
        *,
        shape: bool = False,
    ) -> None:
        """Register numbers in the graph that must follow the axes."""
        self.literals.append(Operand(node, where, value, shape))


_PASSIVE = frozenset(
    ["Gemm", "MatMul", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Slice", "Split", "Gather", "Concat",
     "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast", "Expand"]
)  # fmt: skip
"""Readers of a weight that only move or contract it: several of them may share it."""


def is_symbolic(axis: Axis) -> bool:
    """Whether an axis contains a symbolic dimension."""
    return any(why.kind == "symbolic" for atom in factors(axis) for why in atom.frozen)


def _pinned(axes: list[Axis], number: float) -> Callable[[Resize], Sequence[Number]]:
    def pinned(size: Resize) -> Sequence[Number]:
        changed = any(size(axis) != size_of(axis) for axis in axes)
        return [number] if changed else [None]

    return pinned
