"""Two networks side by side: which layer of the one becomes which of the other, and by what exact edit.

The cheapest alignment of two sequences of layers (Needleman and Wunsch, 1970): first as few impossible steps as there
can be, then as few edits. A step matches two layers of one kind, or puts in a layer that starts without an effect:
a layer with the activation in front of it as the identity, or a residual block whose last layer is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from surgery.architectures.layers import (
    Activation,
    Attention,
    Branches,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Norm,
    Other,
    Pads,
    Pool,
    Recurrent,
    Residual,
    passing,
)
from surgery.architectures.recognise import Found, Tree
from surgery.graph.layout import Units, size, units
from surgery.graph.spaces import Analysis
from surgery.route.edits import Alignment, Cost, Edit, Insert, Kernel, Row, Widen
from surgery.route.sizes import Axis, whole, widths

_NO: Cost = (1, 0)
IDEMPOTENT = ("Relu",)
"""Activations that return their own results as they are."""


def align(tree: Tree, target: Sequence[Layer], analysis: Analysis) -> Alignment:
    """The cheapest way from a network to a target.

    Args:
      tree: the network. target: the wanted layers.
      analysis: of the network's graph: it says which spaces can grow.
    """
    found = _Aligner(analysis).sequence(tree, tuple(target), 0)
    return _agreed(found)


def _agreed(found: Alignment) -> Alignment:
    """Layers that share their units (a residual stream) must want the same number of them."""
    wanted: dict[str, int] = {}
    rows = []
    for row in found.rows:
        for edit in row.edits:
            if isinstance(edit, Widen) and wanted.setdefault(edit.space, edit.width) != edit.width:
                reason = f"'{edit.space}' cannot be {wanted[edit.space]} and {edit.width} wide at once"
                row = replace(row, edits=(), reason=reason)
        rows.append(row)
    impossible = sum(row.reason is not None for row in rows)
    return Alignment(tuple(rows), (impossible, found.cost[1]))


class _Aligner:
    """Aligns sequences of layers, and those inside them."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def sequence(self, tree: Tree, target: tuple[Layer, ...], depth: int) -> Alignment:
        """The cheapest alignment of two sequences."""

        done: dict[tuple[int, int], tuple[Cost, int, int, Alignment]] = {}
        end = Alignment((), (0, 0))
        for i in range(len(tree), -1, -1):
            for j in range(len(target), -1, -1):
                options = []
                for used, put, step in self._steps(tree, target, i, j, depth):
                    (no, edits), *_ = done[i + used, j + put]
                    options.append(((step.cost[0] + no, step.cost[1] + edits), used, put, step))
                done[i, j] = min(options, key=lambda option: option[0], default=((0, 0), 0, 0, end))
        rows: list[Row] = []
        i = j = 0
        while i < len(tree) or j < len(target):
            _, used, put, step = done[i, j]
            rows += step.rows
            i, j = i + used, j + put
        return Alignment(_numbered(rows, depth), done[0, 0][0])

    def _steps(
        self, tree: Tree, target: tuple[Layer, ...], i: int, j: int, depth: int
    ) -> Iterator[tuple[int, int, Alignment]]:
        """What can come next: (layers of the network used, layers of the target reached, the step)."""
        if i < len(tree) and j < len(target):
            matched = self._match(tree[i], target[j], depth)
            if matched is not None:
                yield 1, 1, matched
        if j < len(target):
            if passing(target[j]):
                yield 0, 1, Alignment((), (0, 0))
            inserted = self._insert(tree, target, i, j, depth)
            if inserted is not None:
                yield 0, inserted[0], inserted[1]
            yield self._missing(target, j, depth)
        if i < len(tree):
            have = tree[i]
            if passing(have.layer):
                row, cost = Row(depth, "", str(have.layer), ""), 0
            else:
                reason = "the target has no such layer, and no edit removes a layer exactly"
                row, cost = Row(depth, _name(have), str(have.layer), "", reason=reason), _count(have.layer)
            yield 1, 0, Alignment((row,), (cost, 0))

    # ---- a layer for a layer ----------------------------------------------------------------------------------

    def _match(self, have: Found, want: Layer, depth: int) -> Alignment | None:
        layer = have.layer
        if isinstance(layer, Residual) and isinstance(want, Residual):
            return self._inner(have, ((have.branches[0], want.body),), "residual", depth)
        if isinstance(layer, Branches) and isinstance(want, Branches):
            if layer.join != want.join or len(have.branches) != len(want.branches):
                return None
            pairs = tuple(zip(have.branches, want.branches, strict=True))
            return self._inner(have, pairs, layer.join, depth)
        if type(layer) is not type(want):
            return None
        edits, reason = self._edits(have, want)
        narrower = _narrower(have, want) if reason else None
        row = Row(depth, _name(have), str(layer), str(want), () if reason else tuple(edits), reason, narrower)
        return Alignment((row,), _NO if reason else (0, len(edits)))

    def _inner(
        self, have: Found, pairs: Sequence[tuple[Tree, tuple[Layer, ...]]], title: str, depth: int
    ) -> Alignment:
        rows, cost = [Row(depth, _name(have), title, title)], (0, 0)
        for tree, target in pairs:
            inner = self.sequence(tree, target, depth + 1)
            rows += inner.rows
            cost = (cost[0] + inner.cost[0], cost[1] + inner.cost[1])
        return Alignment(tuple(rows), cost)

    def _edits(self, have: Found, want: Layer) -> tuple[list[Edit], str | None]:
        """What makes a layer another one of its kind, or why nothing does."""
        match have.layer, want:
            case Convolution() as old, Convolution() as new:
                kernel, reason = _kernel(have, old, new)
                widen, narrow = self._width(have, old.channels, new.channels)
                return kernel + widen, reason or narrow
            case (Dense(width=old_width), Dense(width=new_width)) | (
                Recurrent(width=old_width), Recurrent(width=new_width)
            ):  # fmt: skip
                if getattr(have.layer, "kind", "") != getattr(want, "kind", ""):
                    return [], f"{have.layer} cannot become {want}"
                return self._width(have, old_width, new_width)
            case Attention() as old_attention, Attention() as new_attention:
                return self._attention(have, old_attention, new_attention)
            case Flatten(), Flatten():
                return [], None
            case Other() as old_other, Other() as new_other if old_other == new_other:
                return self._shapes(have, new_other)
        if have.layer == want:
            return [], None
        return [], _difference(have.layer, want)

    def _width(self, have: Found, old: int, new: int) -> tuple[list[Edit], str | None]:
        if not have.units and old != new:
            return [], "it is not known which axis of its tensors holds its units"
        groups = size(have.units) // old  # the gates of a recurrent layer
        return self._sizes([(have.units, groups * new)]) if old != new else ([], None)

    def _shapes(self, have: Found, want: Other) -> tuple[list[Edit], str | None]:
        """Anything else: its tensors, one by one; a named target says nothing of them."""
        if not want.shapes:
            return [], None
        tensors = [self._analysis.tensors[name] for name in have.weights]
        if [len(tensor) for tensor in tensors] != [len(shape) for shape in want.shapes]:
            return [], "its tensors differ from the target's"
        pairs = zip(tensors, want.shapes, strict=True)
        return self._sizes([pair for axes, shape in pairs for pair in zip(axes, shape, strict=True)])

    def _sizes(self, axes: Sequence[Axis]) -> tuple[list[Edit], str | None]:
        found = widths(self._analysis, axes)
        if isinstance(found, str):
            return [], found
        return [Widen(space, width) for space, width in found.items()], whole(self._analysis, found)

    def _attention(self, have: Found, old: Attention, new: Attention) -> tuple[list[Edit], str | None]:
        """More heads, or larger ones: heads · size units in the queries and keys, and in the values."""
        sizes = (old.width // old.heads, new.width // new.heads)
        edits: list[Edit] = []
        for weight in have.weights:
            for axis in self._analysis.tensors[weight]:
                parts = [part for part in axis if isinstance(part, Units) and part.role == "out"]
                if len(parts) != 2:
                    continue
                for part, (before, after) in zip(parts, ((old.heads, new.heads), sizes), strict=True):
                    if part.size != before or after < before:
                        return [], f"{old} cannot become {new}"
                    if after > before and Widen(part.space, after) not in edits:
                        edits.append(Widen(part.space, after))
        return edits, None if edits or old == new else f"{old} cannot become {new}"

    # ---- a new layer ------------------------------------------------------------------------------------------

    def _insert(
        self, tree: Tree, target: tuple[Layer, ...], i: int, j: int, depth: int
    ) -> tuple[int, Alignment] | None:
        """A layer that can be put in before `tree[i]`, and how many layers of the target it is."""
        before = tree[i - 1] if i else None
        if before is None or not before.after:
            return None
        want = target[j]
        if isinstance(want, Residual) and (cell := _cell(want)) is not None and _runs(before, cell):
            row = Row(depth, "", "", str(want), (Insert("recurrent", before.after, want),))
            return 1, Alignment((row,), (0, 1))
        if isinstance(want, Residual) and _is_block(want) and self._streams(tree, i):
            like = tuple(found.weights[0] for branch in before.branches for found in branch if found.weights)
            row = Row(depth, "", "", str(want), (Insert("residual", before.after, want, like),))
            return 1, Alignment((row,), (0, 1))
        pair = target[j : j + 2]
        if len(pair) < 2 or not self._is_identity(before, pair, target[j - 1] if j else None):
            return None
        if _width(want) < (_width_before(tree, i) or _width(want) + 1):
            return None
        rows = (
            Row(depth, "", "", str(want), (Insert("identity", before.after, want),)),
            Row(depth, "", "", str(pair[1])),
        )
        return 2, Alignment(rows, (0, 1))

    @staticmethod
    def _streams(tree: Tree, i: int) -> bool:
        """Whether a layer with units comes before a place."""
        return any(isinstance(found.layer, (Convolution, Dense, Residual, Recurrent)) for found in tree[:i])

    @staticmethod
    def _is_identity(before: Found, pair: Sequence[Layer], last: Layer | None) -> bool:
        """Whether a layer and its activation can start as the identity behind the same activation."""
        layer, activation = pair
        if not isinstance(activation, Activation) or activation.kind not in IDEMPOTENT:
            return False
        if before.layer != activation or last != activation:
            return False
        if isinstance(layer, Convolution):
            return layer.stride == (1, 1) and _centred(layer)
        return isinstance(layer, Dense)

    def _missing(self, target: tuple[Layer, ...], j: int, depth: int) -> tuple[int, int, Alignment]:
        """A layer of the target that nothing exact puts in, with the activation behind it."""
        want, pair = target[j], target[j : j + 2]
        rows = [Row(depth, "", "", str(want), reason=self._no_insert(want))]
        cost = _count(want)
        if len(pair) == 2 and isinstance(want, (Convolution, Dense)) and isinstance(pair[1], Activation):
            rows.append(Row(depth, "", "", str(pair[1])))
            cost += 1
        return 0, len(rows), Alignment(tuple(rows), (cost, 0))

    @staticmethod
    def _no_insert(want: Layer) -> str:
        """Why a layer of the target cannot be put in."""
        if isinstance(want, (Convolution, Dense)):
            if isinstance(want, Convolution) and want.stride != (1, 1):
                return "a convolution with a stride cannot start as the identity"
            return "it could start as the identity only between two activations that keep their own results (relu)"
        if isinstance(want, Residual):
            return "a block of this form has no rule to start at zero"
        if isinstance(want, Recurrent):
            return "a recurrent layer cannot start as the identity; as a residual block it can start at zero"
        return "no exact edit inserts it here"


def _count(layer: Layer) -> int:
    """How many layers it is, with all inside it."""
    match layer:
        case Branches(branches=inner):
            return 1 + sum(_count(part) for branch in inner for part in branch)
        case Residual(body=body):
            return 1 + sum(map(_count, body))
    return 1


def _kernel(have: Found, old: Convolution, new: Convolution) -> tuple[list[Edit], str | None]:
    """A kernel grows exactly if the new taps lie around the old ones and the image is padded as much more."""
    if old.stride != new.stride:
        return [], f"stride {old.stride[0]} cannot become {new.stride[0]}"
    if old.kernel == new.kernel and old.padding == new.padding:
        return [], None
    before, after = _numbers(old), _numbers(new)
    for axis in range(2):
        taps = new.kernel[axis] - old.kernel[axis]
        more = (after[axis] - before[axis], after[axis + 2] - before[axis + 2])
        if taps < 0:
            return [], f"the target's kernel is smaller: {_size(old)} cannot become {_size(new)}"
        if more != (taps // 2, taps - taps // 2):
            return [], f"kernel {_size(old)} with padding {before} cannot become {_size(new)} with {after}"
    return [Kernel(have.weights[0], new.kernel)], None


def _numbered(rows: Sequence[Row], depth: int) -> tuple[Row, ...]:
    """New layers at one place of a sequence are told apart by their order."""
    counts: dict[str, int] = {}
    out: list[Row] = []
    for row in rows:
        edits = list(row.edits)
        for k, edit in enumerate(edits):
            if row.depth == depth and isinstance(edit, Insert):
                edits[k] = replace(edit, index=counts.get(edit.after, 0))
                counts[edit.after] = counts.get(edit.after, 0) + 1
        out.append(replace(row, edits=tuple(edits)))
    return tuple(out)


def _narrower(have: Found, want: Layer) -> tuple[str, int] | None:
    """The space that has more units than the target, and how many that has."""
    sizes = [_width(have.layer), _width(want)]
    found = {part.space for part in units(have.units)}
    return (found.pop(), sizes[1]) if len(found) == 1 and sizes[1] < sizes[0] else None


def _numbers(layer: Convolution) -> Pads:
    assert not isinstance(layer.padding, str), "layers are resolved before they are aligned"
    return layer.padding


def _size(layer: Convolution) -> str:
    return f"{layer.kernel[0]}×{layer.kernel[1]}"


def _centred(layer: Convolution) -> bool:
    """Whether a convolution of stride one keeps the size of the image, with a tap in the middle."""
    half = tuple(size // 2 for size in layer.kernel)
    odd = all(size % 2 for size in layer.kernel) and layer.kernel[0] == layer.kernel[1]
    return odd and _numbers(layer) == (*half, *half)


def _is_block(layer: Residual) -> bool:
    """Activation, layer, activation, layer: the form of IMPALA's blocks, which starts at zero with its last layer."""
    match layer.body:
        case (Activation() as first, Convolution() as a, Activation() as second, Convolution() as b):
            same = a.kernel == b.kernel and _centred(a) and _centred(b) and a.stride == b.stride == (1, 1)
            return first == second and same
        case (Activation() as first, Dense(), Activation() as second, Dense()):
            return first == second
    return False


def _width(layer: Layer) -> int:
    """How many units a layer has; 0 for one that has none of its own."""
    return int(getattr(layer, "channels", getattr(layer, "width", 0)))


def _width_before(tree: Tree, i: int) -> int | None:
    """How many units there are at a place, as an identity would have them; None if no layer just before says so."""
    for found in reversed(tree[:i]):
        if isinstance(found.layer, (Convolution, Dense, Recurrent)):
            return _width(found.layer)
        if not isinstance(found.layer, (Activation, Pool, Norm)):
            return None
    return None


def _cell(layer: Residual) -> Recurrent | None:
    """The cell of a block of a recurrent and a dense layer, which starts at zero with the latter."""
    match layer.body:
        case (Recurrent() as cell, Dense()):
            return cell
    return None


def _runs(before: Found, cell: Recurrent) -> bool:
    """Whether a layer is recurrent, with the same kind of cell, or a block of one."""
    layer = before.layer
    found = _cell(layer) if isinstance(layer, Residual) else layer
    return isinstance(found, Recurrent) and found.kind == cell.kind


def _difference(have: Layer, want: Layer) -> str:
    if isinstance(have, Pool) and isinstance(want, Pool) and str(have) == str(want):
        return f"padding {have.padding} cannot become {want.padding}"
    return f"{have} cannot become {want}"


def _name(found: Found) -> str:
    return getattr(found.layer, "name", "")
