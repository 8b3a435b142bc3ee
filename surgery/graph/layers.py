"""The layers of a graph: where each one's weights are used, and the value behind which another layer can follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.errors import Refused, UnknownName
from surgery.graph.control import captured
from surgery.graph.labels import full_label, label
from surgery.graph.layout import units
from surgery.graph.modules import modules
from surgery.graph.operands import operands
from surgery.graph.rules.recurrent import GATES
from surgery.graph.spaces import Analysis, Space

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
RECURRENT = frozenset(GATES)
CONTROL = frozenset({"If", "Loop", "Scan"})
_WEIGHTED = CONVOLUTIONS | RECURRENT | {"Gemm", "MatMul", "Einsum", "Gather"}
ACTIVATIONS = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Tanh", "Sigmoid",
    "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Gelu", "Mish", "Abs", "Max", "Min", "Sin", "Cos",
    "Swish",
})  # fmt: skip
"""Operators that work on every element alone (`Max` and `Min` where their other operand is constant)."""

_NORMALISERS = frozenset({
    "BatchNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization",
    "InstanceNormalization",
})  # fmt: skip
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_POOLING = frozenset({"MaxPool", "AveragePool", "LpPool"})
_PASSIVE = frozenset({"Identity", "Dropout", "Cast", "Transpose", "Squeeze"})
_DISTRIBUTIONS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK"})


@dataclass(frozen=True)
class Layer:
    """One use of a layer's weights.

    Attributes:
      module: its path in the model that was exported.
      node: what reads the weights. weight: the tensor that it reads, perhaps through a transposition.
    """

    module: str
    node: ir.Node
    weight: str


@dataclass(frozen=True)
class Spot:
    """A value behind which a layer can be put.

    Attributes:
      value: the value.
      axis: the axis of its units. units: how many.
      rank: number of its axes.
      layer: the layer that made the value. spatial: whether its other axes, but the first, are those of an image.
      activation: the node that made the value of the layer's result, if it is an activation.
      summed: whether a residual sum lies between the layer and the value.
      stack: how many networks stand along the first axis, each with weights of its own; 0 where there is one.
    """

    value: ir.Value
    axis: int
    units: int
    rank: int
    layer: Layer
    spatial: bool
    activation: ir.Node | None
    summed: bool
    stack: int = 0


def layers(analysis: Analysis) -> list[Layer]:
    """Every use of a layer with weights, in graph order."""
    paths, found = modules(analysis.model, analysis.trace), []
    for node in analysis.model.graph:
        inner = captured(node) if node.op_type in CONTROL else []
        if node.op_type not in _WEIGHTED and not inner and node.op_type not in CONTROL:
            continue
        for value in [*_operands(node), *inner]:
            names = [n for n in _tensors(analysis, value) if n in paths]
            if names:
                found.append(Layer(paths[names[0]], node, names[0]))
                if node.op_type not in CONTROL:
                    break
    return found


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    order = [0, 1] if node.op_type == "Gather" else [*range(1, len(node.inputs)), 0]
    for k in order if node.op_type not in CONTROL else range(len(node.inputs)):
        value = node.inputs[k] if k < len(node.inputs) else None
        if value is not None:
            yield value


def _tensors(analysis: Analysis, value: ir.Value) -> list[str]:
    """The floating tensors that an operand is computed from, the first one first; none if an input is among them.

    What is known (the bounds of a slice, even where they come from the shape of an input) is no input.
    """
    pending, seen, found = [value], set[ir.Value](), []
    while pending:
        value = pending.pop(0)
        if value in seen or value in analysis.trace.facts.known:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None and value.const_value is None:
            return []
        if producer is not None and producer.inputs:
            pending.extend(operands(producer))
        elif value.const_value is None or value.const_value.dtype.is_floating_point():
            found.append(value.name or "")
    return found


def find(analysis: Analysis, name: str) -> tuple[str, list[Layer]]:
    """The uses of a layer.

    Args:
      name: a module path or an unambiguous ending of one, a parameter, a space, or a module that holds several layers
        (the last of them is meant).

    Returns:
      Its module path, and the uses of its last weight in graph order.

    Raises:
      UnknownName: with the nearest names. Refused: a layer in the body of a loop.
    """
    known = layers(analysis)
    module = _module(analysis, known, name)
    last = [layer for layer in known if layer.module == module][-1].weight
    uses = [layer for layer in known if (layer.module, layer.weight) == (module, last)]
    for layer in uses:
        if layer.node.op_type in CONTROL:
            raise Refused(
                f"layer '{module}' lies inside {full_label(layer.node)}, where no layer can be inserted",
                hint="export the model with the loop unrolled",
            )
    return module, uses


def _module(analysis: Analysis, known: Sequence[Layer], name: str) -> str:
    paths = list(dict.fromkeys(layer.module for layer in known))
    exact = [layer.module for layer in known if name in (layer.module, layer.weight)]
    inside = [path for path in paths if path.startswith(f"{name}.")]
    ending = [path for path in paths if path.endswith(f".{name}")]
    for found in (exact[-1:], inside[-1:], ending if len(ending) == 1 else []):
        if found:
            return found[0]
    owner = modules(analysis.model, analysis.trace).get(name)
    if owner in paths:
        return str(owner)
    space = analysis.by_name.get(name)
    for ref in space.axes if space else ():
        makers = [layer.module for layer in known if ref.makes and layer.weight == ref.tensor]
        if makers:
            return makers[0]
    raise UnknownName("layer", name, paths)


def spots(analysis: Analysis, after: str) -> tuple[str, list[Spot]]:
    """Where a layer goes that is put behind another one, or behind a value of the graph.

    Behind a layer: behind its bias, its normaliser, its pooling, the residual sum that it goes into, and its
    activation, as far as nothing else reads what lies between.

    Raises:
      UnknownName: no layer and no value of that name. Refused: a place where no layer can go, with the reason.
    """
    values = {str(v.name): v for node in analysis.model.graph for v in node.outputs if v.name}
    try:
        module, uses = find(analysis, after)
    except UnknownName as unknown:
        if after not in values:
            raise unknown from None
        value = values[after]
        layer = _behind(analysis, value)
        if layer is None:
            raise Refused(f"no layer with weights leads to '{after}'") from None
        return layer.module, [_spot(analysis, value, layer, value.producer(), summed=False)]
    found = [_follow(analysis, layer) for layer in uses]
    _check_gates(analysis, found[0])
    for other in found[1:]:
        if _form(other) != _form(found[0]):
            raise Refused(
                f"layer '{module}' is used in two ways, by nodes '{label(found[0].layer.node)}' and "
                f"'{label(other.layer.node)}': one new layer does not fit behind both",
                hint="name the value behind which it goes: the result of one of these nodes",
            )
    return module, found


def _check_gates(analysis: Analysis, spot: Spot) -> None:
    """What a written-out cell computes first are several gates for each of its units, which come later."""
    described, module = analysis.trace.described(spot.value), spot.layer.module
    weights = {layer.weight for layer in layers(analysis) if layer.module == module}
    for part in units(analysis.layout(described[spot.axis])) if described is not None else ():
        space = analysis.by_name[part.space]
        recurrent = any(ref.tensor in weights and not ref.makes for ref in space.axes)
        if recurrent and len(weights) > 1 and spot.units > space.size:
            given = " or ".join(f"'{name}'" for name in _given(analysis, spot, space))
            raise Refused(
                f"layer '{module}' computes {spot.units} gates for the {space.size} units of a cell that is written "
                "out as single nodes: a layer goes behind the cell",
                hint=f"name the value that comes out of it: {given or 'its new state'}",
            )


def _given(analysis: Analysis, spot: Spot, space: Space) -> list[str]:
    """The values behind a spot that hold the units of a space, and that layers of other modules read."""
    pending, later = [spot.value], set[ir.Value]()
    while pending:
        made = {v for node in (use.node for use in pending.pop().uses()) for v in node.outputs} - later
        later |= made
        pending += made
    read = (v for layer in layers(analysis) if layer.module != spot.layer.module for v in layer.node.inputs)
    axes = {str(v.name): analysis.trace.described(v) or [] for v in read if v in later}
    return [
        name
        for name, described in axes.items()
        if any(space.name == part.space for part in units(*map(analysis.layout, described)))
    ]


def _form(spot: Spot) -> tuple[object, ...]:
    """What must be the same wherever one layer is put in several times."""
    return spot.units, spot.rank, spot.axis, spot.summed, spot.activation and spot.activation.op_type


def _behind(analysis: Analysis, value: ir.Value) -> Layer | None:
    """The nearest layer that a value comes from."""
    known = {layer.node: layer for layer in layers(analysis)}
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop(0)
        producer = value.producer()
        if value in seen or producer is None:
            continue
        if producer in known and producer.op_type not in CONTROL:
            return known[producer]
        seen.add(value)
        pending.extend(operands(producer))
    return None


def _follow(analysis: Analysis, layer: Layer) -> Spot:
    constant = analysis.trace.facts.constant
    value = _result(layer)
    place, activation, summed = value, None, False
    while True:
        readers = {use.node for use in value.uses()}
        if len(readers) != 1 or value.is_graph_output():
            break
        (node,) = readers
        if node.graph is not analysis.model.graph or not node.outputs or _stops(analysis, node, value):
            break
        value = node.outputs[0]
        if node.op_type in _PASSIVE:
            continue
        place = value
        if node.op_type == "Add" and not any(v in constant for v in operands(node)):
            summed = True
        if is_activation(node, constant):
            activation = node
            break
    return _spot(analysis, place, layer, activation, summed=summed)


def behind(analysis: Analysis, layer: Layer) -> Spot:
    """The value directly behind a layer and its bias, before anything else."""
    value, constant = _result(layer), analysis.trace.facts.constant
    readers = [use.node for use in value.uses()]
    if len(readers) == 1 and readers[0].op_type == "Add" and not value.is_graph_output():
        (node,) = readers
        if all(v is value or v in constant for v in node.inputs) and not _stops(analysis, node, value):
            value = node.outputs[0]
    return _spot(analysis, value, layer, None, summed=False)


def _result(layer: Layer) -> ir.Value:
    used = [v for v in layer.node.outputs if v.uses() and not v.is_graph_output()]
    return used[0] if used else layer.node.outputs[0]


def _stops(analysis: Analysis, node: ir.Node, value: ir.Value) -> bool:
    """Whether the walk from a layer ends before a node."""
    constant, shapes = analysis.trace.facts.constant, analysis.trace.facts.shapes
    others = [v for v in operands(node) if v is not value]
    if node.op_type in _ARITHMETIC:
        residual = node.op_type == "Add" and len(others) == 1
        grows = shapes.get(value) != shapes.get(node.outputs[0])
        return grows or not (all(v in constant for v in others) or residual)
    if node.op_type in ("Max", "Min", "PRelu") or node.op_type in _NORMALISERS:
        return not all(v in constant for v in others)
    return node.op_type not in ACTIVATIONS | _POOLING | _PASSIVE


def is_activation(node: ir.Node | None, constant: set[ir.Value]) -> bool:
    """Whether a node works on every element of its first changing operand alone."""
    if node is None or node.op_type not in ACTIVATIONS:
        return False
    return sum(v not in constant for v in operands(node)) == 1


def _spot(
    analysis: Analysis, value: ir.Value, layer: Layer, activation: ir.Node | None, *, summed: bool
) -> Spot:
    producer = value.producer()
    if producer is not None and producer.op_type in _DISTRIBUTIONS:
        raise Refused(
            f"'{value.name}' is the distribution that {full_label(producer)} computes: after a layer it would no "
            "longer be one",
            hint="put the layer before that node",
        )
    if value in analysis.trace.facts.constant or (
        value.dtype is not None and not value.dtype.is_floating_point()
    ):
        raise Refused(f"'{value.name}' is not an activation: no layer can follow it")
    shape = analysis.trace.facts.shapes.get(value)
    if shape is None:
        raise Refused(f"the shape of '{value.name}' is not known, so no layer can follow it")
    spatial = layer.node.op_type in CONVOLUTIONS and len(shape) == _rank(analysis, layer)
    axis = _unit_axis(analysis, value, layer, spatial, len(shape))
    if analysis.trace.facts.stands_in(shape[axis]):
        raise Refused(f"axis {axis} of '{value.name}' has no fixed size, so no layer can read it")
    found = activation if is_activation(activation, analysis.trace.facts.constant) else None
    stack = _stack(analysis, layer) if (len(shape), axis) == (3, 2) else 0
    stack = stack if stack == shape[0] else 0
    return Spot(value, axis, shape[axis], len(shape), layer, spatial, found, summed, stack)


def _stack(analysis: Analysis, layer: Layer) -> int:
    """How many matrices a layer multiplies with, each of another network (`torch.func.stack_module_state`)."""
    held = analysis.model.graph.initializers.get(layer.weight)
    shape = analysis.trace.facts.shapes.get(held) if held is not None else None
    return shape[0] if layer.node.op_type == "MatMul" and shape is not None and len(shape) == 3 else 0


def _rank(analysis: Analysis, layer: Layer) -> int:
    return len(analysis.trace.facts.shapes.get(layer.node.outputs[0]) or ())


def _unit_axis(analysis: Analysis, value: ir.Value, layer: Layer, spatial: bool, rank: int) -> int:
    """The axis that counts the units of a space; where the analysis gave it up, the one of the layer's operator."""
    described = analysis.trace.described(value)
    made = {part.space for part in units(*analysis.tensors.get(layer.weight, ()))}
    found = [
        k for k, axis in enumerate(described or ()) if made & {u.space for u in units(analysis.layout(axis))}
    ]
    if len(found) == 1:
        return found[0]
    return 1 if spatial and value is layer.node.outputs[0] else found[-1] if found else rank - 1
