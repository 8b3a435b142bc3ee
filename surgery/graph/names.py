"""What spaces are called."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.graph.atoms import Atom
from surgery.graph.roles import Roles


def named(
    members: Mapping[Atom, list[tuple[str, int, Atom]]],
    roles: Roles,
    modules: Mapping[str, str],
    order: Mapping[Atom, int],
) -> dict[Atom, str]:
    """Every class is named after the module of the first parameter that makes its units.

    Several groups of units in one module (rows and columns, heads and head size) are counted by axis, then in their
    order on it; single units come last, and take no other's name.
    """
    wanted: dict[str, list[tuple[tuple[bool, int], Atom]]] = {}
    for root, places in members.items():
        tensor, axis = _naming(places, roles)
        at = (root.size == 1, order.get(root, axis))
        wanted.setdefault(_port(root) or modules[tensor], []).append((at, root))
    names: dict[Atom, str] = {}
    for base, found in wanted.items():
        several = [root for _, root in found if root.size > 1] or [root for _, root in found]
        for k, (_, root) in enumerate(sorted(found, key=lambda place: place[0])):
            names[root] = base if several == [root] else f"{base}[{k}]"
    return names


def _port(root: Atom) -> str | None:
    """What units of an input are called."""
    for why in root.frozen:
        if why.kind in ("input", "symbolic") and "'" in why.reason:
            axis, name = why.reason.split()[1], why.reason.split("'")[1]
            return f"{name}[{axis}]"
    return None


def _naming(places: list[tuple[str, int, Atom]], roles: Roles) -> tuple[str, int]:
    """The first weight that makes units, and on which of its axes."""
    makers = [place for place in places if place[2] not in roles.readers]
    # what an exporter has taken apart (gates) has no purpose that is known
    weights = [place for place in makers if "weight" in roles.purpose.get(place[0], {"weight"})]
    tensor, axis, _ = (weights or makers or places)[0]
    return tensor, axis
