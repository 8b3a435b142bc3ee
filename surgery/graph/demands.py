"""Demands on new units: that they be zero, or share what copies have in common; who meets them, how far they travel.

In y = W₂ relu(W₁ x) a hidden unit can be added without changing y if its column of W₂ is zero, or if it is a copy of
another one and the two share that one's column, which is *scaled*: W₂ answers where units are summed over. In q·kᵀ,
summed over the head size, both operands are activations. One of them is asked, q = W x say, and new units of q are
zero, or scaled, if the rows of W are. So a demand starts where units are mixed (a `Site`), travels back to the operands
that they were computed from, as far as these pass it on (`atoms.Link`), and ends at the parameters that make the units.

Where one of several operands is enough, one that is trained is asked before a table: what is multiplied by zeros that
nobody trains learns nothing. Where several nodes read a value, a scale passes if all of them expect it: the rotations
of an embedding by position, say, which read queries four times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from surgery.graph.atoms import Atom, Axis, Place, factors, find, leaves, summands
from surgery.graph.axes import SQUARE
from surgery.graph.modules import KIND
from surgery.graph.operands import data_of, operands
from surgery.graph.records import Site
from surgery.graph.trace import Trace

Places = tuple[Atom, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Demand:
    """How far a demand on some units travels back.

    Attributes:
      level: 2 these units can be scaled, 1 they can only be made zero, 0 neither.
      reached: the elements of parameters that would be zero or scaled, and the one place beside them where they
        would, if it is one.
      through: the occurrences on the way.
      barrier: what stopped it.
      flat: where a slope of zero would keep zeros from learning; None if they learn.
    """

    level: int
    reached: frozenset[tuple[Atom, Place | None]] = frozenset()
    through: frozenset[Atom] = frozenset()
    barrier: str | None = None
    flat: str | None = None

    @property
    def parameters(self) -> frozenset[Atom]:
        """The occurrences in parameters that are reached, at whatever place."""
        return frozenset(leaf for leaf, _ in self.reached)


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answers for the units of a class where they are mixed.

    Attributes:
      site: where that is. root: the class.
      side: which operand answers.
      demand: what is asked of it; of level 0 if no operand can answer.
      beside: what would be asked of the other operands.
      trained: whether somebody trains what answers.
    """

    site: Site
    root: Atom
    side: int
    demand: Demand
    beside: tuple[Demand, ...]
    trained: bool

    @property
    def scales(self) -> bool:
        """Whether the operand can be scaled, and would be."""
        return self.demand.level == 2 and self.site.kind != "norm"


def together(demands: list[Demand]) -> Demand:
    """The answer to all of these demands at once."""
    weakest = min(demands, key=lambda demand: demand.level)
    return Demand(
        weakest.level,
        frozenset().union(*(demand.reached for demand in demands)),
        frozenset().union(*(demand.through for demand in demands)),
        weakest.barrier,
        demands[0].flat if all(demand.flat for demand in demands) else None,
    )


def travel(memo: dict[Atom, Demand], atom: Atom, answer: Callable[[Atom, list[Demand]], Demand]) -> Demand:
    """The answer to a demand on an occurrence, from the answers of its origins.

    In post-order, without recursion: residual streams are long.
    """
    stack = [atom]
    while stack:
        top = stack[-1]
        if top in memo:
            stack.pop()
            continue
        origins = list(leaves(top.origins))
        waiting = [origin for origin in origins if origin not in memo]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        memo[top] = answer(top, [memo[origin] for origin in origins])
    return memo[atom]


def answers(trace: Trace) -> list[Answer]:
    """Who answers at every site for every class that is summed over there, in the order of the sites."""
    sites = [site for site in trace.sites if site.kind not in ("order", "mean", "extreme")]
    asking, uses = Asking(tables(trace), _several(trace)), _Uses(trace)
    while True:
        found = _answered(asking, sites)
        stopped = uses.half_scaled(found, asking.stopped) - asking.stopped
        if not stopped:
            return found
        asking.stop(stopped)


def _answered(asking: Asking, sites: list[Site]) -> list[Answer]:
    """The answers at all sites; norms are asked first, as what they make zero need not be asked for again."""
    norms = {id(site): asking.answers(site) for site in sites if site.kind == "norm"}
    zero: dict[Atom, frozenset[Atom]] = {}
    for answer in (answer for own in norms.values() for answer in own):
        zero[answer.root] = zero.get(answer.root, frozenset()) | answer.demand.parameters
    return [
        answer
        for site in sites
        for answer in (norms[id(site)] if site.kind == "norm" else asking.answers(site, zero))
    ]


def places(trace: Trace, found: Iterable[Answer]) -> dict[Atom, Places]:
    """The occurrences that are asked at some places only of a factor which stands before them in their axis."""
    demanded: dict[Atom, set[Place | None]] = {}
    for leaf, place in (reached for answer in found for reached in answer.demand.reached):
        demanded.setdefault(leaf, set()).add(place)
    result: dict[Atom, Places] = {}
    pending = [factors(axis) for axes in trace.tensors.values() for axis in axes]
    while pending:
        parts = pending.pop()
        for k, leaf in enumerate(parts):
            pending.extend(summands(leaf))
            asked = demanded.get(leaf, {None})
            counted = {None if place is None else find(place[0]) for place in asked}
            before = next((other for other in parts[:k] if counted == {find(other)}), None)
            if before is not None:
                result[leaf] = before, frozenset(place[1] for place in asked if place is not None)
    return result


class Asking:
    """Demands that units be zero or scaled.

    Args:
      tables: names of constants and buffers, which nobody trains.
      several: occurrences in parameters that become units in several places.
    """

    def __init__(self, tables: Collection[str] = (), several: Collection[Atom] = ()) -> None:
        self.stopped: frozenset[Atom] = frozenset()
        self._tables, self._several = tables, several
        self._memo: dict[Atom, Demand] = {}

    def stop(self, shared: Collection[Atom]) -> None:
        """Let no scale pass through these occurrences."""
        self.stopped |= frozenset(shared)
        self._memo.clear()

    def answers(self, site: Site, zero: Mapping[Atom, frozenset[Atom]] | None = None) -> list[Answer]:
        """The operand that answers for each class.

        Args:
          zero: class -> the occurrences in parameters that are zero anyhow.
        """
        # the second operand is the weight by convention; parameters answer before activations
        order = sorted(range(len(site.axes)), key=lambda k: (not site.constant[k], -k))
        sides = [_by_class(site.axes[k]) for k in order]
        found = []
        for root in dict.fromkeys(root for side in sides for root in side):
            asked = [
                (k, self.demand(side[root])) for k, side in zip(order, sides, strict=True) if root in side
            ]
            rank = self._ranking(site, [demand for _, demand in asked])
            anyhow = (zero or {}).get(root, frozenset())
            vanishing = [k for k, demand in asked if demand.level and demand.parameters <= anyhow]
            side, best = max(asked, key=lambda answer: (answer[0] in vanishing, rank(answer[1])))
            beside = tuple(demand for k, demand in asked if k != side)
            found.append(Answer(site, root, side, best, beside, self._trained(best)))
        return found

    def demand(self, atoms: Iterable[Atom]) -> Demand:
        """What happens to units that shall be scaled or made zero."""
        return together([travel(self._memo, atom, self._scaled) for atom in atoms])

    def _ranking(self, site: Site, asked: Iterable[Demand]) -> Callable[[Demand], tuple[int, ...]]:
        # nobody trains, say, the vectors beside a weight whose spectral norm they give
        if all(site.constant):
            return _level
        # units that are read elsewhere, too, learn even if a table makes them zero here
        if any(not demand.through.isdisjoint(self.stopped) for demand in asked):
            return self._ability
        return self._rank

    def _rank(self, demand: Demand) -> tuple[int, ...]:
        able, *others = self._ability(demand)
        return able, self._trained(demand), *others

    def _ability(self, demand: Demand) -> tuple[int, ...]:
        alone = demand.parameters.isdisjoint(self._several)
        return demand.level > 0, demand.flat is None, demand.level, alone

    def _trained(self, demand: Demand) -> bool:
        return all(leaf.tensor not in self._tables for leaf in demand.parameters)

    def _factor(self, behind: list[Demand]) -> Demand:
        """The one of several factors that answers; a product has no slope where others are zero with it."""
        best = max(behind, key=self._rank)
        others = (demand for demand in behind if demand is not best and demand.level)
        squared = any(demand.reached <= best.reached for demand in others)
        return replace(best, flat=best.flat or SQUARE) if squared else best

    def _scaled(self, atom: Atom, behind: list[Demand]) -> Demand:
        if not behind:
            if atom.tensor is None:
                return Demand(0, barrier="its units are made by no parameter")
            stopped = atom in self.stopped
            barrier = f"'{atom.tensor}' is read elsewhere, too" if stopped else None
            return Demand(1 if stopped else 2, frozenset([(atom, None)]), barrier=barrier)
        link = atom.link
        found = together(behind) if link.mode == "all" else self._factor(behind)
        level, barrier = found.level, found.barrier
        if link.passes < level:
            level, barrier = link.passes, link.barrier
        if atom in self.stopped and level > 1:
            level, barrier = 1, link.shared or "both factors of a product would be scaled"
        reached = found.reached
        if link.place is not None:
            reached = frozenset((leaf, inner or link.place) for leaf, inner in reached)
        return Demand(level, reached, found.through | {atom}, barrier, link.flat or found.flat)


def _level(demand: Demand) -> tuple[int, ...]:
    return (demand.level,)


def _by_class(axis: Axis) -> dict[Atom, list[Atom]]:
    sides: dict[Atom, list[Atom]] = {}
    for leaf in leaves(axis):
        sides.setdefault(find(leaf), []).append(leaf)
    return sides


def tables(trace: Trace) -> frozenset[str]:
    """What nobody trains: constants in the graph, whole numbers, and buffers, as exporters mark them."""
    values = trace.facts.model.graph.initializers
    trained = {
        name
        for name, value in values.items()
        if value.metadata_props.get(KIND, "PARAMETER") == "PARAMETER"
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
    }
    return frozenset(trace.tensors) - trained


def _several(trace: Trace) -> frozenset[Atom]:
    seen, again = set[Atom](), set[Atom]()
    for source, _ in trace.productions:
        made = parameters([source])
        again |= seen & made
        seen |= made
    return frozenset(again)


def parameters(axes: Iterable[Axis]) -> frozenset[Atom]:
    """Every parameter occurrence that some axes were computed from, whatever stands in between."""
    found: set[Atom] = set()
    seen: set[Atom] = set()
    stack = list(leaves(*axes))
    while stack:
        atom = stack.pop()
        if atom in seen:
            continue
        seen.add(atom)
        if atom.tensor is not None:
            found.add(atom)
        stack.extend(leaves(atom.origins))
    return frozenset(found)


_CHOOSING = frozenset(["Shape", "Size", "Slice", "Split", "SplitToSequence", "SequenceAt", "Gather"])
"""Operators that leave units out, or read none of them."""


class _Uses:
    """What becomes of every occurrence: the results that are computed from it, and where it is mixed or leaves."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._results: dict[Atom, list[Atom]] = {}
        self._sites: dict[Atom, list[tuple[Site, int]]] = {}
        for site in trace.sites:
            for side, axis in enumerate(site.axes):
                for leaf in leaves(axis):
                    self._sites.setdefault(leaf, []).append((site, side))
        self._leaving = {leaf for side, _, axes in trace.ports if side == "output" for leaf in leaves(*axes)}
        self._leaving |= {leaf for node in trace.facts.model.graph for leaf in self._unaccounted(node)}
        pending = [leaf for axes in trace.every() for leaf in leaves(*axes)]
        pending += [*self._sites]
        seen = set(pending)
        while pending:
            atom = pending.pop()
            for origin in dict.fromkeys(leaves(atom.origins)):
                self._results.setdefault(origin, []).append(atom)
                if origin not in seen:
                    seen.add(origin)
                    pending.append(origin)

    def _unaccounted(self, node: ir.Node) -> set[Atom]:
        """What a node reads and neither hands on, nor mixes, nor has in the origins of its results."""
        if node.op_type in _CHOOSING:
            return set()
        given = [data_of(node)] if node.op_type == "CastLike" else operands(node)
        read = {leaf for value in given for leaf in leaves(*self._trace.known(value))}
        read -= {leaf for leaf in read if any(site.node is node for site, _ in self._sites.get(leaf, []))}
        pending = [leaf for value in node.outputs for leaf in leaves(*self._trace.known(value))]
        seen = set[Atom]()
        while pending and not read <= seen:
            atom = pending.pop()
            if atom not in seen:
                seen.add(atom)
                if atom not in read:
                    pending.extend(leaves(atom.origins))
        return read - seen

    def half_scaled(self, found: Iterable[Answer], stopped_before: frozenset[Atom]) -> frozenset[Atom]:
        """The occurrences through which a scale must not pass: others do not expect it, or have it from elsewhere."""
        scaling = [answer for answer in found if answer.scales]
        through = frozenset[Atom]().union(
            *(answer.demand.through | answer.demand.parameters for answer in scaling)
        )
        chosen, honoured = _chosen(scaling), places(self._trace, scaling)
        stopped = set[Atom]()
        for atom in through:
            results = self._results.get(atom, [])
            own = [result for result in results if result in through]
            others = [result for result in results if result not in through]
            unmet = any((site.node, side, atom) not in chosen for site, side in self._sites.get(atom, []))
            # what a parameter makes elsewhere is no matter of demands: `roles` compares them with its productions
            apart = atom.origins and others and not _elsewhere(atom, own, others, scaling, honoured)
            if atom in self._leaving or unmet or apart:
                stopped |= {result for result in own if result.link.shared and not atom.link.shared} or {atom}
            if atom.link.mode == "any" and len(through.intersection(leaves(atom.origins))) > 1:
                # x · y would be scaled twice
                before = [answer.demand.through for answer in scaling if atom in answer.demand.through]
                shared = {other for each in before for other in each if other.link.shared}
                stopped |= shared - stopped_before or {atom}
        return frozenset(stopped)


def _chosen(scaling: Iterable[Answer]) -> set[tuple[ir.Node, int, Atom]]:
    """What is scaled where it is mixed: (node, operand, occurrence)."""
    roots: dict[tuple[ir.Node, int, Axis], set[Atom]] = {}
    for answer in scaling:
        at = answer.site.node, answer.side, answer.site.axes[answer.side]
        roots.setdefault(at, set()).add(answer.root)
    return {
        (node, side, leaf)
        for (node, side, axis), own in roots.items()
        for leaf in leaves(axis)
        if find(leaf) in own
    }


def _elsewhere(
    atom: Atom,
    own: list[Atom],
    others: list[Atom],
    scaling: Iterable[Answer],
    honoured: Mapping[Atom, Places],
) -> bool:
    """Whether the scaled results are taken from other places of a factor than the others, and only these are asked."""
    mine = {_at(result) for result in own}
    rest = {_at(result) for result in others}
    if None in mine or None in rest or len({place[0] for place in mine | rest if place}) > 1 or mine & rest:
        return False
    wanted = {place for place in mine if place}
    return all(
        leaf in honoured and {(find(honoured[leaf][0]), index) for index in honoured[leaf][1]} <= wanted
        for answer in scaling
        if atom in answer.demand.through
        for leaf in answer.demand.parameters
    )


def _at(atom: Atom) -> Place | None:
    """The place that was chosen, by the class of the factor that counts it."""
    place = atom.link.place
    return place and (find(place[0]), place[1])
