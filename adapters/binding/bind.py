"""A graph whose exporter lost the names: its constants are found among a framework's arrays by their values.

Exporters permute axes (HWIO to OIHW), transpose, reshape and reverse kernels, put gates in another order, stack arrays
and cut them, multiply by a constant and fold batch normalisations. What a constant is made of is found by comparing
contents; the graph is then written so that the framework's arrays are its parameters, under their own names and in
their own layout, and what the exporter did to them is computed in front. Edits thus change the arrays themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery.graph.prepare import prepared
from surgery_adapters.binding.blocks import Arrays, Block, Bound, alike, whole
from surgery_adapters.binding.layout import Layout, telling
from surgery_adapters.binding.neighbours import Neighbours
from surgery_adapters.binding.norms import Fold, Norm, folds
from surgery_adapters.binding.rewrite import bare_width, rewrite

__all__ = ["Bound", "Fold", "Norm", "bind", "native"]

_MAX_STACK = 8
_WEIGHTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}


def native(
    checkpoint: Checkpoint, arrays: Mapping[str, ir.TensorProtocol], norms: Sequence[Norm] = ()
) -> Checkpoint:
    """A checkpoint whose parameters are a framework's arrays, under their names and in their layout.

    Args:
      checkpoint: a graph that an exporter made of these arrays.
      arrays: name -> array; the layer's name comes before the last dot or slash.
      norms: batch normalisations that the exporter may have folded.

    Returns:
      the same function. Arrays that the graph does not compute with are not among its tensors.

    Raises:
      Refused: a weight of the graph is none of the arrays, or which one it is cannot be told.
    """
    model = prepared(checkpoint.model)
    values = {key: np.asarray(tensor.numpy(), np.float32) for key, tensor in arrays.items()}
    binder = _Binder(model, values, norms)
    bound = binder.run()
    lost = binder.lost()
    return checkpoint.replace(model=rewrite(model, bound, binder.folded, lost, arrays))


def bind(
    checkpoint: Checkpoint, arrays: Mapping[str, Array], norms: Sequence[Norm] = ()
) -> Mapping[str, Bound]:
    """What the constants of a graph are made of, by the names that they have in `prepared(checkpoint.model)`.

    Raises:
      Refused: as `native`.
    """
    values = {key: np.asarray(array, np.float32) for key, array in arrays.items()}
    return _Binder(prepared(checkpoint.model), values, norms).run()


def group_of(key: str) -> str:
    """The layer that an array belongs to; flax's nnx wraps each in a variable with a `value`."""
    key = key.removesuffix(".value")
    return key[: max(key.rfind("."), key.rfind("/"), 0)]


@dataclass(frozen=True)
class _Candidate:
    key: str
    layout: Layout
    factor: float = 1.0


class _Binder:
    def __init__(self, model: ir.Model, arrays: Mapping[str, Array], norms: Sequence[Norm]) -> None:
        self._neighbours = Neighbours(model)
        self._arrays = Arrays(arrays)
        self._norms = norms
        self._values = {
            name: np.asarray(value.const_value.numpy(), np.float32)
            for name, value in self._neighbours.constants.items()
            if value.const_value is not None
        }
        self._bound: dict[str, Bound] = {}
        self.folded: list[Fold] = []

    def run(self) -> dict[str, Bound]:
        """Bind all constants that are arrays.

        Raises:
          Refused: a weight that is none, or one that may be several.
        """
        open_ = {
            name: [_Candidate(key, layout) for key, layout in self._arrays.equal(value)]
            for name, value in self._values.items()
        }
        for name in [
            name for name, found in open_.items() if telling(self._values[name]) and len(found) == 1
        ]:
            self._take(name, open_.pop(name)[0])
        self._settle(open_)
        self._compose([name for name in open_ if not open_[name]])
        open_ = {name: found for name, found in open_.items() if name not in self._bound}
        self._settle(open_)
        self._alone(open_)
        self.folded = folds(self._neighbours, self._values, self._arrays.arrays, self._norms, self._bound)
        self._refuse({name: found for name, found in open_.items() if name not in self._bound})
        return self._bound

    def lost(self) -> dict[str, tuple[ir.Node, int]]:
        """Biases that the exporter left out because they are zero -> the layer that they belong to, and its width."""
        used = {key for bound in self._bound.values() for key in bound.keys}
        used |= {key for fold in self.folded for key in fold.keys}
        found = {}
        for key, array in self._arrays.arrays.items():
            if key in used or np.any(array):
                continue
            layers = [
                (node, width)
                for name, bound in self._bound.items()
                if group_of(bound.key) == group_of(key)
                for node, index in self._neighbours.uses(name)
                if index == 1 and (width := bare_width(node, bound.shape)) == array.size
            ]
            if len(layers) == 1:
                found[key] = layers[0]
        return found

    def _take(self, name: str, found: _Candidate) -> None:
        self._bound[name] = whole(found.key, self._arrays.arrays[found.key], found.layout, found.factor)

    def _settle(self, open_: dict[str, list[_Candidate]]) -> None:
        """Tell apart what is equal by the layers around it, until nothing more can be told."""
        changed = True
        while changed:
            changed = False
            for name in [name for name in open_ if open_[name]]:
                left = self._usual(name, self._near(name, open_[name]))
                if len(left) == 1:
                    self._take(name, left[0])
                    del open_[name]
                    changed = True

    def _alone(self, open_: dict[str, list[_Candidate]]) -> None:
        """Vectors of one number everywhere, which tell nothing: taken where each can only be the other."""
        used = {key for bound in self._bound.values() for key in bound.keys}
        wanted = Counter(key for found in open_.values() for key in {one.key for one in found})
        for name, found in list(open_.items()):
            keys = {one.key for one in found} - used
            if self._values[name].ndim == 1 < self._values[name].size and len(keys) == 1:
                [key] = keys
                if wanted[key] == 1:
                    self._take(name, next(one for one in found if one.key == key))
                    del open_[name]

    def _near(self, name: str, candidates: list[_Candidate]) -> list[_Candidate]:
        """Those of the layer that the constant belongs to; an array that tells nothing needs such a witness."""
        known = {other: group_of(bound.key) for other, bound in self._bound.items()}
        around = self._neighbours.groups(name, known)
        left = [found for found in candidates if group_of(found.key) in around]
        if not left:
            words = self._neighbours.names(name)
            left = [
                found for found in candidates if words.intersection(re.split("[/.]", group_of(found.key)))
            ]
        return left if left or not telling(self._values[name]) else candidates

    def _usual(self, name: str, candidates: list[_Candidate]) -> list[_Candidate]:
        """Of several layouts of one array, the one in which other arrays of that rank come to that operator."""
        if len({found.key for found in candidates}) != 1 or len(candidates) == 1:
            return candidates
        places = {(node.op_type, index) for node, index in self._neighbours.uses(name)}
        usual = {
            (block.layout.permutation, block.layout.flipped)
            for other, bound in self._bound.items()
            for block in bound.blocks[:1]
            if isinstance(block, Block)
            and len(bound.blocks) == 1
            and places & {(node.op_type, index) for node, index in self._neighbours.uses(other)}
        }
        left = [found for found in candidates if (found.layout.permutation, found.layout.flipped) in usual]
        return left or candidates

    def _compose(self, names: list[str]) -> None:
        """Constants that are parts of arrays, put together or scaled; the largest first, as it tells the most."""
        for name in sorted(names, key=lambda name: -self._values[name].size):
            value = self._values[name]
            if value.size < 2:
                continue
            found = self._as_beside(name, value) or self._arrays.joined(value) or self._stacked(name)
            if found is not None:
                self._bound[name] = found
            elif len(scaled := self._arrays.scaled(value)) == 1:
                self._take(name, _Candidate(*scaled[0]))

    def _as_beside(self, name: str, value: Array, place: int | None = None) -> Bound | None:
        """A constant, or its block at a place, cut like what the same node computes with."""
        beside = (other for node, _ in self._neighbours.uses(name) for other in self._neighbours.beside(node))
        for bound in (self._bound[other] for other in beside if other in self._bound):
            pattern = bound if place is None else bound.blocks[place] if place < len(bound.blocks) else None
            if not isinstance(pattern, Bound):
                continue
            for key, array in self._arrays.arrays.items():
                if group_of(key) == group_of(pattern.key) and (found := alike(pattern, key, array, value)):
                    return found
        return None

    def _stacked(self, name: str) -> Bound | None:
        """A constant of several, one behind the other: the directions of a recurrent layer."""
        value = self._values[name]
        if value.ndim < 2 or not 1 < value.shape[0] <= _MAX_STACK:
            return None
        blocks = []
        for place in range(value.shape[0]):
            part = value[place : place + 1]
            equal = self._arrays.equal(part) if telling(part) else []
            found = (
                whole(equal[0][0], self._arrays.arrays[equal[0][0]], equal[0][1]) if len(equal) == 1 else None
            )
            block = found or self._as_beside(name, part, place) or self._arrays.joined(part)
            if block is None:
                return None
            blocks.append(block)
        return Bound(tuple(blocks), 0, value.shape)

    def _refuse(self, left: Mapping[str, list[_Candidate]]) -> None:
        """Raise what cannot be written back: a weight that is none of the arrays, while some arrays are left."""
        folded = {name for fold in self.folded for name in fold.constants}
        used = {key for bound in self._bound.values() for key in bound.keys}
        used |= {key for fold in self.folded for key in fold.keys}
        spare = [key for key in self._arrays.arrays if key not in used]
        for name, found in left.items():
            if name in folded or not spare:
                continue
            keys = list(dict.fromkeys(candidate.key for candidate in found))
            if any(key in spare for key in keys):
                what = "in several layouts" if len(keys) == 1 else f"as {', '.join(keys[1:4])} are"
                if telling(self._values[name]) or self._is_weight(name):
                    raise Refused(
                        f"the graph's '{name}' {list(self._values[name].shape)} is equal to '{keys[0]}', {what}",
                        hint="train for a step, so that no two parameters are equal, and export again",
                    )
            elif self._is_weight(name):
                raise Refused(
                    f"the graph's '{name}' {list(self._values[name].shape)} matches none of the file's arrays "
                    f"(unmatched: {', '.join(spare[:4])} …)",
                    hint="export the graph from this very file, in float32 and without other optimisations",
                )

    def _is_weight(self, name: str) -> bool:
        return any(node.op_type in _WEIGHTS and index > 0 for node, index in self._neighbours.uses(name))
