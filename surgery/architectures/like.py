"""What an untrained network takes over from a trained one: observation, actions, head, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import onnx_ir as ir

from surgery.architectures.layers import Branches, Shape
from surgery.architectures.library import Architecture
from surgery.architectures.recognise import recognise
from surgery.architectures.steps import CENTRED
from surgery.architectures.untrained import new
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError
from surgery.graph.facts import Facts
from surgery.graph.prepare import prepared
from surgery.interface import Environment, Interface, Port
from surgery.json_values import Json

_HEADS = {
    "q_values": "q",
    "atom_logits": "c51",
    "quantiles": "qr",
    "mean": "gaussian",
    "logits": "actor-critic",
    "probabilities": "actor-critic",
}


@dataclass(frozen=True)
class Setting:
    """What a policy is given and what it gives.

    Attributes:
      observation: the port, and its shape without batch and time. dtype: "float32" or "uint8".
      scale: the factor that its graph puts on observations; None for none.
      head: a name of `HEADS`. action: the port that says what to do. actions: how many.
    """

    observation: Port
    shape: Shape
    dtype: str
    scale: float | None
    head: str
    action: Port
    actions: int


def setting(checkpoint: Checkpoint) -> Setting:
    """What a checkpoint's policy is given and gives.

    Raises:
      ArgumentError: it has no observation, or nothing that chooses an action.
    """
    interface, where = checkpoint.interface, {"checkpoint": checkpoint.path or "in memory"}
    port, shape = observed(checkpoint)
    chosen = [port for kind in _HEADS for port in interface.outputs if port.kind == kind]
    if not chosen:
        names = ", ".join(port.name for port in interface.outputs)
        raise ArgumentError(
            f"no output of this model chooses an action: {names}", where=where,
            hint="say which one does: surgery annotate MODEL --output NAME:q_values -o OUT",
        )  # fmt: skip
    value, action = checkpoint.value(port.name), chosen[0]
    dtype = "uint8" if value.dtype == ir.DataType.UINT8 else "float32"
    actions, scale = _actions(checkpoint.model, action), _scale(checkpoint.model, port.name)
    return Setting(port, shape, dtype, scale, _HEADS[action.kind], action, actions)


def observed(checkpoint: Checkpoint) -> tuple[Port, Shape]:
    """The observation, and its shape without batch and time.

    Raises:
      ArgumentError: there is none, or more than one.
    """
    found = [port for port in checkpoint.interface.inputs if port.kind == "observation"]
    if len(found) != 1:
        raise ArgumentError(
            f"a policy has one observation, this model has {len(found)}",
            where={"checkpoint": checkpoint.path or "in memory"},
            hint="say which input it is: surgery annotate MODEL --input NAME:observation -o OUT",
        )
    return found[0], _static(checkpoint.value(found[0].name))


def new_like(
    arch: str | Architecture,
    teacher: Checkpoint,
    *,
    head: str | None = None,
    seed: int = 0,
    noisy: bool = False,
) -> Checkpoint:
    """An untrained network for the same task as a trained one: its observation, actions, head and environment.

    Args:
      arch: a name with modifiers, or an architecture.
      teacher: any policy.
      head: another one than the teacher's.
      seed: of all weights.
      noisy: make every dense layer a noisy one, as `new` does.

    Raises:
      UnknownName: no such architecture or head.
      ArgumentError: the teacher is no policy, or the architecture cannot take its observation.
    """
    known = setting(teacher)
    made = new(
        arch, observation=known.shape, actions=known.actions, head=head or _streamed(teacher, known.head),
        dtype=known.dtype, scale=known.scale, seed=seed, noisy=noisy,
    )  # fmt: skip
    source = known.observation
    inputs = tuple(
        replace(port, low=source.low, high=source.high, labels=source.labels)
        if port.kind == "observation"
        else port
        for port in made.interface.inputs
    )
    outputs = tuple(
        replace(port, labels=known.action.labels) if k == 0 else port
        for k, port in enumerate(made.interface.outputs)
    )
    return made.replace(interface=Interface(inputs, outputs), environment=_unplayed(teacher.environment))


def _unplayed(environment: Environment) -> Environment:
    """A contract without the scores of the network that it comes from; random play is anyone's."""
    known = cast("Sequence[Mapping[str, Json]]", environment.settings.get("scores", ()))
    scores = [score for score in known if score["mode"] == "random"]
    settings = {key: value for key, value in environment.settings.items() if key != "scores"}
    return Environment(environment.id, {**settings, "scores": scores} if scores else settings)


def _streamed(teacher: Checkpoint, head: str) -> str:
    """Whether values come from two streams only the graph says."""
    dueling = head == "q" and any(
        isinstance(x, Branches) and x.join == CENTRED for x in recognise(teacher).layers
    )
    return "dueling" if dueling else head


def _named(values: Sequence[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)


def _static(value: ir.Value) -> Shape:
    """The shape without the batch and other free axes; a first axis of one is a batch, too."""
    dims = list(value.shape or ())
    if dims and all(isinstance(dim, int) for dim in dims):
        dims = dims[1:]
    return tuple(dim for dim in dims if isinstance(dim, int))


def _actions(model: ir.Model, port: Port) -> int:
    """Along the axis behind the batch; of rank 2 the last."""
    if port.labels:
        return len(port.labels)
    facts = _facts(model)
    value = _named(model.graph.outputs, port.name)
    shape = facts.shapes.get(_named(facts.model.graph.outputs, port.name)) or _static(value)
    axis = -2 if port.kind in ("atom_logits", "quantiles") else -1
    if len(shape) < -axis:
        raise ArgumentError(f"the shape of output '{port.name}' is not known")
    return int(shape[axis])


def _facts(model: ir.Model) -> Facts:
    facts = Facts(prepared(model))
    for node in facts.model.graph:
        facts.step(node)
    return facts


def _scale(model: ir.Model, name: str) -> float | None:
    """The number that observations are multiplied with before anything else happens to them."""
    facts = _facts(model)
    value, total = _named(facts.model.graph.inputs, name), 1.0
    while True:
        users = [use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
        if len(users) != 1 or users[0].op_type not in (
            "Cast",
            "CastLike",
            "Transpose",
            "Mul",
            "Div",
            "Identity",
        ):
            break
        node = users[0]
        if node.op_type in ("Mul", "Div"):
            factor = _number(facts, node, value)
            if not factor:
                break
            total = total * factor if node.op_type == "Mul" else total / factor
        value = node.outputs[0]
    return None if total == 1 else total


def _number(facts: Facts, node: ir.Node, value: ir.Value) -> float | None:
    """The other operand of a product with, or the divisor of, a value, if it is one number."""
    others = [other for other in node.inputs if other is not None and other is not value]
    if len(others) != 1 or (node.op_type == "Div" and node.inputs[0] is not value):
        return None
    array = facts.small(others[0])
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
