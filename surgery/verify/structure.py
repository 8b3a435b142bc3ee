"""The result is a valid model: onnx's checker and strict shape inference, without reading a weight."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from surgery.tensors import shape_of
from surgery.verify.report import Check

_SMALL = 4096
"""Largest constant in bytes that shape inference is given."""


def check_structure(model: ir.Model, before: ir.Model | None = None) -> Check:
    """Run onnx.checker and strict shape inference on the graph, its weights declared but left out.

    Args:
      before: the graph that it was made of. Where onnx cannot follow the numbers in that one, it need not in this.
    """
    wrong = _wrong(model, follow=True)
    if wrong is not None and before is not None and _wrong(before, follow=True) is not None:
        wrong = _wrong(model, follow=False)
    if wrong is not None:
        return Check("structure", False, 1.0, 0.0, wrong)
    return Check("structure", True, 0.0, 0.0, "onnx.checker and strict shape inference")


def _wrong(model: ir.Model, *, follow: bool) -> str | None:
    """What onnx finds wrong; `follow`: shape inference computes with the numbers of small constants, too."""
    try:
        proto = _without_weights(model)
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=follow)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    bare = model.clone()
    graph = bare.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= _SMALL:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            continue
        del graph.initializers[name]
        value.const_value = None
        value.shape, value.type = ir.Shape(shape_of(tensor)), ir.TensorType(tensor.dtype)
        if value not in graph.inputs:
            graph.inputs.append(value)
    return ir.serde.serialize_model(bare)
