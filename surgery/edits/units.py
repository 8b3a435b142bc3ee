"""What happens to the units of one space: which are copied, fresh, merged, folded away; and how plans write it down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from surgery.arrays import Array
from surgery.errors import PlanMismatch

MOST_UNITS = 1 << 24
"""Largest number of units that a plan may give a space."""


@dataclass(frozen=True, slots=True)
class Start:
    """How the rows of new outputs start.

    Attributes:
      kind: "mean" of the old rows, "zero", or "split": copies of one row, which share its probability.
      bias: added to the bias of each; with "split" also to that of the row that is copied (−log of their number).
    """

    kind: Literal["mean", "zero", "split"]
    bias: float = 0.0


@dataclass(frozen=True)
class SpaceEdit:
    """What happens to the units of one space.

    Attributes:
      space: its name.
      before: number of units now.
      source: for every new unit the old one that it copies (or, if fresh, borrows its scales from).
      fresh: positions of new units that no old unit may depend on.
      shares: for every new unit its part of the outgoing weights; None for equal parts among copies.
      start: how tensors that make the fresh units start, instead of as is usual for them.
      merged: (old unit, new unit): a duplicate that goes, and the new unit that takes over its outgoing weights.
      folded: (old unit, its value): a constant that goes, and is added to the biases behind it; the value is None
        where the network itself makes it, and is then computed.

    Old units that are neither copied, merged nor folded are removed.
    """

    space: str
    before: int
    source: tuple[int, ...]
    fresh: frozenset[int] = frozenset()
    shares: tuple[float, ...] | None = None
    start: Start | None = None
    merged: tuple[tuple[int, int], ...] = ()
    folded: tuple[tuple[int, float | None], ...] = ()

    @property
    def after(self) -> int:
        """Number of units afterwards."""
        return len(self.source)

    @property
    def share(self) -> Array:
        """Shares as float64, shape (after,); 1 for fresh units and single copies."""
        if self.shares is not None:
            return np.array(self.shares)
        source = np.array(self.source)
        copies = np.bincount(source[~self.is_fresh], minlength=self.before)
        return np.where(self.is_fresh, 1.0, 1.0 / np.maximum(copies[source], 1))

    @property
    def is_fresh(self) -> Array:
        """Boolean mask of fresh units, shape (after,)."""
        mask = np.zeros(self.after, bool)
        mask[list(self.fresh)] = True
        return mask

    @property
    def started(self) -> Array:
        """Mask of the new units that `start` speaks of, shape (after,)."""
        if self.start is None or self.start.kind != "split":
            return self.is_fresh
        source = np.array(self.source)
        return (np.bincount(source, minlength=self.before) > 1)[source]  # type: ignore[no-any-return]

    @property
    def added(self) -> Array:
        """Mask of the new units that were not there before: fresh ones, and all copies but the first, (after,)."""
        mask = np.ones(self.after, bool)
        kept = np.flatnonzero(~self.is_fresh)
        mask[kept[np.unique(np.array(self.source)[kept], return_index=True)[1]]] = False
        return mask

    @property
    def gone(self) -> tuple[int, ...]:
        """Old units that no new one stands for, merged and folded ones included."""
        kept = {k for k, fresh in zip(self.source, self.is_fresh, strict=True) if not fresh}
        return tuple(k for k in range(self.before) if k not in kept)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Old units that are removed without a replacement."""
        replaced = {old for old, _ in self.merged} | {old for old, _ in self.folded}
        return tuple(k for k in self.gone if k not in replaced)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; runs of consecutive numbers are written "a:b"."""
        return {
            "space": self.space,
            "from": self.before,
            "to": self.after,
            "source": _runs(self.source),
            "fresh": _runs(sorted(self.fresh)),
            "shares": None if self.shares is None else list(self.shares),
            "start": None if self.start is None else {"kind": self.start.kind, "bias": self.start.bias},
            **({"merged": [list(pair) for pair in self.merged]} if self.merged else {}),
            **({"folded": [list(pair) for pair in self.folded]} if self.folded else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SpaceEdit:
        """The inverse of `to_json`.

        Raises:
          PlanMismatch: if the data does not describe an edit.
        """
        try:
            shares, after = data["shares"], natural(data["to"])
            if after > MOST_UNITS:
                raise ValueError(f"{after} units")
            edit = SpaceEdit(
                data["space"],
                natural(data["from"]),
                _numbers(data["source"], after),
                frozenset(_numbers(data["fresh"], after)),
                None if shares is None else tuple(float(share) for share in shares),
                _start(data["start"]),
                tuple((natural(old), natural(new)) for old, new in data.get("merged", ())),
                tuple((natural(old), _constant(value)) for old, value in data.get("folded", ())),
            )
            if not isinstance(edit.space, str):
                raise TypeError("the name of a space is text")
            if edit.shares is not None and not all(map(math.isfinite, edit.shares)):
                raise ValueError("shares that are no numbers")
            if edit.after != after or (edit.shares is not None and len(edit.shares) != edit.after):
                raise ValueError("lengths differ")
            if any(not 0 <= k < edit.before for k in edit.source) or any(k >= edit.after for k in edit.fresh):
                raise ValueError("unit numbers out of range")
            _check_gone(edit)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanMismatch(f"not the edit of a space: {data!r:.80} ({error})") from None
        return edit


def _check_gone(edit: SpaceEdit) -> None:
    gone = [old for old, _ in (*edit.merged, *edit.folded)]
    stay = set(edit.source)
    if stay.intersection(gone) or len(set(gone)) < len(gone) or any(old >= edit.before for old in gone):
        raise ValueError("a unit that is merged or folded is there twice, or stays")
    if any(new >= edit.after for _, new in edit.merged):
        raise ValueError("unit numbers out of range")


def _constant(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def _runs(numbers: Sequence[int]) -> list[int | str]:
    out: list[int | str] = []
    start = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1:
            out.append(numbers[start] if k - start == 1 else f"{numbers[start]}:{numbers[k - 1] + 1}")
            start = k
    return out


def _numbers(runs: Sequence[int | str], limit: int) -> tuple[int, ...]:
    """The inverse of `_runs`; at most `limit` numbers, none of them negative."""
    out: list[int] = []
    for run in runs:
        first, last = (
            (int(part) for part in run.split(":")) if isinstance(run, str) else (natural(run), run + 1)
        )
        if not 0 <= first < last or last - first > limit - len(out):
            raise ValueError(f"a run {run} in a space of {limit} units")
        out.extend(range(first, last))
    return tuple(out)


def _start(data: object) -> Start | None:
    match data:
        case None:
            return None
        case {"kind": "mean" | "zero" | "split" as kind, "bias": int() | float() as bias} if math.isfinite(
            bias
        ):
            return Start(kind, float(bias))
    raise ValueError(f"a start {data!r:.60}")


def natural(value: object) -> int:
    """A whole number of JSON, 0 or more; raises TypeError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r:.40} is not a whole number, 0 or more")
    return value
