"""What comes out of networks: outputs of the graph, named after what they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.interface import Port
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import End, Part
from surgery_adapters.networks.layers import Layers, Tensors
from surgery_adapters.networks.stacked import apart, stacked_in
from surgery_adapters.networks.statistics import denormalised, is_statistic
from surgery_adapters.networks.words import WORDS, kinds_of, roles_of, words_of


@dataclass(frozen=True)
class Actions:
    """What is known of the actions of an agent.

    Attributes:
      features: of its observation.
      continuous: whether a critic reads them.
      count: how many numbers that critic reads beside the observation; 0 if it is not known.
    """

    features: int = 0
    continuous: bool = False
    count: int = 0


def declare(
    layers: Layers,
    part: Part,
    ends: Mapping[str, End],
    taken: Collection[str],
    actions: Actions,
    *,
    valued: bool = False,
) -> list[Port]:
    """Declare what comes out of a network as outputs of the graph.

    Args:
      layers: the graph. part: the network. ends: group -> what comes out of it. taken: names of other outputs.
      actions: of the agent. valued: whether the network says what actions are worth, whatever it is called.
    """
    made = _Outputs(layers, part, set(taken))
    deviation = _deviation_in(part.tensors)
    own = {group: group.removeprefix(part.prefix) for group in ends}
    widths = {own[group]: end.width for group, end in ends.items()}
    kinds = kinds_of(widths, "" if valued else part.label, gaussian=deviation is not None)
    stack = stacked_in(part.tensors)
    for group, end in ends.items():
        kind, width = kinds[own[group]], end.width
        if kind == "logits" and actions.continuous:
            kind = "mean"
        alone = "q" in roles_of(own[group]) and end.reads != 0  # q1 beside an actor in one module
        reads_action = (valued or alone) and width == 1 and end.reads != actions.features
        if stack:
            made.networks(apart(layers, end.value, stack), "other" if reads_action else kind, width)
        elif reads_action:
            made.critic(end.value, part.label if len(ends) == 1 else own[group])
        elif kind == "q_values" and (atoms := _atoms(layers.tensors, width)) is not None:
            shape = width // len(atoms), len(atoms)
            made.distributions(end.value, group, "atom_logits", shape, atoms[0], atoms[-1])
        elif kind == "q_values" and (count := _quantiles(layers.tensors, width)):
            made.distributions(end.value, group, "quantiles", (width // count, count))
        elif kind == "mean" and width == 2 * actions.count:
            made.mean_and_scale(end.value, actions.count, group)
        else:
            value = (
                denormalised(layers, end.value, part.tensors, part.prefix) if kind == "value" else end.value
            )
            made.add(value, kind, width, group)
            if kind == "mean":
                made.squashed(end.value, width)
                if deviation is not None:
                    made.deviation(deviation, end.value, width)
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
        called = {"log_std": "action_log_std", "other": group.replace(".", "_")}.get(kind, kind)
        name = self._free(called, group)
        self._declare(value, name, (width,), Port(name, kind, declared=True))

    def mean_and_scale(self, value: ir.Value, count: int, group: str) -> None:
        """Both halves of a layer: means, and what the code makes deviations of, which is not in the file."""
        mean, scale = self._graph.ops("Split", value, outputs=2, axis=-1, num_outputs=2)
        self.add(mean, "mean", count, group)
        name = f"scale{self._suffix}"
        self._declare(scale, name, (count,), Port(name, "other", declared=True))

    def critic(self, value: ir.Value, called: str) -> None:
        """What an action is worth, by the critic's own name."""
        name = called.strip(".").replace(".", "_")
        name = f"{name}{self._suffix}" if name in self._taken else name
        self._declare(value, name, (1,), Port(name, "other", declared=True))

    def networks(self, values: Sequence[ir.Value], kind: str, width: int) -> None:
        """What each of several networks that share their tensors makes, by their name and its number."""
        for k, value in enumerate(values):
            name = f"{self._part.label.strip('.').replace('.', '_')}_{k}"
            self._declare(value, name, (width,), Port(name, kind, declared=True))

    def distributions(
        self,
        value: ir.Value,
        group: str,
        kind: str,
        shape: tuple[int, int],
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """A distribution of returns per action: on atoms (Bellemare et al., 2017), or quantiles (Dabney et al., 2018).

        Args:
          shape: how many actions, and numbers of each. low, high: the atoms' ends.
        """
        wide = self._graph.op("Reshape", value, self._graph.constant([0, *shape]))
        name = self._free(kind, group)
        self._declare(wide, name, shape, Port(name, kind, low, high, declared=True))

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
        if not words_of(name) & {"log", "logstd", "sigma"}:
            value = self._graph.op("Log", value)  # rsl_rl keeps the deviation itself
        if self._layers.shape(name)[-1] != width:  # Tianshou's stand in a column
            value = self._graph.op("Reshape", value, self._graph.constant([width]))
        wide = self._graph.op("Expand", value, self._graph.op("Shape", mean))
        output = f"action_log_std{self._suffix}"
        self._declare(wide, output, (width,), Port(output, "log_std", declared=True))

    def _free(self, name: str, group: str) -> str:
        """The name of an output of a group; if another one has that already, the group's own."""
        found = f"{name}{self._suffix}"
        return f"{group.replace('.', '_')}{self._suffix}" if found in self._taken else found

    def _declare(self, value: ir.Value, name: str, shape: tuple[int, ...], port: Port) -> None:
        self._graph.output(value, name, shape)
        self._taken.add(name)
        self.ports.append(Port(name, "other", declared=True) if self._copy else port)


def _deviation_in(tensors: Tensors) -> str | None:
    """A deviation that is a parameter of its own."""
    free = (name for name in tensors if not name.endswith((".weight", ".bias")) and not is_statistic(name))
    return next((name for name in free if words_of(name) & WORDS["log_std"]), None)


def _quantiles(tensors: Tensors, width: int) -> int:
    """How many quantiles there are of every action, where the file holds their middles (Tianshou's `tau_hat`)."""
    found = next((shape_of(t) for name, t in tensors.items() if name.rpartition(".")[2] == "tau_hat"), ())
    count = math.prod(found) if found else 0
    return count if 1 < count < width and width % count == 0 else 0


def _atoms(tensors: Tensors, width: int) -> list[float] | None:
    """The returns that a distribution is over, evenly spaced, where the network holds them."""
    leaves = ("atoms", "support")  # CleanRL's name, and Tianshou's
    found = next((tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in leaves), None)
    if (
        found is None
        or len(shape_of(found)) != 1
        or not 1 < (count := shape_of(found)[0]) < width
        or width % count
    ):
        return None
    return [float(number) for number in found.numpy()]
