"""Delta debugging: the smallest graph that still fails in the same way."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from surgery.numeric import run
from tests.fuzzing import FAILURES, Array, Case, reads
from tests.fuzzing_judge import attempt, checkpoint_of, every_request
from tests.fuzzing_verdicts import Tally, Wrong

Model = onnx.ModelProto


def fails(case: Case, like: Wrong) -> Wrong | None:
    """The first of all simple edits that fails in this way: the same initialisation, one space or all."""
    kind = like.kind
    checkpoint, tally = checkpoint_of(case, np.random.default_rng(0)), Tally()
    try:
        analysis = checkpoint.analysis
    except Exception as error:
        found = f"analyse: {type(error).__name__}"
        return Wrong(found, str(error), {}) if found == kind else None
    old = run(checkpoint.model, case.feeds)
    many = "factor" in like.request or len(like.request.get("widths", ())) > 1
    for request in every_request(analysis):
        same = all(request[key] == like.request.get(key) for key in ("init", "shares"))
        if not same and like.request.get("init") != "auto":
            continue
        if "factor" in request and not many:
            continue
        wrong = attempt(case, checkpoint, old, request, tally, single=kind == "float32", kind=kind)
        if wrong is not None and wrong.kind == kind:
            return wrong
    return None


def shrink(case: Case, wrong: Wrong, seconds: float = 60.0) -> tuple[Case, Wrong]:
    """Make a failing case smaller until nothing can be left out, or the time is over.

    Returns:
      The smallest case and its failure; the case itself if only its own edit makes it fail.
    """
    simple = fails(case, wrong)
    if simple is None:
        return case, wrong
    until, best = time.monotonic() + seconds, (case, simple)
    progress = True
    while progress:
        progress = False
        for smaller in candidates(best[0]):
            if time.monotonic() > until:
                return best
            found = _still(smaller, best[1])
            if found is not None:
                best, progress = found, True
                break
    return best


def _still(case: Case | None, like: Wrong) -> tuple[Case, Wrong] | None:
    if case is None:
        return None
    try:
        onnx.checker.check_model(case.model, full_check=True)
        values = run(ir.serde.deserialize_model(case.model), case.feeds)
        if not all(np.isfinite(np.asarray(x, np.float64)).all() for x in values.values()):
            return None
        found = fails(case, like)
    except (*FAILURES, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return (case, found) if found else None


def candidates(case: Case) -> Iterator[Case | None]:
    """Smaller graphs, the boldest first."""
    model = case.model
    if dead := _dead(model):
        yield _pruned(case)
        for k in dead:
            yield _changed(case, lambda m, k=k: m.graph.node.__delitem__(k))
    if model.graph.value_info:
        yield _changed(case, lambda m: m.graph.value_info.__delitem__(slice(None)))
    if len(model.graph.output) > 1:
        for k in range(len(model.graph.output)):
            yield _without_output(case, k)
    values = _values(case)
    names = [name for node in reversed(model.graph.node) for name in node.output if name in values]
    for name in names:
        yield _cut(case, name, values, _as_output)
    for name in names:
        yield from _bypassed(case, name, values)
    for name in names:
        if not name.endswith(".unused"):
            yield _cut(case, name, values, _as_input)
    for k, node in enumerate(model.graph.node):
        for at in range(1, len(node.input)):
            if node.input[at]:
                yield _changed(case, lambda m, k=k, at=at: m.graph.node[k].input.__setitem__(at, ""))
    yield from _static(case)
    yield from _narrower(case)


def _values(case: Case) -> dict[str, Array]:
    model = ir.serde.deserialize_model(case.model)
    found: dict[str, Array] = {}
    for node in model.graph:
        if node.op_type in ("SplitToSequence", "Constant"):
            continue
        for value in node.outputs:
            try:
                found |= run(model, case.feeds, outputs=[str(value.name)])
            except FAILURES:
                continue
    return found


def _changed(case: Case, change: Callable[[Model], object], **feeds: Array) -> Case | None:
    model = Model()
    model.CopyFrom(case.model)
    try:
        change(model)
    except FAILURES:
        return None
    if not _dead(case.model):
        prune(model)
    names = {value.name for value in model.graph.input}
    kept = {name: x for name, x in {**case.feeds, **feeds}.items() if name in names}
    return Case(model, kept, case.seed, case.number) if names else None


def _dead(model: Model) -> list[int]:
    """Nodes whose results nobody reads; a failure may need them."""
    read = {name for node in model.graph.node for name in reads(node)} | {v.name for v in model.graph.output}
    return [k for k, node in enumerate(model.graph.node) if not read & set(node.output)]


def _pruned(case: Case) -> Case:
    model = Model()
    model.CopyFrom(case.model)
    prune(model)
    names = {value.name for value in model.graph.input}
    return Case(model, {k: x for k, x in case.feeds.items() if k in names}, case.seed, case.number)


def prune(model: Model) -> None:
    """Drop, in place, what no output depends on."""
    needed, nodes = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(reads(node))
    kept = list(reversed(nodes))
    tensors = [t for t in model.graph.initializer if t.name in needed]
    inputs = [v for v in model.graph.input if v.name in needed]
    made = {name for node in kept for name in node.output}
    notes = [v for v in model.graph.value_info if v.name in made]
    outputs = list(model.graph.output)
    graph = helper.make_graph(kept, "minimal", inputs, outputs, tensors, value_info=notes)
    model.graph.CopyFrom(graph)


def _without_output(case: Case, k: int) -> Case | None:
    return _changed(case, lambda model: model.graph.output.__delitem__(k))


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(_stored(array).dtype), array.shape
    )


def _stored(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _cut(
    case: Case, name: str, values: dict[str, Array], how: Callable[[Model, str, Array], None]
) -> Case | None:
    array = _stored(values[name])
    return _changed(case, lambda model: how(model, name, array), **{name: array})


def _as_output(model: Model, name: str, array: Array) -> None:
    """Only this value is asked for."""
    if [value.name for value in model.graph.output] == [name]:
        raise ValueError
    del model.graph.output[:]
    shape = [None] * array.ndim
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    model.graph.output.append(helper.make_tensor_value_info(name, dtype, shape))


def _as_input(model: Model, name: str, array: Array) -> None:
    """This value is given from outside."""
    for node in model.graph.node:
        for k, other in enumerate(node.output):
            if other == name:
                node.output[k] = f"{name}.unused"
    model.graph.input.append(_info(name, array))


def _bypassed(case: Case, name: str, values: dict[str, Array]) -> Iterator[Case | None]:
    """Readers of a value read one of its node's operands of the same shape instead."""
    node = next(node for node in case.model.graph.node if name in node.output)
    shapes = {key: x.shape for key, x in (values | case.feeds).items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in case.model.graph.initializer}
    for operand in dict.fromkeys(node.input):
        if shapes.get(operand) == shapes[name]:
            yield _changed(case, lambda model, operand=operand: _rename(model, name, operand))


def _rename(model: Model, old: str, new: str) -> None:
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == old:
                node.input[k] = new
    for value in model.graph.output:
        if value.name == old:
            value.name = new


def _static(case: Case) -> Iterator[Case | None]:
    def change(model: Model) -> None:
        if not any(d.dim_param for value in model.graph.input for d in value.type.tensor_type.shape.dim):
            raise ValueError
        del model.graph.input[:]
        model.graph.input.extend(_info(name, x) for name, x in case.feeds.items())

    yield _changed(case, change)


def _narrower(case: Case) -> Iterator[Case | None]:
    """Every axis of one size, and every number that may stand for it, made smaller."""
    sizes = {n for x in case.feeds.values() for n in x.shape}
    sizes |= {n for tensor in case.model.graph.initializer for n in tensor.dims if tensor.data_type == 1}
    for size in sorted(sizes, reverse=True):
        for smaller in range(1 if size < 4 else 2, size):
            yield _resized(case, size, smaller)


def _resized(case: Case, size: int, smaller: int) -> Case | None:
    def crop(array: Array) -> Array:
        return np.ascontiguousarray(
            array[tuple(slice(smaller) if n == size else slice(None) for n in array.shape)]
        )

    feeds = {name: crop(x) for name, x in case.feeds.items()}

    def change(model: Model) -> None:
        del model.graph.value_info[:]
        for tensor in model.graph.initializer:
            tensor.CopyFrom(_smaller(tensor, crop, size, smaller))
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    attribute.t.CopyFrom(_smaller(attribute.t, crop, size, smaller))
                elif attribute.name in ("hidden_size", "group", "num_groups") and attribute.i == size:
                    attribute.i = smaller
        for value in model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value == size:
                    dim.dim_value = smaller

    return _changed(case, change, **feeds)


def _smaller(
    tensor: onnx.TensorProto, crop: Callable[[Array], Array], size: int, smaller: int
) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    if array.dtype == np.int64:
        return numpy_helper.from_array(np.where(array == size, smaller, array), tensor.name)
    return numpy_helper.from_array(crop(array) if math.prod(array.shape) > 1 else array, tensor.name)


def text(case: Case, wrong: Wrong) -> str:
    """The failing graph in ONNX's text form, and how to make it fail again."""
    inputs = {name: x.shape for name, x in case.feeds.items()}
    return "\n".join([
        f"# {wrong.kind}: {wrong.detail}",
        f"# surgery.widen(checkpoint, {', '.join(f'{k}={v!r}' for k, v in wrong.request.items())})",
        f"# benchmarks/fuzz.py --seed {case.seed} --case {case.number}; inputs {inputs}",
        re.sub(r"(=  ?|\] )\{([^{};]{80})[^{};]{40,}\}", r"\1{\2 …}", onnx.printer.to_text(case.model)),
    ])  # fmt: skip
