"""Numbers written in a graph that must follow its axes are regenerated from the axes, never searched and replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from surgery.errors import ProofFailed, Refused
from surgery.graph.atoms import Axis
from surgery.graph.facts import Facts
from surgery.graph.labels import full_label, label
from surgery.graph.records import Computed, Number, Operand
from surgery.graph.spaces import Analysis
from surgery.graph.unused import drop_unused
from surgery.tensors import shape_of


class Rewritten(Protocol):
    """Called with every number that has to change."""

    def __call__(self, node: str, where: int | str, value: tuple[Number, ...], scalar: bool) -> None: ...


OPERAND = ".operand"
"""What the names of numbers that have been written anew hold, behind that of what they are an operand of."""


def set_operand(
    model: ir.Model,
    node: ir.Node,
    where: int | str,
    value: Sequence[Number],
    *,
    scalar: bool,
    double: bool = False,
) -> None:
    """Write numbers into a graph, in place.

    Args:
      model: the graph's model.
      node: one of its nodes.
      where: an attribute name, or an input index; an input gets an initializer of its own.
      value: the numbers; None keeps the element which the graph computes there.
      scalar: write a number without an axis.
      double: write fractions in float64.
    """
    if isinstance(where, str):
        old = node.attributes.get(where)
        node.attributes[where] = _attribute(where, old, value)
        if where == "pads":
            node.attributes.pop("auto_pad", None)  # the two exclude each other
        return
    while len(node.inputs) <= where:
        node.resize_inputs(where + 1)
    old_value = node.inputs[where]
    if list(value).count(None) == 1 and -1 not in value and node.op_type == "Reshape":
        value = [-1 if n is None else n for n in value]
    new = None
    if None not in value:
        new = _literal(model, node, where, old_value, value, scalar=scalar, double=double)
    if new is None:
        assert old_value is not None
        new = _mixed(model, node, where, old_value, value)
    node.replace_input_with(where, new)
    if node.op_type == "Split" and "num_outputs" in node.attributes:
        del node.attributes["num_outputs"]
    drop_unused(model, old_value)


def _attribute(name: str, old: ir.Attr | None, value: Sequence[Number]) -> ir.Attr:
    if isinstance(value[0], float):
        return ir.AttrFloat32(name, value[0])
    numbers = [int(n or 0) for n in value]
    single = len(numbers) == 1 and (old is None or old.type == ir.AttributeType.INT)
    return ir.AttrInt64(name, numbers[0]) if single else ir.AttrInt64s(name, numbers)


def _literal(
    model: ir.Model,
    node: ir.Node,
    where: int,
    old: ir.Value | None,
    value: Sequence[Number],
    *,
    scalar: bool,
    double: bool,
) -> ir.Value:
    floating = isinstance(value[0], float)
    tensor = None if old is None else ir.convenience.get_const_tensor(old)
    stored = np.dtype(np.float64) if double else _fraction(old)
    array = np.array([n or 0 for n in value], stored if floating else np.int64)
    if tensor is not None and not floating:
        array = array.astype(tensor.dtype.numpy())
    shape: tuple[int, ...] = () if scalar else (-1,)
    if tensor is not None and len(tensor.shape) > 1:  # the numbers lie along one of its axes
        shape = tuple(1 if n == 1 else -1 for n in shape_of(tensor))
    if node.op_type == "GatherND":  # a tuple for each
        shape = (-1, 1)
    return _initializer(model, f"{node.outputs[0].name}{OPERAND}{where}", array.reshape(shape))


def _fraction(old: ir.Value | None) -> np.dtype:
    """The type of a fraction: that of the operand whose place it takes."""
    tensor = None if old is None else ir.convenience.get_const_tensor(old)
    known = tensor.dtype if tensor is not None else _type(old)
    return known.numpy() if known is not None and known.is_floating_point() else np.dtype(np.float32)


def _type(value: ir.Value | None) -> ir.DataType | None:
    """The type of a value: as the graph says, or else that of what it is computed from."""
    while value is not None and value.dtype is None and (node := value.producer()) is not None:
        if node.op_type == "Cast":
            return ir.DataType(node.attributes.get_int("to", 0))
        value = next(iter(node.inputs[node.op_type == "CastLike" :]), None)
    return None if value is None else value.dtype


def _mixed(model: ir.Model, node: ir.Node, where: int, old: ir.Value, value: Sequence[Number]) -> ir.Value:
    """Concatenate new numbers with the elements of the old operand that are computed at run time."""
    taken = {out.name for other in model.graph for out in other.outputs}
    base, again = f"{node.outputs[0].name}{OPERAND}{where}", 1
    while f"{base}.shape" in taken:  # an edit of an edited graph
        again += 1
        base = f"{node.outputs[0].name}{OPERAND}{where}.{again}"
    parts, made = list[ir.Value](), list[ir.Node]()
    for k, n in enumerate(value):
        array = np.array([k if n is None else n], np.int64)
        literal = _initializer(model, f"{base}.{k}", array)
        if n is None:
            pick = ir.node("Gather", [old, literal], {"axis": 0})
            pick.outputs[0].name = f"{base}.{k}.kept"
            made.append(pick)
            literal = pick.outputs[0]
        parts.append(literal)
    join = ir.node("Concat", parts, {"axis": 0})
    join.outputs[0].name = f"{base}.shape"
    model.graph.insert_before(node, [*made, join])
    return join.outputs[0]


def _initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    graph, unique, k = model.graph, name, 1
    while unique in graph.initializers and graph.initializers[unique].uses():
        k += 1
        unique = f"{name}.{k}"
    if unique in graph.initializers:
        del graph.initializers[unique]
    value = ir.Value(
        name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.Tensor(array, name=unique),
    )  # fmt: skip
    graph.register_initializer(value)
    return value


def regenerate(analysis: Analysis, model: ir.Model, sizes: Mapping[str, int], report: Rewritten) -> None:
    """Find and write all numbers that must follow when spaces change size.

    Args:
      analysis: of the original graph.
      model: a clone of that graph, in which the tensors already have their new shapes; changed in place.
      sizes: new sizes of the edited spaces.
      report: told of every number that has been changed.

    Raises:
      Refused: if a number cannot be expressed.
      ProofFailed: if a shape of the new graph is not the one that its axes demand.
    """
    resize = analysis.resize(sizes)
    pending: dict[ir.Node, list[Operand]] = {}
    for operand in analysis.literals:
        pending.setdefault(operand.node, []).append(operand)
    facts = Facts(model, declared=False, sizes=analysis.trace.facts.sizes)
    for old, new in zip(list(analysis.model.graph), list(model.graph), strict=True):
        for operand in pending.get(old, ()):
            _follow(facts, model, operand, new, resize, report)
        facts.step(new)
        _agree(analysis, facts, old, new, resize)


def _follow(
    facts: Facts,
    model: ir.Model,
    operand: Operand,
    node: ir.Node,
    resize: Callable[[Axis], int],
    report: Rewritten,
) -> None:
    value = tuple(operand.value(resize))
    if operand.shape:
        facts.step(node)
        shape = facts.shapes.get(node.outputs[0])
        if shape == value:
            return
        value = _left_to_graph(facts, node, operand, value)
    elif (
        value == (None,)
        or _current(facts, node, operand.where) == list(value)
        or _even(node, operand.where, value)
    ):
        return
    if None in value and isinstance(operand.where, str):
        raise Refused(f"a symbolic number in attribute '{operand.where}' of node '{label(node)}'")
    before = set(model.graph)
    scalar = _is_scalar(facts, node, operand.where, value)
    set_operand(model, node, operand.where, value, scalar=scalar)
    for initializer in model.graph.initializers.values():
        if initializer not in facts.shapes:
            facts.tensor(initializer, initializer.const_value)
    for added in model.graph:
        if added not in before:
            facts.step(added)
    report(node.outputs[0].name or "", operand.where, value, scalar)


def _even(node: ir.Node, where: int | str, value: Sequence[Number]) -> bool:
    """Whether a Split without sizes, into equal parts, gives these all the same."""
    return node.op_type == "Split" and where == 1 and len(node.inputs) < 2 and len(set(value)) == 1


def _is_scalar(facts: Facts, node: ir.Node, where: int | str, value: Sequence[Number]) -> bool:
    old = node.inputs[where] if isinstance(where, int) and where < len(node.inputs) else None
    return len(value) == 1 and old is not None and facts.shapes.get(old) == ()


def _left_to_graph(
    facts: Facts, node: ir.Node, operand: Operand, value: tuple[Number, ...]
) -> tuple[Number, ...]:
    """Keep the elements which the graph computes rightly; one more can be -1 in a reshape.

    An Expand leaves axes that its shape lacks, or has 1 for, to the value that it repeats.
    """
    now = _current(facts, node, operand.where) or []
    if node.op_type == "Expand" and now:
        value = value[-len(now) :]
    copies = node.op_type == "Reshape" and not node.attributes.get_int("allowzero", 0)
    out: list[Number] = []
    for k, n in enumerate(value):
        if not isinstance(n, Computed):
            out.append(n)
        elif k < len(now) and now[k] == n:
            out.append(None)
        elif node.op_type == "Expand" and k < len(now) and now[k] == 1:
            out.append(1)
        else:
            out.append(0 if copies and k < len(now) and now[k] == 0 else -1)
    if out.count(-1) > (1 if node.op_type == "Reshape" else 0):
        raise Refused(
            f"{full_label(node)} computes several dimensions from a symbolic one and from units",
            hint="export the model with a fixed number there",
        )
    return tuple(out)


def _current(facts: Facts, node: ir.Node, where: int | str) -> list[Number] | None:
    if isinstance(where, str):
        attribute = node.attributes.get(where)
        if attribute is None:
            return [1] if where == "group" else None
        return list(attribute.value if isinstance(attribute.value, Sequence) else [attribute.value])
    value = node.inputs[where] if where < len(node.inputs) else None
    return None if value is None or value not in facts.known else facts.known[value].reshape(-1).tolist()


def _agree(
    analysis: Analysis, facts: Facts, old: ir.Node, new: ir.Node, resize: Callable[[Axis], int]
) -> None:
    for before, after in zip(old.outputs, new.outputs, strict=True):
        axes, shape = analysis.trace.described(before), facts.shapes.get(after)
        if axes is None or shape is None:
            continue
        wanted = tuple(resize(axis) for axis in axes)
        if wanted != shape:
            raise ProofFailed(f"{full_label(new)} would give {list(shape)}, its axes ask for {list(wanted)}")
