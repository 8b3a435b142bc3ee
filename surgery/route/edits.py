"""What a route does: exact edits, and the comparison of two networks layer by layer that asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgery.architectures.layers import Layer


@dataclass(frozen=True, slots=True)
class Widen:
    """More units in a space."""

    space: str
    width: int

    def __str__(self) -> str:
        return f"{self.space} → {self.width}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A larger kernel; the layer is named by its weights."""

    weight: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"kernel → {self.size[0]}×{self.size[1]}"


@dataclass(frozen=True, slots=True)
class Insert:
    """A new layer behind a value of the graph.

    Attributes:
      kind: "identity", "residual" or "recurrent".
      after: the value. layer: what comes there.
      like: the weights of the block before it, whose names it continues; empty if there is none.
      index: which of several at that place.
    """

    kind: Literal["identity", "residual", "recurrent"]
    after: str
    layer: Layer
    like: tuple[str, ...] = ()
    index: int = 0

    def __str__(self) -> str:
        return f"new, {'starts as the identity' if self.kind == 'identity' else 'starts at zero'}"


Edit = Widen | Kernel | Insert


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
      depth: how many branches it is inside of.
      have, want: the layers in words; empty where there is none.
      edits: that make the one the other. reason: why nothing exact does.
      narrower: the space and its smaller width, where that is the reason.
    """

    depth: int
    name: str
    have: str
    want: str
    edits: tuple[Edit, ...] = ()
    reason: str | None = None
    narrower: tuple[str, int] | None = None

    @property
    def action(self) -> str:
        """What happens to the layer."""
        if self.reason is not None:
            return f"no: {self.reason}"
        return ", ".join(map(str, self.edits))


Cost = tuple[int, int]
"""Impossible steps, edits."""


@dataclass(frozen=True)
class Alignment:
    """Rows in order, and what they cost: impossible steps, edits."""

    rows: tuple[Row, ...]
    cost: Cost

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in order; what several heads share is edited once."""
        return tuple(dict.fromkeys(edit for row in self.rows for edit in row.edits))

    @property
    def reasons(self) -> dict[str, str]:
        """Layer -> why nothing exact makes it what is wanted."""
        found: dict[str, str] = {}
        for row in self.rows:
            if row.reason is not None:
                label = row.name or row.have or row.want
                same = sum(known.partition(" #")[0] == label for known in found)
                found[f"{label} #{same + 1}" if same else label] = row.reason
        return found
