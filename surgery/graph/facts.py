"""What is known of a graph before any rule runs: concrete shapes, and the values of its shape arithmetic.

Symbolic dimensions are given distinct large primes, so that every shape is a tuple of integers and no two
dimensions agree by chance. What depends only on shapes and constants is folded, element by element traced back to the
dimensions that it was read from. Nothing here touches a large tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.errors import GraphError, SurgeryError
from surgery.graph.control import captured
from surgery.graph.operands import operands, reads
from surgery.graph.shape_inference import infer_outputs
from surgery.graph.symbols import symbol
from surgery.numeric import compute
from surgery.numeric.kernels import RANDOM
from surgery.tensors import held, shape_of

PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091, 1093, 1097)
"""Stand-ins for symbolic dimensions."""

FOLD_LIMIT = 1 << 21
"""Largest number of elements of a folded value (a causal mask over a stand-in fits)."""

MOVEMENT = frozenset(
    ["Gather", "Slice", "Concat", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten", "Transpose",
     "Expand", "Split"]
)  # fmt: skip
"""Operators that only move elements: what they read can be traced element by element."""

Source = tuple[ir.Value, int]
"""A dimension (value, index) that a folded number was read from."""


class Facts:
    """Shapes and folded values of a graph, built node by node in graph order.

    Attributes:
      exact: floating folded values as they are without rounding to float32.
      shapes: value -> concrete shape; None where it cannot be known.
      known: value -> folded array (integers, booleans, and floating scalars).
      sources: value -> per element (flattened) the static dimensions it was read from.
      sequences: value of a sequence type -> the shapes of its members.
      symbols: name of a symbolic dimension -> the prime that stands for it, or its size.
      sizes: the symbolic dimensions whose size is known.
      constant: the values that depend on no graph input.
      ranges: value -> numbers between which its elements lie, as far as someone has asked.
      unknown: value without a shape -> the first node on the way to it that left one open.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        declared: bool = True,
        primes: Sequence[int] = PRIMES,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.sizes = dict(sizes or {})
        self._primes = primes
        self._trusts_declared = declared
        self.versions: Mapping[str, int] = model.opset_imports
        self.shapes: dict[ir.Value, tuple[int, ...] | None] = {}
        self.known: dict[ir.Value, np.ndarray] = {}
        self.exact: dict[ir.Value, np.ndarray] = {}
        self.sources: dict[ir.Value, tuple[frozenset[Source], ...]] = {}
        self.dtypes: dict[ir.Value, int] = {}
        self.sequences: dict[ir.Value, list[tuple[int, ...]]] = {}
        self.symbols: dict[str, int] = {}
        self.constant: set[ir.Value] = set()
        self.unknown: dict[ir.Value, ir.Node] = {}
        self.ranges: dict[ir.Value, tuple[float, float]] = {}
        self._symbolic: set[Source] = set()
        self._computed: dict[ir.Value, tuple[int, ...]] = {}
        for value in model.graph.initializers.values():
            self.tensor(value, value.const_value)
        for value in model.graph.inputs:
            if value not in self.constant:
                self._input(value)

    def symbolic(self, value: ir.Value, dim: int) -> bool:
        """Whether a dimension of a graph input is symbolic."""
        return (value, dim) in self._symbolic

    def stands_in(self, size: int) -> bool:
        """Whether a size comes from the stand-in of a symbolic dimension."""
        return any(size % prime == 0 for name, prime in self.symbols.items() if name not in self.sizes)

    def named(self, shape: Sequence[int]) -> ir.Shape:
        """A shape with its symbols in place of their stand-ins; what is computed from these is left open."""
        names = {prime: name for name, prime in self.symbols.items() if name not in self.sizes}
        return ir.Shape([names.get(size) if self.stands_in(size) else size for size in shape])

    def tensor(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        """Take in a constant; only small ones are read."""
        if tensor is None:
            raise GraphError(f"initializer '{value.name}' has no data")
        shape = shape_of(tensor)
        self.shapes[value] = shape
        self.constant.add(value)
        size = math.prod(shape)
        floating = tensor.dtype.is_floating_point()
        if size <= (1 if floating else FOLD_LIMIT) and tensor.dtype != ir.DataType.STRING:
            self._fold(value, np.asarray(tensor.numpy()))

    def step(self, node: ir.Node) -> None:
        """Find the shapes, and where possible the values, of a node's outputs."""
        standard = not node.domain
        if standard and node.op_type == "Constant":
            self.tensor(node.outputs[0], constant_tensor(node))
            return
        random = standard and node.op_type in RANDOM
        if not random and all(value in self.constant for value in reads(node)):
            self.constant.update(node.outputs)
        if standard and node.op_type == "Identity" and node.inputs[0] in self.sequences:
            self.sequences[node.outputs[0]] = self.sequences[node.inputs[0]]
        elif standard and node.op_type in ("SplitToSequence", "SequenceAt"):
            self._sequence(node)
        elif not (standard and self._try_fold(node)):
            self._infer(node)
        self.constant.update(value for value in node.outputs if self._static(value))

    def _static(self, value: ir.Value) -> bool:
        """Whether it holds whole numbers that come of static dimensions only, whatever the input."""
        known = self.known.get(value)
        return (
            known is not None
            and known.dtype.kind in "iu"
            and not any(map(self.stands_in, known[known > 0].tolist()))
        )

    def taint(self, value: ir.Value) -> frozenset[Source]:
        """All static dimensions that a folded value was read from."""
        return frozenset().union(*self.sources.get(value, ()))

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """A folded integer vector as a list, or None."""
        if value is None or value not in self.known:
            return None
        return [int(n) for n in self.known[value].reshape(-1)]

    def _input(self, value: ir.Value) -> None:
        if value.shape is None:
            raise GraphError(f"input '{value.name}' has no declared shape", hint="declare it before export")
        shape = []
        for k, dim in enumerate(value.shape):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            name = symbol(value, k)
            if name not in self.symbols:
                self.symbols[name] = self.sizes.get(name) or _prime(self._primes, len(self.symbols))
            shape.append(self.symbols[name])
            self._symbolic.add((value, k))
        if 0 in shape:
            raise GraphError(f"input '{value.name}' has an axis of size 0: {shape}")
        self.shapes[value] = tuple(shape)

    def _fold(
        self, value: ir.Value, array: np.ndarray, sources: Iterable[frozenset[Source]] | None = None
    ) -> None:
        self.known[value] = array
        self.shapes[value] = tuple(array.shape)
        if sources is not None:
            traced = tuple(sources)
            if any(traced):
                self.sources[value] = traced

    def _try_fold(self, node: ir.Node) -> bool:
        if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
            return self._fold_shape(node, node.inputs[0])
        if node.op_type == "CastLike" and node.inputs[0] in self.known:
            return self._fold_cast_like(node)
        if any(v is not None and v not in self.known for v in node.inputs) or captured(node):
            return False
        if not node.inputs or node.op_type in RANDOM:
            return False
        if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range") and self._too_large(node):
            return False
        arrays = [None if v is None else self.known[v] for v in node.inputs]
        try:
            results = compute(node, arrays, self.versions.get(node.domain, 1))
        except (SurgeryError, ValueError, IndexError, TypeError, ArithmeticError):
            return False
        if any((r.dtype.kind not in "biu" and r.size > 1) or r.size > FOLD_LIMIT for r in results):
            self._computed.update((v, r.shape) for v, r in zip(node.outputs, results, strict=False))
            return False
        for value, result in zip(node.outputs, results, strict=False):
            self._fold(value, np.asarray(result), self._trace(node, result))
        if results[0].dtype.kind == "f":
            self._fold_exactly(node, results[0])
        return True

    def _fold_cast_like(self, node: ir.Node) -> bool:
        """A number cast to the type of an activation, whose values do not matter."""
        first, like = node.inputs
        assert first is not None and like is not None
        array, to = self.known[first], ir.DataType(self.dtype(like))
        if to.is_floating_point() and array.size > 1:
            return False
        self._fold(node.outputs[0], array.astype(to.numpy()), self.sources.get(first))
        if to.is_floating_point():
            self.exact[node.outputs[0]] = self.exact.get(first, array).astype(np.float64)
        return True

    def _fold_exactly(self, node: ir.Node, rounded: np.ndarray) -> None:
        """The same arithmetic in float64, for proofs that allow no rounding."""
        arrays = [None if v is None else self.exact.get(v, _double(self.known[v])) for v in node.inputs]
        if node.op_type in ("Cast", "CastLike"):
            self.exact[node.outputs[0]] = np.asarray(arrays[0], np.float64)
            return
        try:
            self.exact[node.outputs[0]] = np.asarray(
                compute(node, arrays, self.versions.get(node.domain, 1))[0]
            )
        except (SurgeryError, ValueError, IndexError, TypeError, ArithmeticError):
            self.exact[node.outputs[0]] = rounded.astype(np.float64)

    def _too_large(self, node: ir.Node) -> bool:
        first = self.known[node.inputs[0]] if node.inputs[0] is not None else np.zeros(1)
        if node.op_type == "Range":
            return bool(np.abs(self.known[node.inputs[1]]).max() > FOLD_LIMIT)  # type: ignore[index]
        if node.op_type == "ConstantOfShape":
            return math.prod(int(n) for n in first.reshape(-1)) > FOLD_LIMIT
        operand = self.known[node.inputs[1]]  # type: ignore[index]
        return math.prod(max(int(n), 1) for n in operand.reshape(-1)) * max(first.size, 1) > FOLD_LIMIT

    def _sequence(self, node: ir.Node) -> None:
        """A split into a sequence of known length, and the members taken out of it."""
        first = node.inputs[0]
        assert first is not None
        if node.op_type == "SequenceAt":
            place, members = self.ints(node.inputs[1]), self.sequences.get(first)
            inside = members and place and -len(members) <= place[0] < len(members)
            self.shapes[node.outputs[0]] = members[place[0]] if members and place and inside else None
            return
        shape = self.shapes.get(first)
        if shape is None or not node.attributes.get_int("keepdims", 1):
            return
        axis = node.attributes.get_int("axis", 0) % len(shape)
        split = node.inputs[1] if len(node.inputs) > 1 else None
        sizes = [1] * shape[axis] if split is None else self._pieces(split, shape[axis])
        if sizes:
            self.sequences[node.outputs[0]] = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]

    def _pieces(self, split: ir.Value, size: int) -> list[int]:
        numbers = self.ints(split) or []
        if self.known.get(split, np.zeros(1)).ndim or not numbers:
            return numbers
        count, rest = divmod(size, numbers[0])
        return [numbers[0]] * count + ([rest] if rest else [])

    def _fold_shape(self, node: ir.Node, value: ir.Value) -> bool:
        shape = self.shapes.get(value)
        if shape is None:
            return False
        start, end = _slice_of(node, len(shape)) if node.op_type == "Shape" else (0, len(shape))
        per_dim = [frozenset([(value, k)]) for k in range(start, end)]
        if node.op_type == "Size":
            self._fold(node.outputs[0], np.array(math.prod(shape), np.int64), [frozenset().union(*per_dim)])
        else:
            self._fold(node.outputs[0], np.array(shape[start:end], np.int64), per_dim)
        return True

    def _trace(self, node: ir.Node, result: np.ndarray) -> list[frozenset[Source]]:
        """Per element of the result, the dimensions it depends on."""
        tracked = [v for v in operands(node) if v in self.sources]
        if not tracked:
            return []
        data = operands(node)
        if node.op_type in MOVEMENT and (node.op_type == "Concat" or tracked == data[:1]):
            try:
                return self._trace_moved(node, result)
            except (SurgeryError, ValueError, IndexError, TypeError):
                pass
        everything = frozenset[Source]().union(*(self.taint(v) for v in tracked))
        return [everything] * result.size

    def _trace_moved(self, node: ir.Node, result: np.ndarray) -> list[frozenset[Source]]:
        table: list[frozenset[Source]] = []
        arrays: list[np.ndarray | None] = []
        moved = len(node.inputs) if node.op_type == "Concat" else 1
        for k, value in enumerate(node.inputs):
            if value is None or k >= moved:
                arrays.append(None if value is None else self.known[value])
                continue
            array = self.known[value]
            arrays.append(np.arange(len(table), len(table) + array.size, dtype=np.int64).reshape(array.shape))
            table.extend(self.sources.get(value, (frozenset(),) * array.size))
        (labels,) = compute(node, arrays, self.versions.get(node.domain, 1))[:1]
        if labels.shape != result.shape:
            raise ValueError
        return [table[int(k)] for k in np.asarray(labels, np.int64).reshape(-1)]

    def _infer(self, node: ir.Node) -> None:
        """The shapes that onnx infers, or else those that the file declares."""
        for value, (shape, dtype) in zip(node.outputs, infer_outputs(self, node), strict=True):
            self.shapes[value] = self._computed.get(value, self._declared(value)) if shape is None else shape
            if self.shapes[value] is None:
                self.unknown[value] = next((self.unknown[v] for v in node.inputs if v in self.unknown), node)
            if dtype is not None:
                self.dtypes[value] = dtype

    def small(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of an operand that shape inference may want (scales of a Resize, say)."""
        array, producer = self.known.get(value), value.producer()
        if array is not None:
            return np.ascontiguousarray(array) if array.size <= 4096 else None
        tensor = value.const_value
        if tensor is None and producer is not None and producer.op_type == "Constant":
            tensor = constant_tensor(producer)
        return np.asarray(tensor.numpy()) if tensor is not None and tensor.size <= 64 else None

    def dtype(self, value: ir.Value) -> int:
        """ONNX's number of a value's element type; float where nothing says otherwise."""
        if value.const_value is not None:
            return int(value.const_value.dtype)
        if value in self.known:
            return int(ir.DataType.from_numpy(self.known[value].dtype))
        return self.dtypes.get(value) or int(value.dtype or ir.DataType.FLOAT)

    def _declared(self, value: ir.Value) -> tuple[int, ...] | None:
        """The shape written in the file, its symbols replaced; None if a dimension stays unknown."""
        if value.shape is None or not self._trusts_declared:
            return None
        shape = []
        for dim in value.shape:
            size = dim if isinstance(dim, int) else self.symbols.get(str(dim.value))
            if size is None:
                return None
            shape.append(size)
        return tuple(shape)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol:
    """The value of a Constant node, whichever attribute holds it."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return held(attribute)
        if name in ("value_int", "value_ints"):
            return ir.Tensor(np.array(attribute.value, np.int64))
        if name in ("value_float", "value_floats"):
            return ir.Tensor(np.array(attribute.value, np.float32))
    raise GraphError(f"Constant node '{node.name}' holds no numbers")


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _slice_of(node: ir.Node, rank: int) -> tuple[int, int]:
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", rank)
    return max(0, start + rank if start < 0 else start), min(rank, end + rank if end < 0 else end)


def _prime(primes: Sequence[int], k: int) -> int:
    return primes[k] if k < len(primes) else 1 + 2 * primes[-1] * (k + 1)
