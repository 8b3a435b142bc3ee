"""What every element of a parameter does for the units that it carries: it makes them, or it consumes them.

Units are consumed where they are contracted. If the other operand is a parameter, its elements consume: new columns are
zero, or shared out among replicas. If both operands are activations (queries and keys), one of them is asked: its new
units must be zero or scaled, and the demand travels back through homogeneous functions to the parameters that make
them. Where no operand can answer, the axis is frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from surgery.graph.atoms import (
    Atom,
    Axis,
    Freeze,
    Place,
    factors,
    find,
    freeze,
    leaves,
    size_of,
    spans,
    summands,
)
from surgery.graph.circles import circles
from surgery.graph.demands import Answer, Demand, Places, answers, parameters, places, tables
from surgery.graph.labels import full_label
from surgery.graph.records import Site
from surgery.graph.trace import Trace


@dataclass
class Roles:
    """The outcome, by occurrence and by class (its representative).

    Attributes:
      consumers: parameter occurrences whose new elements are zero, or shared out among replicas.
      asked: those of them that make the units which they consume: rows of queries, say, or of what is summed up.
      tables: tensors that nobody trains.
      readers: parameter occurrences that are multiplied with units which others make, whoever answers.
      places: those of them of which only some places are (of queries, keys and values in one axis, say: 3 · heads · d):
        the factor beside them that counts these places, and which ones.
      no_zero, no_net2net: class -> why it cannot take this initialisation.
      whole: class -> why copies of it come in whole multiples only.
      extremes: class -> where its largest or smallest unit is taken, of equal ones any or all.
      alike: classes that must grow by the same multiple.
      linked: classes that a shuffle takes units from in turn: they must stay equally many.
      purpose: tensor -> the uses it has: "weight", "bias", "scale".
    """

    consumers: set[Atom] = field(default_factory=set)
    asked: set[Atom] = field(default_factory=set)
    tables: frozenset[str] = frozenset()
    readers: set[Atom] = field(default_factory=set)
    places: dict[Atom, Places] = field(default_factory=dict)
    no_zero: dict[Atom, str] = field(default_factory=dict)
    no_net2net: dict[Atom, str] = field(default_factory=dict)
    whole: dict[Atom, str] = field(default_factory=dict)
    extremes: dict[Atom, str] = field(default_factory=dict)
    alike: list[set[Atom]] = field(default_factory=list)
    linked: list[set[Atom]] = field(default_factory=list)
    purpose: dict[str, set[str]] = field(default_factory=dict)


def assign(trace: Trace) -> Roles:
    """Decide all roles of a walked graph; freezes (in the trace) what has no consistent role."""
    roles = Roles(tables=tables(trace))
    for kind, axes in trace.uses:
        for leaf in parameters(axes):
            roles.purpose.setdefault(leaf.tensor or "", set()).add(kind)
    for site in trace.sites:
        _compared(roles, site)
    found = []
    for answer in answers(trace):
        _settle(roles, answer)
        if answer.demand.level:
            found.append(answer)
    consumed: set[Atom] = set()
    asked: set[Atom] = set()
    for answer in found:
        (consumed if answer.site.constant[answer.side] else asked).update(answer.demand.parameters)
    roles.places = places(trace, found)
    _keep_counters(roles)
    through = {atom for answer in found for atom in answer.demand.through}
    produced = _produced(roles, trace, asked, through)
    for leaf in _in_order(consumed & produced):
        reason = f"'{leaf.tensor}' both makes and consumes these units (tied weights)"
        freeze((leaf,), Freeze("tied", reason))
    for axis, mode, reason in trace.limits:
        for leaf in leaves(axis):
            (roles.no_zero if mode == "zero" else roles.no_net2net).setdefault(find(leaf), reason)
    roles.consumers, roles.asked = consumed | asked, asked
    roles.readers = consumed | _read(trace.sites)
    for root, reason in _dead(roles, found):
        roles.no_zero.setdefault(root, reason)
    for root, reason in circles(trace, found, roles.consumers, roles.no_net2net):
        roles.no_zero.setdefault(root, reason)
    for axis, reason in trace.domains:
        for leaf in leaves(axis):
            if parameters([(leaf,)]) & roles.consumers:
                roles.no_zero.setdefault(find(leaf), reason)
    _common_blocks(trace, roles)
    roles.linked = _linked(trace, roles)
    _freeze_together(trace, roles)
    return roles


def _read(sites: Iterable[Site]) -> set[Atom]:
    """What is computed from parameters only, and multiplied with activations."""
    mixed = [site for site in sites if site.kind == "contract" and not all(site.constant)]
    return {
        leaf
        for site in mixed
        for axis, constant in zip(site.axes, site.constant, strict=True)
        if constant
        for leaf in parameters([axis])
    }


def _linked(trace: Trace, roles: Roles) -> list[set[Atom]]:
    """The groups of classes that shuffles take units from in turn, as far as these are whole spaces of one size."""
    groups: list[set[Atom]] = []
    for parts in trace.shuffles:
        each = [list(leaves(axis)) for axis in parts]
        found = [leaf for own in each for leaf in own]
        group = {find(leaf) for leaf in found}
        wanted = size_of(parts[0])
        if not all(each) or any(leaf.size != wanted for leaf in found):
            freeze(tuple(found), Freeze("mismatch", "shuffled with another number of units"))
        averaged = min((roles.whole[root] for root in group if root in roles.whole), default=None)
        if averaged is not None:
            freeze(
                tuple(found),
                Freeze("mixer", f"{averaged}, and shuffled: units cannot be copied equally often"),
            )
        compared = min((roles.extremes[root] for root in group if root in roles.extremes), default=None)
        if compared is not None:
            freeze(
                tuple(found),
                Freeze("mixer", f"{compared}, and shuffled: some units have no place for a copy"),
            )
        for other in [other for other in groups if other & group]:
            groups.remove(other)
            group |= other
        groups.append(group)
    return groups


def _keep_counters(roles: Roles) -> None:
    """Places of which some are asked and others are not keep their number, unless they are segments of their own."""
    for leaf, (counter, asked) in roles.places.items():
        for segment, numbers in spans(counter):
            if len({number in asked for number in numbers}) > 1:
                reason = f"'{leaf.tensor}' is zero, or scaled, at some of its units and not at others"
                freeze(segment, Freeze("mixer", reason))


def _common_blocks(trace: Trace, roles: Roles) -> None:
    """The block that all segments of a parameter axis (a·r + b·r) have in common does what it does in each of them."""
    for tensor, axes in trace.tensors.items():
        for leaf in (leaf for axis in axes for leaf in leaves(axis) if leaf.tensor is None):
            sources = {atom for atom in parameters([(leaf,)]) if not atom.origins}
            if sources and sources <= roles.readers:
                roles.readers.add(leaf)
            if sources and sources <= roles.consumers:
                roles.consumers.add(leaf)
            elif sources & roles.consumers:
                freeze(
                    (leaf,),
                    Freeze("tied", f"'{tensor}' makes these units in one part and consumes them in another"),
                )


def _freeze_together(trace: Trace, roles: Roles) -> None:
    """What is averaged, or shuffled, together with units that cannot grow cannot grow either."""
    growable = {find(leaf) for axes in trace.tensors.values() for axis in axes for leaf in leaves(axis)}
    again = True
    while again:
        again = False
        for group in roles.alike:
            stuck = [
                root for root in group if root.frozen or root not in growable or root in roles.no_net2net
            ]
            free = [root for root in group if not root.frozen]
            if stuck and free:
                for root in free:
                    freeze(
                        (root,), Freeze("mixer", f"{roles.whole[root]} together with units that cannot grow")
                    )
                again = True
        for group in roles.linked:
            fixed = [root for root in group if _stuck(root, growable, roles)]
            free = [root for root in group if not root.frozen]
            if fixed and free:
                for root in free:
                    freeze((root,), Freeze("mixer", f"shuffled with units that cannot grow{_why(fixed)}"))
                again = True


def _stuck(root: Atom, growable: Collection[Atom], roles: Roles) -> bool:
    exact = root not in roles.no_zero or root not in roles.no_net2net
    return bool(root.frozen) or root not in growable or not exact


def _why(fixed: Sequence[Atom]) -> str:
    reason = min((root.frozen[0].reason for root in fixed if root.frozen), default=None)
    return "" if reason is None else f" ({reason})"


def _compared(roles: Roles, site: Site) -> None:
    """What is compared keeps its size; what is averaged, or the largest of which is taken, is copied."""
    where = full_label(site.node)
    if site.kind == "order":
        for leaf in leaves(site.axes[0]):
            why = f"its units are compared or normalised with each other by {where}"
            freeze((leaf,), Freeze("mixer", why, site.node))
    elif site.kind == "mean":
        _average(roles, site, f"its units are averaged by {where}")
    elif site.kind == "extreme":
        for leaf in leaves(site.axes[0]):
            taken = roles.extremes.setdefault(find(leaf), f"its largest or smallest unit is taken by {where}")
            roles.no_zero.setdefault(find(leaf), f"{taken}, and a unit that is no copy could become it")


def _settle(roles: Roles, answer: Answer) -> None:
    """What a class can start with after the answer to a demand on it."""
    site, root, best = answer.site, answer.root, answer.demand
    where = full_label(site.node)
    if best.level == 0:
        reason = f"{where} sums over it and neither operand can be made zero: {best.barrier}"
        freeze((root,), Freeze("mixer", reason, site.node))
    elif site.kind == "norm":
        roles.no_net2net.setdefault(root, f"{where} takes a norm over it, which copies change")
    elif best.level == 1:
        roles.no_net2net.setdefault(
            root, f"{where} sums over it and no operand can be scaled: {best.barrier}"
        )


def _dead(roles: Roles, found: Iterable[Answer]) -> Iterator[tuple[Atom, str]]:
    """Classes whose new units would be zero wherever they are multiplied, and without gradient for good."""
    reasons: dict[Atom, str | None] = {}
    for answer in found:
        # flat as a norm is, what is in nothing else has no other start
        if answer.site.kind == "norm":
            continue
        where = full_label(answer.site.node)
        why = None
        if any(_zero(roles, beside) for beside in answer.beside):
            why = f"new units would be zero in all that {where} multiplies, and stay so"
        elif answer.demand.flat:
            why = f"new units would be zero where {answer.demand.flat} has no slope, and stay so"
        elif not answer.trained:
            why = f"new units would be read only by zeros in constants, as in {where}"
        reasons[answer.root] = reasons.get(answer.root, why) and why
    yield from ((root, why) for root, why in reasons.items() if why and not root.frozen)


def _zero(roles: Roles, demand: Demand) -> bool:
    """Whether units are zero as things are, though they were not asked."""
    return demand.level > 0 and all(_asked(roles, leaf, place) for leaf, place in demand.reached)


def _asked(roles: Roles, leaf: Atom, place: Place | None) -> bool:
    if leaf not in roles.consumers or leaf not in roles.places:
        return leaf in roles.consumers
    counter, asked = roles.places[leaf]
    return place is not None and find(place[0]) is find(counter) and place[1] in asked


def _average(roles: Roles, site: Site, reason: str) -> None:
    """A mean stays what it was if every unit is copied equally often; in a sum of spaces, in all of them alike."""
    for factor in factors(site.axes[0]):
        if factor.woven is not None:
            freeze((factor,), Freeze("mixer", f"{reason} in the order of a channel shuffle"))
            continue
        together = {find(leaf) for leaf in leaves((factor,))}
        for root in together:
            roles.no_zero.setdefault(root, reason)
            roles.whole.setdefault(root, reason)
        parts = summands(factor) if factor.segments is not None else []
        for part in parts:
            free = [atom for atom in part if not atom.frozen]
            if len(free) > 1:  # the part grows by the product of their multiples, the other parts do not
                freeze(tuple(free), Freeze("mixer", f"{reason} together with others, as a part of a product"))
        if any(not part for part in parts):
            for leaf in leaves((factor,)):
                freeze((leaf,), Freeze("mixer", f"{reason} together with a single unit"))
        elif parts:
            roles.alike.append(together)


def _in_order(atoms: Iterable[Atom]) -> list[Atom]:
    """By tensor, so that the first reason is the same in every run."""
    return sorted(atoms, key=lambda atom: atom.tensor or "")


def _produced(roles: Roles, trace: Trace, asked: set[Atom], through: set[Atom]) -> set[Atom]:
    """Parameter occurrences that become units of activations.

    A parameter that was asked to be zero or scaled for one use but also makes units for another cannot be scaled.
    """
    produced: set[Atom] = set()
    for source, result in trace.productions:
        for maker, units in _became(source, result):
            made = parameters([(maker,)])
            if units == [maker] and made <= asked:  # moved, and then asked as other activations are
                continue
            produced |= made
            for leaf in _in_order(made & asked) if not through.issuperset(units) else ():
                reason = f"'{leaf.tensor}' makes units that would be scaled in one place and not in another"
                roles.no_net2net.setdefault(find(leaf), reason)
    return produced


def _became(source: Axis, result: Axis) -> Iterator[tuple[Atom, list[Atom]]]:
    """Every group of units of an operand with what it became: all of its class if the two are divided in other ways."""
    makers, units = list(leaves(source)), list(leaves(result))
    aligned = [find(maker) for maker in makers] == [find(unit) for unit in units]
    for k, maker in enumerate(makers):
        yield maker, [units[k]] if aligned else [unit for unit in units if find(unit) is find(maker)]
