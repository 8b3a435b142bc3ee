"""Untie: a tensor that several layers share becomes one for each."""

from __future__ import annotations

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.rewiring import Rewiring, Untied
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph.prepare import prepared
from surgery.optimizer import slots_of_each


def untie(checkpoint: Checkpoint, tensor: str) -> Plan:
    """Give every use of a shared tensor a tensor of its own, equal to it.

    The function is the same; from then on each is trained by its own gradient. The optimizer has recorded the sum of
    them, from which their parts cannot be told: the state of all of them starts anew, at zero and at step 0.

    Args:
      checkpoint: any checkpoint.
      tensor: an initializer that several nodes read, or one node twice.

    Returns:
      A plan that claims "identical".

    Raises:
      UnknownName: no such tensor. Refused: one that is read once, or by the body of a loop.
    """
    model = prepared(checkpoint.model, checkpoint.trained)
    if tensor not in checkpoint.tensors or tensor not in model.graph.initializers:
        raise UnknownName("tensor", tensor, checkpoint.tensors)
    value = model.graph.initializers[tensor]
    uses = [(use.node, use.idx) for use in value.uses()]
    inner = [node for node, _ in uses if node.graph is not model.graph]
    if inner:
        raise Refused(f"'{tensor}' is read inside a loop or branch, by node '{inner[0].name}'")
    if len(uses) < 2:
        raise ArgumentError(f"'{tensor}' is read once: there is nothing to untie")
    order = {node: k for k, node in enumerate(model.graph)}
    uses.sort(key=lambda use: (order[use[0]], use[1]))
    taken = {*checkpoint.tensors, *(str(v.name) for node in model.graph for v in node.outputs)}
    apart = []
    for node, operand in uses[1:]:
        name = _name(tensor, taken)
        taken.add(name)
        apart.append(Untied(tensor, str(node.outputs[0].name), operand, name))
    count = slots_of_each(checkpoint.optimizer, [tensor]).get(tensor, 0)
    names = [tensor, *(use.name for use in apart)]
    note = f"the optimizer state of {', '.join(names)} starts anew"
    return Plan(
        "untie", {"tensor": tensor}, "identical", (), (), (), slots=dict.fromkeys(names, count) if count else {},
        rewiring=Rewiring(tuple(apart)), notes=(note,) if count else (),
    )  # fmt: skip


def _name(tensor: str, taken: set[str]) -> str:
    """`embedding.weight` -> `embedding.2.weight`: a name that is free, in the style of the model."""
    path, dot, last = tensor.rpartition(".")
    k = 2
    while (name := f"{path}.{k}.{last}" if dot else f"{last}.{k}") in taken:
        k += 1
    return name
