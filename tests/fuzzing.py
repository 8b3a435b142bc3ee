"""Random graphs, drawn node by node: every node is evaluated as it is added, so that what does not fit is not added.

A `Sketch` holds a half-drawn graph; the drawings in `tests/fuzzing_operators.py`, `…_layers.py`, `…_movement.py`,
`…_motifs.py`, `…_nets.py` and `…_rare.py` add to it, `fuzzing_cases.draw` makes a whole case of it. Values stay tame: a
node whose result is not finite, or large, is not added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import NodeProto, TensorProto, helper, numpy_helper

from surgery.arrays import Array
from surgery.errors import SurgeryError
from surgery.numeric import compute, run

LARGEST = 30.0
MOST_ELEMENTS = 4096
OPSETS = {9: 4, 10: 1, 11: 1, 12: 1, **dict.fromkeys(range(13, 23), 6), 23: 12, 24: 6}
"""Versions of operators, and how often they are drawn; most drawings are for 13 and later."""

BATCH = 3
"""Size of a symbolic batch while a graph is drawn."""

FAILURES = (SurgeryError, ValueError, IndexError, KeyError, TypeError, ArithmeticError, AttributeError)


def words(text: str) -> list[str]:
    """Names, without the quotes."""
    return text.split()


class Unfit(Exception):
    """Something that does not fit into the graph as it is."""


@dataclass(frozen=True)
class Case:
    """A graph with inputs to compare on.

    Attributes:
      model: the graph. feeds: its inputs. seed, number: what it was drawn from.
    """

    model: onnx.ModelProto
    feeds: dict[str, Array]
    seed: int = 0
    number: int = 0

    @property
    def operators(self) -> set[str]:
        """Types of its nodes."""
        return {node.op_type for node in self.model.graph.node}


def reads(node: NodeProto) -> set[str]:
    """What a node reads, in its branches, too."""
    inner = [inside for attribute in node.attribute for inside in attribute.g.node]
    return {*node.input, *(name for inside in inner for name in inside.input)}


@dataclass
class Sketch:
    """A graph that is being drawn.

    Attributes:
      rng: of every choice. opset: version of the operators. symbolic: whether the batch has no fixed size.
      sizes: the widths that layers of this graph like, so that residuals and ties meet.
      values: every value so far. constant: names of those that depend on no input.
      pool: floating activations, oldest first. masks: boolean activations.
    """

    rng: np.random.Generator
    opset: int
    symbolic: bool
    batch: int
    sizes: list[int]
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    pool: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    # ---- choices --------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def choice(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        if not options:
            raise Unfit("nothing to choose from")
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: float, high: float) -> float:
        """A number with two digits."""
        return round(float(self.rng.uniform(low, high)), 2)

    def width(self) -> int:
        """A width for a layer."""
        return int(self.choice(self.sizes)) if self.chance(0.85) else int(self.rng.integers(1, 9))

    def pick(self, rank: int | None = None, where: Callable[[Array], bool] | None = None) -> str:
        """An activation, mostly a young one."""
        fits = [
            name for name in self.pool
            if (rank is None or self.values[name].ndim == rank) and (where is None or where(self.values[name]))
        ]  # fmt: skip
        if not fits:
            raise Unfit("no such activation")
        return fits[-1 - min(int(self.rng.exponential(1.5)), len(fits) - 1)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[name].shape)

    def rank(self, name: str) -> int:
        """The rank of a value."""
        return self.values[name].ndim

    # ---- drawing --------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """A new name."""
        self.names[stem] += 1
        return f"{stem}{self.names[stem]}"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo everything if something in it does not fit."""
        lists = (self.nodes, self.pool, self.masks, self.outputs)
        mappings = (self.tensors, self.inputs, self.values)
        sizes, keys, constant = [len(x) for x in lists], [set(x) for x in mappings], set(self.constant)
        try:
            yield
        except Unfit:
            for kept, size in zip(lists, sizes, strict=True):
                del kept[size:]
            for mapping, known in zip(mappings, keys, strict=True):
                for key in set(mapping) - known:
                    del mapping[key]
            self.constant = constant
            raise

    def node(
        self, kind: str, inputs: Sequence[str | None], outputs: int = 1, **attributes: object
    ) -> list[str]:
        """Add a node and evaluate it.

        Raises:
          Unfit: if its operands do not fit, or the result is not tame.
        """
        names = [self.name("v") for _ in range(outputs)]
        node = helper.make_node(kind, [name or "" for name in inputs], names, **attributes)
        self._check(node)
        arrays = [self.values[name] if name else None for name in inputs]
        try:
            results = compute(_alone(node), arrays, self.opset)
        except FAILURES as error:
            raise Unfit(f"{kind}: {error}") from None
        for result in results:
            self.tame(kind, result)
        self.nodes.append(node)
        self.values.update(zip(names, map(np.asarray, results), strict=True))
        if all(name is None or name in self.constant for name in inputs):
            self.constant.update(names)
        return names

    def _check(self, node: NodeProto) -> None:
        """Raise Unfit for a node that its version of the operator does not have."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset)
        except onnx.defs.SchemaError:
            raise Unfit(f"no {node.op_type} in opset {self.opset}") from None
        named = {attribute.name for attribute in node.attribute}
        if len(node.input) > schema.max_input or not named <= set(schema.attributes):
            raise Unfit(f"another {node.op_type} in opset {self.opset}")

    def sequence(self, x: str, sizes: str, name: str, axis: int) -> None:
        """Add a node that splits a value into a sequence (which has no array)."""
        self.nodes.append(helper.make_node("SplitToSequence", [x, sizes], [name], axis=axis))

    def member(self, sequence: str, place: str, array: Array) -> str:
        """Add a node that takes a member, whose value is given, out of a sequence."""
        name = self.name("v")
        self.nodes.append(helper.make_node("SequenceAt", [sequence, place], [name]))
        self.values[name] = array
        return name

    def branch(self, condition: str, x: str, taken: str, other: str) -> str:
        """Add an If with a true condition; its branches apply one operator each to a value from outside."""
        result = self.name("v")
        rank = [None] * self.rank(x)
        graphs = [
            helper.make_graph(
                [helper.make_node(kind, [x], ["chosen"])], "branch", [],
                [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, rank)],
            )
            for kind in (taken, other)
        ]  # fmt: skip
        node = helper.make_node("If", [condition], [result], then_branch=graphs[0], else_branch=graphs[1])
        self.values[result] = compute(
            _alone(helper.make_node(taken, [x], [result])), [self.values[x]], self.opset
        )[0]
        self.nodes.append(node)
        return result

    @staticmethod
    def tame(kind: str, array: Array) -> None:
        """Raise Unfit for a value that is large, or not finite."""
        if array.size > MOST_ELEMENTS or array.size == 0:
            raise Unfit(f"{kind}: {array.size} elements")
        if array.dtype.kind == "f" and not (np.abs(array) <= LARGEST).all():
            raise Unfit(f"{kind}: not tame")

    def op(self, kind: str, *inputs: str | None, **attributes: object) -> str:
        """Add a node of one result."""
        return self.node(kind, inputs, **attributes)[0]

    def keep(self, *names: str) -> None:
        """Let others read these activations."""
        for name in names:
            if name in self.constant:
                continue
            if self.values[name].dtype == bool:
                self.masks.append(name)
            elif self.values[name].dtype.kind == "f":
                self.pool.append(name)

    def input(self, stem: str, *shape: int, low: float | None = None, high: float = 1.0) -> str:
        """A graph input."""
        name = self.name(stem)
        array = self.rng.standard_normal(shape) if low is None else self.rng.uniform(low, high, shape)
        self.inputs[name] = self.values[name] = array.astype(np.float32)
        return name

    def tensor(self, array: Array, stem: str = "constant") -> str:
        """An initializer, or now and then a Constant node."""
        name = stem if "." in stem else self.name(stem)
        self.values[name] = array
        self.constant.add(name)
        if "." not in stem and self.chance(0.4):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.tensors[name] = array
        return name

    def ints(self, *numbers: int) -> str:
        """A literal vector; equal ones are sometimes one tensor."""
        array = np.array(numbers, np.int64)
        if self.chance(0.3):
            for name, other in self.values.items():
                if name in self.tensors and other.dtype == np.int64 and np.array_equal(other, array):
                    return name
        return self.tensor(array, "shape")

    def index(self, number: int) -> str:
        """A literal scalar."""
        return self.tensor(np.array(number, np.int64), "index")

    def scalar(self, number: float) -> str:
        """A floating scalar, with or without axes."""
        shape: tuple[int, ...] = self.choice([(), (), (1,), (1, 1)])
        return self.tensor(np.full(shape, number, np.float32), "scalar")

    def reduce(self, kind: str, x: str, axes: Sequence[int], keep: bool = True) -> str:
        """A reduction, its axes where the version wants them."""
        if self.opset >= 18 or kind == "ReduceSum":
            return self.op(kind, x, self.ints(*axes), keepdims=int(keep))
        return self.op(kind, x, axes=list(axes), keepdims=int(keep))

    def reshape(self, x: str, target: Sequence[int]) -> str:
        """A reshape by literals, by -1 or 0, or by numbers computed from shapes."""
        shape, numbers = self.shape(x), list(target)
        symbolic = self.symbolic and numbers[:1] == [self.batch] and shape[:1] == (self.batch,)
        if (symbolic or self.chance(0.2)) and self.chance(0.4) and numbers:
            return self.op("Reshape", x, self._computed(x, numbers))
        for k, n in enumerate(numbers):
            if k < len(shape) and n == shape[k] and ((symbolic and k == 0) or self.chance(0.2)):
                numbers[k] = 0
        if self.chance(0.3) and numbers:
            numbers[int(self.rng.integers(len(numbers)))] = -1
        return self.op("Reshape", x, self.ints(*numbers))

    def _computed(self, x: str, target: Sequence[int]) -> str:
        """A shape put together from dimensions of x and from literals."""
        whole, shape, parts = self.op("Shape", x), self.shape(x), []
        for k, n in enumerate(target):
            if n in shape and (k == 0 or self.chance(0.7)):
                at = k if k < len(shape) and shape[k] == n else shape.index(n)
                dim = self.op("Gather", whole, self.index(at))
                parts.append(self.op("Unsqueeze", dim, self.ints(0)))
            else:
                parts.append(self.ints(n))
        return self.op("Concat", *parts, axis=0)

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """Axes in another order."""
        return self.op("Transpose", x, perm=list(order))

    # ---- the whole ------------------------------------------------------------------------------------------

    def proto(self) -> onnx.ModelProto:
        """The graph as it is."""
        types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64,
                 np.dtype(bool): TensorProto.BOOL}  # fmt: skip
        read = {name for node in self.nodes for name in reads(node)} | set(self.outputs)
        inputs = [
            helper.make_tensor_value_info(name, types[array.dtype], self._declared(array.shape))
            for name, array in self.inputs.items()
        ]
        outputs = [
            helper.make_tensor_value_info(name, types[self.values[name].dtype], [None] * self.rank(name))
            for name in self.outputs
        ]
        tensors = [
            numpy_helper.from_array(array, name) for name, array in self.tensors.items() if name in read
        ]
        graph = helper.make_graph(self.nodes, "fuzz", inputs, outputs, tensors)
        version = 8 if self.opset < 19 else 9 if self.opset < 21 else 10
        return helper.make_model(
            graph, ir_version=version, opset_imports=[helper.make_opsetid("", self.opset)]
        )

    def prune(self) -> None:
        """Drop what no output depends on."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(reads(node))
        self.nodes = kept[::-1]
        self.inputs = {name: array for name, array in self.inputs.items() if name in needed} or self.inputs

    def run_all(self, feeds: dict[str, Array]) -> None:
        """Evaluate every node; raises one of FAILURES if the graph does not fit these inputs."""
        model, lists = ir.serde.deserialize_model(self.proto()), ("SplitToSequence", "Constant")
        names = [
            str(value.name) for node in model.graph if node.op_type not in lists for value in node.outputs
        ]
        run(model, feeds, outputs=names)

    def _declared(self, shape: Sequence[int]) -> list[int | str]:
        return ["N" if self.symbolic and k == 0 else n for k, n in enumerate(shape)]


def _alone(node: NodeProto) -> ir.Node:
    """A node as an object, its operands without producers."""
    inputs = [ir.Value(name=name) if name else None for name in node.input]
    attributes = [ir.serde.deserialize_attribute(attribute) for attribute in node.attribute]
    return ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.output))


def sketch(rng: np.random.Generator) -> Sketch:
    """An empty graph."""
    symbolic = bool(rng.random() < 0.55)
    opset = int(rng.choice([*OPSETS], p=np.array([*OPSETS.values()]) / sum(OPSETS.values())))
    sizes = sorted({int(n) for n in rng.choice([2, 3, 4, 4, 5, 6, 6, 8], 3)})
    return Sketch(rng, opset, symbolic, BATCH if symbolic else int(rng.integers(1, 4)), sizes)


def finished(s: Sketch, seed: int, number: int) -> Case | None:
    """The case of a drawn graph, or None if it is not valid (a symbolic batch that had to be 3 becomes 3)."""
    if not s.outputs:
        return None
    if s.chance(0.7):
        s.prune()
    feeds = {
        name: np.concatenate([array, array[::-1][:2] * 0.5]).astype(array.dtype)
        for name, array in s.inputs.items()
    }
    if s.symbolic:
        try:
            s.run_all(feeds)
        except FAILURES:
            s.symbolic = False
    proto = s.proto()
    try:
        onnx.checker.check_model(proto, full_check=True)
        if s.chance(0.5):
            proto = onnx.shape_inference.infer_shapes(proto)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    feeds = feeds if s.symbolic else dict(s.inputs)
    results = run(ir.serde.deserialize_model(proto), feeds)
    if not all(np.isfinite(array).all() for array in results.values() if array.dtype.kind == "f"):
        return None
    return Case(proto, feeds, seed, number)
