"""Constants, and tensors that depend on shapes only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel

_PLAIN = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def constant(call: Call) -> Array:
    """The tensor in the attributes."""
    tensor = call.attribute("value")
    if tensor is not None:
        return call.floating(np.asarray(tensor.numpy()))
    for name, dtype in _PLAIN.items():
        if name in call.attributes:
            return call.floating(np.asarray(call.attribute(name), dtype))
    for name in ("value_string", "value_strings"):
        if name in call.attributes:
            return np.asarray(call.attribute(name), dtype=object)
    raise call.refuse("sparse constants have no kernel")


def constant_of_shape(call: Call) -> Array:
    """A shape filled with one value, float 0 by default."""
    tensor = call.attribute("value")
    fill = np.zeros(1, np.float32) if tensor is None else np.asarray(tensor.numpy())
    fill = call.floating(fill).reshape(())
    return np.full([int(size) for size in call[0]], fill, fill.dtype)


def shape(call: Call) -> Array:
    """The sizes of the axes from `start` to before `end`."""
    sizes = np.array(call[0].shape, np.int64)
    return sizes[slice(call.attribute("start"), call.attribute("end"))]


def arange(call: Call) -> Array:
    """start, start + delta, … before limit."""
    start, limit, delta = (call[index].real.reshape(()) for index in range(3))
    count = max(int(np.ceil((limit - start) / delta)), 0)
    return np.asarray(start + np.arange(count).astype(start.dtype) * delta, start.dtype)


def eye_like(call: Call) -> Array:
    """Ones on diagonal `k`, in the operand's shape and, without `dtype`, its type."""
    rows, columns = call[0].shape
    kind = call.attribute("dtype")
    like = call[0].real.dtype
    dtype = like if kind is None else call.cast(np.zeros(0), ir.DataType(int(kind))).dtype
    return np.asarray(np.eye(rows, columns, call.integer("k"), dtype=dtype))


def one_hot(call: Call) -> Array:
    """The on-value at the index, the off-value elsewhere, along a new axis; no index out of range is on."""
    indices, depth, values = call[0].real, int(call[1].real.reshape(())), call[2]
    axis = call.axis(-1, indices.ndim + 1)
    classes = np.arange(depth).reshape([-1 if at == axis else 1 for at in range(indices.ndim + 1)])
    wrapped = np.where(indices < 0, indices + depth, indices)
    on: Array = np.expand_dims(wrapped, axis) == classes
    return np.asarray(np.where(on, values[1], values[0]))


def trilu(call: Call) -> Array:
    """The upper or lower triangle of the last two axes from diagonal `k`; the rest, even NaN, becomes 0."""
    operand = call.get(1)
    k = 0 if operand is None else int(operand.reshape(()))
    return np.triu(call[0], k) if call.integer("upper", 1) else np.tril(call[0], k)


KERNELS: dict[str, Kernel] = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": lambda call: np.asarray(call[0].size, np.int64),
    "Range": arange,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "Trilu": trilu,
    "NonZero": lambda call: np.array(np.nonzero(dual.value(call[0])), np.int64).reshape(call[0].ndim, -1),
}
