"""The result is a valid model: onnx's checker and strict shape inference, without reading a weight."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from surgery.errors import first_line
from surgery.model_file import with_initializers
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
        return first_line(error)
    return None


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    small = {
        name: ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name) if tensor.nbytes <= _SMALL else None
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
    }
    return ir.serde.serialize_model(with_initializers(model, small))
