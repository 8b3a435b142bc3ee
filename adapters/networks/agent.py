"""All networks of a file in one graph, as chains of layers: the policy's first, then the critics, then copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from surgery.adapters import SHARED, Reading
from surgery.interface import Interface, Port
from surgery.port_kinds import infer
from surgery_adapters.containers.module_tree import ModuleNode
from surgery_adapters.networks import impala
from surgery_adapters.networks.chains import Chain, End, Observations, Part, custom
from surgery_adapters.networks.layers import Layers
from surgery_adapters.networks.outputs import Actions, declare
from surgery_adapters.networks.words import roles_of


def chained(
    name: str,
    parts: Sequence[Part],
    reading: Reading,
    activation: str | None,
    module: Callable[[Part], ModuleNode | None],
) -> tuple[ir.Model, Interface]:
    """The graph of networks that are chains of layers, and what goes in and comes out.

    Args:
      name: of the graph. parts: the networks. reading: what a person says of them.
      activation: between layers, where it is known.
      module: of a network, where the file has whole modules.

    Raises:
      ArgumentError, Refused: what follows what is not told by names and sizes.
    """
    layers = Layers(name, {key: tensor for part in parts for key, tensor in part.known.items()})
    observations, networks = Observations(layers, reading), distinct(parts)
    ends = [_built(layers, part, observations, activation, module(part)) for part in networks]
    valuing = of_actions(parts)
    actions = _actions(networks, ends, valuing, observations.size)
    outputs: list[Port] = []
    for part, found in zip(networks, ends, strict=True):
        taken = {port.name for port in outputs}
        outputs += declare(layers, part, found, taken, actions, valued=part.prefix in valuing)
    for state, end in observations.states.items():
        layers.graph.output(end.value, f"{state}_next", (end.width,))
        outputs.append(Port(f"{state}_next", "state", declared=True))
    model = layers.graph.model()
    kinds = dict.fromkeys(observations.own, "other") | dict.fromkeys(observations.states, "state")
    inputs = (
        Port(port.name, kinds[port.name], declared=True) if port.name in kinds else port
        for port in infer(model).inputs
    )
    return model, Interface(tuple(inputs), tuple(outputs))


def _built(
    layers: Layers, part: Part, observations: Observations, activation: str | None, module: ModuleNode | None
) -> dict[str, End]:
    if not impala.stages(part.tensors):
        return Chain(
            layers, part.tensors, activation or custom(part.tensors), observations,
            statistics=part.known, module=module, prefix=part.prefix, label=part.label,
        ).build()  # fmt: skip
    seen = next(iter(layers.graph.model().graph.inputs), None)
    trunk = impala.build(layers, part.tensors, observations.reading, seen)
    return Chain(layers, impala.rest(part.tensors), "relu", observations, trunk).build()


def _actions(
    networks: Sequence[Part], ends: Sequence[dict[str, End]], valuing: set[str], features: int
) -> Actions:
    """What critics tell of the actions: one that gives one number reads one, behind or before an observation."""
    more = {
        end.reads - features
        for part, found in zip(networks, ends, strict=True)
        for group, end in found.items()
        if end.width == 1
        and end.reads not in (0, features)
        and (part.prefix in valuing or "q" in roles_of(group.removeprefix(part.prefix)))
    }
    return Actions(features, bool(more), next(iter(more)) if len(more) == 1 else 0)


def distinct(parts: Sequence[Part]) -> list[Part]:
    """The networks without those that are others under a second name, those of policies before those of critics."""
    seen: set[object] = set()
    found = []
    for part in parts:
        views = {tensor.meta.get(SHARED, name) for name, tensor in part.tensors.items()}
        if not views <= seen:
            found.append(part)
        seen |= views
    return sorted(found, key=is_critic)


def of_actions(parts: Sequence[Part]) -> set[str]:
    """Prefixes of the networks that say what actions are worth: those of Q, and what has a target network.

    Of an actor-critic's networks that is the critic, else the policy itself (Tianshou calls a Q network one).
    """
    critics = any(map(is_critic, parts))
    originals = {part.original for part in parts if part.original is not None}
    followed = {
        part.prefix
        for part in parts
        if part.prefix in originals or any(part.prefix and name.startswith(part.prefix) for name in originals)
    }
    named = {part.prefix for part in parts if "q" in roles_of(part.label)}
    copies = {part.prefix for part in parts if part.original is not None}
    return named | {
        part.prefix for part in parts if part.prefix in followed | copies and (is_critic(part) or not critics)
    }


def is_critic(part: Part) -> bool:
    """Whether a network is a critic by its name."""
    roles = roles_of(part.label)
    return bool(roles & {"critic", "q"}) and "actor" not in roles
