"""A graph whose constants become what they are made of: arrays under their own names, and nodes in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from surgery.errors import Refused
from surgery.graph.unused import drop_unused
from surgery.tensors import shape_of
from surgery_adapters.binding.blocks import Block, Bound
from surgery_adapters.binding.layout import Shape
from surgery_adapters.binding.norms import Fold

REST = ".rest"
"""Ends the name of zeros that an exporter put beside an array."""


def rewrite(
    model: ir.Model,
    bound: Mapping[str, Bound],
    folds: Sequence[Fold],
    lost: Mapping[str, tuple[ir.Node, int]],
    arrays: Mapping[str, ir.TensorProtocol],
) -> ir.Model:
    """Put arrays in the place of constants, in place; the function stays.

    Args:
      model: changed, and returned.
      bound: constant -> what it is made of. folds: normalisations to be undone.
      lost: zero bias -> the layer that it is put back into, and its width.
      arrays: key -> array, which becomes a parameter of that name.
    """
    writer = _Writer(model, arrays)
    for fold in folds:
        writer.unfold(fold)
    for name, what in bound.items():
        writer.replace(name, what)
    for key, (node, width) in lost.items():
        writer.put_back(key, node, width)
    return model


def bare_width(node: ir.Node, weight: Shape) -> int | None:
    """How many numbers come out of a layer without a bias; None if it is none.

    Args:
      weight: the shape of its second input.
    """
    if node.op_type == "MatMul":
        return int(weight[-1])
    return int(weight[0]) if node.op_type == "Conv" and len(node.inputs) < 3 else None


class _Writer:
    def __init__(self, model: ir.Model, arrays: Mapping[str, ir.TensorProtocol]) -> None:
        self._model, self._graph, self._arrays = model, model.graph, arrays
        self._first = model.graph[0]
        self._count = 0
        self._names = {value.name for node in model.graph for value in node.outputs}
        self._made: dict[str, ir.Value] = {}

    def replace(self, name: str, bound: Bound) -> None:
        """Compute a constant from arrays, and take it out."""
        constant = self._graph.initializers[name]
        value = self._constant(name, bound)
        constant.replace_all_uses_with(value)
        drop_unused(self._model, constant)

    def unfold(self, fold: Fold) -> None:
        """Put a normalisation behind its layer, and give the layer its own weights back."""
        node, x = fold.node, fold.node.outputs[0]
        if fold.weight is None:
            others = [
                value for value in node.inputs if value is not None and value.name not in fold.constants
            ]
            [x] = others
            end = fold.add.outputs[0] if fold.add else node.outputs[0]
        else:
            x, end = self._own_layer(fold)
        after = fold.add or node
        old = [self._graph.initializers[name] for name in fold.constants if name in self._graph.initializers]
        y = self._normalised(x, fold, after)
        for use in list(end.uses()):
            if use.node is not y[0]:
                use.node.replace_input_with(use.idx, y[1])
        if end.is_graph_output():
            self._take_over(end, y[1])
        drop_unused(self._model, end)
        for value in old:
            drop_unused(self._model, value)

    def put_back(self, key: str, node: ir.Node, width: int) -> None:
        """Give a layer its bias of zeros."""
        bias = self._reshaped(self._parameter(key), shape_of(self._arrays[key]), (width,))
        if node.op_type == "Conv":
            node.resize_inputs(3)
            node.replace_input_with(2, bias)
            return
        end = node.outputs[0]
        readers = list(end.uses())
        add = self._node("Add", [end, bias])
        self._graph.insert_after(node, [add])
        for use in readers:
            use.node.replace_input_with(use.idx, add.outputs[0])
        if end.is_graph_output():
            self._take_over(end, add.outputs[0])

    def _own_layer(self, fold: Fold) -> tuple[ir.Value, ir.Value]:
        """The layer with its own weight and bias; its output."""
        assert fold.weight is not None
        node = fold.node
        node.replace_input_with(1, self._constant(fold.constants[0], fold.weight))
        bias = None if fold.bias is None else self._parameter(fold.bias)
        if fold.add is None:
            node.replace_input_with(2, bias)
            return node.outputs[0], node.outputs[0]
        place = next(k for k, value in enumerate(fold.add.inputs) if value is not node.outputs[0])
        if bias is not None:
            fold.add.replace_input_with(place, bias)
            return fold.add.outputs[0], fold.add.outputs[0]
        return node.outputs[0], fold.add.outputs[0]

    def _normalised(self, x: ir.Value, fold: Fold, after: ir.Node) -> tuple[ir.Node, ir.Value]:
        """`BatchNormalization(x)` behind a node: the node that reads x, and the result."""
        norm = fold.norm
        width = shape_of(self._arrays[norm.mean])[0]
        scale, shift = (
            self._parameter(key) if key is not None
            else self._literal(f"{norm.mean}.{what}", np.full(width, fill, np.float32))
            for key, what, fill in ((norm.scale, "one", 1.0), (norm.shift, "zero", 0.0))
        )  # fmt: skip
        rest = [scale, shift, self._parameter(norm.mean), self._parameter(norm.variance)]
        rank = self._rank(x) if fold.channel_last else 2
        made: list[ir.Node] = []
        first = x
        if rank > 2:
            made.append(self._node("Transpose", [x], {"perm": [0, rank - 1, *range(1, rank - 1)]}))
            first = made[-1].outputs[0]
        made.append(self._node("BatchNormalization", [first, *rest], {"epsilon": float(norm.epsilon)}))
        if rank > 2:
            made.append(self._node("Transpose", [made[-1].outputs[0]], {"perm": [0, *range(2, rank), 1]}))
        self._graph.insert_after(after, made)
        return made[0], made[-1].outputs[0]

    def _rank(self, value: ir.Value) -> int:
        if value.shape is None:
            ShapeInferencePass()(self._model)
        if value.shape is None:
            raise Refused(
                f"the number of axes of '{value.name}' is not known, and a normalisation follows it"
            )
        return len(value.shape)

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        name = old.name
        for k, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[k] = new
        new.shape, new.type = old.shape, old.type
        old.name = f"{name}.folded"
        new.name = name

    def _constant(self, name: str, bound: Bound) -> ir.Value:
        parts = [
            self._constant(name, block) if isinstance(block, Bound) else self._block(f"{name}{REST}", block)
            for block in bound.blocks
        ]
        value = parts[0] if len(parts) == 1 else self._op("Concat", parts, {"axis": bound.axis})
        if bound.factor != 1.0:
            factor = self._literal(f"{name}.factor", np.array(bound.factor, np.float32))
            value = self._op("Mul", [value, factor])
        return value

    def _block(self, rest: str, block: Block) -> ir.Value:
        if block.key is None:
            return self._literal(rest, np.zeros(block.shape, np.float32))
        value, layout = self._parameter(block.key), block.layout
        value = self._reshaped(value, shape_of(self._arrays[block.key]), block.seen)
        shape = block.seen
        if block.cut is not None:
            axis, start, stop = block.cut
            bounds = [self._literal("bound", np.array([n], np.int64)) for n in (start, stop, axis)]
            value = self._op("Slice", [value, *bounds])
            shape = tuple(stop - start if k == axis else size for k, size in enumerate(shape))
        value = self._reshaped(value, shape, layout.view)
        for axis in layout.flipped:
            ends = [self._literal("bound", np.array([n], np.int64)) for n in (-1, -(2**31), axis, -1)]
            value = self._op("Slice", [value, *ends])
        if layout.permutation != tuple(range(len(layout.permutation))):
            value = self._op("Transpose", [value], {"perm": list(layout.permutation)})
        return self._reshaped(value, tuple(layout.view[axis] for axis in layout.permutation), layout.shape)

    def _reshaped(self, value: ir.Value, shape: Shape, wanted: Shape) -> ir.Value:
        if shape == wanted:
            return value
        return self._op("Reshape", [value, self._literal("shape", np.array(wanted, np.int64))])

    def _parameter(self, key: str) -> ir.Value:
        if key not in self._made:
            if (other := self._graph.initializers.get(key)) is not None:
                self._rename(other)
            tensor = self._arrays[key]
            value = ir.Value(
                name=key,
                shape=ir.Shape(shape_of(tensor)),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self._graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def _literal(self, name: str, array: np.ndarray) -> ir.Value:
        name = self._fresh(name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )  # fmt: skip
        self._graph.register_initializer(value)
        return value

    def _rename(self, value: ir.Value) -> None:
        del self._graph.initializers[str(value.name)]
        value.name = self._fresh(f"{value.name}.exported")
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        self._graph.register_initializer(value)

    def _op(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Mapping[str, object] | None = None
    ) -> ir.Value:
        node = self._node(kind, inputs, attributes)
        self._graph.insert_before(self._first, [node])
        return node.outputs[0]

    def _node(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Mapping[str, object] | None = None
    ) -> ir.Node:
        node = ir.node(kind, list(inputs), dict(attributes or {}))  # type: ignore[arg-type]
        node.outputs[0].name = self._fresh(kind)
        return node

    def _fresh(self, name: str) -> str:
        base = name
        while name in self._names or name in self._graph.initializers or name in self._arrays:
            self._count += 1
            name = f"{base}_{self._count}"
        self._names.add(name)
        return name
