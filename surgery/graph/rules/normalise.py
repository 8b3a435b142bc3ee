"""Normalisers: what is averaged grows by whole multiples, or by units that vanish (see `graph.padding`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis
from surgery.graph.operands import data_of, operands
from surgery.graph.rules.table import Table
from surgery.graph.trace import Opaque, Trace

RULES = Table()


def _scales(t: Trace, parameters: Sequence[ir.Value]) -> None:
    for value in parameters:
        t.use("scale", value, t.axes(value))


@RULES(
    "BatchNormalization",
    axes="channels: pointwise, zero and scale pass back to scale and shift; other axes: pointwise",
)
def batch_normalization(t: Trace, node: ir.Node) -> None:
    """Every channel is normalised by itself, over the other axes (in training) or by stored statistics."""
    x, *parameters = operands(node)
    data = t.axes(x)
    _scales(t, parameters)
    channels = _channels(t, node, x, data[1], parameters)
    if node.attributes.get_int("training_mode", 0):
        for axis in (data[0], *data[2:]):
            t.mix(node, "mean", x, axis)
    rest = [_opaque_to_demands(t, node, x, axis) for axis in (data[0], *data[2:])]
    t.put(node.outputs[0], [rest[0], channels, *rest[1:]])
    for value in node.outputs[1:]:
        t.put(value, [_opaque_to_demands(t, node, x, data[1])])


def _channels(t: Trace, node: ir.Node, x: ir.Value, axis: Axis, parameters: Sequence[ir.Value]) -> Axis:
    column = [(x, axis), *((value, t.axes(value)[0]) for value in parameters)]
    channels = t.merge(node, column, passes=0)
    _answering(t, channels, parameters[:2])
    return channels


def _answering(t: Trace, units: Axis, parameters: Sequence[ir.Value]) -> None:
    """γ·x̂ + β is zero, or scaled, where γ and β are, whatever x̂ is."""
    rows = [t.axes(value)[-1] for value in parameters]
    for atom, *origins in zip(units, *rows, strict=False):
        if origins and all(origin.size == atom.size for origin in origins):
            atom.origins = tuple(origins)
            atom.link = replace(atom.link, passes=2, linear=False, barrier=None)


@RULES(
    "InstanceNormalization",
    axes="channels: pointwise, zero and scale pass back to scale and shift; batch: pointwise; axes after them: mean",
)
def instance_normalization(t: Trace, node: ir.Node) -> None:
    """Every channel is normalised over the axes after it (a group norm written out has units there)."""
    x, *parameters = operands(node)
    data = t.axes(x)
    _scales(t, parameters)
    channels = _channels(t, node, x, data[1], parameters)
    inner = [_averaged(t, node, x, axis) for axis in data[2:]]
    t.put(node.outputs[0], [_opaque_to_demands(t, node, x, data[0]), channels, *inner])


@RULES("GroupNormalization", axes="batch, groups: pointwise; channels of a group, spatial axes: mean")
def group_normalization(t: Trace, node: ir.Node) -> None:
    """Channels in groups, each normalised over its channels and space; whole groups can be added."""
    x, *parameters = operands(node)
    data = t.axes(x)
    groups = node.attributes.get_int("num_groups", 1)
    outer, inner = t.split(node, data[1], groups) if groups > 1 else (UNIT, data[1])
    _scales(t, parameters)
    own = outer if t.facts.versions.get("", 21) < 21 else data[1]
    columns = [(value, t.axes(value)[0]) for value in parameters]
    if own:
        t.merge(node, [(x, own), *columns], passes=0)
    for axis in (inner, *data[2:]):
        t.mix(node, "mean", x, axis)
    if outer:
        t.literal(node, "num_groups", lambda size: [size(outer)])
    rest = [_opaque_to_demands(t, node, x, axis) for axis in (data[0], *data[2:])]
    column = [(x, data[1])] + (columns if own == data[1] else [])
    channels = t.merge(node, column, passes=0) if data[1] else UNIT
    t.put(node.outputs[0], [rest[0], channels, *rest[1:]])


@RULES("LayerNormalization", "RMSNormalization", axes="normalised axes: normalised; other axes: pointwise")
def layer_normalization(t: Trace, node: ir.Node) -> None:
    """Normalised over the axes from the named one on, then scaled and shifted unit by unit."""
    x, *parameters = operands(node)
    data = t.axes(x)
    at = node.attributes.get_int("axis", -1) % len(data)
    _scales(t, parameters)
    out = []
    for k, axis in enumerate(data):
        if k >= at:
            t.mix(node, "mean", x, axis)
        column = [(x, axis)]
        for value in parameters:  # they may have axes before the normalised ones, too
            axes = t.axes(value)
            own = axes[k - len(data)] if len(axes) >= len(data) - k else UNIT
            column.append((value, own))
        out.append(t.merge(node, column, passes=0) if axis else UNIT)
    _answering(t, out[-1], parameters[:2])
    t.put(node.outputs[0], out)
    for value in node.outputs[1:]:
        if value.uses():
            raise Opaque("the statistics of a normalisation are used")


@RULES("MeanVarianceNormalization", axes="named axes: mean; other axes: pointwise")
def mean_variance_normalization(t: Trace, node: ir.Node) -> None:
    """Normalised over the named axes."""
    x = data_of(node)
    data = t.axes(x)
    over = {k % len(data) for k in t.numbers(node, 9, "axes") or [0, 2, 3]}
    out = [
        _averaged(t, node, x, a) if k in over else _opaque_to_demands(t, node, x, a)
        for k, a in enumerate(data)
    ]
    t.put(node.outputs[0], out)


@RULES("LpNormalization", axes="normalised axis: norm, zero passes back; other axes: pointwise")
def lp_normalization(t: Trace, node: ir.Node) -> None:
    """x / |x|: units that are zero change nothing."""
    x = data_of(node)
    data = t.axes(x)
    at = node.attributes.get_int("axis", -1) % len(data)
    t.mix(node, "norm", x, data[at])
    out = [_opaque_to_demands(t, node, x, axis, passes=1 if k == at else 0) for k, axis in enumerate(data)]
    t.put(node.outputs[0], out)


def _averaged(t: Trace, node: ir.Node, x: ir.Value, axis: Axis) -> Axis:
    t.mix(node, "mean", x, axis)
    return _opaque_to_demands(t, node, x, axis)


def _opaque_to_demands(t: Trace, node: ir.Node, x: ir.Value, axis: Axis, passes: int = 0) -> Axis:
    return t.merge(node, [(x, axis)], passes=passes)
