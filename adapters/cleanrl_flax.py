"""Models of CleanRL's JAX scripts: flax parameters of Nature, IMPALA, dense and actor-critic networks, all with ReLU.

Kernels are (height, width, in, out) and (in, out), and images are flattened with the channels last; the graph reads
images with the channels first, as the scripts do, and holds the parameters as the file does.
(cleanrl/dqn_jax.py, c51_jax.py, dqn_atari_jax.py, qdagger_dqn_atari_jax_impalacnn.py, ppo_atari_envpool_xla_jax.py,
ddpg_continuous_action_jax.py, td3_continuous_action_jax.py)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, CorruptFile, Refused
from surgery.files import replacing
from surgery.interface import Interface, Port
from surgery.tensors import equal
from surgery_adapters.containers.msgpack_tree import flat, read, rewrite, span_of
from surgery_adapters.networks.chains import NATURE
from surgery_adapters.networks.channels_last import ChannelsLast, Image, Layer
from surgery_adapters.writeback.matching import checked, fit


def load(path: Path, reading: Reading) -> Checkpoint:
    """The networks as a graph; see `surgery.adapters.Adapter`."""
    tree = read(path)
    parts = list(_parts(tree))
    graph = GraphBuilder(path.stem)
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    networks = [_Network(ChannelsLast(graph, tensors), part) for part in parts]
    match networks:
        case [only]:
            ports = _value(graph, only, only.run(only.observe(reading)), _atoms(tree))
        case [trunk, actor, critic] if actor.wanted == critic.wanted == trunk.width:
            x = trunk.run(trunk.observe(reading), last=True)
            made = {"logits": actor.run(x), "value": critic.run(x)}
            ports = [
                _output(graph, value, name, net.width)
                for (name, value), net in zip(made.items(), (actor, critic), strict=True)
            ]
        case [actor, *critics] if len(critics) in (1, 2) and all(
            net.wanted == actor.wanted + actor.width for net in critics
        ):
            ports = _deterministic(graph, actor, critics, reading)
        case _:
            raise Refused(
                f"the file has {len(parts)} sets of parameters: it comes from no known script",
                hint="one for a Q network, three for the trunk, actor and critic of PPO, an actor and its critics",
            )
    model = checked(graph.model())
    own = [
        Port(str(value.name), "observation" if value.name == "observation" else "other", declared=True)
        for value in model.graph.inputs
    ]
    source = {"adapter": "cleanrl", "file": path.name}
    return Checkpoint(model, Interface(tuple(own), tuple(ports)), source=source)


def _output(graph: GraphBuilder, value: ir.Value, name: str, width: int, kind: str | None = None) -> Port:
    graph.output(value, name, (width,))
    return Port(name, kind or name, declared=True)


def _value(
    graph: GraphBuilder, net: _Network, x: ir.Value, atoms: tuple[int, float, float] | None
) -> list[Port]:
    """What actions are worth, or the distributions of that (Bellemare et al., 2017)."""
    if atoms is None:
        return [_output(graph, x, "q_values", net.width)]
    count, low, high = atoms
    actions, rest = divmod(net.width, count)
    if rest:
        raise CorruptFile(
            f"the last layer makes {net.width} numbers, which are not {count} atoms for each action"
        )
    graph.output(graph.op("Reshape", x, graph.constant([0, actions, count])), "atom_logits", (actions, count))
    return [Port("atom_logits", "atom_logits", low, high, declared=True)]


def _atoms(tree: Mapping[str, Any]) -> tuple[int, float, float] | None:
    """How many atoms a distribution has, and the lowest and highest one, if the script is C51's."""
    settings = tree.get("args")
    if not isinstance(settings, Mapping) or "n_atoms" not in settings:
        return None
    count, low, high = (settings.get(name) for name in ("n_atoms", "v_min", "v_max"))
    if (
        type(count) is not int
        or count < 2
        or not isinstance(low, int | float)
        or not isinstance(high, int | float)
    ):
        raise CorruptFile(f"the file's settings give impossible atoms: {count}, from {low} to {high}")
    return count, float(low), float(high)


def _deterministic(
    graph: GraphBuilder, actor: _Network, critics: Sequence[_Network], reading: Reading
) -> list[Port]:
    """DDPG and TD3: actions between −1 and 1, which the environment's range is no part of, and their critics."""
    action = graph.op("Tanh", actor.run(actor.observe(reading)))
    ports = [replace(_output(graph, action, "action", actor.width), low=-1.0, high=1.0)]
    both = graph.input("critic_observation", (critics[0].wanted,))
    for k, critic in enumerate(critics):
        ports.append(_output(graph, critic.run(both), f"qf{k + 1}", 1, "other"))
    return ports


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a file with other arrays; see `surgery.adapters.Adapter`."""
    old = flat(read(like))
    new = _fitted(old, checkpoint, like)
    replaced = {
        span[0]: new[name]
        for name, tensor in old.items()
        if name in new and (span := span_of(tensor)) is not None and not equal(tensor, new[name])
    }
    with replacing([path], force=force, sources=[like]) as [part], part.open("wb") as out:
        rewrite(like, replaced, out)
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a file can hold other networks; see `surgery.adapters.Checking`."""
    _fitted(flat(read(like)), checkpoint, like)


def _fitted(
    old: Mapping[str, ir.TensorProtocol], checkpoint: Checkpoint, like: Path
) -> Mapping[str, ir.TensorProtocol]:
    """The arrays of a file as they are to be.

    Raises:
      ArgumentError, Refused: the file has no place for them.
    """
    new = fit(old, checkpoint, like).now  # a compact module names its layers itself: there are no new ones
    for name, tensor in old.items():
        if name in new and new[name].dtype != tensor.dtype:
            raise Refused(
                f"'{name}' is {tensor.dtype.name} in the file, and would become {new[name].dtype.name}"
            )
    return new


def networks(path: Path) -> dict[str, Mapping[str, ir.TensorProtocol]]:
    """All arrays of the file as one network."""
    return {"model": flat(read(path))}


def _parts(tree: Mapping[str, Any], prefix: str = "") -> list[dict[str, ir.TensorProtocol]]:
    """Every `params` of the file, in its order."""
    found: list[dict[str, ir.TensorProtocol]] = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            found += [flat(value, name)] if key == "params" else _parts(value, name)
    return found


class _Network:
    """One set of parameters: convolutions or residual stages, if there are any, and dense layers.

    Attributes:
      layers: the graph in the making.
    """

    def __init__(self, layers: ChannelsLast, part: Mapping[str, ir.TensorProtocol]) -> None:
        self.layers = layers
        self._convolutions: list[str] = []
        self._stages: dict[str, list[str]] = {}
        self._dense: list[str] = []
        for path in dict.fromkeys(name.rpartition(".")[0] for name in part):
            *_, kind = path.split(".")
            stage = re.search(r"(.*\bConvSequence_\d+)\.", path)
            whole = f"{path}.kernel" in part and f"{path}.bias" in part
            if not whole or kind.partition("_")[0] not in ("Conv", "Dense"):
                raise Refused(f"'{path}' is not a layer of a known script")
            if stage:
                self._stages.setdefault(stage[1], []).append(path)
            else:
                (self._dense if kind.startswith("Dense") else self._convolutions).append(path)
        self._convolutions.sort(key=_number)
        self._dense.sort(key=_number)
        if not self._dense:
            raise Refused("a set of parameters has no dense layer: it comes from no known script")

    @property
    def width(self) -> int:
        """How many numbers come out."""
        return self._kernel(self._dense[-1])[-1]

    @property
    def wanted(self) -> int:
        """How many features the first dense layer reads."""
        return self._kernel(self._dense[0])[0]

    def observe(self, reading: Reading) -> ir.Value | Image:
        """The input: a vector, or images with the channels first that are divided by 255."""
        graph = self.layers.graph
        if not self._convolutions and not self._stages:
            return graph.input("observation", reading.observation or (self.wanted,))
        shape = reading.observation or self._image()
        if len(shape) != 3:
            raise ArgumentError(f"images have three axes, not {list(shape)}")
        x = graph.op("Div", graph.input("observation", shape), graph.constant(255.0, "float32"))
        return Image(x, *shape[1:])

    def _image(self) -> tuple[int, int, int]:
        """The square image that the dense layers' features come from."""
        last = self._convolutions[-1] if self._convolutions else self._residual(list(self._stages)[-1])[0]
        side = math.isqrt(self.wanted // self._kernel(last)[-1])
        if self._stages:
            side = 84 if side == 11 else side << len(self._stages)
            return self._kernel(self._residual(next(iter(self._stages)))[0])[2], side, side
        if [self._kernel(path)[:2] for path in self._convolutions] != [(size, size) for size, _ in NATURE]:
            raise Refused(
                "the convolutions are not those of the Nature DQN, and the file does not hold their strides"
            )
        for size, stride in reversed(NATURE):
            side = (side - 1) * stride + size
        return self._kernel(self._convolutions[0])[2], side, side

    def run(self, x: ir.Value | Image, *, last: bool = False) -> ir.Value:
        """All layers, with a ReLU between them, and after the last one if asked for."""
        layers = self.layers
        if isinstance(x, Image):
            for stage in sorted(self._stages, key=_number):
                x = self._stage(x, stage)
            x = layers.relu(x) if self._stages else x
            for path, (_, stride) in zip(self._convolutions, NATURE, strict=False):
                x = layers.relu(layers.convolution(x, _layer(path), stride, "VALID"))
            x = layers.flatten(x)
        for path in self._dense:
            x = layers.dense(x, _layer(path))
            x = layers.graph.op("Relu", x) if last or path != self._dense[-1] else x
        return x

    def _stage(self, x: Image, stage: str) -> Image:
        """A convolution, a max-pool, and two residual blocks (Espeholt et al., 2018, figure 3)."""
        layers, (first, *blocks) = self.layers, self._residual(stage)
        x = layers.max_pool(layers.convolution(x, _layer(first), 1, "SAME"), 3, 2, "SAME")
        for pair in zip(blocks[::2], blocks[1::2], strict=True):
            y = x
            for path in pair:
                y = layers.convolution(layers.relu(y), _layer(path), 1, "SAME")
            x = Image(layers.graph.op("Add", y.value, x.value), x.height, x.width)
        return x

    def _residual(self, stage: str) -> list[str]:
        """The convolutions of a stage: its own, and two for each of two blocks."""
        wanted = [f"{stage}.Conv_0", *(f"{stage}.ResidualBlock_{b}.Conv_{c}" for b in (0, 1) for c in (0, 1))]
        if sorted(self._stages[stage]) != sorted(wanted):
            raise Refused(f"'{stage}' has other layers than a stage of IMPALA")
        return wanted

    def _kernel(self, path: str) -> tuple[int, ...]:
        return self.layers.shape(f"{path}.kernel")


def _layer(path: str) -> Layer:
    return Layer(f"{path}.kernel", f"{path}.bias")


def _number(path: str) -> int:
    number = path.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0
