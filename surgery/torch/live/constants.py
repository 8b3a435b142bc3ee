"""Numbers of the graph that follow a plan and that modules keep in an attribute: the ε of normalisers."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir
from torch import nn

from surgery.edits.parts import OperandEdit
from surgery.edits.plan import Plan
from surgery.errors import Refused
from surgery.torch.live.places import scope_of

EPSILONS = ("eps", "epsilon", "variance_epsilon")
"""What modules call the number that they add to a variance."""


def followed(
    plan: Plan, model: ir.Model, network: nn.Module, given: Collection[tuple[nn.Module, str]]
) -> Iterator[tuple[str, nn.Module, str, float]]:
    """The attributes that hold a fraction which the plan changes: path and module, name, new value.

    Args:
      plan: of the exported network. model: it, with the scopes of its nodes.
      network: the module. given: attributes that the caller sets.

    Raises:
      Refused: a fraction that no attribute holds; names the module in whose `forward` it is.
    """
    nodes = {str(node.outputs[0].name): node for node in model.graph if node.outputs}
    for operand in plan.operands:
        new = operand.value[0]
        if operand.node in nodes and isinstance(new, float):
            path = (scope_of(nodes[operand.node]) or [""])[-1]
            module = network.get_submodule(path)
            name = next((n for n in EPSILONS if isinstance(vars(module).get(n, 0), float | None)), None)
            if name is not None:
                # the exporter rounds numbers of the code to float32: only by how much they grow is known exactly
                old, kept = _current(nodes[operand.node], operand.where), getattr(module, name)
                yield path, module, name, kept * (new / old) if kept and old else new
            elif not any(owner is module for owner, _ in given):
                raise _unknown(
                    operand, path, module, derived=_current(nodes[operand.node], operand.where) is None
                )


def _current(node: ir.Node, where: int | str) -> float | None:
    if isinstance(where, str):
        return float(node.attributes.get_float(where, 0.0))
    value = node.inputs[where]
    while value is not None:
        tensor, producer = ir.convenience.get_const_tensor(value), value.producer()
        if tensor is not None:
            return float(tensor.numpy().reshape(-1)[0])
        value = (
            producer.inputs[0] if producer is not None and producer.op_type in ("Cast", "CastLike") else None
        )
    return None


def _unknown(operand: OperandEdit, path: str, module: nn.Module, derived: bool) -> Refused:
    where = {"module": f"{path or '(the model)'} ({type(module).__name__})", "operator": operand.node}
    if derived:
        return Refused(
            f"the code of {type(module).__name__} computes a number from a size that changes, and the function is the "
            f"same only if it stays {operand.value[0]:.9g}",
            where=where,
            hint="leave that size as it is (1/√d of attention: add heads), or keep the number in the code",
        )
    return Refused(
        f"a number in the code of {type(module).__name__} would have to become {operand.value[0]:.9g}",
        where=where,
        hint="keep the ε of a normaliser in an attribute 'eps', or grow by whole multiples with init='net2net'",
    )
