"""The actors and critics of Dopamine's PPO and SAC as graphs, on vectors or behind an encoder of images.

Both act with numbers: a Gaussian, whose deviation is the actor's second half (SAC) or a layer that reads ones (PPO).
(https://github.com/google/dopamine, dopamine/jax/continuous_networks.py,
dopamine/labs/sac_from_pixels/continuous_networks.py, dopamine/labs/cale/networks.py)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from surgery.errors import Refused
from surgery.interface import Port
from surgery_adapters.dopamine.networks import Parameters, image, impala, is_nature, nature
from surgery_adapters.networks.channels_last import ChannelsLast, Image, Layer
from surgery_adapters.networks.layers import ACTIVATIONS, activation_of

_PART = re.compile(r"(?:.*\.)?(?P<part>_actor|_critic\d?|_encoder)\.(?P<layer>[^.]+\..+)")
_NORM = re.compile(r"(?P<path>.*\.LayerNorm_(?P<number>\d+))\.(?:scale|bias)")
_SAC_AE = ((3, 2), (3, 1), (3, 1), (3, 1))
"""Sizes and strides of the convolutions of SAC from pixels (Yarats et al., 2019)."""


@dataclass(frozen=True)
class Parts:
    """The layers of an actor and its critics.

    Attributes:
      actor: its hidden layers. heads: what makes the mean and the deviation: SAC one layer, PPO one for each.
      critics: the layers of each. encoder: what turns images into vectors, if there is one.
      norms: layer normalisations of the encoder, in order.
    """

    actor: Sequence[Layer]
    heads: Sequence[Layer]
    critics: Sequence[Sequence[Layer]]
    encoder: Parameters | None
    norms: Sequence[str]

    @property
    def of_actions(self) -> bool:
        """Whether the critics read an action: SAC's do."""
        return len(self.critics) == 2

    @property
    def hidden(self) -> list[list[str]]:
        """The kernels of the hidden layers of the actor and of each critic."""
        chains = [self.actor, *(critic[:-1] for critic in self.critics)]
        return [[layer.kernel for layer in chain] for chain in chains]

    @staticmethod
    def of(names: Iterable[str]) -> Parts:
        """Sort parameters into layers by their names.

        Raises:
          Refused: they are not those of PPO or SAC.
        """
        found: dict[str, list[str]] = {}
        norms: dict[int, str] = {}
        for name in names:
            match, norm = _PART.fullmatch(name), _NORM.fullmatch(name)
            if match is None:
                raise Refused(f"'{name}' is not part of an actor or critic of PPO or SAC", hint=_HINT)
            if norm is not None and match["part"] == "_encoder":
                norms[int(norm["number"])] = norm["path"]
            else:
                found.setdefault(match["part"], []).append(name)
        encoder = found.pop("_encoder", None)
        dense = {part: Parameters.of(members) for part, members in found.items()}
        sac = set(dense) == {"_actor", "_critic1", "_critic2"}
        if not (sac or set(dense) == {"_actor", "_critic"}) or not all(map(_is_dense, dense.values())):
            raise Refused(
                f"the parts of the file are {', '.join(sorted(dense))}, which are not PPO's or SAC's",
                hint=_HINT,
            )
        actor, last = dense["_actor"].dense, 1 if sac else 2
        if len(actor) < last:
            raise Refused("the actor has too few layers", hint=_HINT)
        return Parts(
            actor[:-last],
            actor[-last:],
            [one.dense for name, one in sorted(dense.items()) if name != "_actor"],
            None if encoder is None else Parameters.of(encoder),
            [norms[number] for number in sorted(norms)],
        )


_HINT = "export another network to ONNX with jax2onnx, and use that"


def _is_dense(parameters: Parameters) -> bool:
    return bool(parameters.dense) and not (parameters.convolutions or parameters.stacks or parameters.noisy)


def is_actor_critic(names: Iterable[str]) -> bool:
    """Whether some parameters are of an agent with an actor."""
    return any(match["part"] == "_actor" for name in names if (match := _PART.fullmatch(name)))


class ActorCritic:
    """One network in a graph that several share.

    Args:
      layers: the graph, and all tensors. names: of the network's parameters. suffix: behind the names of its outputs.
      activation: of the dense layers; None for the algorithm's own.

    Raises:
      Refused: the parameters are not PPO's or SAC's. UnknownName: there is no such activation.
    """

    def __init__(
        self, layers: ChannelsLast, names: Iterable[str], suffix: str, activation: str | None
    ) -> None:
        self._layers, self._graph, self._suffix = layers, layers.graph, suffix
        self.parts = Parts.of(names)
        usual = "relu" if self.parts.of_actions else "tanh"
        self._activate = ACTIVATIONS[activation_of(activation or usual)]

    @property
    def features(self) -> int:
        """How many numbers an observation has that is no image."""
        return self._sizes((*self.parts.actor, *self.parts.heads)[0])[0]

    @property
    def actions(self) -> int:
        """How many numbers an action has."""
        width = self._sizes(self.parts.heads[0])[1]
        if self.parts.of_actions and width % 2:
            raise Refused(
                f"the actor makes {width} numbers, which are not a mean and deviation for each action"
            )
        return width // 2 if self.parts.of_actions else width

    def _sizes(self, layer: Layer) -> tuple[int, int]:
        """How many numbers a dense layer reads, and how many it makes."""
        shape = self._layers.shape(layer.kernel)
        if len(shape) != 2:
            raise Refused(f"'{layer.kernel}' is {list(shape)}, which is not the shape of a dense layer")
        return shape[0], shape[1]

    def build(self, observation: ir.Value, action: ir.Value | None) -> list[Port]:
        """Append the network; its outputs as they are declared.

        Args:
          observation: (batch, features), or (batch, height, width, channels) with values up to 255.
          action: (batch, actions) that critics judge.

        Raises:
          Refused: an encoder that is not known.
        """
        seen, judged = self._encoded(observation)
        ports = self._gaussian(self._hidden(seen, self.parts.actor))
        for number, (*hidden, last) in enumerate(self.parts.critics):
            x = judged if action is None else self._graph.op("Concat", judged, action, axis=1)
            value = self._layers.dense(self._hidden(x, hidden), last)
            ports.append(self._output(value, "value" if action is None else f"qf{number}", 1))
        return ports

    def _hidden(self, x: ir.Value, layers: Sequence[Layer]) -> ir.Value:
        for layer in layers:
            x = self._activate(self._graph, self._layers.dense(x, layer))
        return x

    def _gaussian(self, x: ir.Value) -> list[Port]:
        """Mean and deviation, and SAC's action between −1 and 1, which the environment's range is no part of."""
        graph, count = self._graph, self.actions
        if self.parts.of_actions:
            both = self._layers.dense(x, self.parts.heads[0])
            mean, deviation = graph.ops("Split", both, outputs=2, axis=1, num_outputs=2)
        else:
            mean = self._layers.dense(x, self.parts.heads[0])
            # the deviation does not depend on what is seen: it reads ones, as many as there are units
            zero, one = (graph.constant(number, "float32") for number in (0.0, 1.0))
            ones = graph.op("Add", graph.op("Mul", x, zero), one)
            deviation = self._layers.dense(ones, self.parts.heads[1])
        ports = [
            self._output(mean, "mean", count),
            self._output(deviation, "log_std", count, "action_log_std"),
        ]
        if self.parts.of_actions:
            action = self._output(graph.op("Tanh", mean), "action", count)
            ports.append(action if self._suffix else replace(action, low=-1.0, high=1.0))
        return ports

    def _output(self, value: ir.Value, kind: str, width: int, name: str | None = None) -> Port:
        name = f"{name or kind}{self._suffix}"
        self._graph.output(value, name, (width,))
        return Port(name, "other" if self._suffix or kind.startswith("qf") else kind, declared=True)

    def _encoded(self, observation: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the actor and what the critics see of an observation."""
        encoder, graph, layers = self.parts.encoder, self._graph, self._layers
        if encoder is None:
            return observation, observation
        if encoder.stacks:  # the only one that takes images as they are, and projects every place of them
            x = graph.op(
                "Transpose",
                impala(layers, encoder, image(layers, observation, most=None)).value,
                perm=[0, 2, 3, 1],
            )
        elif is_nature(layers, encoder):
            x = layers.flatten(nature(layers, encoder, image(layers, observation)))
        else:
            x = layers.flatten(self._sac_ae(encoder, image(layers, observation)))
        if len(encoder.dense) != 2 or len(self.parts.norms) not in (1, 2):
            raise Refused("the encoder does not have the layers of Dopamine's", hint=_HINT)
        # as many norms as projections: SAC from pixels, tanh throughout; else those of CALE
        bend = "Tanh" if len(self.parts.norms) == 2 else "Relu"
        critic, actor = (layers.dense(x, layer) for layer in encoder.dense)
        critic = graph.op(bend, layers.layer_norm(critic, self.parts.norms[0]))
        actor = layers.layer_norm(actor, self.parts.norms[1]) if len(self.parts.norms) == 2 else actor
        actor = graph.op(bend, actor)
        if encoder.stacks:
            return graph.op("Flatten", actor, axis=1), graph.op("Flatten", critic, axis=1)
        return actor, critic

    def _sac_ae(self, encoder: Parameters, x: Image) -> Image:
        sizes = [self._layers.shape(layer.kernel)[:2] for layer in encoder.convolutions]
        if sizes != [(size, size) for size, _ in _SAC_AE]:
            raise Refused(
                "the encoder's convolutions are not Dopamine's, and the file does not hold their strides",
                hint=_HINT,
            )
        for layer, (_, stride) in zip(encoder.convolutions, _SAC_AE, strict=True):
            x = self._layers.relu(self._layers.convolution(x, layer, stride, "SAME"))
        return x
