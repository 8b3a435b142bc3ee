"""Split fused tensors: queries, keys and values, gates, or several heads in one weight get tensors of their own."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.checkpoint import Checkpoint
from surgery.edits.copies import original_name
from surgery.edits.parting import Parted
from surgery.edits.plan import Plan
from surgery.edits.rewiring import Rewiring
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph import layout
from surgery.graph.atoms import factors, size_of, summands
from surgery.graph.modules import modules
from surgery.graph.spaces import Analysis
from surgery.optimizer import slots_of_each


def split_fused(checkpoint: Checkpoint, layer: str, *, parts: Sequence[str] | None = None) -> Plan:
    """Give every part of a fused layer tensors of its own.

    A layer is fused where the graph cuts its result: into queries, keys and values, the gates of a cell, values and
    gates, several heads. Its weight and bias are cut at the same places, their optimizer slots with them. The graph
    joins the parts before it computes: the same operators get the same numbers. Afterwards the parts can have learning
    rates of their own, be frozen, renamed, or replaced one by one.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      layer: a module path, whose tensors are all cut, or one tensor.
      parts: what the parts are called, in order: `gate.weight` becomes `gate.q.weight`, … ; numbers by default.

    Returns:
      A plan that claims "equivalent": the parts are the old numbers bit by bit, but a runtime that does not fold
      constants may multiply with a joined matrix by another kernel.

    Raises:
      UnknownName: no such layer. ArgumentError: names that do not fit. Refused: a layer that the graph does not cut.
    """
    analysis = checkpoint.analysis
    paths = modules(analysis.model, analysis.trace)
    held = [name for name in paths if name in checkpoint.tensors]
    chosen = [name for name in held if layer in (name, paths[name])]
    if not chosen:
        raise UnknownName("layer", layer, [*dict.fromkeys(paths[name] for name in held)])
    cuts = {name: cut for name in chosen if (cut := _cut(analysis, name)) is not None}
    if not cuts:
        raise Refused(f"'{layer}' is not fused: the graph does not cut the units that it makes")
    originals = {original_name(name, checkpoint.copies) for name in cuts}
    copies = [name for name in held if original_name(name, checkpoint.copies) in originals]
    cuts |= {name: cut for name in copies if (cut := _cut(analysis, name)) is not None}
    taken = {*checkpoint.tensors, *(str(v.name) for node in analysis.model.graph for v in node.outputs)}
    parted = []
    for name, (axis, sizes) in cuts.items():
        names = _names(name, parts, len(sizes))
        if clash := taken.intersection(names):
            raise ArgumentError(
                f"two tensors would be called '{min(clash)}'", hint="give other names of parts"
            )
        taken.update(names)
        parted.append(Parted(name, axis, sizes, names))
    return Plan(
        "split_fused", {"layer": layer, "parts": list(parts) if parts else None}, "equivalent", (), (), (),
        slots=_slots(checkpoint, parted), rewiring=Rewiring(parted=tuple(parted)),
    )  # fmt: skip


def _cut(analysis: Analysis, tensor: str) -> tuple[int, tuple[int, ...]] | None:
    """Where the graph cuts the units that a tensor makes: the axis, and the sizes of the parts."""
    for axis, atoms in enumerate(analysis.trace.tensors[tensor]):
        first = next(iter(factors(atoms)), None)
        unit = next(layout.units(analysis.tensors[tensor][axis]), None)
        if first is None or first.segments is None or unit is None or unit.role == "in":
            continue
        rest = size_of(atoms) // first.size
        sizes = tuple(size_of(tuple(part)) * rest for part in summands(first))
        if len(sizes) > 1:
            return axis, sizes
    return None


def _names(tensor: str, parts: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """`gate.weight` -> `gate.0.weight`, `gate.1.weight`."""
    called = [str(k) for k in range(count)] if parts is None else list(parts)
    if len(called) != count or len(set(called)) != count or not all(called):
        raise ArgumentError(
            f"'{tensor}' has {count} parts, which need {count} different names", hint=f"got: {called}"
        )
    path, dot, last = tensor.rpartition(".")
    return tuple(f"{path}.{part}.{last}" if dot else f"{last}.{part}" for part in called)


def _slots(checkpoint: Checkpoint, parted: Sequence[Parted]) -> dict[str, int]:
    counts = slots_of_each(checkpoint.optimizer, [one.tensor for one in parted])
    return {name: counts[one.tensor] for one in parted if one.tensor in counts for name in one.names}
