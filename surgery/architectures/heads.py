"""Heads: what a policy says, written behind the layers of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from surgery.architectures.layers import Activation, Dense, Layer, Norm
from surgery.architectures.writer import Writer
from surgery.interface import Port

ATOMS, QUANTILES, SUPPORT = 51, 200, 10.0
"""Of C51 (from −10 to 10) and QR-DQN, as their papers have them."""


@dataclass(frozen=True)
class Head:
    """One kind of head.

    Attributes:
      outputs: the names, which are the kinds, of what comes out.
      write: appends it behind the last layer.
      policy: whether it is trained by policy gradients, whose code starts weights orthogonally.
      streams: whether the last dense layer is there once for the value and once for the advantages.
      noisy: whether the network's dense layers are noisy.
    """

    outputs: tuple[str, ...]
    write: Callable[[Writer, int], list[Port]]
    policy: bool = False
    streams: bool = False
    noisy: bool = False


def _q(writer: Writer, actions: int) -> list[Port]:
    writer.dense("q", actions, gain=1.0)
    return [_output(writer, "q_values", (actions,))]


def _c51(writer: Writer, actions: int) -> list[Port]:
    """Bellemare, Dabney, Munos, 2017."""
    writer.dense("atoms", actions * ATOMS, gain=1.0)
    return [_spanning(_grid(writer, "atom_logits", actions, ATOMS))]


def _spanning(port: Port) -> Port:
    return Port(port.name, port.kind, -SUPPORT, SUPPORT, declared=True)


def _qr(writer: Writer, actions: int) -> list[Port]:
    """Dabney et al., 2018."""
    writer.dense("quantiles", actions * QUANTILES, gain=1.0)
    return [_grid(writer, "quantiles", actions, QUANTILES)]


def _grid(writer: Writer, name: str, actions: int, count: int) -> Port:
    writer.x = writer.graph.op("Reshape", writer.x, writer.graph.constant([-1, actions, count]))
    return _output(writer, name, (actions, count))


def _actor_critic(writer: Writer, actions: int) -> list[Port]:
    before, shape = writer.x, writer.shape
    writer.dense("policy", actions, gain=0.01)
    logits = _output(writer, "logits", (actions,))
    writer.x, writer.shape = before, shape
    return [logits, _value(writer)]


def _value(writer: Writer) -> Port:
    writer.dense("value", 1, gain=1.0)
    return _output(writer, "value", (1,))


def _gaussian(writer: Writer, actions: int) -> list[Port]:
    """A mean that depends on the observation, and a deviation that does not (Schulman et al., 2017)."""
    before, shape = writer.x, writer.shape
    writer.dense("policy", actions, gain=0.01)
    mean = _output(writer, "mean", (actions,))
    size = writer.graph.op("Shape", writer.x)
    log_std = writer.graph.parameter("policy.log_std", np.zeros((1, actions), np.float32))
    writer.x = writer.graph.op("Expand", log_std, size)
    deviation = _output(writer, "log_std", (actions,))
    writer.x, writer.shape = before, shape
    return [mean, deviation, _value(writer)]


def dueling(writer: Writer, kind: Head, actions: int, stream: tuple[Layer, ...]) -> list[Port]:
    """Wang et al., 2016: Q = V + A − mean A, each stream with its own dense layer; of every atom in Rainbow."""
    before, shape = writer.x, writer.shape
    atoms = ATOMS if kind.outputs == ("atom_logits",) else 1
    parts, graph = [], writer.graph
    for name, width in (("value", 1), ("advantage", actions)):
        writer.x, writer.shape = before, shape
        writer.add(stream, f"{name}.")
        writer.dense(f"{name}.out", width * atoms, gain=1.0)
        grid = graph.constant([-1, width, atoms])
        parts.append(graph.op("Reshape", writer.x, grid) if atoms > 1 else writer.x)
    value, advantage = parts
    mean = graph.op("ReduceMean", advantage, graph.constant([1]), keepdims=1)
    writer.x = graph.op("Add", value, graph.op("Sub", advantage, mean))
    if atoms == 1:
        return [_output(writer, "q_values", (actions,))]
    return [_spanning(_output(writer, "atom_logits", (actions, atoms)))]


def _output(writer: Writer, kind: str, shape: tuple[int, ...]) -> Port:
    writer.x = writer.graph.output(writer.x, kind, shape)
    return Port(kind, kind, declared=True)


HEADS: Mapping[str, Head] = {
    "q": Head(("q_values",), _q),
    "dueling": Head(("q_values",), _q, streams=True),
    "c51": Head(("atom_logits",), _c51),
    "qr": Head(("quantiles",), _qr),
    "rainbow": Head(("atom_logits",), _c51, streams=True, noisy=True),
    "actor-critic": Head(("logits", "value"), _actor_critic, policy=True),
    "gaussian": Head(("mean", "log_std", "value"), _gaussian, policy=True),
}
"""Heads by name."""


def split_stream(layers: tuple[Layer, ...]) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """The shared layers and those of each stream: from the last dense layer on, if it is at the end."""
    for k in reversed(range(len(layers))):
        if isinstance(layers[k], Dense):
            return layers[:k], layers[k:]
        if not isinstance(layers[k], (Activation, Norm)):
            break
    return layers, ()
