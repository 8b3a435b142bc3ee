"""The layers of a network, found in its graph, whoever wrote it.

The steps of the graph are read as a tree: what follows one another is a sequence, what parts and meets again in a sum
with the value that it came from is a residual block, what parts for good are heads. A part that is no such tree (an
attention) is one layer with everything in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from surgery.architectures.layers import (
    PLAIN,
    SCALING,
    Activation,
    Attention,
    Branches,
    Dense,
    Flatten,
    Layer,
    Other,
    Residual,
)
from surgery.architectures.steps import CENTRED, Step, Steps
from surgery.checkpoint import Checkpoint
from surgery.graph.layout import Layout, size
from surgery.graph.spaces import Analysis


@dataclass(frozen=True)
class Found:
    """A layer and where it is.

    Attributes:
      layer: what it is, its name the space of its units (for one without, a module path).
      after: the value of the graph that it makes.
      weights: its tensors, the matrix or the kernel first.
      units: the layout of the axis of its units; empty if it makes none.
      branches: the layers of its branches; one for a residual block, none for a plain layer.
      outputs: of branches that become outputs: what each becomes.
    """

    layer: Layer
    after: str
    weights: tuple[str, ...] = ()
    units: Layout = ()
    branches: tuple[tuple[Found, ...], ...] = ()
    outputs: tuple[str, ...] = ()


Tree = tuple[Found, ...]


@dataclass(frozen=True)
class Network:
    """A network as layers.

    Attributes:
      tree: from the observation to the outputs.
      analysis: of the graph that it was found in.
    """

    tree: Tree
    analysis: Analysis

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The tree without places."""
        return tuple(found.layer for found in self.tree)


def recognise(checkpoint: Checkpoint) -> Network:
    """The layers of a checkpoint's network.

    Args:
      checkpoint: any; only shapes and small constants are read.
    """
    interface, analysis = checkpoint.interface, checkpoint.analysis
    states = frozenset(port.name for port in (*interface.inputs, *interface.outputs) if port.kind == "state")
    steps = Steps(analysis, states)
    tree = _Reader(steps, analysis).read()
    if len(steps.outputs) > 1 and _tangled(tree):
        apart = _apart(analysis, states, [name for name, _ in steps.outputs])
        tree = tree if _tangled(apart) else apart
    return Network(tree, analysis)


def _tangled(tree: Tree) -> bool:
    """Whether weights are in a part that is no tree of layers."""
    return any(isinstance(found.layer, Other) and weighted(found) for found in flat(tree))


def _apart(analysis: Analysis, states: frozenset[str], outputs: Sequence[str]) -> Tree:
    """Networks that share inputs but not in one tree (an actor and critics that also read its action), side by side.

    What they share occurs in each.
    """
    trees = tuple(_Reader(Steps(analysis, states, name), analysis).read() for name in outputs)
    layers = tuple(tuple(found.layer for found in tree) for tree in trees)
    return (Found(Branches(layers, "outputs"), "", branches=trees, outputs=tuple(outputs)),)


def flat(tree: Sequence[Found]) -> Iterator[Found]:
    """Every layer, those of branches after the layer that they belong to."""
    for found in tree:
        yield found
        for branch in found.branches:
            yield from flat(branch)


def weighted(found: Found) -> bool:
    """Whether a layer has weights, itself or in its branches; constants on every number are none."""
    if found.layer == SCALING:
        return False
    inside = (inner for branch in found.branches for inner in branch)
    return not isinstance(found.layer, PLAIN) or bool(found.weights) or any(map(weighted, inside))


class _NotATree(Exception):
    """The steps between a value and the one where all its ways meet are no sequences side by side."""


class _Reader:
    """Reads steps as a tree; they are numbered, 0 is before the inputs, the last number behind the outputs."""

    def __init__(self, steps: Steps, analysis: Analysis) -> None:
        self._analysis = analysis
        sources = [Step(None, [], [value]) for value in steps.sources]
        self._steps = [Step(None, [], []), *sources, *steps.steps]
        self._sink = len(self._steps)
        makers = {value: k for k, step in enumerate(self._steps) for value in step.outputs}
        self._behind: list[list[int]] = [[] for _ in self._steps]
        self._before: list[list[int]] = [[] for _ in range(self._sink + 1)]
        for k, step in enumerate(self._steps):
            origins = (
                [0] if 1 <= k <= len(sources) else [makers[value] for value in step.inputs if value in makers]
            )
            for origin in dict.fromkeys(origins):
                self._connect(origin, k)
        self._named: dict[int, list[str]] = {}
        for name, value in steps.outputs:
            if value in makers:
                self._connect(makers[value], self._sink)
                self._named.setdefault(makers[value], []).append(name)
        self._meeting = self._post_dominators()

    def _connect(self, origin: int, target: int) -> None:
        self._behind[origin].append(target)
        self._before[target].append(origin)

    def _post_dominators(self) -> list[int]:
        """For every step the first one that all its ways to the outputs go through (Cooper, Harvey, Kennedy, 2001)."""
        found = [self._sink] * (self._sink + 1)
        for k in reversed(range(self._sink)):
            targets = self._behind[k] or [self._sink]
            meeting = targets[0]
            for other in targets[1:]:
                while meeting != other:
                    if meeting < other:
                        meeting = found[meeting]
                    else:
                        other = found[other]
            found[k] = meeting
        return found

    def read(self) -> Tree:
        """The whole network."""
        if len(self._behind[0]) == 1 and len(self._steps) > 1:
            return self._merged(self._sequence(self._behind[0][0], self._sink))
        return self._merged(self._sequence(0, self._sink))

    def _sequence(self, at: int, stop: int) -> list[Found]:
        """The layers behind a step, up to one that all ways go through."""
        out: list[Found] = []
        while at != self._sink:
            following = list(dict.fromkeys(self._behind[at]))
            if len(following) == 1 and len(self._before[following[0]]) == 1 and following[0] != self._sink:
                at = following[0]
                if at == stop:
                    return out
                out += self._element(at)
                continue
            if following in ([stop], []):
                return out
            meeting = self._meeting[at]
            if meeting == stop != self._sink or len(following) == 1:
                raise _NotATree
            try:
                out.append(self._parted(at, following, meeting))
            except _NotATree:
                out.append(self._region(at, meeting))
            at = meeting
        return out

    def _parted(self, at: int, following: Sequence[int], meeting: int) -> Found:
        branches: list[list[Found]] = []
        ends: list[int] = []
        for first in following:
            if first == meeting:
                branches.append([])
                ends.append(at)
                continue
            if self._before[first] != [at]:
                raise _NotATree
            branch = [*self._element(first), *self._sequence(first, meeting)]
            branches.append(branch)
            ends.append(self._end(first, meeting))
        if meeting != self._sink and sorted(ends) != sorted(self._before[meeting]):
            raise _NotATree
        trees = [self._merged(branch) for branch in branches]
        if meeting == self._sink:
            names = tuple("+".join(self._reached(first, at)) for first in following)
            inner = tuple(tuple(found.layer for found in tree) for tree in trees)
            return Found(Branches(inner, "outputs"), "", branches=tuple(trees), outputs=names)
        return self._joined(self._steps[meeting], trees, ends)

    def _joined(self, step: Step, trees: list[Tree], ends: list[int]) -> Found:
        kind = step.layer.operator if isinstance(step.layer, Other) else str(step.layer)
        after = str(step.outputs[0].name)
        if kind == CENTRED:
            first = {id(self._steps[end]): tree for end, tree in zip(ends, trees, strict=True)}
            makers = {value: s for s in self._steps for value in s.outputs}
            trees = [first[id(makers[value])] for value in step.inputs]
        layers = [tuple(found.layer for found in tree) for tree in trees]
        if kind == "Add" and len(trees) == 2 and () in layers:
            body = next((tree for tree in trees if tree), ())
            inner = tuple(found.layer for found in body)
            name = next((found.layer.name for found in body if not isinstance(found.layer, PLAIN)), "")
            return Found(Residual(inner, name), after, branches=(body,))
        return Found(Branches(tuple(layers), kind), after, tuple(step.weights), branches=tuple(trees))

    def _end(self, at: int, stop: int) -> int:
        """The last step of a branch."""
        while True:
            following = list(dict.fromkeys(self._behind[at]))
            ahead = following[0] if len(following) == 1 else self._meeting[at]
            if ahead in (stop, self._sink):
                return at
            at = ahead

    def _reached(self, first: int, at: int) -> list[str]:
        """The outputs that a branch leads to."""
        if first == self._sink:
            return self._named.get(at, [])
        names, pending, seen = list[str](), [first], set[int]()
        while pending:
            k = pending.pop()
            if k in seen or k == self._sink:
                continue
            seen.add(k)
            names += self._named.get(k, [])
            pending += self._behind[k]
        return sorted(names)

    def _element(self, k: int) -> list[Found]:
        step = self._steps[k]
        if step.layer is None:
            return []
        layer = self._sized(step.layer, step.weights) if isinstance(step.layer, Other) else step.layer
        return [Found(layer, str(step.outputs[0].name), tuple(step.weights), step.units)]

    def _sized(self, layer: Other, weights: Sequence[str]) -> Other:
        """With the shapes of its tensors."""
        tensors = self._analysis.tensors
        return Other(layer.operator, tuple(tuple(map(size, tensors[name])) for name in weights))

    def _region(self, at: int, meeting: int) -> Found:
        """Everything between two steps as one layer."""
        inside, pending = set[int](), [k for k in self._behind[at] if k != meeting]
        while pending:
            k = pending.pop()
            if k not in inside and k != meeting:
                inside.add(k)
                pending += self._behind[k]
        order = sorted(inside) + ([meeting] if meeting != self._sink else [])
        steps = [self._steps[k] for k in order]
        weights = tuple(name for step in steps for name in step.weights)
        after = str(steps[-1].outputs[0].name)
        attention = self._attention(steps)
        if attention is not None:
            return Found(attention, after, weights, steps[-1].units)
        kinds = [_kind(step.layer) for step in steps if step.layer is not None]
        return Found(self._sized(Other(" · ".join(kinds)), weights), after, weights)

    def _attention(self, steps: Sequence[Step]) -> Attention | None:
        """softmax(Q Kᵀ) V of one value: three dense layers, two products of activations."""
        dense = [step for step in steps if isinstance(step.layer, Dense)]
        softmax = [step for step in steps if step.layer == Other("Softmax")]
        products = [step for step in steps if step.layer == Other("MatMul") and len(step.inputs) == 2]
        if len(dense) != 3 or len(softmax) != 1 or len(products) != 2:
            return None
        shape = self._analysis.trace.facts.shapes.get(softmax[0].outputs[0]) or ()
        width = dense[-1].layer.width if isinstance(dense[-1].layer, Dense) else 0
        name = dense[0].layer.name if isinstance(dense[0].layer, Dense) else ""
        return Attention(width, shape[1] if len(shape) == 4 else 1, name)

    @staticmethod
    def _merged(tree: Sequence[Found]) -> Tree:
        """Constants on every number one after the other as one; an attention with its output layer."""
        out: list[Found] = []
        for found in tree:
            last = out[-1] if out else None
            joined = out[-2] if len(out) > 1 and isinstance(out[-1].layer, Flatten) else last
            if last is not None and found.layer == SCALING == last.layer:
                shapes = (part.layer.shapes for part in (last, found) if isinstance(part.layer, Other))
                layer = Other(SCALING.operator, tuple(shape for part in shapes for shape in part))
                out[-1] = replace(found, layer=layer, weights=last.weights + found.weights)
            elif (
                joined is not None and isinstance(joined.layer, Attention) and isinstance(found.layer, Dense)
            ):
                while out.pop() is not joined:
                    pass
                out.append(replace(joined, after=found.after, weights=joined.weights + found.weights))
            else:
                out.append(found)
        return tuple(out)


def _kind(layer: Layer) -> str:
    """What a layer is, without its size."""
    if isinstance(layer, (Other, Activation)):
        return str(layer)
    return type(layer).__name__.lower()
