"""Tensors that depend on shapes only, and random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from surgery.torch.call import Call, Results, Translation
from surgery.torch.host import Size


def _kind(call: Call, default: ir.DataType = ir.DataType.FLOAT) -> Size:
    return Size(call.emitter.dtype(ir.DataType(call.integer("dtype", int(default)))))


def _device(call: Call) -> Size:
    return Size(call.emitter.device())


def constant_of_shape(call: Call) -> Results:
    """A shape filled with one value, float 0 by default."""
    tensor = call.attribute("value")
    fill = np.zeros(1, np.float32) if tensor is None else np.asarray(tensor.numpy())
    kind = Size(call.emitter.dtype(ir.DataType.FLOAT if tensor is None else tensor.dtype))
    sizes = call.sizes(0)
    number = fill.reshape(-1)[0].item()
    return call.emit(
        torch.full,
        tuple(sizes) if isinstance(sizes, list) else sizes,
        number,
        dtype=kind,
        device=_device(call),
    )


def arange(call: Call) -> Results:
    """start, start + delta, … before limit."""
    bounds: list[Any] = [call.whole(index) for index in range(3)]
    host = next((call.host(index) for index in range(3) if call.host(index) is not None), None)
    value = call.node.inputs[0]
    dtype = host.dtype if host is not None else None
    kind = (
        ir.DataType.from_numpy(dtype) if dtype is not None else (value.dtype if value is not None else None)
    )
    kind = kind or ir.DataType.INT64
    return call.emit(torch.arange, *bounds, dtype=Size(call.emitter.dtype(kind)), device=_device(call))


def diagonal(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    """Ones on diagonal `k`, in the shape of x."""
    ones = torch.ones_like(x, dtype=torch.bool)
    return (ones.triu(k) & ones.tril(k)).to(x.dtype if dtype is None else dtype)


def eye_like(call: Call) -> Results:
    """Ones on diagonal `k`, in the operand's shape and, without `dtype`, its type."""
    kind = _kind(call) if "dtype" in call.attributes else None
    return call.emit(diagonal, call[0], call.integer("k"), kind)


def marked(index: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """The on-value at the index, the off-value elsewhere, along a new axis."""
    index = torch.where(index < 0, index + depth, index).long()
    axis = axis + index.dim() + 1 if axis < 0 else axis
    classes = torch.arange(depth, device=index.device)
    shape = [1] * (index.dim() + 1)
    shape[axis] = depth
    return torch.where(index.unsqueeze(axis) == classes.reshape(shape), values[1], values[0])


def one_hot(call: Call) -> Results:
    """No index out of range is on."""
    host = call.host(1)
    depth = host.flat()[0] if host is not None else Size(f"int({call[1]}.item())")
    return call.emit(
        marked, call[0], int(depth) if isinstance(depth, float) else depth, call[2], call.integer("axis", -1)
    )


def trilu(call: Call) -> Results:
    """The upper or lower triangle of the last two axes from diagonal `k`."""
    k = call.whole(1, 0)
    return call.emit(torch.triu if call.integer("upper", 1) else torch.tril, call[0], k)


def non_zero(call: Call) -> Results:
    """The indices of elements that are not zero, (rank, number)."""
    return call.method(call.emit(torch.nonzero, call[0]), "t")


def shape_of(x: Tensor, start: int | None, end: int | None) -> Tensor:
    """Sizes as a tensor, for readers that are none of the host's."""
    return torch.tensor(x.shape[start:end], device=x.device)


def shape(call: Call) -> Results:
    """The sizes of a value whose number of axes is not known before it runs."""
    return call.emit(shape_of, call[0], call.attribute("start"), call.attribute("end"))


def counted(x: Tensor) -> Tensor:
    """The number of elements as a tensor."""
    return torch.tensor(x.numel(), device=x.device)


def _generator(call: Call) -> None:
    if "seed" in call.attributes:
        raise call.refuse("it states a seed of its own: remove it, and seed torch's generator")


def normal(call: Call) -> Results:
    """Normal numbers in a stated shape, from torch's generator."""
    _generator(call)
    drawn = call.emit(torch.randn, tuple(call.integers("shape")), dtype=_kind(call), device=_device(call))
    return call.emit(scaled, drawn, call.number("scale", 1.0), call.number("mean", 0.0))


def normal_like(call: Call) -> Results:
    """Normal numbers in the operand's shape."""
    _generator(call)
    drawn = call.emit(torch.randn_like, call[0], **_typed(call))
    return call.emit(scaled, drawn, call.number("scale", 1.0), call.number("mean", 0.0))


def _typed(call: Call) -> dict[str, Any]:
    return {"dtype": _kind(call)} if "dtype" in call.attributes else {}


def uniform(call: Call) -> Results:
    """Uniform numbers in a stated shape."""
    _generator(call)
    low, high = call.number("low", 0.0), call.number("high", 1.0)
    drawn = call.emit(torch.rand, tuple(call.integers("shape")), dtype=_kind(call), device=_device(call))
    return call.emit(scaled, drawn, high - low, low)


def uniform_like(call: Call) -> Results:
    """Uniform numbers in the operand's shape."""
    _generator(call)
    low, high = call.number("low", 0.0), call.number("high", 1.0)
    return call.emit(scaled, call.emit(torch.rand_like, call[0], **_typed(call)), high - low, low)


def scaled(x: Tensor, scale: float, shift: float) -> Tensor:
    """scale·x + shift."""
    return x * scale + shift


def multinomial(call: Call) -> Results:
    """Classes drawn by their logits (batch, classes), with replacement."""
    _generator(call)
    kind = _kind(call, ir.DataType.INT32)
    drawn = call.emit(drawn_classes, call[0], call.integer("sample_size", 1))
    return call.method(drawn, "to", kind)


def drawn_classes(logits: Tensor, count: int) -> Tensor:
    """Class indices (batch, count)."""
    return torch.multinomial(torch.softmax(logits, -1), count, replacement=True)


def bernoulli(call: Call) -> Results:
    """One with the probability that the operand states."""
    _generator(call)
    drawn = call.emit(torch.bernoulli, call[0])
    return call.method(drawn, "to", _kind(call)) if "dtype" in call.attributes else drawn


TRANSLATIONS: dict[str, Translation] = {
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": lambda call: call.emit(counted, call[0]),
    "Range": arange,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "Trilu": trilu,
    "NonZero": non_zero,
    "RandomNormal": normal,
    "RandomNormalLike": normal_like,
    "RandomUniform": uniform,
    "RandomUniformLike": uniform_like,
    "Multinomial": multinomial,
    "Bernoulli": bernoulli,
}
