"""Both networks of an agent in one graph, and how it sees its games."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError
from surgery.interface import Environment, Interface, Port
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
    parameters = [Parameters.of(members) for members in groups.values()]
    suffixes = ["_target" if place else "" for place in range(len(parameters))]
    networks = [
        Network(layers, one, suffix, reading.head) for one, suffix in zip(parameters, suffixes, strict=True)
    ]
    if parameters[0].classic:
        vector = layers.graph.input("observation", layers.shape(parameters[0].dense[0].kernel)[:1])
        found = tuple(network.build_classic(vector) for network in networks)
        ports = (Port("observation", "observation", declared=True),)
        return checked(layers.graph.model()), Interface(ports, found)
    shape = reading.observation or seen or image_shape(tensors, parameters[0])
    if shape is None or len(shape) != 3:
        what = "is not known" if shape is None else f"has three axes, not {list(shape)}"
        raise ArgumentError(f"an image {what}", hint="say its shape, channels last: --observation 84,84,4")
    observation = layers.graph.input("observation", shape)
    outputs = [network.build(observation, *shape[:2]) for network in networks]
    port = Port("observation", "observation", 0.0, 255.0, declared=True)
    return checked(layers.graph.model()), Interface((port,), tuple(outputs))


def contract(model: ir.Model) -> Environment:
    """How an agent sees its environment: as all do, on images; for classic control the file does not say."""
    shape = model.graph.inputs[0].shape
    return ATARI if shape is not None and len(shape) > 2 else Environment()
