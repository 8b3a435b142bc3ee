"""What a policy does to arrays, in NumPy: where onnxruntime plays on a CPU, PyTorch need not be loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array

Read = Callable[[Mapping[str, Any], int], Any]
"""Outputs by name, and of how many observations they are, as one array."""


class Arrays(Protocol):
    """NumPy's arrays, or PyTorch's tensors on a device. `Any` is one of these throughout a policy."""

    def take(self, given: Any) -> Any:  # noqa: ANN401
        """Numbers of any element type, where the network runs."""

    def cast(self, x: Any, dtype: ir.DataType) -> Any:  # noqa: ANN401
        """Of another element type, and contiguous."""

    def zeros(self, sizes: Sequence[int], dtype: ir.DataType) -> Any: ...  # noqa: ANN401

    def cleared(self, x: Any, where: Any) -> Any:  # noqa: ANN401
        """With zeros where `where`, which is broadcast, is true."""

    def forbidden(self, scores: Any, where: Any) -> Any:  # noqa: ANN401
        """With -inf where `where` (A,) is true."""

    def channels_last(self, x: Any) -> Any:  # noqa: ANN401
        """(n, C, …) as (n, …, C)."""

    def joined(self, parts: Sequence[Any]) -> Any:  # noqa: ANN401
        """One after the other."""

    def repeated(self, row: Any, count: int) -> Any:  # noqa: ANN401
        """(1, …) as (count, …)."""

    def softmax(self, x: Any) -> Any:  # noqa: ANN401
        """Over the last axis."""

    def log(self, x: Any) -> Any:  # noqa: ANN401
        """Of each, -inf of 0."""

    def one_hot(self, index: Any, count: int) -> Any:  # noqa: ANN401
        """(n,) as (n, count) float32."""

    def host(self, x: Any) -> Array:  # noqa: ANN401
        """As NumPy's."""


class Host:
    """`Arrays` in NumPy."""

    def take(self, given: Any) -> Array:  # noqa: ANN401
        return np.asarray(given)

    def cast(self, x: Array, dtype: ir.DataType) -> Array:
        return np.ascontiguousarray(x, dtype=dtype.numpy())

    def zeros(self, sizes: Sequence[int], dtype: ir.DataType) -> Array:
        return np.zeros(sizes, dtype.numpy())

    def cleared(self, x: Array, where: Array) -> Array:
        return np.where(where, np.zeros_like(x), x)

    def forbidden(self, scores: Array, where: Array) -> Array:
        return np.where(where, np.float32(-np.inf), scores)

    def channels_last(self, x: Array) -> Array:
        return np.moveaxis(x, 1, -1)

    def joined(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts)

    def repeated(self, row: Array, count: int) -> Array:
        return np.repeat(row, count, axis=0)

    def softmax(self, x: Array) -> Array:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(powers / powers.sum(-1, keepdims=True))

    def log(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(x)

    def one_hot(self, index: Array, count: int) -> Array:
        return np.asarray(index[:, None] == np.arange(count), np.float32)

    def host(self, x: Array) -> Array:
        return x
