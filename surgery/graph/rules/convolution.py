"""Convolutions and pooling: channels are contracted or kept, spatial and kernel axes keep their size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from surgery.graph.atoms import UNIT, Axis, factors, size_of
from surgery.graph.labels import full_label, label
from surgery.graph.operands import data_of
from surgery.graph.rules.movement import dims
from surgery.graph.rules.table import Table
from surgery.graph.trace import Opaque, Trace

RULES = Table()


@RULES(
    "Conv",
    axes="input channels of a group: contraction; batch, groups, output channels: pointwise; "
    "spatial axes, kernel: frozen",
)
def conv(t: Trace, node: ir.Node) -> None:
    """Y[b, g·m, …] = Σ_c X[b, g·c, …] * W[g·m, c, …] + B[g·m]."""
    x, w, b = _operands(node)
    data, weight = t.axes(x), t.axes(w)
    outer, channels = _grouped(t, node, data[1])
    t.contract(node, (x, channels), (w, weight[1]))
    if outer:
        heads, _ = _grouped(t, node, weight[0])
        t.same(node, outer, heads)
        t.literal(node, "group", lambda size: [size(outer)])
    _kernel(t, node, weight[2:])
    _finish(t, node, x, (w, weight[0]), b, grouped=bool(outer))
    t.use("weight", w, weight)


@RULES(
    "ConvTranspose",
    axes="input channels of a group: contraction; batch, groups, output channels: pointwise; "
    "spatial axes, kernel: frozen",
)
def conv_transpose(t: Trace, node: ir.Node) -> None:
    """Like Conv with W[g·c, m, …]."""
    x, w, b = _operands(node)
    data, weight = t.axes(x), t.axes(w)
    outer, channels = _grouped(t, node, data[1])
    heads, inputs = _grouped(t, node, weight[0])
    t.contract(node, (x, channels), (w, inputs))
    out = weight[1]
    if outer:
        t.same(node, outer, heads)
        t.literal(node, "group", lambda size: [size(outer)])
        out = heads + weight[1]
    _kernel(t, node, weight[2:])
    _finish(t, node, x, (w, out), b, grouped=bool(outer))
    t.use("weight", w, weight)


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    return x, w, node.inputs[2] if len(node.inputs) > 2 else None


def _grouped(t: Trace, node: ir.Node, axis: Axis) -> tuple[Axis, Axis]:
    """The groups, and what is in each of them."""
    group = node.attributes.get_int("group", 1)
    return t.split(node, axis, group) if group > 1 else (UNIT, axis)


def _kernel(t: Trace, node: ir.Node, axes: Sequence[Axis]) -> None:
    for axis in axes:
        t.freeze(node, axis, "kernel", "used as a kernel")


def _finish(
    t: Trace,
    node: ir.Node,
    x: ir.Value,
    weight: tuple[ir.Value, Axis],
    b: ir.Value | None,
    *,
    grouped: bool,
) -> None:
    """The output channels are linear in weight and bias, unless each group of them reads other units."""
    channel = [weight]
    if b is not None:
        if size_of(weight[1]) == 1:
            t.same(node, weight[1], t.axes(b)[0])
        channel.append((b, t.axes(b)[0]))
        t.use("bias", b, t.axes(b))
    wide = [(value, axis) for value, axis in channel if factors(axis)]
    batch = t.axes(x)[0]
    if b is not None:  # nothing passes back through a bias
        batch = t.merge(node, [(x, batch)], passes=0)
    _put_spatial(t, node, x, batch, t.merge(node, wide, linear=not grouped))


def _put_spatial(t: Trace, node: ir.Node, x: ir.Value, batch: Axis, channels: Axis) -> None:
    """The given batch and channels, new spatial axes."""
    data, shape = t.axes(x), t.shape(node.outputs[0])
    for axis in data[2:]:
        t.freeze(node, axis, "spatial", "slid over")
    why = f"a spatial axis of {full_label(node)}"
    spatial = [t.fixed(n, "spatial", why) for n in shape[2:]]
    t.put(node.outputs[0], [batch, channels, *spatial])


_POOLED = "batch, channels: pointwise, zero and scale pass back; "


@RULES("LpPool", "GlobalLpPool", axes=f"{_POOLED}spatial axes: frozen")
@RULES("AveragePool", axes=f"{_POOLED}spatial axes within one window: mean; other spatial axes: frozen")
@RULES("MaxPool", axes=f"{_POOLED}spatial axes within one window: extreme; other spatial axes: frozen")
def pool(t: Trace, node: ir.Node) -> None:
    """Pooling works channel by channel."""
    x = data_of(node)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Opaque("pooling that returns indices")
    data = t.axes(x)
    linear = node.op_type == "AveragePool"
    batch, channels = _each(t, node, x, linear)
    if not _one_window(t, node, x):
        _put_spatial(t, node, x, batch, channels)
        return
    for axis in data[2:]:
        t.mix(node, "mean" if linear else "extreme", x, axis)
    t.literal(node, "kernel_shape", lambda size: [size(axis) for axis in data[2:]])
    t.put(node.outputs[0], [batch, channels, *([UNIT] * len(data[2:]))])


def _one_window(t: Trace, node: ir.Node, x: ir.Value) -> bool:
    """Whether the window is all there is, so that nothing slides."""
    attributes, sizes = node.attributes, t.shape(x)[2:]
    border = any(attributes.get_ints("pads", ())) or attributes.get_string("auto_pad", "VALID").startswith(
        "SAME"
    )
    known = node.op_type in ("MaxPool", "AveragePool") and not any(map(t.facts.stands_in, sizes))
    return known and not border and tuple(attributes.get_ints("kernel_shape", ())) == tuple(sizes)


@RULES("GlobalAveragePool", axes=f"{_POOLED}spatial axes: mean")
@RULES("GlobalMaxPool", axes=f"{_POOLED}spatial axes: extreme")
def global_pool(t: Trace, node: ir.Node) -> None:
    """A reduction over all axes from the third on, spatial or not: tf2onnx writes ReduceMean so."""
    x = data_of(node)
    data = t.axes(x)
    linear = node.op_type == "GlobalAveragePool"
    for axis in data[2:]:
        t.mix(node, "mean" if linear else "extreme", x, axis)
    t.put(node.outputs[0], [*_each(t, node, x, linear), *([UNIT] * len(data[2:]))])


def _each(t: Trace, node: ir.Node, x: ir.Value, linear: bool) -> list[Axis]:
    """Batch and channels, of which every one is pooled by itself."""
    kept = t.axes(x)[:2]
    return kept if linear else [t.merge(node, [(x, axis)], linear=False) for axis in kept]


@RULES("Resize", "Upsample", axes="scaled axes: frozen; other axes: pointwise, zero and scale pass back")
def resize(t: Trace, node: ir.Node) -> None:
    """Interpolation along the scaled axes only; sizes given as numbers follow the other axes."""
    x = data_of(node)
    data, shape = t.axes(x), t.shape(node.outputs[0])
    for value in node.inputs[1:]:
        t.keep(node, value)
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Opaque("a crop")
    out = []
    scaled = _scaled(t, node)
    for k, (axis, before, after) in enumerate(zip(data, t.shape(x), shape, strict=True)):
        if before == after and k not in scaled:
            out.append(axis)
        else:
            t.freeze(node, axis, "spatial", "resized")
            out.append(t.fixed(after, "spatial", f"resized by node '{label(node)}'"))
    if len(node.inputs) > 3 and node.inputs[3] is not None and "axes" not in node.attributes:
        t.literal(node, 3, lambda size: dims(size, out), shape=True)
    t.put(node.outputs[0], out)


def _scaled(t: Trace, node: ir.Node) -> set[int]:
    """Axes whose scale is not 1: a scale of 1.1 keeps 4 units, but still interpolates between them."""
    index = 1 if node.op_type == "Upsample" or t.facts.versions.get("", 11) < 11 else 2
    operand = node.inputs[index] if index < len(node.inputs) else None
    scales = None if operand is None else t.facts.small(operand)
    if scales is None or not scales.size:
        attribute = node.attributes.get("scales")
        scales = np.array([] if attribute is None else attribute.as_floats())
    axes = t.numbers(node, 9, "axes") or list(range(len(scales)))
    return {k for k, scale in zip(axes, scales.reshape(-1), strict=False) if scale != 1}


@RULES(
    "DepthToSpace",
    axes="channels, spatial axes: product with frozen blocks; batch: pointwise, zero and scale pass back",
)
def depth_to_space(t: Trace, node: ir.Node) -> None:
    """[b, c·r·r, h, w] -> [b, c, h·r, w·r]: DCR reads the channels as (r, r, c), CRD as (c, r, r)."""
    x = data_of(node)
    batch, channels, h, w = t.axes(x)
    r = node.attributes.get_int("blocksize", 1)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        rows, rest = t.split(node, channels, r)
        columns, c = t.split(node, rest, r)
    else:
        count = t.shape(x)[1] // (r * r)
        c, rest = t.split(node, channels, count)
        rows, columns = t.split(node, rest, r)
    _block(t, node, rows, columns)
    t.put(node.outputs[0], [batch, c, h + rows, w + columns])


@RULES(
    "SpaceToDepth",
    axes="channels, spatial axes: product with frozen blocks; batch: pointwise, zero and scale pass back",
)
def space_to_depth(t: Trace, node: ir.Node) -> None:
    """[b, c, h·r, w·r] -> [b, r·r·c, h, w]."""
    x = data_of(node)
    batch, c, height, width = t.axes(x)
    r = node.attributes.get_int("blocksize", 1)
    h, rows = t.split(node, height, t.shape(x)[2] // r)
    w, columns = t.split(node, width, t.shape(x)[3] // r)
    _block(t, node, rows, columns)
    t.put(node.outputs[0], [batch, rows + columns + c, h, w])


def _block(t: Trace, node: ir.Node, *axes: Axis) -> None:
    for axis in axes:
        t.freeze(node, axis, "literal", "a block of pixels")
