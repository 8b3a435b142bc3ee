"""Operators without a kernel of ours: the onnx package's reference implementation, one node at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.numeric.call import Call, Value, is_floating


def known(op_type: str) -> bool:
    """Whether the reference implementation has the operator of the default domain."""
    from onnx.reference.ops._op_list import load_op

    try:
        load_op("", op_type)
    except AssertionError:  # it is there, as a function that wants an evaluator
        return True
    except Exception:
        return False
    return True


def evaluate(call: Call) -> tuple[Value, ...]:
    """Evaluate one node by the reference implementation; float results come in the evaluation's precision.

    Raises:
      Unsupported: it has no such operator, or does not take these operands.
    """
    from onnx.reference import ReferenceEvaluator

    names, feeds = _operands(call)
    outputs = [f"out{index}" if v.name else "" for index, v in enumerate(call.node.outputs)]
    try:
        evaluator = ReferenceEvaluator(_model(call, names, outputs))
        results: Any = evaluator.run(None, feeds)
    except Exception as error:
        raise call.refuse(f"no kernel, and the reference gives {type(error).__name__}: {error}") from error
    found = dict(zip([name for name in outputs if name], results, strict=True))
    return tuple(_stated(call, found.get(name)) for name in outputs)


def _operands(call: Call) -> tuple[list[str], dict[str, Any]]:
    """Names for the operands ("" where absent) and the arrays to feed."""
    arrays = [x for x in call.inputs if isinstance(x, np.ndarray)]
    arrays += [x for operand in call.inputs if isinstance(operand, list) for x in operand]
    if any(x.dtype.kind == "c" for x in arrays):
        raise call.refuse("no kernel, and the reference takes no derivative")
    if call.bodies:
        raise call.refuse("no kernel for this control flow")
    names = ["" if x is None else f"in{index}" for index, x in enumerate(call.inputs)]
    return names, {name: x for name, x in zip(names, call.inputs, strict=True) if name}


def _model(call: Call, names: list[str], outputs: list[str]) -> Any:  # noqa: ANN401
    import onnx

    node = ir.Node(call.node.domain, call.node.op_type, [], call.attributes, num_outputs=len(outputs))
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    untyped = [onnx.ValueInfoProto(name=name) for name in names if name]
    results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
    graph = onnx.helper.make_graph([proto], "node", untyped, results)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.version)])


def _stated(call: Call, x: Any) -> Value:  # noqa: ANN401
    if x is None or isinstance(x, list):
        return x
    array = np.asarray(x)
    return call.floating(array) if is_floating(array.dtype) else array
