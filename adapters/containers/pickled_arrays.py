"""NumPy's and JAX's arrays inside a pickle that was read as a tree: read, and replaced, without executing anything.

JAX pickles an array as NumPy's own reduction, with what its type says of it behind
(https://github.com/jax-ml/jax, `jax/_src/array.py`, `_reconstruct_array`; `device_array.py` before 0.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.errors import CorruptFile
from surgery_adapters.containers.pickle_tree import Made, Name

_FROM_BUFFER = ("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer")
_RECONSTRUCT = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
_SCALAR = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")


def is_array(node: object) -> bool:
    """Whether a node makes an array."""
    return isinstance(node, Made) and (node.is_a(*_FROM_BUFFER, *_RECONSTRUCT) or _of_jax(node))


def read_array(node: object) -> Array:
    """The array that a node makes.

    Raises:
      CorruptFile: it makes none of numbers.
    """
    if not isinstance(node, Made):
        raise CorruptFile("an array of the file cannot be read")
    if _of_jax(node):
        return _restored(node.arguments[2])
    if node.is_a(*_RECONSTRUCT):
        return _restored(node.state)
    if node.is_a(*_FROM_BUFFER) and len(node.arguments) == 4:
        return _array(*node.arguments)
    raise CorruptFile(f"an array of the file is {node}, which cannot be read")


def write_array(like: object, array: Array) -> Made:
    """A node that makes an array, in the way that another node does."""
    if not isinstance(like, Made):
        raise CorruptFile("an array of the file cannot be written")
    if like.is_a(*_FROM_BUFFER):
        dtype = like.arguments[1]
        data = np.ascontiguousarray(array, read_dtype(dtype)).tobytes()
        buffer = bytearray(data) if isinstance(like.arguments[0], bytearray) else data
        return Made(like.maker, (buffer, dtype, tuple(array.shape), "C"), like.how)
    if _of_jax(like):
        function, arguments, state, *rest = like.arguments
        return Made(like.maker, (function, arguments, _changed(state, array), *rest), like.how)
    return Made(like.maker, like.arguments, like.how, state=_changed(like.state, array))


def read_scalar(node: object) -> float | int | bool | None:
    """The number that a node makes, if it makes a NumPy scalar."""
    if not isinstance(node, Made) or not node.is_a(*_SCALAR) or len(node.arguments) != 2:
        return None
    found: float | int | bool = _array(node.arguments[1], node.arguments[0], (), "C").item()
    return found


def read_integer(node: object) -> int | None:
    """A whole number, also one of NumPy's or an array of one; None if it is something else."""
    if is_array(node):
        array = read_array(node)
        return int(array.item()) if array.size == 1 and array.dtype.kind in "iu" else None
    found = node if (scalar := read_scalar(node)) is None else scalar
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def read_dtype(node: object) -> np.dtype[Any]:
    """An element type.

    Raises:
      CorruptFile: it is not one of numbers.
    """
    if isinstance(node, Name) and node.module == "numpy":
        name, order = node.name, "="
    elif isinstance(node, Made) and node.is_a("numpy.dtype") and node.arguments:
        name, order = str(node.arguments[0]), "="
        if isinstance(node.state, tuple) and ">" in node.state[1:2]:
            order = ">"
    else:
        raise CorruptFile("an array of the file has no element type")
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise CorruptFile(f"an array of the file holds '{name[:40]}', which are no numbers") from error
    if dtype.kind not in "fiub":
        raise CorruptFile(f"an array of the file holds '{dtype}', which are no numbers")
    return np.dtype(dtype.newbyteorder(">")) if order == ">" else dtype


def _of_jax(node: Made) -> bool:
    return (
        isinstance(node.maker, Name)
        and node.maker.module.partition(".")[0] == "jax"
        and len(node.arguments) >= 3
        and isinstance(node.arguments[0], Name)
        and str(node.arguments[0]) in _RECONSTRUCT
    )


def _restored(state: object) -> Array:
    if not isinstance(state, tuple) or len(state) != 5:
        raise CorruptFile("an array of the file is damaged")
    _, shape, dtype, fortran, buffer = state
    return _array(buffer, dtype, shape, "F" if fortran else "C")


def _array(buffer: object, dtype: object, shape: object, order: object) -> Array:
    content, kind = read_bytes(buffer), read_dtype(dtype)
    sizes = shape if isinstance(shape, tuple) and all(type(size) is int for size in shape) else None
    try:
        if sizes is None or min(sizes, default=0) < 0 or order not in ("C", "F"):
            raise ValueError(f"a shape of {shape!r}"[:80])
        return np.frombuffer(content, kind).reshape(sizes, order="F" if order == "F" else "C")
    except ValueError as error:
        raise CorruptFile(f"an array of the file is damaged: {error}") from error


def _changed(state: object, array: Array) -> tuple[object, ...]:
    assert isinstance(state, tuple)  # it was read
    version, _, dtype, _, buffer = state
    data = np.ascontiguousarray(array, read_dtype(dtype)).tobytes()
    content = (
        Made(buffer.maker, (data.decode("latin1"), "latin1"), buffer.how)
        if isinstance(buffer, Made)
        else data
    )
    return version, tuple(array.shape), dtype, False, content


def read_bytes(buffer: object) -> bytes:
    """What stands for bytes: in a protocol before 3 they are text in latin1.

    Raises:
      CorruptFile: something else.
    """
    if isinstance(buffer, Made) and buffer.is_a("_codecs.encode"):
        match buffer.arguments:
            case str(text), "latin1" | "latin-1":
                return text.encode("latin1")
    if isinstance(buffer, bytes | bytearray):
        return bytes(buffer)
    raise CorruptFile("an array of the file has no data")
