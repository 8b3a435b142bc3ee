"""What comes out of networks: outputs of the graph, named after what they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from surgery.interface import Port
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import Part
from surgery_adapters.networks.layers import Layers, Tensors
from surgery_adapters.networks.statistics import is_statistic
from surgery_adapters.networks.wiring import layers_of
from surgery_adapters.networks.words import WORDS, kinds_of, words_of


def declare(
    layers: Layers,
    part: Part,
    ends: Mapping[str, ir.Value],
    taken: Collection[str],
    *,
    of_actions: bool = False,
) -> list[Port]:
    """Declare what comes out of a network as outputs of the graph.

    Args:
      layers: the graph. part: the network. ends: group -> what comes out of it. taken: names of other outputs.
      of_actions: whether the network says what actions are worth, whatever it is called.
    """
    made = _Outputs(layers, part, set(taken))
    deviation = _deviation_in(part.tensors)
    widths = {layer.group: layer.units for layer in layers_of(part.tensors)}
    own = {group: group.removeprefix(part.prefix) for group in ends}
    label = "" if of_actions else part.label
    kinds = kinds_of({own[group]: widths[group] for group in ends}, label, gaussian=deviation is not None)
    for group, value in ends.items():
        kind, width = kinds[own[group]], widths[group]
        if kind == "q_values" and (atoms := _atoms(part.tensors, width)) is not None:
            made.distributions(value, group, width // len(atoms), atoms)
            continue
        if of_actions and width == 1:  # it reads an action
            made.critic(value)
            continue
        made.add(value, kind, width, group)
        if kind == "mean":
            made.squashed(value, width)
            if deviation is not None:
                made.deviation(deviation, value, width)
    return made.ports


class _Outputs:
    """The outputs of one network."""

    def __init__(self, layers: Layers, part: Part, taken: set[str]) -> None:
        self._layers, self._graph, self._part, self._taken = layers, layers.graph, part, taken
        self._copy = part.original is not None
        self._suffix = f"_{part.prefix.strip('.').replace('.', '_')}" if self._copy else ""
        self.ports: list[Port] = []

    def add(self, value: ir.Value, kind: str, width: int, group: str) -> None:
        """One row of numbers per observation."""
        name = f"{'action_log_std' if kind == 'log_std' else kind}{self._suffix}"
        if name in self._taken or kind == "other":
            name = f"{group.replace('.', '_')}{self._suffix}"
        self._declare(value, name, (width,), Port(name, kind, declared=True))

    def critic(self, value: ir.Value) -> None:
        """What an action is worth, by the critic's own name."""
        name = self._part.label.strip(".").replace(".", "_")
        self._declare(value, name, (1,), Port(name, "other", declared=True))

    def distributions(self, value: ir.Value, group: str, actions: int, atoms: list[float]) -> None:
        """A distribution of returns per action, on the atoms that the file has (Bellemare et al., 2017)."""
        wide = self._graph.op("Reshape", value, self._graph.constant([0, actions, len(atoms)]))
        name = f"atom_logits{self._suffix}"
        name = f"{group.replace('.', '_')}{self._suffix}" if name in self._taken else name
        port = Port(name, "atom_logits", atoms[0], atoms[-1], declared=True)
        self._declare(wide, name, (actions, len(atoms)), port)

    def squashed(self, mean: ir.Value, width: int) -> None:
        """The action, where the network holds its range: CleanRL's `tanh(mean) · action_scale + action_bias`."""
        names = [f"{self._part.prefix}action_{leaf}" for leaf in ("scale", "bias")]
        if not all(name in self._part.tensors for name in names):
            return
        scale, bias = (self._layers.parameter(name) for name in names)
        name = f"action{self._suffix}"
        value = self._graph.op("Add", self._graph.op("Mul", self._graph.op("Tanh", mean), scale), bias)
        self._declare(value, name, (width,), Port(name, "action", declared=True))

    def deviation(self, name: str, mean: ir.Value, width: int) -> None:
        """A deviation that does not depend on the observation, as its logarithm for every example."""
        value = self._layers.parameter(name)
        if not words_of(name) & {"log", "logstd"}:
            value = self._graph.op("Log", value)  # rsl_rl keeps the deviation itself
        wide = self._graph.op("Expand", value, self._graph.op("Shape", mean))
        output = f"action_log_std{self._suffix}"
        self._declare(wide, output, (width,), Port(output, "log_std", declared=True))

    def _declare(self, value: ir.Value, name: str, shape: tuple[int, ...], port: Port) -> None:
        self._graph.output(value, name, shape)
        self._taken.add(name)
        self.ports.append(Port(name, "other", declared=True) if self._copy else port)


def _deviation_in(tensors: Tensors) -> str | None:
    """A deviation that is a parameter of its own."""
    free = (name for name in tensors if not name.endswith((".weight", ".bias")) and not is_statistic(name))
    return next((name for name in free if words_of(name) & WORDS["log_std"]), None)


def _atoms(tensors: Tensors, width: int) -> list[float] | None:
    """The returns that a distribution is over, evenly spaced, where the network holds them."""
    found = next((tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "atoms"), None)
    if (
        found is None
        or len(shape_of(found)) != 1
        or not 1 < (count := shape_of(found)[0]) < width
        or width % count
    ):
        return None
    return [float(number) for number in found.numpy()]
