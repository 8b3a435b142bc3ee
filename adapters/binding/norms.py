"""Batch normalisations that an exporter folded into constants, found again and undone.

s = γ/√(σ² + ε),  t = β − s μ;   y = s x + t,   or inside a layer:  (s W) x + (s b + t)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery_adapters.binding.blocks import Bound, whole
from surgery_adapters.binding.layout import layouts
from surgery_adapters.binding.neighbours import Neighbours

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Norm:
    """A batch normalisation by the keys of its arrays; None for a scale or a shift that it does not have."""

    scale: str | None
    shift: str | None
    mean: str
    variance: str
    epsilon: float

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its arrays."""
        return tuple(key for key in (self.scale, self.shift, self.mean, self.variance) if key is not None)

    def affine(self, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """s and t, in float64."""
        mean, variance = (arrays[key].astype(np.float64) for key in (self.mean, self.variance))
        s = (1.0 if self.scale is None else arrays[self.scale]) / np.sqrt(variance + self.epsilon)
        return np.asarray(s), np.asarray((0.0 if self.shift is None else arrays[self.shift]) - s * mean)


@dataclass(frozen=True)
class Fold:
    """A normalisation and where it went.

    Attributes:
      norm: what was folded.
      node: the layer that it was folded into, or the multiplication that is its first half.
      add: the addition that is its second half, or of the layer's bias; None if the layer has its bias itself.
      constants: names of the graph's constants that it went into.
      weight: of the layer, as it was; None if the normalisation stands alone.
      bias: key of the layer's own bias.
      channel_last: whether the channels are the last axis of what is normalised.
    """

    norm: Norm
    node: ir.Node
    add: ir.Node | None
    constants: tuple[str, ...]
    weight: Bound | None = None
    bias: str | None = None
    channel_last: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all arrays that take part."""
        weight = self.weight.keys if self.weight else ()
        return (*self.norm.keys, *weight, *([self.bias] if self.bias else []))


def folds(
    neighbours: Neighbours,
    values: Mapping[str, Array],
    arrays: Mapping[str, Array],
    norms: Sequence[Norm],
    bound: dict[str, Bound],
) -> list[Fold]:
    """Find the normalisations that are constants now; takes what they went into out of `bound`."""
    found = []
    for norm in norms:
        if any(key in known.keys for known in bound.values() for key in (norm.mean, norm.variance)):
            continue  # it is in the graph as it is
        fold = _alone(neighbours, values, arrays, norm) or _inside(neighbours, values, arrays, norm, bound)
        if fold is not None:
            found.append(fold)
            for name in fold.constants:
                bound.pop(name, None)
    return found


def _close(constant: Array, wanted: Array) -> bool:
    return constant.size == wanted.size and bool(
        np.allclose(constant.reshape(-1), wanted.reshape(-1), rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(wanted).max())
    )  # fmt: skip


def _alone(
    neighbours: Neighbours, values: Mapping[str, Array], arrays: Mapping[str, Array], norm: Norm
) -> Fold | None:
    """`x · s + t`."""
    s, t = norm.affine(arrays)
    for name, value in values.items():
        if not _close(value, s):
            continue
        for node, _ in neighbours.uses(name):
            add = _only_reader(node, "Add")
            if node.op_type != "Mul" or add is None:
                continue
            for other in neighbours.beside(add):
                if _close(values[other], t):
                    last = value.ndim <= 1 or value.shape[-1] == value.size
                    return Fold(norm, node, add, (name, other), channel_last=last)
    return None


def _inside(
    neighbours: Neighbours,
    values: Mapping[str, Array],
    arrays: Mapping[str, Array],
    norm: Norm,
    bound: Mapping[str, Bound],
) -> Fold | None:
    """`(s W) x + (s b + t)`."""
    s, t = norm.affine(arrays)
    for name, value in values.items():
        if name in bound or value.ndim < 2:
            continue
        for weight in _scaled_weights(value, s, arrays):
            for node, index in neighbours.uses(name):
                if index != 1 or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                    continue
                add = None if node.op_type != "MatMul" else _only_reader(node, "Add")
                prefix = weight.key[: max(weight.key.rfind("."), weight.key.rfind("/"))]
                own = [key for key in arrays if key.startswith(prefix) and key != weight.key]
                for other in neighbours.beside(add or node):
                    for bias in (None, *own):
                        shifted = (
                            t
                            if bias is None
                            else t + s * arrays[bias]
                            if arrays[bias].shape == s.shape
                            else None
                        )
                        if other != name and shifted is not None and _close(values[other], shifted):
                            return Fold(
                                norm, node, add, (name, other), weight, bias, node.op_type == "MatMul"
                            )
    return None


def _scaled_weights(constant: Array, s: Array, arrays: Mapping[str, Array]) -> Iterator[Bound]:
    """The arrays that a constant is once their output channels are multiplied by s."""
    peak = np.abs(constant).max(initial=0.0)
    for key, array in arrays.items():
        if array.ndim < 2 or array.size != constant.size:
            continue
        for factors in _along_outputs(array.shape, s):
            scaled = (array * factors).astype(np.float32)
            order = np.sort(np.abs(scaled.reshape(-1)))
            if np.allclose(order, np.sort(np.abs(constant.reshape(-1))), _TOLERANCE, _TOLERANCE * peak):
                for layout in layouts(scaled, constant, _TOLERANCE):
                    yield whole(key, array, layout)


def _along_outputs(shape: tuple[int, ...], s: Array) -> Iterator[Array]:
    """Factors that broadcast: the last axis, that before it (transposed convolution), both (depthwise)."""
    if shape[-1] == s.size:
        yield s
    elif shape[-2] * shape[-1] == s.size:
        yield s.reshape(shape[-2:])
    elif shape[-2] == s.size:
        yield s[:, None]


def _only_reader(node: ir.Node, kind: str) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == kind else None
