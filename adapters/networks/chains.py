"""Graphs from state dicts: which layer follows which is told by names, numbers and sizes, or else is refused.

Layers of one `nn.Sequential` follow each other by their numbers, and a gap between two numbers is an activation. Groups
of layers follow each other where sizes fit in one way: trunks are read by heads. Strides have no trace in a state dict;
they are known for the convolutions of known networks only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from surgery.adapters import Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, Refused
from surgery.tensors import shape_of
from surgery_adapters.containers.module_tree import ModuleNode
from surgery_adapters.networks import stacked
from surgery_adapters.networks.layers import HINT, Layers, Tensors, activation_of
from surgery_adapters.networks.recurrent import Wrapper, wrapper_of
from surgery_adapters.networks.statistics import normalised
from surgery_adapters.networks.torch_layers import activates, write
from surgery_adapters.networks.wiring import Group, Layer, agents, groups_of, layers_of, nowhere, wire
from surgery_adapters.networks.words import roles_of

NATURE = ((8, 4), (4, 2), (3, 1))
"""Kernel and stride of the Nature DQN's convolutions (Mnih et al., 2015)."""


@dataclass(frozen=True)
class Part:
    """One network of a file.

    Attributes:
      prefix: of its names in the graph. label: what the file calls it.
      tensors: by their names in the graph.
      original: what the names of the network that it is a copy of begin with; None if it is none.
      beginning: what its own do then, which may be longer than the prefix.
      beside: what the file holds beside all its networks: statistics, mostly.
    """

    prefix: str
    label: str
    tensors: Tensors
    original: str | None = None
    beginning: str = ""
    beside: Tensors = field(default_factory=dict)

    @property
    def known(self) -> Tensors:
        """Its own tensors, and those beside it."""
        return {**self.tensors, **self.beside}


@dataclass(frozen=True)
class End:
    """What comes out of a network at one place.

    Attributes:
      value: (batch, width), or (networks, batch, width) where several are stacked.
      width: how many numbers one network makes of one observation.
      reads: the size of the observation that it is made of; 0 for an image.
    """

    value: ir.Value
    width: int
    reads: int


@dataclass
class Observations:
    """The inputs of a graph that several networks read; the first one is the agent's observation.

    Attributes:
      layers: the graph in the making. reading: the shape of the first one, where it is not told.
      own: names of the others, which only some networks read: critics, mostly.
      size: of the first one; 0 for an image.
      states: input of a recurrent state -> what it becomes.
    """

    layers: Layers
    reading: Reading
    own: list[str] = field(default_factory=list)
    size: int = 0
    states: dict[str, End] = field(default_factory=dict)
    _made: dict[int, ir.Value] = field(default_factory=dict)

    def of(self, size: int, label: str) -> ir.Value:
        """The input of a size, (batch, size), or the image, for which that is 0.

        Args:
          label: of the network that reads it, after which an input of its own is called.
        """
        if size not in self._made:
            critic = not roles_of(label) or bool(roles_of(label) & {"critic", "q"})
            name = "critic_observation" if critic else f"{label.replace('.', '_')}_observation"
            self.own.append(name if name not in self.own else f"{name}_{size}")
            self._made[size] = self.layers.graph.input(self.own[-1], (size,))
        return self._made[size]

    def states_of(self, label: str) -> tuple[str, str]:
        """What the states of a network's LSTM are called; the first network's have no name in front."""
        front = f"{label.strip('.').replace('.', '_')}_" if self.states else ""
        return f"{front}hidden", f"{front}cell"

    def begin(self, group: Group, *, divided: bool = True) -> None:
        """Make the agent's observation, if there is none: the one that a group reads.

        Args:
          divided: whether images of the Nature DQN are divided by 255.

        Raises:
          ArgumentError: it is said to be of another size, or that of an image cannot be told.
        """
        if self._made:
            return
        graph, layer, said = self.layers.graph, group.layers[0], self.reading.observation
        if group.wanted is None:
            x = graph.input("observation", said or _image(group))
            x = (
                graph.op("Div", x, graph.constant(255.0, "float32"))
                if divided and _nature(group.layers)
                else x
            )
        else:
            self.size = group.wanted
            if said is not None and math.prod(said) != self.size:
                raise ArgumentError(f"'{layer.module}' reads {self.size} features, not {list(said)}")
            x = graph.input("observation", said or (self.size,))
            x = graph.op("Flatten", x, axis=1) if said is not None and len(said) > 1 else x
        self._made[self.size] = x


@dataclass
class Chain:
    """A network that is built group by group.

    Attributes:
      layers: the graph in the making. tensors: of this network.
      activation: between layers; None if it has not been said.
      observations: the inputs of the graph.
      trunk: what stands in the place of an observation, (batch, features), and its size; None if nothing does.
      statistics: what observations may be normalised by.
      module: the whole module, where the file has it; prefix: of its parameters' names. label: what it is called.
    """

    layers: Layers
    tensors: Tensors
    activation: str | None
    observations: Observations
    trunk: tuple[ir.Value, int] | None = None
    statistics: Tensors = field(default_factory=dict)
    module: ModuleNode | None = None
    prefix: str = ""
    label: str = ""

    @cached_property
    def stack(self) -> int:
        """How many networks stand along the first axis of every tensor; 0 where there is one."""
        return stacked.stacked_in(self.tensors)

    def build(self) -> dict[str, End]:
        """Build every layer.

        Returns:
          group -> what comes out of it, for the groups that no other reads.
        """
        wrapper = wrapper_of(self.tensors, self.prefix)
        groups = groups_of(self.tensors if wrapper is None else wrapper.rest)
        if not groups:
            raise ArgumentError("there is no layer in this network")
        wrapped = None if wrapper is None else wrapper.wrap(groups)
        if self.module is not None and self.module.kind == "Sequential":
            self.observations.begin(groups[0], divided=False)
            size, last = groups[0].wanted or 0, layers_of(self.tensors)[-1]
            x = write(self.layers, self.observations.of(size, self.label), self.module, self.prefix)
            return {last.group: End(x, last.units, size)}
        if self.trunk is None:
            self.observations.begin(agents(groups))
        features = self.observations.size if self.trunk is None else self.trunk[1]
        wiring = wire(groups, features, free=self.trunk is None)
        made: dict[str, End] = {}
        for group in groups:
            source = wiring.sources[group.name]
            before = self._observed(group) if source is None else made[source]
            x = self._run(group, before.value, wiring.is_read(group))
            if wrapper is not None and group is wrapped:
                x = self._recurrent(x, wrapper)
            made[group.name] = End(x, group.units, before.reads)
        return {group.name: made[group.name] for group in groups if not wiring.is_read(group)}

    def _recurrent(self, x: ir.Value, wrapper: Wrapper) -> ir.Value:
        """One step of an LSTM, whose state is an input and an output of the graph."""
        names = self.observations.states_of(self.label)
        before = [self._graph.input(name, (wrapper.makes,)) for name in names]
        x, hidden, cell = self.layers.lstm(x, wrapper.module, *([value] for value in before))
        for name, after in zip(names, (*hidden, *cell), strict=True):
            self.observations.states[name] = End(after, wrapper.makes, 0)
        return x

    def _observed(self, group: Group) -> End:
        """What a group reads that reads no other."""
        if self.trunk is not None:
            return End(*self.trunk, 0)
        size = group.wanted or 0
        x = self.observations.of(size, self.label if self.prefix else group.name)
        x = normalised(self.layers, x, group, self.statistics, self.prefix)
        return End(stacked.together(self.layers, x) if self.stack else x, size, size)

    def _run(self, group: Group, x: ir.Value, trunk: bool) -> ir.Value:
        inside = None if self.module is None else self.module.at(group.name.removeprefix(self.prefix))
        if inside is not None and inside.kind in ("Sequential", "ModuleList"):
            if inside.kind == "ModuleList" or (trunk and not activates(inside)):
                raise Refused(f"only its code says what follows the layers of '{group.name}'", hint=HINT)
            return write(self.layers, x, inside, f"{group.name}.")
        plan = _strides([layer for layer in group.layers if len(layer.shape) == 4])
        convolved = 0
        for k, layer in enumerate(group.layers):
            if len(layer.shape) == 3:
                raise nowhere(f"{layer.module}.weight", layer.shape)
            if len(layer.shape) == 4:
                if plan is None:
                    raise Refused(f"a state dict does not hold the strides of '{layer.module}'", hint=HINT)
                x = self.layers.convolution(x, layer.module, plan[convolved][1])
                convolved += 1
            elif layer.normalises:
                x = self._normalised(x, layer)
            elif self.stack:
                x = stacked.linear(self.layers, x, layer.module)
            else:
                x = self.layers.linear(x, layer.module)
            after = group.layers[k + 1] if k + 1 < len(group.layers) else None
            x = self._between(x, group, layer, after, trunk)
        return x

    def _between(self, x: ir.Value, group: Group, layer: Layer, after: Layer | None, trunk: bool) -> ir.Value:
        """What stands between two layers: an activation where their numbers leave room for it, and a flatten."""
        flattens = after is not None and len(layer.shape) == 4 and len(after.shape) == 2
        if after is None:
            active = trunk
        else:
            gap = (after.place or 0) - (layer.place or 0) - 1
            if gap > 2 or (gap == 2 and not flattens and len(layer.shape) == 4):
                raise Refused(
                    f"between '{layer.module}' and '{after.module}' are layers that no name reveals",
                    hint=HINT,
                )
            if gap == 0 and not (layer.normalises or after.normalises):
                raise Refused(
                    f"'{layer.module}' and '{after.module}' follow each other with nothing between them: this is "
                    "not an nn.Sequential, and its code is not in the file", hint=HINT,
                )  # fmt: skip
            active = gap > (1 if flattens else 0)
        if active:
            x = self.layers.activate(x, self._known(group))
        return self._graph.op("Flatten", x, axis=1) if flattens else x

    def _normalised(self, x: ir.Value, layer: Layer) -> ir.Value:
        if self.stack:
            return stacked.layer_norm(self.layers, x, layer.module)
        normalise = self.layers.batch_norm if layer.normalises == "batch" else self.layers.layer_norm
        return normalise(x, layer.module)

    @property
    def _graph(self) -> GraphBuilder:
        return self.layers.graph

    def _known(self, group: Group) -> str:
        if self.activation is None:
            of = f" of '{group.name}'" if group.name else ""
            raise ArgumentError(
                f"the activation between the layers{of} is not in the file",
                hint="say what your code has: surgery convert FILE --activation tanh -o OUT.onnx (or relu, elu …)",
            )
        return str(activation_of(self.activation))


def _image(group: Group) -> tuple[int, ...]:
    """The image that a known stack of convolutions makes these features of; square."""
    convolutions = [layer for layer in group.layers if len(layer.shape) == 4]
    later = next((layer for layer in group.layers if len(layer.shape) == 2), None)
    plan = _strides(convolutions)
    if plan is not None and later is not None:
        area, rest = divmod(later.shape[1], convolutions[-1].units)
        side = math.isqrt(area)
        if rest == 0 and side * side == area:
            for kernel, stride in reversed(plan):
                side = (side - 1) * stride + kernel
            return convolutions[0].shape[1], side, side
    raise ArgumentError(
        f"the size of the images that '{group.name}' reads is not known",
        hint="give it: --observation 4,84,84",
    )


def _nature(layers: Sequence[Layer]) -> bool:
    kernels = [layer.shape[2:] for layer in layers if len(layer.shape) == 4]
    return kernels == [(kernel, kernel) for kernel, _ in NATURE]


def _strides(convolutions: Sequence[Layer]) -> Sequence[tuple[int, int]] | None:
    """Kernel and stride of each convolution of a known stack: Nature's, or MinAtar's one of 3×3 with stride 1."""
    if _nature(convolutions):
        return NATURE
    return [(3, 1)] if [layer.shape[2:] for layer in convolutions] == [(3, 3)] else None


def custom(tensors: Tensors) -> str | None:
    """The activation that every network with these layers has: the Nature DQN's and MinAtar's is ReLU."""
    convolutions = {name: tensor for name, tensor in tensors.items() if len(shape_of(tensor)) == 4}
    return "relu" if _strides(layers_of(convolutions)) is not None else None
