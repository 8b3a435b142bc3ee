"""Models of CleanRL's JAX scripts: flax parameters of Nature, dense and actor-critic networks, all with ReLU.

Kernels are (height, width, in, out) and (in, out), and images are flattened with the channels last; the graph reads
images with the channels first, as the scripts do, and holds the parameters as the file does.
(cleanrl/dqn_jax.py, dqn_atari_jax.py, ppo_atari_envpool_xla_jax.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused
from surgery.files import replacing
from surgery.interface import Interface, Port
from surgery.tensors import equal, shape_of
from surgery_adapters.containers.msgpack_tree import flat, read, rewrite, span_of
from surgery_adapters.networks.chains import NATURE
from surgery_adapters.writeback.matching import checked, fit


def load(path: Path, reading: Reading) -> Checkpoint:
    """The network as a graph; see `surgery.adapters.Adapter`."""
    parts = list(_parts(read(path)))
    if len(parts) not in (1, 3):
        raise Refused(
            f"the file has {len(parts)} sets of parameters: it is of no script that is known",
            hint="one for a Q network, three for the trunk, actor and critic of PPO",
        )
    graph = GraphBuilder(path.stem)
    network = _Network(graph, {name: tensor for part in parts for name, tensor in part.items()})
    x = network.run(network.observe(parts[0], reading), parts[0], last=len(parts) == 3)
    names = ("q_values",) if len(parts) == 1 else ("logits", "value")
    ports = []
    for name, part in zip(names, parts[1:] or parts, strict=True):
        value = x if len(parts) == 1 else network.run(x, part, last=False)
        graph.output(value, name, (network.width(part),))
        ports.append(Port(name, name, declared=True))
    interface = Interface((Port("observation", "observation", declared=True),), tuple(ports))
    return Checkpoint(checked(graph.model()), interface, source={"adapter": "cleanrl", "file": path.name})


def save(checkpoint: Checkpoint, path: Path, *, like: Path, force: bool) -> list[Path]:
    """Write a copy of a file with other arrays; see `surgery.adapters.Adapter`."""
    old = flat(read(like))
    new = fit(old, checkpoint, like).now  # a compact module names its layers itself: there are no new ones
    replaced = {
        span[0]: new[name]
        for name, tensor in old.items()
        if name in new and (span := span_of(tensor)) is not None and not equal(tensor, new[name])
    }
    for name, tensor in old.items():
        if name in new and new[name].dtype != tensor.dtype:
            raise Refused(
                f"'{name}' is {tensor.dtype.name} in the file, and would become {new[name].dtype.name}"
            )
    with replacing([path], force=force, sources=[like]) as [part], part.open("wb") as out:
        rewrite(like, replaced, out)
    return [path]


def check(checkpoint: Checkpoint, *, like: Path) -> None:
    """Whether a copy of a file can hold other networks; see `surgery.adapters.Checking`."""
    fit(flat(read(like)), checkpoint, like)


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
    def __init__(self, graph: GraphBuilder, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._graph, self._tensors = graph, tensors

    def modules(self, part: Mapping[str, ir.TensorProtocol]) -> Sequence[str]:
        """Module paths, convolutions before dense layers, each by its number."""
        paths = dict.fromkeys(name.rpartition(".")[0] for name in part)
        for path in paths:
            kind, _, number = path.rpartition(".")[2].rpartition("_")
            if kind not in ("Conv", "Dense") or not number.isdecimal() or f"{path}.kernel" not in part:
                raise Refused(f"'{path}' is no layer of a script that is known")
        return sorted(paths, key=lambda path: (path.rpartition(".")[2][0], int(path.rpartition("_")[2])))

    def width(self, part: Mapping[str, ir.TensorProtocol]) -> int:
        """How many numbers come out."""
        return shape_of(part[f"{self.modules(part)[-1]}.kernel"])[-1]

    def observe(self, part: Mapping[str, ir.TensorProtocol], reading: Reading) -> ir.Value:
        """The input: a vector, or images with the channels first that are divided by 255."""
        kernels = [shape_of(part[f"{path}.kernel"]) for path in self.modules(part)]
        if len(kernels[0]) == 2:
            return self._graph.input("observation", reading.observation or (kernels[0][0],))
        convolutions = [kernel for kernel in kernels if len(kernel) == 4]
        if [kernel[:2] for kernel in convolutions] != [(size, size) for size, _ in NATURE]:
            raise Refused(
                "the convolutions are not those of the Nature DQN: their strides have no trace in the file"
            )
        side = math.isqrt(next(kernel for kernel in kernels if len(kernel) == 2)[0] // convolutions[-1][3])
        for size, stride in reversed(NATURE):
            side = (side - 1) * stride + size
        shape = reading.observation or (convolutions[0][2], side, side)
        if len(shape) != 3:
            raise ArgumentError(f"images have three axes, not {list(shape)}")
        return self._graph.op(
            "Div", self._graph.input("observation", shape), self._graph.constant(255.0, "float32")
        )

    def run(self, x: ir.Value, part: Mapping[str, ir.TensorProtocol], *, last: bool) -> ir.Value:
        """All layers of a set of parameters, with a relu between them, and after the last one if asked for."""
        graph, modules = self._graph, self.modules(part)
        image = len(shape_of(part[f"{modules[0]}.kernel"])) == 4
        for k, path in enumerate(modules):
            names = [f"{path}.{leaf}" for leaf in ("kernel", "bias")]
            kernel, bias = (graph.parameter(name, self._tensors[name]) for name in names)
            if len(shape_of(part[f"{path}.kernel"])) == 4:
                size, stride = NATURE[k]
                turned = graph.op("Transpose", kernel, perm=[3, 2, 0, 1])
                x = graph.op("Conv", x, turned, bias, kernel_shape=[size, size], strides=[stride, stride])
            else:
                if image:
                    x = graph.op("Flatten", graph.op("Transpose", x, perm=[0, 2, 3, 1]), axis=1)
                    image = False
                x = graph.op("Add", graph.op("MatMul", x, kernel), bias)
            if last or k + 1 < len(modules):
                x = graph.op("Relu", x)
        return x
