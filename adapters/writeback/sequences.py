"""New layers in a framework's file: where they stand in an `nn.Sequential`, and how its modules are then numbered.

A graph names a new layer by any number that is free; a sequence numbers its modules by their order, activations among
them. A layer that was put behind the activation of module p is module p + 2, its activation p + 3, and what came
later moves on by two. Where a framework pads by a module of its own, that is p + 2, and everything else one further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from surgery.adapters import SHARED
from surgery.edits.copies import original_name
from surgery.errors import Refused
from surgery.tensors import shape_of

Tensors = Mapping[str, ir.TensorProtocol]

HINT = "write it as a graph, which holds any network: -o OUT.onnx"
EVERYWHERE = (
    "where an observation or an action is new, it is new in every network: --observation critic_action+1 "
    "beside --action mean+1 --action action_log_std+1"
)
_LAYERS = ("Gemm", "Conv")
_NORMS = ("LayerNormalization", "BatchNormalization")


@dataclass(frozen=True)
class Added:
    """A parameter that a file does not have yet.

    Attributes:
      name: in the graph. behind: the file's parameter that it follows, by its old name.
    """

    name: str
    behind: str


@dataclass(frozen=True)
class Numbering:
    """What the parameters of a file are called once there are new layers among them.

    Attributes:
      cuts: sequence -> the old places in front of which new layers stand; one for every new layer.
      added: new name in the file -> the graph's parameter, and what it follows.
      modules: sequence -> how many modules a new layer is there, of which it is the last but one; 2 where it is none.
    """

    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    added: Mapping[str, Added] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=dict)

    def moved(self, path: str) -> str:
        """The new path of a parameter or module that the file has."""
        parts = path.split(".")
        moved = list(parts)
        for k, part in enumerate(parts):
            cuts, each = self.cuts.get(".".join(parts[:k])), self.modules.get(".".join(parts[:k]), 2)
            if cuts and part.isdecimal():
                moved[k] = str(int(part) + each * sum(cut <= int(part) for cut in cuts))
        return ".".join(moved)

    def of_graph(self, old: Tensors) -> dict[str, str]:
        """The graph's parameter -> its new name in the file, under the first of its names."""
        names = {item.name: new for new, item in reversed(list(self.added.items()))}
        return {**{name: self.moved(name) for name in old}, **names}

    def order(self, old: Tensors) -> list[str]:
        """All names in the file's order, new ones behind what they follow."""
        names: list[str] = []
        for name in old:
            names.append(self.moved(name))
            names += [new for new, item in self.added.items() if item.behind == name]
        return names

    def fitted(self, old: Tensors, now: Tensors) -> dict[str, ir.TensorProtocol]:
        """Every tensor that the file will have, by its new name and in its new order.

        Args:
          old: what the file has. now: the graph's tensors; names that are missing stay.
        """
        found = {self.moved(name): now.get(name, tensor) for name, tensor in old.items()}
        found |= {new: now[item.name] for new, item in self.added.items()}
        return {name: found[name] for name in self.order(old)}

    def read_again(self, old: Tensors, tensors: Tensors) -> dict[str, ir.TensorProtocol]:
        """The tensors of `fitted` as a reader of the new file finds them: those with several names are one."""
        views = {self.moved(name): tensor.meta.get(SHARED, name) for name, tensor in old.items()}
        views |= {new: item.name for new, item in self.added.items()}
        return {name: _seen(tensor, views[name]) for name, tensor in tensors.items()}


def _seen(tensor: ir.TensorProtocol, view: object) -> ir.TensorProtocol:
    seen = ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(shape_of(tensor)), name=tensor.name)
    seen.meta[SHARED] = view
    return seen


@dataclass(frozen=True)
class _NewLayer:
    """A layer that the file does not have: its tensors by leaf, and the parameter in front of it."""

    tensors: Mapping[str, str]
    before: str


def number(
    model: ir.Model,
    old: Tensors,
    new: Sequence[str],
    copies: Mapping[str, str],
    modules: Mapping[str, int] | None = None,
) -> Numbering:
    """Find the place of every new layer.

    Args:
      model: the graph. old: the file's parameters.
      new: the graph's parameters that the file does not have.
      copies: prefix of copies -> prefix of their originals, of which all are deepened or none.
      modules: see `Numbering`.

    Raises:
      Refused: a layer that no sequence holds, with the reason.
    """
    if not new:
        return Numbering()
    layers = {layer.tensors["weight"]: layer for layer in _new_layers(model, old, new)}
    spots = [spot for layer in layers.values() for spot in _spots(layer, layers, old)]
    if len({(spot.group, spot.place, spot.depth) for spot in spots}) < len(spots):
        raise Refused("two new layers follow the same one side by side, which no sequence holds", hint=HINT)
    cuts: dict[str, list[int]] = {}
    several = modules or {}
    for spot in spots:
        cuts.setdefault(spot.group, []).append(spot.cut)
    added: dict[str, Added] = {}
    for spot in sorted(spots, key=lambda spot: spot.depth):
        each = several.get(spot.group, 2)
        at = spot.cut + each * (sum(cut < spot.cut for cut in cuts[spot.group]) + spot.depth) + each - 2
        behind = [name for name in old if name.startswith(f"{spot.group}.{spot.place}.")][-1]
        tensors = spot.layer.tensors.items()
        added |= {f"{spot.group}.{at}.{leaf}": Added(name, behind) for leaf, name in tensors}
    _check_copies(cuts, old, copies)
    return Numbering(cuts, added, several)


@dataclass(frozen=True)
class _Spot:
    """Where a new layer goes: behind the module `place` of a sequence, and behind `depth` other new ones."""

    layer: _NewLayer
    group: str
    place: int
    depth: int

    @property
    def cut(self) -> int:
        """The old place in front of which it stands: its predecessor has an activation."""
        return self.place + 2


def _spots(layer: _NewLayer, layers: Mapping[str, _NewLayer], old: Tensors) -> Iterator[_Spot]:
    """One for every name that the layer in front has in the file."""
    anchor, depth = layer.before, 0
    while anchor in layers:
        anchor, depth = layers[anchor].before, depth + 1
    for alias in _aliases(anchor, old):
        yield _Spot(layer, *_sequence(alias, layer.tensors["weight"], old), depth)


def _new_layers(model: ir.Model, old: Tensors, new: Sequence[str]) -> Iterator[_NewLayer]:
    values, seen = model.graph.initializers, set[int]()
    for name in new:
        use = next(iter(values[name].uses()), None)
        node = None if use is None else use.node if use.node.op_type in _LAYERS else _product(use.node)
        if use is None or node is None or (node is use.node and use.idx not in (1, 2)):
            what = "nothing" if use is None else f"a {use.node.op_type}"
            raise Refused(
                f"no sequence of layers holds '{name}': it belongs to {what}, not to a linear layer or convolution",
                hint=HINT,
            )
        if id(node) in seen:
            continue
        seen.add(id(node))
        parameters = zip(("weight", "bias"), _parameters(node), strict=False)
        tensors = {leaf: str(value.name) for leaf, value in parameters if value is not None}
        if known := [tensor for tensor in tensors.values() if tensor in old]:
            raise Refused(f"'{name}' is part of a layer with '{known[0]}', which the file has", hint=HINT)
        yield _NewLayer(tensors, _before(node, name))


def _product(node: ir.Node) -> ir.Node | None:
    """The MatMul of a layer of stacked networks, `MatMul(x, Transpose(W)) + Unsqueeze(b)`, of what reads W or b."""
    readers = [use.node for use in node.outputs[0].uses()]
    if node.op_type == "Unsqueeze":
        sums = [value for reader in readers if reader.op_type == "Add" for value in reader.inputs]
        readers = [made for value in sums if value is not None and (made := value.producer()) is not None]
    return next((reader for reader in readers if reader.op_type == "MatMul"), None)


def _parameters(node: ir.Node) -> list[ir.Value | None]:
    """Weight and bias of a layer, or of a layer of stacked networks; of a normalisation, too."""
    if node.op_type != "MatMul":
        return [_unfolded(value) for value in node.inputs[1:3]]
    sums = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Add"]
    behind = [value for found in sums for value in found.inputs if value is not node.outputs[0]]
    return [_unfolded(value) for value in (node.inputs[1], *behind[:1])]


def _unfolded(value: ir.Value | None) -> ir.Value | None:
    """The parameter that a Transpose or an Unsqueeze is of."""
    node = None if value is None else value.producer()
    return value if node is None or node.op_type not in ("Transpose", "Unsqueeze") else node.inputs[0]


def _before(node: ir.Node, name: str) -> str:
    """The parameter of the one layer whose result a node reads, through activations and the like."""
    front, found, seen = [node.inputs[0]], dict[str, None](), set[int]()
    while front:
        value = front.pop()
        producer = None if value is None else value.producer()
        if producer is None or id(producer) in seen:
            if value is not None and value.is_graph_input():
                found[f"input {value.name}"] = None
            continue
        seen.add(id(producer))
        weighted = producer.op_type in (*_LAYERS, *_NORMS, "MatMul")
        parameter = _parameters(producer)[0] if weighted else None
        if parameter is not None and parameter.is_initializer():
            found[str(parameter.name)] = None
        else:
            front += producer.inputs
    if len(found) != 1:
        raise Refused(
            f"no sequence of layers holds '{name}': it reads {' and '.join(map(repr, found)) or 'constants'}",
            hint=HINT,
        )
    return next(iter(found))


def _aliases(name: str, old: Tensors) -> list[str]:
    """All names of a tensor of the file."""
    if name not in old:
        return [name]
    view = old[name].meta.get(SHARED, name)
    return [other for other, tensor in old.items() if tensor.meta.get(SHARED, other) == view]


def _sequence(anchor: str, new: str, old: Tensors) -> tuple[str, int]:
    """The sequence that a parameter is in, and the number of its module there."""
    module = anchor.rpartition(".")[0]
    group, _, place = module.rpartition(".")
    if anchor not in old or not place.isdecimal():
        raise Refused(
            f"no sequence of layers holds '{new}': '{module or anchor}', which it follows, has a name of its own",
            hint=HINT,
        )
    later = {
        int(part) for name in old if (part := name.removeprefix(f"{group}.").partition(".")[0]).isdecimal()
    }
    if int(place) + 1 in later:
        raise Refused(
            f"'{new}' would stand between '{module}' and '{group}.{int(place) + 1}', which follow each other directly",
            hint=HINT,
        )
    return group, int(place)


def _check_copies(cuts: Mapping[str, Sequence[int]], old: Tensors, copies: Mapping[str, str]) -> None:
    """Copies that the graph does not compute cannot have followed."""
    for name in old:
        original = original_name(name, copies)
        group, theirs = (path.rpartition(".")[0].rpartition(".")[0] for path in (name, original))
        if original != name and cuts.get(theirs, ()) != cuts.get(group, ()):
            raise Refused(
                f"'{group}' is a copy of '{theirs}', and only one of them has new layers", hint=HINT
            )
