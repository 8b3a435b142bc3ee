"""What a drawing shows: a box per node, with its parameters and results, each axis as a chain of coloured chips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from surgery.graph import layout
from surgery.graph.atoms import Atom, Axis, factors, leaves, summands
from surgery.graph.control import captured
from surgery.graph.labels import label
from surgery.graph.modules import module, scope
from surgery.graph.spaces import Analysis, Space

LETTER = 6.7  # pixels a letter of an 11 px monospaced font takes, a little more than in any common one
LINE = 19.0
HEAD = 36.0
PADDING = 9.0
GAP = 6.0  # between the axes of a tensor
STRIPE = 7.0  # a summand of a long concatenation, without text
FEW = 4  # summands of a concatenation that are written out
LONGEST = 40  # letters of a title
HINTS = 6  # lines of a tooltip
FIXED = frozenset({"symbolic", "spatial", "kernel", "literal", "input", "output"})
"""Kinds of axes that are sizes of the data, not units of a layer."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One factor of an axis, or a sign between two of them.

    Attributes:
      text: its size, or the sign.
      kind: "space", "fixed", "frozen" (a fixed size for a reason that is worth a look), or "sign".
      space: position of the space in the analysis.
    """

    text: str
    kind: Literal["space", "fixed", "frozen", "sign"]
    space: int | None = None

    @property
    def width(self) -> float:
        """In pixels."""
        if self.kind == "sign":
            return LETTER + 2
        return len(self.text) * LETTER + 8 if self.text else STRIPE


@dataclass(frozen=True, slots=True)
class Chain:
    """One axis: its factors, outermost first, and what there is to say about it."""

    chips: tuple[Chip, ...]
    hint: str

    @property
    def width(self) -> float:
        """In pixels."""
        return sum(chip.width for chip in self.chips)


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of a box."""

    label: str
    hint: str
    axes: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A node, an input or an output of the graph.

    Attributes:
      title: the operator.
      path: where it stands in the model.
      hint: everything that does not fit.
      kind: "input", "output", "node", or "opaque" for a node that no rule describes.
      rows: its parameters, then its results.
      late: it computes with parameters only, or is an input: it stands near its first reader.
    """

    title: str
    path: str
    hint: str
    kind: Literal["input", "output", "node", "opaque"]
    rows: tuple[Row, ...]
    late: bool

    @property
    def indent(self) -> float:
        """Width of the labels, in pixels."""
        return max((len(row.label) for row in self.rows), default=0) * LETTER + GAP

    @property
    def width(self) -> float:
        """In pixels."""
        rows = [self.indent + sum(axis.width + GAP for axis in row.axes) - GAP for row in self.rows]
        return 2 * PADDING + max([*rows, len(self.title) * LETTER * 1.15, len(self.path) * LETTER])

    @property
    def height(self) -> float:
        """In pixels."""
        return HEAD + LINE * len(self.rows) + PADDING / 2

    @property
    def spaces(self) -> set[int]:
        """The spaces that occur in it."""
        chips = (chip for row in self.rows for axis in row.axes for chip in axis.chips)
        return {chip.space for chip in chips if chip.space is not None}


@dataclass(frozen=True, slots=True)
class Link:
    """A value on its way from the box that makes it to a box that reads it."""

    source: int
    target: int
    value: str


@dataclass(frozen=True)
class Diagram:
    """Boxes in the order of the graph, links between them, and how many nodes of shape arithmetic are left out."""

    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    folded: int


def diagram(analysis: Analysis) -> Diagram:
    """What to show of a graph: folded shape arithmetic and constants have no box of their own."""
    graph, facts = analysis.model.graph, analysis.trace.facts
    chains = _Chains(analysis)
    inputs = [value for value in graph.inputs if value not in facts.constant]
    nodes = [node for node in graph if not _folded(analysis, node)]
    boxes = [_port(chains, "input", value) for value in inputs] + [_node(chains, node) for node in nodes]
    made = {value: k for k, value in enumerate(inputs)}
    made |= {value: k for k, node in enumerate(nodes, start=len(inputs)) for value in node.outputs}
    links = [
        Link(made[value], k, value.name or "")
        for k, node in enumerate(nodes, start=len(inputs))
        for value in dict.fromkeys([*node.inputs, *captured(node)])
        if value in made
    ]
    for value in graph.outputs:
        links += [Link(made[value], len(boxes), value.name or "")] if value in made else []
        boxes.append(_port(chains, "output", value))
    constants = sum(node.op_type == "Constant" for node in graph)
    return Diagram(tuple(boxes), tuple(links), len(graph) - len(nodes) - constants)


def _folded(analysis: Analysis, node: ir.Node) -> bool:
    if node.op_type == "Constant" and not node.domain:
        return True
    known = analysis.trace.facts.known
    return all(value in known and not value.is_graph_output() for value in node.outputs)


class _Chains:
    """Axes as chains of chips."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.positions: Mapping[str, int] = {space.name: k for k, space in enumerate(analysis.spaces)}
        self.symbols = {size: name for name, size in analysis.trace.facts.symbols.items()}

    def row(self, text: str, name: str, axes: Sequence[Axis]) -> Row:
        return Row(_short(text, 16), name, tuple(self.chain(name, k, axis) for k, axis in enumerate(axes)))

    def chain(self, name: str, k: int, axis: Axis) -> Chain:
        chips = tuple(self._product(factors(axis))) or (Chip("1", "fixed"),)
        spaces = self._spaces(axis)
        if spaces:
            written = layout.text(self.analysis.layout(axis))
            lines = [
                f"{name}[{k}] = {written[:200]}",
                *(f"{space.name}: {verdict(space)}" for space in spaces),
            ]
        else:
            reasons = dict.fromkeys(why.reason for leaf in leaves(axis) for why in leaf.frozen)
            lines = [f"{name}[{k}]", *reasons]
        more = len(lines) - HINTS
        return Chain(chips, "\n".join([*lines[:HINTS], *([f"and {more} more"] if more > 0 else [])]))

    def _spaces(self, axis: Axis) -> list[Space]:
        found = layout.units(self.analysis.layout(axis))
        return [
            self.analysis.spaces[k] for k in dict.fromkeys(self.positions[units.space] for units in found)
        ]

    def _product(self, atoms: Sequence[Atom]) -> Iterator[Chip]:
        for k, atom in enumerate(atoms):
            if k:
                yield Chip("·", "sign")
            if atom.segments is None and atom.woven is None:
                yield self._chip(atom)
                continue
            parts = summands(atom)
            if len(parts) > FEW or atom.woven is not None:
                yield from self._stripes(atom)
                continue
            if len(atoms) > 1:
                yield Chip("(", "sign")
            for j, part in enumerate(parts):
                if j:
                    yield Chip("+", "sign")
                yield from self._product(part) if part else [Chip("1", "fixed")]
            if len(atoms) > 1:
                yield Chip(")", "sign")

    def _stripes(self, atom: Atom) -> Iterator[Chip]:
        """A long concatenation, or a shuffle: one narrow chip per part, and the number of all its units."""
        for leaf in leaves((atom,)):
            chip = self._chip(leaf)
            yield Chip("", chip.kind, chip.space)
        yield Chip(str(atom.size), "fixed")

    def _chip(self, atom: Atom) -> Chip:
        found = list(layout.units(self.analysis.layout((atom,))))
        if found:
            return Chip(str(atom.size), "space", self.positions[found[0].space])
        kinds = {why.kind for why in atom.frozen}
        text = self.symbols.get(atom.size) if "symbolic" in kinds else None
        return Chip(_short(text or str(atom.size), 12), "frozen" if kinds and not kinds & FIXED else "fixed")


def verdict(space: Space) -> str:
    """In a few words whether a space can grow, and how; or why not."""
    if not space.widenable:
        return f"frozen: {space.reason}"
    words = [f"whole multiples only: {space.whole}"] if space.whole and not space.padding else ["any width"]
    if space.padding is not None:
        words.append("fresh units vanish under the normaliser")
    elif space.no_zero is not None and not space.whole:
        words.append(f"by copies: {space.no_zero}")
    if space.no_net2net is not None:
        words.append(f"no copies: {space.no_net2net}")
    return "; ".join(words)


def _port(chains: _Chains, kind: Literal["input", "output"], value: ir.Value) -> Box:
    name = value.name or ""
    axes = chains.analysis.trace.described(value)
    rows = () if axes is None else (chains.row("", name, axes),)
    return Box(kind, _short(name), f"{kind} {name}", kind, rows, late=kind == "input")


def _node(chains: _Chains, node: ir.Node) -> Box:
    trace, tensors = chains.analysis.trace, chains.analysis.trace.tensors
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    read = [str(value.name) for value in node.inputs if value is not None and _is_tensor(value, tensors)]
    rows = [
        chains.row(name.rpartition(".")[2], name, tensors[name])
        for name in dict.fromkeys(read)
        if tensors[name]
    ]
    for value in node.outputs:
        axes = trace.described(value)
        if axes is not None and (value.uses() or value.is_graph_output()):
            rows.append(chains.row("→", value.name or "", axes))
    # a parameter's path is what the framework calls the layer; exporters' node names are a second best
    path = next((module(name) for name in read if "." in name), "") or scope(node) or label(node)
    reason = trace.opaque.get(label(node))
    hint = [f"node {label(node)} ({operator})", *([f"frozen: {reason}"] if reason else [])]
    hint += [
        f"{value.name}: its shape is not known" for value in node.outputs if trace.described(value) is None
    ]
    late = all(trace.constant(value) for value in node.outputs)
    kind: Literal["opaque", "node"] = "opaque" if reason else "node"
    return Box(_short(operator), _short(path), "\n".join(hint), kind, tuple(rows), late)


def _is_tensor(value: ir.Value, tensors: Mapping[str, object]) -> bool:
    producer = value.producer()
    return value.name in tensors and (producer is None or producer.op_type == "Constant")


def _short(text: str, most: int = LONGEST) -> str:
    """The end of a long name, which says most."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
