"""The same function: outputs of two models side by side, in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array, Arrays
from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import tensor_rng
from surgery.errors import SurgeryError, first_line
from surgery.graph.layers import RECURRENT
from surgery.model_file import with_initializers
from surgery.numeric import Unsupported, run
from surgery.tensors import shape_of
from surgery.verify.report import Check, measured

FLOAT32_LIMIT = 1e-6
"""Relative; a model whose own float32 outputs are further than this from its float64 ones is allowed 4 times that."""

FLOAT64_LIMIT = 1e-13
"""Relative, before rounding; more only for a model that moves further when its parameters move by their last bit."""

KL_LIMIT = 1e-8
"""Nats, between the policies that two sets of logits define."""

FORBIDDEN = 1e6
"""From this magnitude on, numbers are taken for those of a mask, in place of -inf."""

Carry = Callable[[Arrays], Arrays]

_INSIDE = 1 << 16
"""Bytes up to which onnxruntime is given a weight within the graph."""

RUNTIME_LIMIT = 1 << 29
"""Bytes of weights above which float32 is evaluated streaming, weight by weight, instead of by onnxruntime."""


class UnfitGraph(Exception):
    """A graph that cannot be evaluated at all."""


def difference(before: Arrays, after: Arrays) -> tuple[float, float, str]:
    """The largest absolute difference, the largest relative to its output's magnitude, and that output's name.

    What stands for -inf (scores of actions that a mask forbids) is judged by its own magnitude: nothing could be seen
    beside it. NaN or infinity in one place but not in the other is an infinite difference.
    """
    worst = (0.0, 0.0, "")
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            return np.inf, np.inf, name
        with np.errstate(invalid="ignore"):
            same = (old == new) | (np.isnan(_real(old)) & np.isnan(_real(new)))
            gap = np.where(same, 0.0, np.abs(_real(new) - _real(old)))
        gap = np.where(np.isnan(gap), np.inf, gap)
        size = np.where(np.isfinite(_real(old)), np.abs(_real(old)), 0.0)
        scale = magnitude(old) or 1.0
        relative = float((gap / np.where(size < FORBIDDEN, scale, size)).max(initial=0.0))
        worst = max(
            worst, (float(gap.max(initial=0.0)), relative, name), key=lambda found: (found[1], found[0])
        )
    return worst


def magnitude(array: Array) -> float:
    """The largest of an array, but for NaN, infinity and what stands for it."""
    size = np.abs(_real(array))
    return float(size[size < FORBIDDEN].max(initial=0.0))


def _real(array: Array) -> Array:
    return array.astype(np.float64)


def float32_tool(*models: ir.Model) -> str:
    """What evaluates all of some models in float32: "onnxruntime", or "numpy".

    Above `RUNTIME_LIMIT` that holds one weight at a time; and onnxruntime has no recurrence with the batch first, and
    none of doubles.
    """
    sizes = [
        sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        for model in models
    ]
    lacking = any(_beyond_runtime(node) for model in models for node in model.graph)
    return "numpy" if max(sizes) > RUNTIME_LIMIT or lacking else "onnxruntime"


def _beyond_runtime(node: ir.Node) -> bool:
    if node.op_type not in RECURRENT:
        return False
    doubles = any(v is not None and v.dtype == ir.DataType.DOUBLE for v in (*node.inputs, *node.outputs))
    return doubles or bool(node.attributes.get_int("layout", 0))


def float32_outputs(model: ir.Model, inputs: Arrays, tool: str) -> Arrays:
    """Outputs in float32.

    Raises:
      UnfitGraph: if the tool cannot evaluate the graph.
    """
    try:
        return run(model, inputs, dtype=np.float32) if tool == "numpy" else runtime(model)(inputs)
    except SurgeryError as error:
        raise UnfitGraph(error.message) from error
    except (RuntimeError, ValueError) as error:
        raise UnfitGraph(first_line(error)) from error
    except Exception as error:
        # onnxruntime's exceptions have no common base but Exception
        if type(error).__module__.startswith("onnxruntime"):
            raise UnfitGraph(first_line(error)) from error
        raise


def runtime(model: ir.Model) -> Callable[[Arrays], Arrays]:
    """A model in onnxruntime, optimisations off."""
    opened, large = session(model)
    names = [output.name for output in opened.get_outputs()]

    def evaluate(inputs: Arrays, alive: Arrays = large) -> Arrays:
        return dict(zip(names, opened.run(names, inputs), strict=True))

    return evaluate


def session(
    model: ir.Model,
    *,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",),
    optimise: bool = False,
    threads: int = 0,
) -> tuple[Any, Arrays]:
    """An onnxruntime session, and arrays that it may refer to as long as it lives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    # what fails is raised, too; only what it lacks for a GPU it says nowhere else
    options.log_severity_level = 4 if list(providers) == ["CPUExecutionProvider"] else 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads are others' time
    small, large = _apart(model)
    # handed over as arrays: within the serialised graph every weight would be held three times more
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in large.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return onnxruntime.InferenceSession(small, options, providers=list(providers)), large


def _apart(model: ir.Model) -> tuple[bytes, Arrays]:
    """The serialised graph, and its large float32 weights by name, to which it only refers."""
    large: Arrays = {}
    stored: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        array, shape = tensor.numpy(), ir.Shape(shape_of(tensor))
        stored[name] = ir.Tensor(array, dtype=tensor.dtype, name=name)
        if tensor.dtype == ir.DataType.FLOAT and tensor.nbytes > _INSIDE:
            large[name] = np.ascontiguousarray(array)
            stored[name] = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
    proto = ir.serde.serialize_model(with_initializers(model, stored))
    serialised: bytes = proto.SerializeToString()
    return serialised, large


def float64_outputs(
    model: ir.Model, inputs: Arrays, parameters: Mapping[str, ir.TensorProtocol] | None = None
) -> Arrays | Unsupported:
    """Outputs in float64, with some parameters replaced, or the reason why there are none."""
    try:
        return run(model, inputs, dtype=np.float64, parameters=parameters)
    except Unsupported as reason:
        return reason


def compare_double(
    before: ir.Model,
    exact: ir.Model,
    inputs: Arrays,
    carry: tuple[Carry, Carry, Carry],
    limit: float | None,
    old: Arrays | Unsupported,
) -> list[Check]:
    """The float64 proof: the edit computed before any rounding.

    Args:
      old: the original's float64 outputs.
      carry: old inputs as inputs of the new model, its outputs as outputs of the old one, and the part of the old
        outputs that is then compared.
    """
    new = old if isinstance(old, Unsupported) else float64_outputs(exact, carry[0](inputs))
    if isinstance(old, Unsupported) or isinstance(new, Unsupported):
        reason = old if isinstance(old, Unsupported) else new
        return [Check("outputs, float64", True, 0.0, None, f"not evaluated: {reason}")]
    _, relative, name = difference(carry[2](old), carry[1](new))
    if limit is not None and limit < relative < np.inf:
        limit = max(limit, 4 * float64_rounding(before, inputs, old))
    return [measured("outputs, float64", relative, limit, _of(name))]


def float64_rounding(model: ir.Model, inputs: Arrays, outputs: Arrays) -> float:
    """How far a model's float64 outputs move, relative, when its parameters move by their last bit.

    What a model itself cannot hold still (a division by a difference that nearly cancels) no edit can be blamed for.
    Whole numbers are literals, which have no last bit to be wrong in: the scale 2 of a Resize, say.
    """
    moved = {
        name: _last_bit(tensor, name)
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None and tensor.dtype.is_floating_point()
    }
    found = float64_outputs(model, inputs, moved)
    return 0.0 if isinstance(found, Unsupported) else difference(outputs, found)[1]


def _last_bit(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    def compute() -> ir.TensorProtocol:
        array = tensor.numpy().astype(np.float64)
        up = tensor_rng(0, name).random(array.shape) < 0.5
        moved = np.nextafter(array, np.where(up, np.inf, -np.inf))
        return ir.Tensor(np.where(array == np.round(array), array, moved), name=name)

    return ir.LazyTensor(compute, dtype=ir.DataType.DOUBLE, shape=ir.Shape(shape_of(tensor)), name=name)


def noise(double: Arrays | Unsupported, single: Arrays) -> float:
    """How far a model's own float32 outputs are from its float64 ones, relative; 0 if that cannot be told."""
    if isinstance(double, Unsupported):
        return 0.0
    # a choice between scores that are nearly equal says nothing of how far numbers are from each other
    found = difference({name: x for name, x in double.items() if x.dtype.kind not in "biu"}, single)[1]
    return found if np.isfinite(found) else 0.0


def policy_checks(checkpoint: Checkpoint, before: Arrays, after: Arrays, limit: float | None) -> list[Check]:
    """Greedy actions that differ, and the divergence of the sampled policy."""
    checks = []
    for port in checkpoint.interface.outputs:
        if port.name not in before or port.kind not in ("q_values", "logits"):
            continue
        old, new = _real(before[port.name]), _real(after[port.name])
        if old.shape != new.shape or old.ndim < 1 or old.shape[-1] < 2:
            continue
        flips = int((old.argmax(-1) != new.argmax(-1)).sum())
        rows = old.size // old.shape[-1]
        checks.append(measured(f"greedy actions of '{port.name}'", flips, None if limit is None else 0.0,
                               f"{flips} of {rows} differ"))  # fmt: skip
        if port.kind == "logits":
            divergence = float(_kl(old, new).max())
            checks.append(measured(f"policy KL of '{port.name}'", divergence, limit, "largest, nats"))
    return checks


def _kl(old: Array, new: Array) -> Array:
    p, q = log_softmax(old), log_softmax(new)
    return (np.exp(p) * (p - q)).sum(-1)  # type: ignore[no-any-return]


def log_softmax(x: Array) -> Array:
    """Logarithms of the probabilities along the last axis."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def _of(name: str) -> str:
    return f"worst: '{name}'" if name else "equal bits"
