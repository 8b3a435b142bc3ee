"""Dopamine's value networks as graphs: Nature and IMPALA trunks with SAME padding, heads of DQN, C51, QR, IQN, Rainbow.

What a head is, its shape tells: Atari has at most 18 actions, C51 and Rainbow have 51 atoms an action, QR-DQN has 200
quantiles. (https://github.com/google/dopamine, dopamine/jax/networks.py, dopamine/discrete_domains/atari_lib.py)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from surgery.errors import Refused
from surgery.interface import Port
from surgery.tensors import shape_of
from surgery_adapters.networks.chains import NATURE
from surgery_adapters.networks.channels_last import ChannelsLast, Image, Layer, Tensors

ATOMS, QUANTILES, SUPPORT, SAMPLES = 51, 200, 10.0, 32
"""Dopamine's settings: atoms of C51 and the largest return that they stand for, quantiles of QR-DQN, and how many
quantiles IQN draws to choose an action."""
_MOST_ACTIONS, _MOST_LAYERS = 18, 1 << 20
_STACK = re.compile(r"(?P<stack>.*(?:_stacks|Stack)_\d+)[./](?P<layer>.*)")
_CONVOLUTIONS, _NOISY = ("Conv",), ("NoisyNetwork",)
_LAST = "final_layer"
_DENSE = ("Dense", "fully_connected", "layers", _LAST)


@dataclass(frozen=True)
class Parameters:
    """The layers of one network.

    Attributes:
      convolutions: of the Nature trunk, in order.
      stacks: of the IMPALA trunk, each a convolution and those of its residual blocks.
      dense: dense layers, in order. noisy: prefixes of noisy ones, in order.
    """

    convolutions: tuple[Layer, ...]
    stacks: tuple[tuple[Layer, ...], ...]
    dense: tuple[Layer, ...]
    noisy: tuple[str, ...]

    @property
    def classic(self) -> bool:
        """Whether the network is one for classic control: dense layers alone, on a vector."""
        return not self.convolutions and not self.stacks and not self.noisy and len(self.dense) > 1

    @staticmethod
    def of(names: Iterable[str]) -> Parameters:
        """Sort parameters into layers by their names.

        Raises:
          Refused: a name that none of the networks has.
        """
        modules: dict[str, dict[str, str]] = {}
        for name in names:
            path, leaf = re.split(r"[./](?=[^./]*$)", name, maxsplit=1)
            modules.setdefault(path, {})[leaf] = name
        found: dict[str, list[str]] = {"convolution": [], "dense": [], "noisy": []}
        stacks: dict[str, list[str]] = {}
        for path in sorted(modules, key=_number):
            if match := _STACK.fullmatch(path):
                stacks.setdefault(match["stack"], []).append(path)
            else:
                found[_kind(path)].append(path)
        layers = {
            path: _layer(path, leaves) for path, leaves in modules.items() if path not in found["noisy"]
        }
        return Parameters(
            tuple(layers[path] for path in found["convolution"]),
            tuple(tuple(layers[p] for p in stacks[stack]) for stack in sorted(stacks, key=_number)),
            tuple(layers[path] for path in found["dense"]),
            tuple(found["noisy"]),
        )


def _number(path: str) -> int:
    number = path.rpartition("_")[2]
    if path.endswith(_LAST):
        return _MOST_LAYERS
    return int(number) if number.isdecimal() else 0


def _kind(path: str) -> str:
    name = re.split(r"[./]", path)[-1].removesuffix(f"_{_number(path)}")
    for kind, known in (("convolution", _CONVOLUTIONS), ("dense", _DENSE), ("noisy", _NOISY)):
        if name in known:
            return kind
    raise Refused(
        f"'{path}' is not a layer of a known network",
        hint="DQN, C51, Rainbow, QR-DQN and IQN on images; export another network to ONNX, and attach its optimizer",
    )


def _layer(path: str, leaves: Mapping[str, str]) -> Layer:
    kernel = leaves.get("kernel", leaves.get("weights"))
    if kernel is None:
        raise Refused(f"'{path}' has no kernel: it is not a layer of a known network")
    return Layer(kernel, leaves.get("bias", leaves.get("biases")))


def image_shape(tensors: Tensors, parameters: Parameters) -> tuple[int, int, int] | None:
    """Height, width and channels of Atari images, if the trunk is one for those of 84 × 84."""
    first = [*parameters.convolutions[:1], *(stack[0] for stack in parameters.stacks[:1])]
    wide = [shape_of(tensors[layer.kernel])[0] for layer in parameters.dense]
    wide += [shape_of(tensors[f"{path}.kernel_mu"])[0] for path in parameters.noisy]
    last = [*parameters.convolutions[-1:], *(stack[-1] for stack in parameters.stacks[-1:])]
    if not first or 121 * shape_of(tensors[last[0].kernel])[-1] not in wide:
        return None
    return 84, 84, shape_of(tensors[first[0].kernel])[2]


def image(layers: ChannelsLast, observation: ir.Value, *, most: float | None = 255.0) -> Image:
    """An observation (batch, height, width, channels), divided by its largest value where there is one."""
    shape = observation.shape
    assert shape is not None
    height, width = (size for size in shape[1:3] if isinstance(size, int))
    if most is not None:
        observation = layers.graph.op("Div", observation, layers.graph.constant(most, "float32"))
    return layers.image(observation, height, width)


def is_nature(layers: ChannelsLast, parameters: Parameters) -> bool:
    """Whether the convolutions are those of the Nature DQN."""
    sizes = [layers.shape(layer.kernel)[:2] for layer in parameters.convolutions]
    return sizes == [(size, size) for size, _ in NATURE] and not parameters.stacks


def nature(layers: ChannelsLast, parameters: Parameters, x: Image) -> Image:
    """Three convolutions (Mnih et al., 2015)."""
    for layer, (_, stride) in zip(parameters.convolutions, NATURE, strict=True):
        x = layers.relu(layers.convolution(x, layer, stride, "SAME"))
    return x


def impala(layers: ChannelsLast, parameters: Parameters, x: Image) -> Image:
    """Stacks of a convolution, a max-pool and residual blocks, without the last ReLU (Espeholt et al., 2018)."""
    for first, *rest in parameters.stacks:
        x = layers.max_pool(layers.convolution(x, first, 1, "SAME"), 3, 2, "SAME")
        for one, other in zip(rest[::2], rest[1::2], strict=True):
            y = layers.convolution(layers.relu(x), one, 1, "SAME")
            y = layers.convolution(layers.relu(y), other, 1, "SAME")
            x = Image(layers.graph.op("Add", y.value, x.value), x.height, x.width)
    return x


class Network:
    """One network in a graph that several share.

    Args:
      layers: the graph, and all tensors. parameters: of this network. suffix: behind the name of its output.
      head: "q", "c51" or "qr", where its width does not tell.
    """

    def __init__(self, layers: ChannelsLast, parameters: Parameters, suffix: str, head: str | None) -> None:
        self._layers, self._graph = layers, layers.graph
        self._parameters, self._suffix, self._head = parameters, suffix, head

    def build(self, observation: ir.Value) -> Port:
        """Append the network; its output as it is declared.

        Args:
          observation: (batch, height, width, channels), values up to 255.

        Raises:
          Refused: a trunk or a head that is not known.
        """
        x = self._layers.flatten(self._trunk(image(self._layers, observation)))
        dense, noisy = self._parameters.dense, self._parameters.noisy
        if (
            len(dense) == 3
            and self._layers.shape(dense[1].kernel)[1] == self._layers.shape(dense[2].kernel)[0]
        ):
            return self._implicit(x, *dense)
        ends = [self._dense(layer) for layer in dense] or [self._noisy(path) for path in noisy]
        if len(ends) not in (2, 3) or (dense and noisy):
            raise Refused(f"the network has {len(ends)} dense layers: none of Dopamine's value networks has")
        x = self._graph.op("Relu", ends[0].apply(x))
        return self._one_stream(x, ends[1]) if len(ends) == 2 else self._dueling(x, *ends[1:])

    def build_classic(self, observation: ir.Value) -> Port:
        """Append a network for classic control; its output as it is declared.

        Args:
          observation: (batch, features), rescaled to [−1, 1] where the agent does so.
        """
        *hidden, last = (self._dense(layer) for layer in self._parameters.dense)
        x = observation
        for layer in hidden:
            x = self._graph.op("Relu", layer.apply(x))
        return replace(self._one_stream(x, last), low=None, high=None)  # the support is a setting of gin

    def _trunk(self, x: Image) -> Image:
        layers, parameters = self._layers, self._parameters
        if is_nature(layers, parameters):
            return nature(layers, parameters, x)
        if parameters.stacks and not parameters.convolutions:
            return layers.relu(impala(layers, parameters, x))
        raise Refused(
            "the convolutions are neither the Nature DQN's nor IMPALA's, and the file does not hold their strides"
        )

    def _dense(self, layer: Layer) -> _End:
        return _End(lambda x: self._layers.dense(x, layer), self._layers.shape(layer.kernel)[1])

    def _noisy(self, path: str) -> _End:
        """A noisy layer without its noise, as it is evaluated (Fortunato et al., 2018, equation 9)."""
        graph, layers = self._graph, self._layers

        def mean(leaf: str) -> ir.Value:
            # the deviations have no effect, but must follow where the means go
            silent = graph.op("Mul", layers.parameter(f"{path}.{leaf}_sigma"), graph.constant(0.0, "float32"))
            return graph.op("Add", layers.parameter(f"{path}.{leaf}_mu"), silent)

        def apply(x: ir.Value) -> ir.Value:
            return graph.op("Add", graph.op("MatMul", x, mean("kernel")), mean("bias"))

        return _End(apply, layers.shape(f"{path}.bias_mu")[0])

    def _one_stream(self, x: ir.Value, end: _End) -> Port:
        actions, atoms = split_width(end.width, self._head)
        x = end.apply(x)
        if atoms > 1:
            x = self._graph.op("Reshape", x, self._graph.constant([-1, actions, atoms]))
        return self._output(x, actions, atoms)

    def _dueling(self, x: ir.Value, advantage: _End, value: _End) -> Port:
        """V + A − mean A, each for every atom (Wang et al., 2016)."""
        atoms = value.width
        actions, left = divmod(advantage.width, atoms)
        if left:
            raise Refused(f"{advantage.width} advantages are not a whole number for each of {atoms} atoms")
        a, v = (
            self._graph.op("Reshape", end.apply(x), self._graph.constant([-1, count, atoms]))
            for end, count in ((advantage, actions), (value, 1))
        )
        mean = self._graph.op("ReduceMean", a, self._graph.constant([1]), keepdims=1)
        logits = self._graph.op("Add", v, self._graph.op("Sub", a, mean))
        if atoms == 1:
            logits = self._graph.op("Squeeze", logits, self._graph.constant([2]))
        return self._output(logits, actions, atoms)

    def _implicit(self, x: ir.Value, embedding: Layer, hidden: Layer, last: Layer) -> Port:
        """Quantile values at the middles of equal parts of [0, 1] (Dabney et al., 2018b, equation 4).

        The agent draws them anew for every action; the middles are what such draws are on average.
        """
        graph, layers = self._graph, self._layers
        places = graph.constant(np.pi * (np.arange(SAMPLES)[:, None] + 0.5) / SAMPLES, "float32")
        # 1, 2 … as a running sum, whose length is no width that could grow
        ones = graph.constant(np.ones((1, layers.shape(embedding.kernel)[0])), "float32")
        frequencies = graph.op("CumSum", ones, graph.constant(1))
        waves = graph.op("Cos", graph.op("Mul", places, frequencies))
        embedded = graph.op("Relu", layers.dense(waves, embedding))
        mixed = graph.op("Mul", graph.op("Unsqueeze", x, graph.constant([1])), embedded)
        values = layers.dense(graph.op("Relu", layers.dense(mixed, hidden)), last)
        actions = layers.shape(last.kernel)[1]
        return self._output(graph.op("Transpose", values, perm=[0, 2, 1]), actions, SAMPLES, "quantiles")

    def _output(self, x: ir.Value, actions: int, atoms: int, kind: str | None = None) -> Port:
        kind = kind or {1: "q_values", QUANTILES: "quantiles"}.get(atoms, "atom_logits")
        name = f"{kind}{self._suffix}"
        self._graph.output(x, name, (actions,) if atoms == 1 else (actions, atoms))
        if self._suffix:
            return Port(name, "other", declared=True)
        bound = SUPPORT if kind == "atom_logits" else None
        return Port(name, kind, None if bound is None else -bound, bound, declared=True)


@dataclass(frozen=True)
class _End:
    """A dense layer, noisy or not: what it does, and how many numbers come out."""

    apply: Callable[[ir.Value], ir.Value]
    width: int


def split_width(width: int, head: str | None) -> tuple[int, int]:
    """Actions and atoms of a head of one stream.

    Raises:
      Refused: it is none that Dopamine has.
    """
    sizes = {"q": 1, "c51": ATOMS, "qr": QUANTILES}
    for atoms in sizes.values() if head is None else [sizes.get(head, 0)]:
        if atoms and width % atoms == 0 and (head is not None or width <= _MOST_ACTIONS * atoms):
            return width // atoms, atoms
    raise Refused(
        f"the head has {width} numbers, neither actions of Atari nor {ATOMS} atoms or {QUANTILES} quantiles for each"
        if head is None
        else f"the head has {width} numbers, which does not fit a head '{head}'",
        hint="say what it is: --head q, c51 or qr",
    )
