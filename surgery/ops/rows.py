"""New rows of the tables from which an input chooses, such as the embedding of the last action."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from surgery.edits.units import SpaceEdit
from surgery.errors import ArgumentError, Refused
from surgery.graph.chosen import choosing
from surgery.graph.labels import full_label
from surgery.graph.spaces import Analysis, Space
from surgery.interface import Port
from surgery.ops.input_axes import arranged


def tables(analysis: Analysis, name: str) -> list[Space]:
    """The spaces that count the rows from which an input chooses; none if it holds no numbers of rows.

    Raises:
      Refused: rows whose number cannot change. ArgumentError: tables of several lengths.
    """
    by_input = {str(value.name): choosing(value) for value in analysis.model.graph.inputs}
    nodes, known = by_input.get(name, {}), set(chain.from_iterable(by_input.values()))
    for node in nodes:
        if node.op_type != "Gather":
            raise Refused(
                f"'{name}' chooses one of {nodes[node]} places that {full_label(node)} writes out",
                hint="a number beyond them leaves all places empty; for more places export the model anew",
            )
    found = [space for space in analysis.spaces if any(why.node in nodes for why in space.freezes)]
    for space in found:
        if other := next((why.reason for why in space.freezes if why.node not in known), None):
            raise Refused(f"the rows of '{space.name}', from which '{name}' chooses, cannot grow: {other}")
    if len({space.size for space in found}) > 1:
        lengths = ", ".join(f"{space.name} {space.size}" for space in found)
        raise ArgumentError(f"'{name}' chooses from tables of several lengths: {lengths}")
    return found


def more_rows(spaces: Sequence[Space], count: int) -> list[SpaceEdit]:
    """New rows behind the old ones, which keep their numbers."""
    return [arranged(space, [*range(space.size), *[None] * count], {}) for space in spaces]


def note(spaces: Sequence[Space], port: Port, count: int) -> str:
    """What the new rows mean for the input."""
    size, names = spaces[0].size, ", ".join(f"'{space.name}'" for space in spaces)
    which = f"{size} to {size + count - 1}" if count > 1 else str(size)
    said = f"'{port.name}' may be {which}, too; the new rows of {names} are drawn at random"
    declare = f"--input {port.name}:{port.kind},high={size + count - 1}"
    return said if port.high is None else f"{said}; declare the new range: surgery annotate MODEL {declare}"
