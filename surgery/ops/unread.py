"""Units that nothing reads: every weight that would is zero, or makes only units that nothing reads either."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from surgery.arrays import Array
from surgery.edits.axis_maps import units_along
from surgery.edits.execute import constants
from surgery.edits.removal import makes
from surgery.graph.layout import Layout, Units, units
from surgery.graph.spaces import Analysis, Space


def unread(
    analysis: Analysis,
    families: Sequence[Sequence[Space]],
    among: Mapping[str, Collection[int]] | None = None,
) -> dict[str, list[int]]:
    """Units that can all go together without a trace, by the name of the first space of a family.

    Where units may start at zero, the weights that read fresh ones do, and so removing units that only such weights
    read undoes it. Units under a normaliser are left alone: others depend on their number. One of a space always stays.

    Args:
      families: spaces that are edited alike (those of a network and of its copies), each first the one that leads.
      among: first space -> units of which others are not looked for; None for all.
    """
    padded = {part.space for part in _parts(analysis) if part.role in ("mean", "zero")}
    led = {
        member.name: family[0].name
        for family in families
        for member in family
        if not any(one.name in padded or one.no_zero or one.whole for one in family)
    }
    found = {lead: np.ones(analysis.by_name[lead].size, bool) for lead in led.values()}
    if among is not None:
        found = {lead: np.isin(np.arange(len(mask)), list(among[lead])) for lead, mask in found.items()}
    nonzero = {
        name: tensor.numpy() != 0
        for name, tensor in constants(analysis.model).items()
        if name in analysis.tensors
    }
    while True:
        gone = {lead: np.flatnonzero(mask).tolist() for lead, mask in found.items()}
        for name, array in nonzero.items():
            _strike(
                found, led, analysis.tensors[name], array, {name: gone[lead] for name, lead in led.items()}
            )
        if any(len(units) > found[lead].sum() for lead, units in gone.items()):
            continue
        if not any(mask.all() for mask in found.values()):
            return gone
        for mask in found.values():
            mask[0] &= not mask.all()


def _parts(analysis: Analysis) -> list[Units]:
    return [part for axes in analysis.tensors.values() for part in units(*axes)]


def _strike(
    found: Mapping[str, Array],
    led: Mapping[str, str],
    axes: Sequence[Layout],
    nonzero: Array,
    gone: Mapping[str, Any],
) -> None:
    """Leave out of `found`, in place, what one tensor reads for units that stay.

    Args:
      found: leading space -> mask of its units.
      led: space -> the one that leads it.
      axes, nonzero: layouts of the tensor, and where it is not zero.
      gone: space -> units that are thought to go, and so what makes them.
    """
    stays = nonzero & ~makes(axes, gone)
    for k, axis in enumerate(axes):
        for space in {part.space for part in units(axis) if part.role == "in" and part.space in led}:
            unit, _ = units_along(axis, space, "in")
            used = stays.any(axis=tuple(j for j in range(nonzero.ndim) if j != k)) & (unit >= 0)
            found[led[space]][unit[used]] = False
