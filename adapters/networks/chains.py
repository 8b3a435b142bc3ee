"""Graphs from state dicts: which layer follows which is told by names, numbers and sizes, or else is refused.

Layers of one `nn.Sequential` follow each other by their numbers, and a gap between two numbers is an activation. Groups
of layers follow each other where sizes fit in one way: trunks are read by heads. Strides have no trace in a state dict;
they are known for the convolutions of known networks only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.adapters import SHARED, Reading
from surgery.builder import GraphBuilder
from surgery.errors import ArgumentError, Refused
from surgery.interface import Port
from surgery_adapters.containers.module_tree import ModuleNode
from surgery_adapters.networks.layers import HINT, Layers, Tensors, activation_of
from surgery_adapters.networks.torch_layers import activates, write

NATURE = ((8, 4), (4, 2), (3, 1))
"""Kernel and stride of the Nature DQN's convolutions (Mnih et al., 2015)."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Part:
    """One network of a file.

    Attributes:
      prefix: of its names in the graph. label: what the file calls it.
      tensors: by their names in the graph.
      original: the prefix of the network that it is a copy of; None if it is none.
    """

    prefix: str
    label: str
    tensors: Tensors
    original: str | None = None


@dataclass(frozen=True)
class Layer:
    """A module with a weight.

    Attributes:
      module: its path. shape: of its weight.
      group: the path of the sequence that it is in. place: its number there; None if it has a name.
      normalises: whether its weight is a scale per unit, after statistics of its own (batch) or not (layer).
    """

    module: str
    shape: tuple[int, ...]
    group: str
    place: int | None
    normalises: str | None = None

    @property
    def units(self) -> int:
        """How many it makes."""
        return self.shape[0]


@dataclass
class Group:
    """Layers that follow each other."""

    name: str
    layers: list[Layer] = field(default_factory=list)


def layers_of(tensors: Tensors) -> list[Layer]:
    """The modules with weights, in the file's order.

    Raises:
      Refused: a weight of a kind that no layer here has.
    """
    found = []
    weights = {tensor.meta.get(SHARED) for name, tensor in tensors.items() if name.endswith("weight")}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        shape = tuple(tensor.shape.numpy())
        if leaf != "weight":
            if tensor.meta.get(SHARED, name) not in weights:
                _check_free(name, shape)
            continue
        group, _, place = module.rpartition(".")
        kind = None
        if len(shape) == 1:
            kind = "batch" if f"{module}.running_mean" in tensors else "layer"
        elif len(shape) not in (2, 3, 4):
            raise _nowhere(name, shape)
        number = int(place) if place.isdecimal() else None
        found.append(Layer(module, shape, group if number is not None else module, number, kind))
    return found


def _check_free(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what no layer of a chain has: recurrent weights, embeddings, factors of matrices."""
    if sum(size > 1 for size in shape) > 1:
        raise _nowhere(name, shape)


def _nowhere(name: str, shape: Sequence[int]) -> Refused:
    return Refused(
        f"'{name}' of shape {list(shape)} is of no layer whose order a state dict tells", hint=HINT
    )


@dataclass
class Chain:
    """A network that is built group by group.

    Attributes:
      layers: the graph in the making. tensors: of this network.
      activation: between layers; None if it has not been said.
      observation: the input, and its size per example.
      module: the whole module, where the file has it; prefix: of its parameters' names.
    """

    layers: Layers
    tensors: Tensors
    activation: str | None
    observation: ir.Value | None = None
    features: int = 0
    module: ModuleNode | None = None
    prefix: str = ""
    _ends: dict[str, tuple[ir.Value, int]] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)

    def build(
        self, reading: Reading, *, name: str = "observation", divide: bool | None = None
    ) -> dict[str, ir.Value]:
        """Build every layer.

        Args:
          reading: the shape of the observation, where it is not told.
          name: of the input that is made. divide: whether images are divided by 255; None for the network's custom.

        Returns:
          group -> what comes out of it, for the groups that no other reads.
        """
        found = layers_of(self.tensors)
        if not found:
            raise ArgumentError("there is no layer in this network")
        groups: dict[str, Group] = {}
        for layer in found:
            groups.setdefault(layer.group, Group(layer.group)).layers.append(layer)
        for group in groups.values():
            group.layers.sort(key=lambda layer: -1 if layer.place is None else layer.place)
        if self.module is not None and self.module.kind == "Sequential":
            return self._sequential(self.module, groups[found[0].group], found[-1].group, reading, name)
        order = _trunks_first(list(groups.values()))
        if self.observation is None:
            self._observe(order[0], reading, name, divide)
        for k, group in enumerate(order):
            source, x = self._source(group)
            trunk = self._is_read(group, order[k + 1 :])
            self._ends[group.name] = (self._run(group, x, trunk), self._units(group))
            self._read |= {source} if source else set()
        return {group: value for group, (value, _) in self._ends.items() if group not in self._read}

    def _sequential(
        self, module: ModuleNode, first: Group, last: str, reading: Reading, name: str
    ) -> dict[str, ir.Value]:
        """A network that is nothing but a sequence: all that it does is in the file."""
        if self.observation is None:
            self._observe(first, reading, name, divide=False)
        assert self.observation is not None
        return {last: write(self.layers, self.observation, module, self.prefix)}

    def _observe(self, first: Group, reading: Reading, name: str, divide: bool | None) -> None:
        """Make the input that the first group reads."""
        graph, layer = self.layers.graph, first.layers[0]
        if len(layer.shape) == 2:
            if reading.observation is not None and math.prod(reading.observation) != layer.shape[1]:
                raise ArgumentError(
                    f"'{layer.module}' reads {layer.shape[1]} features, not {list(reading.observation)}"
                )
            shape = reading.observation or (layer.shape[1],)
            x = graph.input(name, shape)
            self.observation = graph.op("Flatten", x, axis=1) if len(shape) > 1 else x
            self.features = layer.shape[1]
            return
        sizes = reading.observation or self._image(first)
        self.observation = graph.input(name, sizes)
        if divide or (divide is None and _nature(first.layers)):
            self.observation = graph.op("Div", self.observation, graph.constant(255.0, "float32"))

    def _image(self, group: Group) -> tuple[int, ...]:
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
            f"the size of the images that '{group.name}' reads cannot be told",
            hint="say it: --observation 4,84,84",
        )

    def _source(self, group: Group) -> tuple[str | None, ir.Value]:
        """What a group reads: the last group that makes as many units as it reads, or the observation."""
        assert self.observation is not None
        first = group.layers[0]
        if len(first.shape) == 4:
            return None, self.observation
        wanted = first.units if first.normalises else first.shape[1]
        for name, (value, units) in reversed(self._ends.items()):
            if units == wanted and (units != self.features or name not in self._read):
                return name, value
        if wanted == self.features:
            return None, self.observation
        raise Refused(f"nothing makes the {wanted} features that '{group.name}' reads", hint=HINT)

    def _is_read(self, group: Group, later: Sequence[Group]) -> bool:
        """Whether a later group can only read this one."""
        units = self._units(group)
        return any(
            (first := other.layers[0]).shape[-1] == units and len(first.shape) == 2 and units != self.features
            for other in later
        )

    @staticmethod
    def _units(group: Group) -> int:
        return group.layers[-1].units

    def _run(self, group: Group, x: ir.Value, trunk: bool) -> ir.Value:
        inside = None if self.module is None else self.module.at(group.name.removeprefix(self.prefix))
        if inside is not None and inside.kind in ("Sequential", "ModuleList"):
            if inside.kind == "ModuleList" or (trunk and not activates(inside)):
                raise Refused(f"what follows the layers of '{group.name}' is in its code only", hint=HINT)
            return write(self.layers, x, inside, f"{group.name}.")
        plan = _strides([layer for layer in group.layers if len(layer.shape) == 4])
        convolved = 0
        for k, layer in enumerate(group.layers):
            if len(layer.shape) == 3:
                raise _nowhere(f"{layer.module}.weight", layer.shape)
            if len(layer.shape) == 4:
                if plan is None:
                    raise Refused(f"the strides of '{layer.module}' have no trace in a state dict", hint=HINT)
                x = self.layers.convolution(x, layer.module, plan[convolved][1])
                convolved += 1
            elif layer.normalises:
                x = self._normalised(x, layer)
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
                    f"between '{layer.module}' and '{after.module}' are layers that no name tells", hint=HINT
                )
            if gap == 0 and not (layer.normalises or after.normalises):
                raise Refused(
                    f"'{layer.module}' and '{after.module}' follow each other with nothing between them: this is no"
                    " nn.Sequential, and its code is not in the file", hint=HINT,
                )  # fmt: skip
            active = gap > (1 if flattens else 0)
        if active:
            x = self.layers.activate(x, self._known(group))
        return self._graph.op("Flatten", x, axis=1) if flattens else x

    def _normalised(self, x: ir.Value, layer: Layer) -> ir.Value:
        normalise = self.layers.batch_norm if layer.normalises == "batch" else self.layers.layer_norm
        return normalise(x, layer.module)

    @property
    def _graph(self) -> GraphBuilder:
        return self.layers.graph

    def _known(self, group: Group) -> str:
        if self.activation is None:
            raise ArgumentError(
                f"the activation between the layers of '{group.name}' is not in the file",
                hint="say what it is: surgery convert FILE --activation relu -o OUT.onnx",
            )
        return str(activation_of(self.activation))


def _trunks_first(groups: list[Group]) -> list[Group]:
    """Groups in the file's order, unless that begins with one whose features only another one makes.

    A state dict lists modules as the network's code makes them; other formats sort their names.
    """
    made = {id(group): {other.layers[-1].units for other in groups if other is not group} for group in groups}
    roots = [g for g in groups if len(g.layers[0].shape) == 4 or g.layers[0].shape[-1] not in made[id(g)]]
    if not roots or groups[0] in roots:
        return groups
    return [*roots, *(group for group in groups if group not in roots)]


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
    found = [layer for layer in layers_of(tensors) if len(layer.shape) == 4]
    return "relu" if _strides(found) is not None else None


WORDS: Mapping[str, frozenset[str]] = {
    "value": frozenset({"critic", "value", "vf", "v", "baseline"}),
    "log_std": frozenset({"logstd", "log", "std"}),
    "mean": frozenset({"mean", "mu"}),
    "logits": frozenset({"actor", "policy", "pi", "logits"}),
    "q_values": frozenset({"q", "qf", "qnet", "qnetwork"}),
}
"""Kind of output -> words in the name of the group that makes it."""


def declare(layers: Layers, part: Part, ends: Mapping[str, ir.Value], taken: Collection[str]) -> list[Port]:
    """Declare what comes out of a network as outputs of the graph, named after what it is.

    Args:
      layers: the graph. part: the network. ends: group -> what comes out of it. taken: names of other outputs.
    """
    ports: list[Port] = []
    suffix = "" if part.original is None else f"_{part.prefix.strip('.').replace('.', '_')}"
    free = [name for name in part.tensors if not name.endswith((".weight", ".bias"))]
    deviation = next((name for name in free if words_of(name) & WORDS["log_std"]), None)
    for group, value in ends.items():
        width = next(layer for layer in reversed(layers_of(part.tensors)) if layer.group == group).units
        kind = kind_of(group, part.label, width, gaussian=deviation is not None)
        name = f"{'action_log_std' if kind == 'log_std' else kind}{suffix}"
        if name in {*taken, *(port.name for port in ports)}:
            name = f"{group.replace('.', '_')}{suffix}"
        layers.graph.output(value, name, (width,))
        ports.append(Port(name, "other" if part.original is not None else kind, declared=True))
        if kind == "mean" and deviation is not None:
            ports.append(_deviation(layers, deviation, value, width, suffix))
    return ports


def _deviation(layers: Layers, name: str, mean: ir.Value, width: int, suffix: str) -> Port:
    """A deviation that does not depend on the observation, as `log_std` for every example."""
    graph = layers.graph
    value = layers.parameter(name)
    if not words_of(name) & {"log", "logstd"}:
        value = graph.op("Log", value)  # rsl_rl keeps the deviation itself
    wide = graph.op("Expand", value, graph.op("Shape", mean))
    graph.output(wide, f"action_log_std{suffix}", (width,))
    return Port(f"action_log_std{suffix}", "log_std", declared=True)


def kind_of(group: str, label: str, width: int, *, gaussian: bool) -> str:
    """The kind of output that a group makes: by its name, else by that of its network, else by its width."""
    for name in (group, label):
        for kind, known in WORDS.items():
            if words_of(name) & known and (kind != "value" or width == 1):
                return "mean" if kind == "logits" and gaussian else kind
    return "value" if width == 1 else "q_values"


def words_of(name: str) -> set[str]:
    """The words that a name is made of."""
    return {word for part in name.lower().split(".") for word in (part, *part.split("_"))}
