"""Writing a network as an ONNX graph: parameters under names of your choosing, layers in a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.tensors import shape_of

OPSET = 20
IR_VERSION = 10
BATCH = "batch"

Attribute = int | float | str | Sequence[int] | Sequence[float]
_DTYPES: Mapping[str, ir.DataType] = {
    "bool": ir.DataType.BOOL,
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
    "uint8": ir.DataType.UINT8,
}


class GraphBuilder:
    """A graph in the making.

        graph = GraphBuilder("mlp")
        x = graph.input("observation", (4,))
        x = graph.op("Relu", graph.linear(x, "0", weight, bias))
        graph.output(x, "q_values", (2,))
        model = graph.model()

    Parameters are initializers under the names given; the leading axis of inputs and outputs is a symbolic
    batch. Literals (shapes, bounds) become constants, one per use.
    """

    def __init__(self, name: str) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
        self._count = 0

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> ir.Value:
        """An input of shape (batch, *shape)."""
        value = _value(name, shape, dtype)
        self._graph.inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, shape: Sequence[int | str], dtype: str = "float32"
    ) -> ir.Value:
        """Declare a value an output of shape (batch, *shape)."""
        if value in self._graph.outputs or value.producer() is None:
            value = self.op("Identity", value)
        value.name, value.shape, value.type = name, _shape(shape), ir.TensorType(_DTYPES[dtype])
        self._graph.outputs.append(value)
        return value

    def parameter(self, name: str, array: Array | ir.TensorProtocol) -> ir.Value:
        """An initializer; a name that is already one is the same parameter once more."""
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name) if isinstance(array, np.ndarray) else array
        value = ir.Value(
            name=name, shape=ir.Shape(shape_of(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.initializers[name] = value
        return value

    def constant(self, number: object, dtype: str = "int64") -> ir.Value:
        """A literal as a Constant node."""
        tensor = ir.Tensor(np.asarray(number, dtype=dtype))
        return self._append(ir.node("Constant", [], {"value": tensor}))

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Attribute) -> ir.Value:
        """A node of the default operator set; its first output (all of them: `ops`)."""
        return self.ops(kind, *inputs, outputs=outputs, **attributes)[0]

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int, **attributes: Attribute
    ) -> list[ir.Value]:
        """A node of the default operator set; all its outputs."""
        node = ir.node(kind, list(inputs), dict(attributes), num_outputs=outputs)
        self._append(node)
        return list(node.outputs)

    def linear(
        self,
        x: ir.Value,
        name: str,
        weight: Array | ir.TensorProtocol,
        bias: Array | ir.TensorProtocol | None = None,
    ) -> ir.Value:
        """`x Wᵀ + b` of a matrix x; weight (out, in), bias (out,), named NAME.weight and NAME.bias."""
        inputs = [x, self.parameter(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.parameter(f"{name}.bias", bias))
        return self.op("Gemm", *inputs, transB=1)

    def convolution(
        self,
        x: ir.Value,
        name: str,
        weight: Array | ir.TensorProtocol,
        bias: Array | ir.TensorProtocol | None = None,
        *,
        stride: int = 1,
        pads: Sequence[int] = (0, 0, 0, 0),
    ) -> ir.Value:
        """2-d convolution of (batch, in, H, W); weight (out, in, k, k); pads top, left, bottom, right."""
        kernel = self.parameter(f"{name}.weight", weight)
        inputs = [x, kernel]
        if bias is not None:
            inputs.append(self.parameter(f"{name}.bias", bias))
        size = shape_of(kernel.const_value)[2:] if kernel.const_value is not None else ()
        return self.op("Conv", *inputs, kernel_shape=list(size), strides=[stride, stride], pads=list(pads))

    def model(self) -> ir.Model:
        """The finished model."""
        return ir.Model(self._graph, ir_version=IR_VERSION, producer_name="policy-surgery")

    def _append(self, node: ir.Node) -> ir.Value:
        self._count += 1
        node.name = f"{node.op_type}_{self._count}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}.{index}" if index else f"{node.name}.output"
        self._graph.append(node)
        return node.outputs[0]


def _shape(shape: Sequence[int | str]) -> ir.Shape:
    return ir.Shape([BATCH, *shape])


def _value(name: str, shape: Sequence[int | str], dtype: str) -> ir.Value:
    return ir.Value(name=name, shape=_shape(shape), type=ir.TensorType(_DTYPES[dtype]))
