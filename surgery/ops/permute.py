"""Permute: the units of a space in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.ops.build import build


def permute(checkpoint: Checkpoint, orders: Mapping[str, Sequence[int]]) -> Plan:
    """Put the units of spaces into another order without changing the function.

    Whatever makes the units and whatever reads them is permuted alike, optimizer state included: the network is the
    same, its sums are added in another order. It aligns networks that compute the same with other units.

    Args:
      checkpoint: any checkpoint; only shapes are read.
      orders: space -> for every new place the old unit that goes there, a permutation of 0 … n − 1.

    Returns:
      A plan that claims "equivalent".

    Raises:
      UnknownName: no such space. ArgumentError: not a permutation.
      Refused: units whose order counts: those of inputs and outputs, and of operators that compare neighbours.
    """
    if not orders:
        raise ArgumentError("nothing to permute", hint="give at least one space and its order")
    analysis = checkpoint.analysis
    edits = []
    for space, order in analysis.asked(orders).items():
        source = tuple(int(k) for k in order)
        if sorted(source) != list(range(space.size)):
            raise ArgumentError(
                f"not an order of the {space.size} units of '{space.name}'",
                hint=f"every number from 0 to {space.size - 1} once",
            )
        if space.reasons:
            raise Refused(f"the units of '{space.name}' cannot change places: {space.reasons[0]}")
        edits.append(SpaceEdit(space.name, space.size, source))
    arguments = {"orders": {name: [int(k) for k in order] for name, order in orders.items()}}
    return build(checkpoint, analysis, "permute", edits, arguments=arguments, claim="equivalent")
