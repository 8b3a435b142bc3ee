"""The only place that changes numbers: carries out a plan, tensor by tensor, each one computed when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import AxisMap, axis_maps, edit_slot, edit_weight, tensor_rng
from surgery.edits.contract import settled
from surgery.edits.copies import original_name
from surgery.edits.heads import start_rows
from surgery.edits.insert import insert, join_optimizer, with_states
from surgery.edits.parts import PortEdit, TensorEdit
from surgery.edits.plan import Plan
from surgery.edits.removal import check_duplicates, check_unread, fold
from surgery.edits.rewiring import Rewiring, rewire, rewired
from surgery.errors import PlanMismatch, shape_text
from surgery.graph import layout
from surgery.graph.facts import Facts
from surgery.graph.prepare import merge_again, prepared
from surgery.graph.rewrite import set_operand
from surgery.interface import Bound, Interface, Port
from surgery.optimizer import OptimizerState, power
from surgery.tensors import held, shape_of

KEEP_LIMIT = 1 << 28
"""Bytes up to which computed tensors are kept; above, each is computed again whenever it is read."""


def execute(plan: Plan, checkpoint: Checkpoint, *, double: bool = False) -> Checkpoint:
    """Carry out a plan on a checkpoint.

    Args:
      plan: made for this checkpoint, or for one with the same graph.
      checkpoint: left as it is.
      double: compute the edited tensors in float64, before any rounding (for proofs; not to be saved).

    Returns:
      A checkpoint whose edited tensors are computed when they are read, one at a time.

    Raises:
      PlanMismatch: if the plan does not fit.
      Refused: if the optimizer has a slot without a rule, or units that the plan calls equal or constant are not.
    """
    model = prepared(checkpoint.model, checkpoint.trained)
    check_fits(plan, checkpoint, model)
    check_duplicates(plan, constants(model))
    check_unread(plan, constants(model))
    fold(plan, checkpoint, model, double=double)
    keep = 8 * sum(math.prod(tensor.after(plan.sizes)) for tensor in plan.tensors) <= KEEP_LIMIT
    lookup = {tensor.name: _Edited(plan, tensor, double, keep) for tensor in plan.tensors}
    replace_tensors(model, lookup)
    grow_ports(model, plan)
    nodes = {node.outputs[0].name: node for node in model.graph if node.outputs}
    for operand in plan.operands:
        node = nodes[operand.node]
        try:
            set_operand(model, node, operand.where, operand.value, scalar=operand.scalar, double=double)
        except (ValueError, IndexError, OverflowError, TypeError) as error:
            raise PlanMismatch(
                f"the plan cannot change '{operand.where}' of the node of '{operand.node}': {error}"
            ) from None
    insert(model, plan.insertions, seed=plan.seed, double=double)
    rewire(model, plan.rewiring, double=double)
    if not double:
        merge_again(model)
        refresh_shapes(model)
    optimizer = _follow(checkpoint.optimizer, lookup) if checkpoint.optimizer else None
    if optimizer is not None and plan.insertions:
        optimizer = join_optimizer(optimizer, plan.insertions)
    if optimizer is not None and plan.rewiring != Rewiring():
        optimizer = rewired(optimizer, plan.rewiring, checkpoint.tensors)
    interface = with_states(_described(checkpoint.interface, plan), plan.insertions)
    environment = settled(checkpoint.environment, plan)
    return checkpoint.replace(
        model=model, optimizer=optimizer, interface=interface, environment=environment, path=None
    )


def check_fits(plan: Plan, checkpoint: Checkpoint, model: ir.Model) -> None:
    """Raise PlanMismatch unless every tensor and node that a plan names is there, in the shape that it expects."""
    mismatch = next(_mismatches(plan, model), None)
    if mismatch is not None:
        raise PlanMismatch(
            mismatch,
            where={"plan": plan.operation, "model": checkpoint.path or "in memory"},
            hint="a plan fits only models of the shapes that it was made for; make one for this model",
        )


def _mismatches(plan: Plan, model: ir.Model) -> Iterator[str]:
    tensors = constants(model)
    for tensor in plan.tensors:
        have = shape_of(tensors[tensor.name]) if tensor.name in tensors else None
        if have is None:
            yield f"the plan edits '{tensor.name}', which is not here"
        elif have != tensor.before:
            wanted = shape_text(tensor.before)
            yield f"the plan edits '{tensor.name}' of shape {wanted}, here it is {shape_text(have)}"
    outputs = {node.outputs[0].name for node in model.graph if node.outputs}
    for operand in plan.operands:
        if operand.node not in outputs:
            yield f"the plan edits the node of '{operand.node}', which is not here"
    values = {("input", value.name): value for value in model.graph.inputs}
    values |= {("output", value.name): value for value in model.graph.outputs}
    for port in plan.ports:
        value = values.get((port.side, port.name))
        if value is None:
            yield f"the plan changes {port.side} '{port.name}', which is not here"
        elif value.shape is not None and not _has_axes(value.shape, port):
            yield f"the plan changes {port.side} '{port.name}' of other axes than {shape_text(value.shape)}"


def _has_axes(shape: ir.Shape, port: PortEdit) -> bool:
    """Whether an input or output has the axes that a plan expects, as far as its sizes are known."""
    sizes = [layout.size(axis) if axis else None for axis in port.axes]
    if len(sizes) != len(shape):
        return port.side == "output"  # which may be declared with axes too many, see `grow_ports`
    return all(size is None or size == d for size, d in zip(sizes, shape, strict=True) if isinstance(d, int))


def constants(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Initializers and Constant nodes of the main graph, by value name."""
    found = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes and node.outputs[0].name:
            found[node.outputs[0].name] = held(node.attributes["value"])
    return found


@dataclass(frozen=True)
class _Edited:
    """A tensor edit that is ready to be computed."""

    plan: Plan
    tensor: TensorEdit
    double: bool
    keep: bool = False

    def maps(self) -> list[AxisMap | None]:
        return axis_maps(self.tensor.axes, self.plan.edits)

    def weight(self, old: ir.TensorProtocol) -> ir.TensorProtocol:
        def compute() -> ir.TensorProtocol:
            rng, dtype = self._rng(), self._dtype(old)
            new = edit_weight(old.numpy(), self.maps(), self.tensor.fill, rng, self.plan.noise, dtype.numpy())
            new = start_rows(new, self.tensor.axes, self.tensor.fill, self.plan.edits)
            return ir.Tensor(_scaled(new, self.tensor.scale), dtype=dtype, name=old.name)

        return self._lazy(old, compute)

    def _rng(self) -> np.random.Generator:
        return tensor_rng(self.plan.seed, original_name(self.tensor.name, self.plan.copies))

    def slot(self, old: ir.TensorProtocol, gradient_power: int) -> ir.TensorProtocol:
        def compute() -> ir.TensorProtocol:
            new = edit_slot(self._read(old), self.maps(), gradient_power)
            new = _scaled(new, self.tensor.scale**-gradient_power)
            return ir.Tensor(new, dtype=self._dtype(old), name=old.name)

        return self._lazy(old, compute)

    def _read(self, old: ir.TensorProtocol) -> Array:
        array = old.numpy()
        return array.astype(np.float64) if self.double and old.dtype.is_floating_point() else array

    def _dtype(self, old: ir.TensorProtocol) -> ir.DataType:
        return ir.DataType.DOUBLE if self.double and old.dtype.is_floating_point() else old.dtype

    def _lazy(self, old: ir.TensorProtocol, compute: Any) -> ir.LazyTensor:  # noqa: ANN401
        shape = ir.Shape(self.tensor.after(self.plan.sizes))
        return ir.LazyTensor(
            compute, dtype=self._dtype(old), shape=shape, name=old.name, cache=self.keep,
            metadata_props=dict(getattr(old, "metadata_props", {})),
        )  # fmt: skip


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1 else (array.astype(np.float64) * factor).astype(array.dtype)


def replace_tensors(model: ir.Model, lookup: Mapping[str, _Edited]) -> None:
    """Put edited tensors into a graph, in place."""
    for name, value in model.graph.initializers.items():
        if name in lookup and value.const_value is not None:
            value.const_value = lookup[name].weight(value.const_value)
            value.shape = ir.Shape(shape_of(value.const_value))
    for node in model.graph:
        name = node.outputs[0].name or ""
        if node.op_type == "Constant" and name in lookup:
            tensor = lookup[name].weight(held(node.attributes["value"]))
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy(), name=tensor.name))


def edited_tensors(model: ir.Model, plan: Plan) -> None:
    """Put a plan's tensors into a clone of its graph, in place; the operands are left for `regenerate`."""
    replace_tensors(model, {tensor.name: _Edited(plan, tensor, double=False) for tensor in plan.tensors})


def _described(interface: Interface, plan: Plan) -> Interface:
    """The interface with the names and ranges of features and actions that were inserted."""
    inputs, outputs = (
        tuple(_described_port(port, plan, side) for port in ports)
        for side, ports in (("input", interface.inputs), ("output", interface.outputs))
    )
    return Interface(inputs, outputs)


def _described_port(port: Port, plan: Plan, side: str) -> Port:
    edit = next((edit for edit in plan.ports if (edit.side, edit.name) == (side, port.name)), None)
    maps = [] if edit is None else [axis for axis in axis_maps(edit.axes, plan.edits) if axis is not None]
    if edit is None or len(maps) != 1:
        return replace(port, labels=edit.labels) if edit is not None and edit.labels and not maps else port
    low, high = (_follow_bound(bound, maps[0]) for bound in (port.low, port.high))
    return replace(port, low=low, high=high, labels=edit.labels or None)


def _follow_bound(bound: Bound, axis: AxisMap) -> Bound:
    """A bound per feature is taken over; a new feature, of which nobody has said more, has the one that all share."""
    if isinstance(bound, tuple) and len(bound) == axis.before:
        new = bound[0] if len(set(bound)) == 1 else None
        fresh = axis.fresh_in | axis.fresh_out
        return tuple(new if here else bound[int(k)] for k, here in zip(axis.source, fresh, strict=True))
    return bound


def grow_ports(model: ir.Model, plan: Plan) -> None:
    """Give the graph's inputs and outputs their new shapes, in place; symbolic dimensions stay."""
    ports = {(str(port.side), port.name): port for port in plan.ports}
    values = [("input", value) for value in model.graph.inputs]
    for side, value in [*values, *(("output", value) for value in model.graph.outputs)]:
        port = ports.get((side, value.name or ""))
        # an output that is declared with axes too many gets its shape by inference, see `refresh_shapes`
        if port is not None and value.shape is not None and len(value.shape) == len(port.axes):
            sizes = [layout.size(axis, plan.sizes) if axis else None for axis in port.axes]
            dims = [d if n is None else n for d, n in zip(value.shape, sizes, strict=True)]
            value.shape = ir.Shape(dims)


def refresh_shapes(model: ir.Model) -> None:
    """Bring the shapes noted on a graph's values up to date; symbolic dimensions stay, unknown shapes are dropped.

    Inner values get numbers where these are known: shape inference may have given one name to several sizes.
    """
    facts = Facts(model, declared=False)
    for node in model.graph:
        facts.step(node)
        for value in node.outputs:
            found = facts.shapes.get(value)
            if value.shape is None or (found is None and value.is_graph_output()):
                continue  # what cannot be followed was not edited, and ONNX wants outputs to have a shape
            if found is None:
                # an old shape that nothing confirms would be believed by whoever runs the model
                value.shape = None
                continue
            if len(found) != len(value.shape):
                # declared wrongly, as PyTorch's exporter did with the states of recurrent layers up to 2.11
                value.shape = facts.named(found)
                continue
            inner = not value.is_graph_output()
            value.shape = ir.Shape(
                [
                    n if (isinstance(d, int) or inner) and not facts.stands_in(n) else d
                    for d, n in zip(value.shape, found, strict=True)
                ]
            )


def _follow(state: OptimizerState, lookup: Mapping[str, _Edited]) -> OptimizerState:
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    for slot, members in state.slots.items():
        slots[slot] = dict(members)
        for name, old in members.items():
            if name in lookup:
                _check_slot(slot, name, old, lookup[name].tensor.before)
                slots[slot][name] = lookup[name].slot(old, power(state.kind, slot))
    return state.replace(slots=slots)


def _check_slot(slot: str, name: str, old: ir.TensorProtocol, shape: Sequence[int]) -> None:
    have = shape_of(old)
    if have != tuple(shape):
        raise PlanMismatch(
            f"slot '{slot}' of '{name}' has shape {shape_text(have)}, the parameter {shape_text(shape)}"
        )
