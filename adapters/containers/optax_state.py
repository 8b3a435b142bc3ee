"""The state of optax's optimizers, by parameter name, found in the nested dicts that flax makes of it.

An optimizer is a chain of transformations, each with a state of its own; those that remember something of the gradients
hold trees of the parameters' own structure. Learning rates and the like are not among them, except under
`inject_hyperparams`. (https://github.com/google-deepmind/optax, optax/_src/transform.py, alias.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.errors import WITHOUT_OPTIMIZER, Refused
from surgery.json_values import Json
from surgery.optimizer import OptimizerState, ParamGroup
from surgery.optimizer_record import merged
from surgery.parameter_order import number
from surgery.tensors import shape_of

Tensors = Mapping[str, ir.TensorProtocol]

FIELDS: Mapping[str, tuple[str | None, ...]] = {
    "ScaleByAdamState": ("count", "mu", "nu"),
    "ScaleByAmsgradState": ("count", "mu", "nu", "nu_max"),
    "ScaleByRmsState": ("nu",),
    "ScaleByRmsWithCountState": (None, "nu"),
    "ScaleByRStdDevState": ("mu", "nu"),
    "ScaleByRStdDevWithCountState": (None, "mu", "nu"),
    "ScaleByRssState": ("sum_of_squares",),
    "ScaleByScheduleState": ("count",),
    "TraceState": ("trace",),
    "InjectHyperparamsState": ("count", "hyperparams", "inner_state"),
    "InjectStatefulHyperparamsState": ("count", "hyperparams", "hyperparams_states", "inner_state"),
    "MaskedState": ("inner_state",),
    "PartitionState": ("inner_states",),
    "MultiTransformState": ("inner_states",),
}
"""Class of a state -> its fields in order, which a pickle does not name. A count that only corrects a bias is None."""

_SLOTS: Mapping[frozenset[str], tuple[str, Mapping[str, str]]] = {
    frozenset({"count", "mu", "nu"}): ("adam", {"mu": "exp_avg", "nu": "exp_avg_sq"}),
    frozenset({"count", "mu", "nu", "nu_max"}): (
        "adam", {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}),
    frozenset({"nu"}): ("rmsprop", {"nu": "square_avg"}),
    frozenset({"mu", "nu"}): ("rmsprop", {"mu": "grad_avg", "nu": "square_avg"}),
    frozenset({"sum_of_squares"}): ("adagrad", {"sum_of_squares": "sum"}),
    frozenset({"trace"}): ("sgd", {"trace": "momentum_buffer"}),
}  # fmt: skip
"""Fields of a state -> the kind of optimizer, and field -> slot."""

_CONVENTIONS: Mapping[str, Mapping[str, Json]] = {
    "adam": {},
    "sgd": {},
    "adagrad": {"eps_inside_root": True},
    "rmsprop": {
        "eps_inside_root": True,
        "buffer_holds_lr": True,
    },  # alias.py: trace comes after the learning rate
}
_HYPER = {
    "learning_rate": "lr", "eps": "eps", "weight_decay": "weight_decay", "momentum": "momentum", "decay": "alpha",
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """Optimizer state under the names of parameters.

    Attributes:
      state: what the optimizer remembers.
      places: `slot/parameter` -> the path of the tensor in the tree that it was found in, with dots.
    """

    state: OptimizerState
    places: Mapping[str, str]


def bind(tree: Mapping[str, Any], parameters: Tensors) -> Bound | None:
    """The state in a tree; None if it remembers nothing of the gradients.

    Args:
      tree: nested mappings of text; a leaf is a tensor, a number, or something that is left alone.
      parameters: those that may have been trained, by their path with dots.

    Raises:
      Refused: a state without a rule, or that fits no network, or several; nothing is left out in silence.
    """
    found: list[tuple[str, OptimizerState]] = []
    places: dict[str, str] = {}
    for path, node in _nodes(tree):
        fields = frozenset(key for key, value in node.items() if not isinstance(value, Mapping) or value)
        if fields in _SLOTS and any(isinstance(value, Mapping) for value in node.values()):
            state, where = _state(path, node, _SLOTS[fields], parameters)
            found.append((path, state))
            places |= where
    _check_complete(tree, places)
    if not found:
        return None
    joined = merged(_with_momentum([state for _, state in found]))
    hyper = _hyper(tree)
    groups = tuple(ParamGroup(group.parameters, {**group.hyper, **hyper}) for group in joined.groups)
    return Bound(joined.replace(groups=groups), places)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The tensors of a tree, by their path with dots."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        elif isinstance(value, ir.TensorProtocol):
            yield path, value


def _nodes(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, tree
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _nodes(value, f"{path}.{key}" if path else key)


def _state(
    path: str, node: Mapping[str, Any], rule: tuple[str, Mapping[str, str]], parameters: Tensors
) -> tuple[OptimizerState, dict[str, str]]:
    """The state of one transformation."""
    kind, fields = rule
    slots: dict[str, dict[str, ir.TensorProtocol]] = {}
    places: dict[str, str] = {}
    names: dict[str, str] = {}
    for field, slot in fields.items():
        members = dict(leaves(node[field])) if isinstance(node[field], Mapping) else {}
        names = _names(members, parameters, f"{path}.{field}".lstrip("."))
        slots[slot] = {names[member]: tensor for member, tensor in members.items()}
        for member in members:
            places[f"{slot}/{names[member]}"] = f"{path}.{field}.{member}".lstrip(".")
    steps = {}
    if "count" in node:
        count = number(_bare(node["count"]), f"the step count '{path}.count'")
        steps = dict.fromkeys(names.values(), count)
    group = ParamGroup(tuple(names.values()), _CONVENTIONS[kind])
    return OptimizerState(kind, slots, steps, (group,)), places


def _bare(node: Any) -> Any:  # noqa: ANN401
    """What a variable of flax's nnx holds, where a node is one."""
    return node["value"] if isinstance(node, Mapping) and set(node) == {"value"} else node


def _names(members: Tensors, parameters: Tensors, where: str) -> dict[str, str]:
    """The parameter that each member of a tree belongs to: all with one prefix, and of the same shapes."""
    prefixes = dict.fromkeys(
        name[: len(name) - len(member)]
        for member in list(members)[:1]
        for name in parameters
        if f".{name}".endswith(f".{member}")
    )
    every = [{member: f"{prefix}{member}" for member in members} for prefix in prefixes]
    fitting = [
        found
        for found in every
        if all(
            name in parameters and shape_of(parameters[name]) == shape_of(members[member])
            for member, name in found.items()
        )
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = " and ".join(f"'{next(iter(found.values()))}'" for found in fitting)
        raise Refused(
            f"the optimizer's '{where}' fits several networks of the file by names and shapes: those of {several}",
            hint=f"read the file without its optimizer: {WITHOUT_OPTIMIZER}",
        )
    raise Refused(
        f"the optimizer's '{where}' fits no network of the file by names and shapes",
        hint=f"read the file without its optimizer: {WITHOUT_OPTIMIZER}",
    )


def _with_momentum(states: Sequence[OptimizerState]) -> list[OptimizerState]:
    """Momentum that follows RMSProp is one optimizer with it, not SGD's."""
    kinds = {state.kind for state in states}
    if kinds != {"rmsprop", "sgd"}:
        return [_without_buffer(state) for state in states]
    rms = {name: state for state in states if state.kind == "rmsprop" for name in state.parameters}
    whole = []
    for trace in (state for state in states if state.kind == "sgd"):
        base = rms.get(trace.parameters[0])
        if base is None or set(base.parameters) != set(trace.parameters):
            raise Refused("the optimizer keeps a momentum of other parameters than it normalises")
        whole.append(base.replace(slots={**base.slots, **trace.slots}))
    return whole


def _without_buffer(state: OptimizerState) -> OptimizerState:
    groups = tuple(
        ParamGroup(g.parameters, {key: value for key, value in g.hyper.items() if key != "buffer_holds_lr"})
        for g in state.groups
    )
    return state.replace(groups=groups)


def _hyper(tree: Mapping[str, Any]) -> dict[str, Json]:
    """Settings that the state holds, under the names that `ParamGroup` gives them."""
    node: Mapping[str, Any] = next(
        (node["hyperparams"] for _, node in _nodes(tree) if isinstance(node.get("hyperparams"), Mapping)), {}
    )
    known = {
        key: number(value, f"the setting '{key}'")
        for key, value in ((key, _bare(value)) for key, value in node.items())
        if not isinstance(value, Mapping | bool)
    }
    found: dict[str, Json] = {ours: known[theirs] for theirs, ours in _HYPER.items() if theirs in known}
    if {"b1", "b2"} <= set(known):
        found["betas"] = [known["b1"], known["b2"]]
    return found


def _check_complete(tree: Mapping[str, Any], places: Mapping[str, str]) -> None:
    known = set(places.values())
    for path, tensor in leaves(tree):
        if path not in known and len(shape_of(tensor)) > 0:
            raise Refused(
                f"there is no rule for the optimizer's '{path}', of shape {list(shape_of(tensor))}",
                hint=f"read the file without its optimizer: {WITHOUT_OPTIMIZER}",
            )
