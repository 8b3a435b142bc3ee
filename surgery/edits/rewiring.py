"""Tensors renamed, tied ones apart, fused ones in parts: what a plan says of them, and how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.edits import norms, parting
from surgery.edits.norms import FoldedNorm, fold_norm, folded_state
from surgery.edits.parting import Parted, part, parted_state
from surgery.edits.units import natural
from surgery.errors import PlanMismatch
from surgery.optimizer import OptimizerState
from surgery.tensors import shape_of


@dataclass(frozen=True, slots=True)
class Untied:
    """One use of a tensor that gets a tensor of its own, equal at first.

    Attributes:
      tensor: what is used in several places.
      node: one of the nodes that read it, by the name of its first output. operand: where it reads it.
      name: of the new tensor.
    """

    tensor: str
    node: str
    operand: int
    name: str


@dataclass(frozen=True)
class Rewiring:
    """Changes of names and of ties; the tensors keep their numbers.

    Attributes:
      untied: uses that get tensors of their own.
      renames: old name -> new name, of initializers, after everything else.
      folded: batch normalisations that go into the layers before them.
      parted: fused tensors that become several.
    """

    untied: tuple[Untied, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    folded: tuple[FoldedNorm, ...] = ()
    parted: tuple[Parted, ...] = ()

    @property
    def apart(self) -> frozenset[str]:
        """The tensors along which the old and the new network have no common direction, one by one."""
        untied = frozenset(name for use in self.untied for name in (use.tensor, use.name))
        parted = (name for one in self.parted for name in (one.tensor, *one.names))
        return untied.union(*(norm.tensors for norm in self.folded), parted)

    def describe(self) -> list[str]:
        """A line each."""
        lines = [f"  {use.tensor} in the node of '{use.node}' becomes {use.name}" for use in self.untied]
        lines += [norm.describe() for norm in self.folded]
        lines += [one.describe() for one in self.parted]
        return [*lines, *(f"  {old} → {new}" for old, new in self.renames.items())]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal value."""
        untied = [
            {"tensor": use.tensor, "node": use.node, "operand": use.operand, "name": use.name}
            for use in self.untied
        ]
        folded = [asdict(norm) for norm in self.folded]
        parted = [one.to_json() for one in self.parted]
        return {"untied": untied, "renames": dict(self.renames), "folded": folded, "parted": parted}


def from_json(data: Mapping[str, Any]) -> Rewiring:
    """Raises: KeyError, TypeError, ValueError: not a rewiring."""
    untied = tuple(
        Untied(_text(use["tensor"]), _text(use["node"]), natural(use["operand"]), _text(use["name"]))
        for use in data["untied"]
    )
    renames = {_text(old): _text(new) for old, new in data["renames"].items()}
    if len(set(renames.values())) != len(renames):
        raise ValueError("two tensors would get one name")
    folded = tuple(norms.from_json(norm) for norm in data.get("folded", ()))
    return Rewiring(untied, renames, folded, tuple(parting.from_json(one) for one in data.get("parted", ())))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r:.40} is not a name")
    return value


def rewire(model: ir.Model, rewiring: Rewiring, *, double: bool = False) -> None:
    """Untie, rename and part tensors of a graph and fold its normalisations, in place.

    Args:
      double: make new numbers in float64, for proofs.

    Raises:
      PlanMismatch: a tensor or use that is not there, or a name that is taken.
    """
    graph = model.graph
    nodes = {node.outputs[0].name: node for node in graph if node.outputs}
    for use in rewiring.untied:
        value, node = graph.initializers.get(use.tensor), nodes.get(use.node)
        reads = node is not None and use.operand < len(node.inputs) and node.inputs[use.operand] is value
        if value is None or node is None or not reads:
            raise PlanMismatch(
                f"the plan unties '{use.tensor}' from the node of '{use.node}', which does not read it"
            )
        _free(model, use.name)
        apart = ir.Value(
            name=use.name, shape=value.shape, type=value.type, const_value=_named(value.const_value, use.name)
        )
        apart.metadata_props.update(value.metadata_props)
        graph.register_initializer(apart)
        node.replace_input_with(use.operand, apart)
    for norm in rewiring.folded:
        fold_norm(model, norm, double=double)
    for one in rewiring.parted:
        for name in one.names:
            _free(model, name)
        part(model, one)
    values = {}
    for old in rewiring.renames:
        if old not in graph.initializers:
            raise PlanMismatch(f"the plan renames '{old}', which this checkpoint does not have")
        values[old] = graph.initializers.pop(old)
    for old, new in rewiring.renames.items():
        _free(model, new)
        value = values[old]
        value.name, value.const_value = new, _named(value.const_value, new)
        graph.register_initializer(value)


def _free(model: ir.Model, name: str) -> None:
    graph = model.graph
    made = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    if name in graph.initializers or name in made:
        raise PlanMismatch(f"the plan makes '{name}', which this checkpoint has already")


def _named(tensor: ir.TensorProtocol | None, name: str) -> ir.TensorProtocol:
    assert tensor is not None
    shape = ir.Shape(shape_of(tensor))
    if isinstance(tensor, ir.LazyTensor):
        return ir.LazyTensor(tensor.raw, dtype=tensor.dtype, shape=shape, name=name)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)


def rewired(
    state: OptimizerState, rewiring: Rewiring, tensors: Mapping[str, ir.TensorProtocol]
) -> OptimizerState:
    """An optimizer that follows: tensors that part start anew, all of them, since only their sum was recorded.

    Args:
      tensors: of the model before.
    """
    state = parted_state(folded_state(state, rewiring.folded, tensors), rewiring.parted)
    groups, steps = list(state.groups), dict(state.steps)
    slots: dict[str, dict[str, ir.TensorProtocol]] = {slot: dict(held) for slot, held in state.slots.items()}
    for use in rewiring.untied:
        for k, group in enumerate(groups):
            if use.tensor in group.parameters:
                groups[k] = replace(group, parameters=(*group.parameters, use.name))
        for held in slots.values():
            if use.tensor in held:
                held[use.tensor] = held[use.name] = _zeros(held[use.tensor])
        if use.tensor in steps:
            steps[use.tensor] = steps[use.name] = 0.0
    names = rewiring.renames
    return state.replace(
        slots={slot: {names.get(n, n): tensor for n, tensor in held.items()} for slot, held in slots.items()},
        steps={names.get(n, n): count for n, count in steps.items()},
        groups=tuple(replace(g, parameters=tuple(names.get(n, n) for n in g.parameters)) for g in groups),
    )


def _zeros(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.zeros(shape_of(tensor), tensor.dtype.numpy()), dtype=tensor.dtype)
