"""Both networks of an agent in one graph, and how it sees its games."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, Refused
from surgery.interface import CRITIC_ACTION, Environment, Interface, Port
from surgery.tensors import shape_of
from surgery_adapters.dopamine.actor_critic import ActorCritic, Parts, is_actor_critic
from surgery_adapters.dopamine.networks import Network, Parameters, image_shape
from surgery_adapters.networks.channels_last import ChannelsLast, Tensors
from surgery_adapters.writeback.matching import checked

ATARI = Environment(
    settings={
        "frame_skip": 4,
        "frame_stack": 4,
        "max_pool": True,
        "sticky_actions": 0.25,
        "noop_max": 0,
        "fire_reset": False,
        "full_action_space": False,
        "terminal_on_life_loss": False,
        "max_episode_steps": 27_000,
        "reward_clip": True,
        "preprocessing": {"height": 84, "width": 84, "grayscale": True, "layout": "HWC"},
    }
)
"""How Dopamine's agents see Atari games (Machado et al., 2018; dopamine/discrete_domains/atari_lib.py)."""


def agent(
    name: str, groups: Mapping[str, Tensors], reading: Reading, seen: tuple[int, ...] | None = None
) -> tuple[ir.Model, Interface]:
    """The graph of an agent's networks on one observation, and what comes in and out.

    Args:
      name: of the graph. groups: prefix -> parameters; the first is the network that acts.
      reading: what a person says of it. seen: the shape of an observation, where the file has one.

    Raises:
      ArgumentError: the shape of an observation cannot be told.
      Refused, CorruptFile: networks that are not Dopamine's, or whose layers do not fit each other.
    """
    tensors = {key: tensor for members in groups.values() for key, tensor in members.items()}
    layers = ChannelsLast(GraphBuilder(name), tensors)
    suffixes = ["_target" if place else "" for place in range(len(groups))]
    if is_actor_critic(tensors):
        return _actor_critic(layers, dict(zip(suffixes, groups.values(), strict=True)), reading, seen)
    parameters = [Parameters.of(members) for members in groups.values()]
    networks = [
        Network(layers, one, suffix, reading.head) for one, suffix in zip(parameters, suffixes, strict=True)
    ]
    if parameters[0].classic:
        vector = layers.graph.input("observation", layers.shape(parameters[0].dense[0].kernel)[:1])
        found = tuple(network.build_classic(vector) for network in networks)
        ports = (Port("observation", "observation", declared=True),)
        return checked(layers.graph.model()), Interface(ports, found)
    shape = reading.observation or seen or image_shape(tensors, parameters[0])
    observation, port = _image(layers, shape)
    outputs = [network.build(observation) for network in networks]
    return checked(layers.graph.model()), Interface((port,), tuple(outputs))


def _actor_critic(
    layers: ChannelsLast, groups: Mapping[str, Tensors], reading: Reading, seen: tuple[int, ...] | None
) -> tuple[ir.Model, Interface]:
    """The graph of PPO's or SAC's networks.

    Args:
      groups: what is behind the names of a network's outputs -> its parameters. seen: see `agent`.
    """
    networks = [
        ActorCritic(layers, members, suffix, reading.activation) for suffix, members in groups.items()
    ]
    first = networks[0]
    if first.parts.encoder is None:
        observation = layers.graph.input("observation", (first.features,))
        ports = [Port("observation", "observation", declared=True)]
    else:
        shape = reading.observation or seen
        if (
            shape is not None and len(shape) > 3
        ):  # the frames of an image in colour are flattened with its channels
            shape = (*shape[:2], prod(shape[2:]))
        observation, port = _image(layers, shape)
        ports = [port]
    action = None
    if first.parts.of_actions:
        action = layers.graph.input(CRITIC_ACTION, (first.actions,))
        ports.append(Port(CRITIC_ACTION, "other", declared=True))
    found = [port for network in networks for port in network.build(observation, action)]
    return checked(layers.graph.model()), Interface(tuple(ports), tuple(found))


def _image(layers: ChannelsLast, shape: tuple[int, ...] | None) -> tuple[ir.Value, Port]:
    if shape is None or len(shape) != 3:
        what = "is not known" if shape is None else f"has three axes, not {list(shape)}"
        raise ArgumentError(
            f"the shape of an image {what}", hint="give it, channels last: --observation 84,84,4"
        )
    port = Port("observation", "observation", 0.0, 255.0, declared=True)
    return layers.graph.input("observation", shape), port


def contract(interface: Interface) -> Environment:
    """How an agent sees its environment: as all do on Atari, on images and with actions to choose from.

    For classic control, and where actions are numbers, the file does not say.
    """
    chosen = not any(port.kind == "mean" for port in interface.outputs)
    return ATARI if chosen and interface.inputs[0].high == 255.0 else Environment()


def check_settings(old: Tensors, new: Tensors) -> None:
    """Raise Refused if dense layers that `hidden_units` and `num_layers` of `gin` made could no longer be made so."""
    before, after = _hidden(old), _hidden(new)
    widths, wider = ({shape_of(tensors[name])[-1] for chain in chains for name in chain}
                     for chains, tensors in ((before, old), (after, new)))  # fmt: skip
    if len(widths) == 1 < len(wider):
        raise Refused(
            f"the hidden layers would be {', '.join(map(str, sorted(wider)))} wide, and 'hidden_units' is one for all",
            hint="give all of them one width, those of actor and critics too; or write a graph: -o OUT.onnx",
        )
    depths, deeper = ({len(chain) for chain in chains} for chains in (before, after))
    if len(depths) == 1 < len(deeper):
        numbers = " and ".join(map(str, sorted(deeper)))
        raise Refused(
            f"actor and critics would have {numbers} hidden layers, and 'num_layers' is one for all",
            hint="deepen each of them: --after LAYER once for actor and critics; or write a graph: -o OUT.onnx",
        )


def _hidden(tensors: Tensors) -> list[list[str]]:
    """The kernels of every chain of layers whose width is a setting: actors and critics, and classic control."""
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(name.partition(".")[0], []).append(name)
    found: list[list[str]] = []
    for members in groups.values():
        if is_actor_critic(members):
            found += Parts.of(members).hidden
        elif (parameters := Parameters.of(members)).classic:
            found.append([layer.kernel for layer in parameters.dense[:-1]])
    return found
