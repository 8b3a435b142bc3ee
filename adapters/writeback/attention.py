"""Attention in code that computes 1/√d from today's head size d, of which the graph has the number.

Edits keep that number: a graph with wider heads computes what it did. The code that the file goes back to divides by
the root of the new size d′, so its queries must be √(d′/d) times as large: the rows of their projection, weight and
bias, and, as the gradients are that much smaller, what the optimizer remembers of them. Where queries, keys and values
are made by one matrix, its rows are told apart by labels that are sent through the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused, SurgeryError
from surgery.numeric import run
from surgery.optimizer import power
from surgery.probes import probes
from surgery.tensors import shape_of

KEY = "attention"
"""In a checkpoint's `source`: product of queries and keys -> head size in the file, where its code computes 1/√d."""

_MOVES = frozenset(
    {
        *("Cast", "CastLike", "Gather", "Identity", "Reshape", "SequenceAt", "Slice", "Split"),
        *("SplitToSequence", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_LABELS = "surgery.labels"


@dataclass(frozen=True)
class Projection:
    """What makes queries, or keys.

    Attributes:
      made: the value that it makes, units along the last axis.
      weight, bias: its parameters; no bias is None. axis: of the weight, that makes the units.
    """

    made: ir.Value
    weight: str
    bias: str | None
    axis: int


@dataclass(frozen=True)
class Scores:
    """A scaled product of queries and keys.

    Attributes:
      product: its node's name. size: of a head.
      factor: all constants that it is multiplied with; None if queries or keys come straight from no projection.
      queries: what makes the queries. rows: which of its units they are.
    """

    product: str
    size: int
    factor: float | None = None
    queries: Projection | None = None
    rows: Array | None = None

    @property
    def off(self) -> float:
        """How often 1/√d the factor is."""
        return 1.0 if self.factor is None else self.factor * math.sqrt(self.size)

    @property
    def plain(self) -> bool:
        """Whether the factor is 1/√d, as far as it is known."""
        return math.isclose(self.off, 1, rel_tol=1e-5)


def noted(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that has just been made of a file, with `KEY` in its `source` if it has attention."""
    try:
        sizes = {scores.product: scores.size for scores in scores_of(checkpoint) if scores.plain}
    except SurgeryError:  # it can be edited all the same, if not in its widths
        return checkpoint
    return checkpoint.replace(source={**checkpoint.source, KEY: sizes}) if sizes else checkpoint


def as_the_code_computes(checkpoint: Checkpoint, like: Mapping[str, ir.TensorProtocol]) -> Checkpoint:
    """The checkpoint with queries that are as large as the code of its file needs them.

    Args:
      checkpoint: left as it is; of the result only tensors and optimizer state are of use.
      like: the tensors that the file has now.

    Raises:
      Refused: heads of another size, and it is not known what the code makes of it (of a factor 1 it is: nothing), or
        what makes the queries.
    """
    known = checkpoint.source.get(KEY)
    sizes = known if isinstance(known, Mapping) else {}
    factors: dict[str, Scores] = {}
    try:
        found = scores_of(checkpoint)
    except SurgeryError as error:
        if any(_resized(checkpoint, like, name) for name in like if name in checkpoint.tensors):
            raise Refused(
                f"it is not known what the attention of this graph divides by: {error.message}"
            ) from error
        return checkpoint
    for scores in found:
        weight = scores.queries.weight if scores.queries is not None else ""
        if scores.product in sizes:
            if scores.queries is None and scores.size != sizes[scores.product]:
                raise Refused(
                    f"the code computes 1/√d of '{scores.product}' from its head size, which was "
                    f"{sizes[scores.product]} and is {scores.size}; no projection directly before its "
                    "queries could make up for it",
                    hint="keep the head size, and add heads",
                )
            if not scores.plain:
                factors[weight] = scores
        elif (
            not (scores.plain or scores.factor == 1) and weight in like and _resized(checkpoint, like, weight)
        ):
            raise Refused(
                f"the file's code may compute 1/√d of '{weight}' from the head size, which is now {scores.size}",
                hint="read the file with surgery convert FILE --module PKG:CALLABLE, and edit the result",
            )
    return _rescaled(checkpoint, factors.values()) if factors else checkpoint


def _resized(checkpoint: Checkpoint, like: Mapping[str, ir.TensorProtocol], name: str) -> bool:
    return shape_of(like[name]) != shape_of(checkpoint.tensors[name])


# ---- finding it -------------------------------------------------------------------------------------------------


def scores_of(checkpoint: Checkpoint) -> list[Scores]:
    """All scaled products of queries and keys that go into a softmax.

    Raises:
      SurgeryError: the graph cannot be evaluated.
    """
    found = list(_products(checkpoint.model))
    if not found:
        return []
    chains = _Chains(checkpoint.model, probes(checkpoint, 2, 0))
    return [chains.scores(product, between) for product, between in found]


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, list[ir.Node]]]:
    """Products of two activations that go into a softmax, and the nodes between."""
    for softmax in model.graph:
        if softmax.op_type != "Softmax":
            continue
        between: list[ir.Node] = []
        node = _producer(softmax.inputs[0])
        while node is not None and node.op_type in {*_MOVES, "Add", "Div", "Mul", "Where"}:
            between.append(node)
            node = _producer(node.inputs[1 if node.op_type == "Where" else 0])
        if node is not None and node.op_type == "MatMul" and not any(map(_parameter, node.inputs)):
            yield node, between


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _parameter(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


class _Chains:
    """A graph on random inputs, and what becomes of numbers that are put in the place of a value."""

    def __init__(self, model: ir.Model, inputs: Mapping[str, Array]) -> None:
        self._model, self._inputs = model, inputs

    def scores(self, product: ir.Node, between: Sequence[ir.Node]) -> Scores:
        """What is known of a product."""
        left, right = (value for value in product.inputs if value is not None)
        size = self._value(left).shape[-1]
        queries, keys = self._projection(left), self._projection(right)
        if queries is None or keys is None:
            return Scores(str(product.name), size)
        ones, labels = (self._behind(queries.made, left, start, step) for start, step in ((1, 0), (1, 1)))
        factor = ones.flat[0] * self._behind(keys.made, right, 1, 0).flat[0]
        for node in between:
            factor *= self._constant(node)
        rows = np.unique(np.rint(labels / ones).astype(np.int64)) - 1
        return Scores(str(product.name), size, float(factor), queries, rows)

    def _value(self, value: ir.Value) -> Array:
        name = str(value.name)
        return run(self._model, self._inputs, outputs=[name])[name]

    def _behind(self, made: ir.Value, target: ir.Value, start: int, step: int) -> Array:
        """A value where what a projection made has the unit k as start + k · step, in all places."""
        shape = self._value(made).shape
        numbers = np.broadcast_to(start + step * np.arange(shape[-1], dtype=np.float64), shape)
        if made is target:
            return numbers
        model = self._model.clone()
        copies = {value.name: value for node in model.graph for value in node.outputs}
        probe = ir.Value(name=_LABELS, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        model.graph.inputs.append(probe)
        copies[made.name].replace_all_uses_with(probe)
        name = str(target.name)
        return run(model, {**self._inputs, _LABELS: numbers}, outputs=[name])[name]

    def _constant(self, node: ir.Node) -> float:
        """What a node multiplies by."""
        if node.op_type not in ("Mul", "Div") or node.inputs[1] is None:
            return 1.0
        number = self._value(node.inputs[1])
        if number.size != 1:
            return math.nan  # no constant: the factor is then unknown, and never 1/√d
        return float(number.item() if node.op_type == "Mul" else 1 / number.item())

    def _projection(self, value: ir.Value) -> Projection | None:
        """The linear layer that a value comes from by moves and constant factors alone."""
        made, bias = value, None
        while (node := made.producer()) is not None:
            first, second = (*node.inputs, None)[:2]
            if node.op_type in ("Gemm", "MatMul"):
                return _linear(node, made, bias)
            if node.op_type == "Add" and (_parameter(first) or _parameter(second)):
                kept, own = (second, first) if _parameter(first) else (first, second)
                inner = _producer(kept)
                if inner is None or inner.op_type != "MatMul" or own is None:
                    return None
                return _linear(inner, made, str(own.name))
            if node.op_type not in _MOVES and not (node.op_type in ("Mul", "Div") and self._single(second)):
                return None
            if first is None:
                return None
            made = first
        return None

    def _single(self, value: ir.Value | None) -> bool:
        return value is not None and self._value(value).size == 1


def _linear(node: ir.Node, made: ir.Value, bias: str | None) -> Projection | None:
    """A matrix product with a parameter, which may be transposed."""
    weight, axis = node.inputs[1], 1
    if node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        bias = str(node.inputs[2].name) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    turned = _producer(weight)
    if turned is not None and turned.op_type == "Transpose":
        weight, axis = turned.inputs[0], 1 - axis
    if weight is None or not _parameter(weight) or weight.shape is None or len(weight.shape) != 2:
        return None
    return Projection(made, str(weight.name), bias, axis)


# ---- making up for it -------------------------------------------------------------------------------------------


def _rescaled(checkpoint: Checkpoint, factors: Iterable[Scores]) -> Checkpoint:
    """With queries that are larger by a factor, gradients that are smaller by it, and slots by its powers."""
    model, state = checkpoint.model.clone(), checkpoint.optimizer
    slots = {slot: dict(members) for slot, members in state.slots.items()} if state is not None else {}
    for scores in factors:
        queries, rows = scores.queries, scores.rows
        if queries is None or rows is None or not math.isfinite(scores.off):
            raise Refused(f"what '{scores.product}' is multiplied with is not a constant")
        for name, axis in ((queries.weight, queries.axis), (queries.bias, 0)):
            if name is None:
                continue
            value = model.graph.initializers[name]
            if value.const_value is not None:
                value.const_value = _times(value.const_value, rows, axis, scores.off)
            for slot, members in slots.items():
                if name in members and state is not None:
                    factor = scores.off ** -power(state.kind, slot)
                    members[name] = _times(members[name], rows, axis, factor)
    return checkpoint.replace(model=model, optimizer=state and state.replace(slots=slots))


def _times(tensor: ir.TensorProtocol, rows: Array, axis: int, factor: float) -> ir.TensorProtocol:
    array = np.array(tensor.numpy(), np.float64)
    np.moveaxis(array, axis, 0)[rows] *= factor
    return ir.Tensor(array.astype(tensor.numpy().dtype), dtype=tensor.dtype, name=tensor.name)
