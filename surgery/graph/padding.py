"""Growing normalised units by any number: new units that the normaliser turns into zero.

A layer norm over D' units, of which the new ones are at the mean of the old, has D/D' times the variance; an RMS norm
over zeros has D/D' times the mean square. With η = √(D/D'), γ' = η·γ and ε' = η²·ε, the old units come out as they
were and the new ones as zero (β' = 0 there), so that whatever reads them can start anywhere.

The new units are at the mean, or at zero, if everything that makes them starts so and only linear functions (for a
mean) or functions with f(0) = 0 (for a zero) lie between. As in `demands`, both demands travel back over the origins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from surgery.graph.atoms import Atom, factors, find, leaves
from surgery.graph.demands import Demand, together, travel
from surgery.graph.layout import Role
from surgery.graph.norms import Norm, norms
from surgery.graph.records import Site
from surgery.graph.roles import Roles
from surgery.graph.trace import Trace


@dataclass(frozen=True)
class Padding:
    """How a class of units grows under its normalisers.

    Attributes:
      kind: "layer" (new units at the mean of the old) or "rms" (at zero).
      roles: parameter occurrence -> its role when new units are padding, where it is another one.
      scales: the tensors γ that are rescaled.
      epsilons: where their ε stand, which are rescaled: node, attribute or input index, value, whether without axis.
    """

    kind: Literal["layer", "rms"]
    roles: Mapping[Atom, Role]
    scales: tuple[str, ...]
    epsilons: tuple[tuple[ir.Node, int | str, float, bool], ...]


def paddings(trace: Trace, roles: Roles) -> dict[Atom, Padding]:
    """The classes of units that can be padded, by representative."""
    over: dict[Atom, list[Norm]] = {}
    every = norms(trace)
    for norm in every:
        for leaf in leaves(norm.data):
            over.setdefault(find(leaf), []).append(norm)
    outputs = frozenset(leaf for norm in every for leaf in leaves(norm.result))
    zeros: dict[Atom, Demand] = {}
    means: dict[Atom, Demand] = {}

    def zero(atoms: Iterable[Atom]) -> Demand:
        return together([travel(zeros, atom, lambda a, behind: _zero(a, behind, outputs)) for atom in atoms])

    def mean(atoms: Iterable[Atom]) -> Demand:
        return together([travel(means, atom, averaged) for atom in atoms])

    found: dict[Atom, Padding] = {}
    for root, own in over.items():
        padding = _padding(trace, roles, root, own, zero, mean)
        if padding is not None:
            found[root] = padding
    return found


Ask = Callable[[Iterable[Atom]], Demand]


def _padding(trace: Trace, roles: Roles, root: Atom, own: list[Norm], zero: Ask, mean: Ask) -> Padding | None:
    kinds = {norm.kind for norm in own}
    limits = [axis for axis, mode, _ in trace.limits if mode == "zero"] + [axis for axis, _ in trace.domains]
    limited = {find(leaf) for leaf in leaves(*limits)}
    if root.frozen or len(kinds) != 1 or root in limited or any(root in group for group in roles.alike):
        return None
    if not all(_whole_axis(norm) and _own_scale(trace, norm, own) for norm in own):
        return None
    kind = kinds.pop()
    ask = mean if kind == "layer" else zero
    asked = together([ask(leaves(norm.data)) for norm in own])
    if not asked.level:
        return None
    start: Role = "mean" if kind == "layer" else "zero"
    if start == "mean" and not asked.parameters.isdisjoint(roles.consumers):  # others need zeros there
        return None
    special: dict[Atom, Role] = dict.fromkeys(asked.parameters, start)
    for norm in own:
        shifts = [] if norm.shift is None else list(leaves(trace.tensors[norm.shift.name or ""][-1]))
        if asked.parameters.intersection(shifts):  # it would have to start in two ways
            return None
        special.update(dict.fromkeys(shifts, "zero"))
    readers = _readers(trace, root, own)
    if readers is None:
        return None
    stuck = {leaf for weights, units in readers if not _vanishes(zero(units), special) for leaf in weights}
    free = {leaf for weights, _ in readers for leaf in weights} - stuck
    special.update(dict.fromkeys(free, "out"))
    scales = dict.fromkeys(norm.scale.name or "" for norm in own)
    return Padding(kind, special, tuple(scales), tuple(norm.epsilon for norm in own))


def _whole_axis(norm: Norm) -> bool:
    parts = factors(norm.data)
    return len(parts) == 1 and parts[0].segments is None and parts[0].woven is None


def _own_scale(trace: Trace, norm: Norm, own: list[Norm]) -> bool:
    """γ and β are parameters of full width, and γ is read by these normalisers alone."""
    for value in (norm.scale, norm.shift):
        axes = [] if value is None else trace.tensors.get(value.name or "", [])
        if value is not None and not (axes and axes[-1]):
            return False
    return len(norm.scale.uses()) == sum(other.scale is norm.scale for other in own)


def _readers(
    trace: Trace, root: Atom, own: list[Norm]
) -> list[tuple[frozenset[Atom], tuple[Atom, ...]]] | None:
    """(Parameter occurrences that consume the units, the units that they consume); None if others mix them."""
    nodes = {node for norm in own for node in norm.means}
    found = []
    for site in trace.sites:
        if not any(find(leaf) is root for leaf in leaves(*site.axes)):
            continue
        if site.node in nodes:
            continue
        if site.kind != "contract" or sorted(site.constant) != [False, True]:
            return None
        found.append(_sides(site, root))
    return found


def _sides(site: Site, root: Atom) -> tuple[frozenset[Atom], tuple[Atom, ...]]:
    weight = site.constant.index(True)
    parts = [tuple(leaf for leaf in leaves(axis) if find(leaf) is root) for axis in site.axes]
    return frozenset(parts[weight]), parts[1 - weight]


def _vanishes(demand: Demand, special: Mapping[Atom, Role]) -> bool:
    """Whether new units are zero as things start."""
    return demand.level > 0 and all(special.get(leaf) == "zero" for leaf in demand.parameters)


def _zero(atom: Atom, behind: list[Demand], outputs: frozenset[Atom]) -> Demand:
    if atom in outputs:
        return Demand(1)
    if not behind:
        return Demand(1, frozenset([(atom, None)])) if atom.tensor is not None else Demand(0)
    if atom.link.passes < 1:
        return Demand(0)
    if atom.link.mode == "all":
        return together(behind)
    return max(behind, key=lambda demand: (demand.level, -len(demand.reached)))


def averaged(atom: Atom, behind: list[Demand]) -> Demand:
    """What happens to units that shall be the mean of others."""
    if not behind:
        return Demand(1, frozenset([(atom, None)])) if atom.tensor is not None else Demand(0)
    return together(behind) if atom.link.linear else Demand(0)
