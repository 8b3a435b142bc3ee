"""The break dial: when, in which layer and how strongly copies stop being copies.

Copies with equal shares get equal gradients and never part. Four ways to part them, from the weakest to the strongest
(relative distance of copies after 1,000 updates of Adam in a small regression):

    shares    unequal outgoing weights: Adam divides them out again, copies part slowly     exact at the moment, 0.27
    noise     on the incoming weights of the later copies                                   changes the function
    reset     the later copies forget their optimizer state                                 exact at the moment, 0.79
    zero      the later copies start anew: random incoming weights, outgoing weights zero   exact at the moment, 1.2

Reset: SPARKLING (arXiv:2602.02472), section 4. Zero: OpenAI, 2019 (arXiv:1912.06680), appendix B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from surgery.edits.arithmetic import SpaceEdit, axis_maps, tensor_rng
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.graph import layout
from surgery.graph.layout import resized
from surgery.torch.trajectory.factors import Factors, factors, later_copies
from surgery.torch.trajectory.follow import Tracked, Trajectory

How = Literal["shares", "noise", "reset", "zero"]
_LIMIT = 1e-5
"""Largest relative change of the outputs that is rounding, in float32; the precision's own in float64."""


@torch.no_grad()
def break_symmetry(
    trajectory: Trajectory,
    space: str,
    how: How = "reset",
    *,
    strength: float = 1.0,
    seed: int = 0,
    outputs: Callable[[], Tensor] | None = None,
) -> None:
    """Let the later copies in a space learn things of their own.

    Args:
      trajectory: of the widened network.
      space: one that the plan widened with copies.
      how: "reset" (forget the optimizer state), "zero" (start anew), "shares" or "noise".
      strength: 0 to 1. reset: the part of the state that is forgotten; zero: the size of the new incoming weights
        beside the old ones'; shares: how unequal they are; noise: its size beside the weights' standard deviation.
      seed: of what is random.
      outputs: runs the network on a batch. If given, outputs are compared before and after, and everything is undone
        if they differ (noise excepted). Copies that are averaged (LayerNorm) cannot start anew, for one.

    Raises:
      UnknownName: no such space in the plan. ArgumentError: it has no copies, or a strength out of range.
      Refused: the copies have parted already (shares, zero), there is no state to forget (reset), or the outputs
        would change.
    """
    edit = _edit(trajectory, space, how, strength)
    layer = _Layer(trajectory, edit)
    if how == "reset" and not layer.remembered():
        raise Refused(f"the optimizer has no state of '{space}' that could be reset",
                      hint="part them by zero, shares or noise")  # fmt: skip
    saved, before = layer.weights(), None if outputs is None else outputs()
    new = edit
    if how == "shares":
        new = dataclasses.replace(edit, shares=_unequal(edit, strength, seed))
    elif how == "zero":
        new = dataclasses.replace(edit, fresh=edit.fresh | later_copies(edit), shares=None)
    if new is not edit:
        layer.check_equal()
        layer.share_out(new)
    if how in ("zero", "noise"):
        layer.draw(strength, seed, fresh=how == "zero")
    if outputs is not None and before is not None and how != "noise":
        change = _difference(before, outputs())
        if not change <= max(_LIMIT if before.dtype != torch.float64 else 1e-12, 0.0):
            layer.restore(saved)
            raise Refused(f"'{space}' cannot part by '{how}': the outputs would change by {change:.2g}",
                          hint="copies that are averaged can be reset, which changes no output")  # fmt: skip
    if how in ("reset", "zero"):
        layer.forget(strength if how == "reset" else 1.0)
    if new is not edit:
        trajectory.adopt(new)
    if how == "shares":
        trajectory.release(space)


def _edit(trajectory: Trajectory, space: str, how: str, strength: float) -> SpaceEdit:
    if how not in ("shares", "noise", "reset", "zero"):
        raise UnknownName("way to break a symmetry", how, ("shares", "noise", "reset", "zero"))
    if not 0 < strength <= 1:
        raise ArgumentError(f"a strength of {strength}", hint="more than 0, at most 1")
    if space not in trajectory.edits:
        raise UnknownName("widened space", space, trajectory.edits)
    edit = trajectory.edits[space]
    if not later_copies(edit):
        raise ArgumentError(f"'{space}' has no copies: its new units are fresh, and learn already")
    return edit


@dataclass(frozen=True)
class _Layer:
    """The parameters in which one space occurs."""

    trajectory: Trajectory
    edit: SpaceEdit

    def members(self) -> list[Tracked]:
        return [
            tracked
            for tracked in self.trajectory.tracked.values()
            if any(part.space == self.edit.space for axis in tracked.edit.axes for part in layout.units(axis))
        ]

    def alone(self, tracked: Tracked, edit: SpaceEdit) -> Factors:
        """The factors of an edit of this space, all others held still."""
        still = {
            name: dataclasses.replace(other, fresh=frozenset(), shares=(1.0,) * other.after)
            for name, other in self.trajectory.edits.items()
        }
        return factors(tracked.edit, {**still, edit.space: edit}, tracked.weight)

    def later(self, tracked: Tracked) -> Factors:
        """Factors whose fresh entries are those of the later copies."""
        return self.alone(tracked, dataclasses.replace(self.edit, fresh=later_copies(self.edit), shares=None))

    def remembered(self) -> bool:
        """Whether the optimizer has any state of these parameters (plain SGD never has)."""
        return any(self.trajectory.slots(tracked.weight) for tracked in self.members())

    def weights(self) -> list[Tensor]:
        return [tracked.weight.detach().clone() for tracked in self.members()]

    def restore(self, saved: Sequence[Tensor]) -> None:
        for tracked, weight in zip(self.members(), saved, strict=True):
            tracked.weight.copy_(weight)

    def check_equal(self) -> None:
        """Weights can be moved from copy to copy only as long as these are copies."""
        first = {self.edit.source[k]: k for k in reversed(range(self.edit.after)) if k not in self.edit.fresh}
        original = [k if k in self.edit.fresh else first[self.edit.source[k]] for k in range(self.edit.after)]
        twin = SpaceEdit(self.edit.space, self.edit.after, tuple(original), shares=(1.0,) * self.edit.after)
        sizes = {name: edit.after for name, edit in self.trajectory.edits.items()}
        for tracked in self.members():
            maps = axis_maps(tuple(resized(axis, sizes) for axis in tracked.edit.axes), {twin.space: twin})
            copied = tracked.weight / self.alone(tracked, self.edit).value
            for k, axis in enumerate(maps):
                if axis is None:
                    continue
                other = copied.index_select(k, torch.as_tensor(axis.source, device=copied.device))
                scale = float(copied.abs().max())
                if float((other - copied).abs().max()) > 1e-6 * scale:
                    raise Refused(
                        f"the copies in '{self.edit.space}' have parted already ('{tracked.edit.name}')",
                        hint="shares and zero come before everything else; reset and noise are possible at any time",
                    )

    def share_out(self, new: SpaceEdit) -> None:
        """Outgoing weights a·w become b·w, with b = 0 for copies that start anew."""
        b, a = np.where(new.is_fresh, 0.0, new.share), np.where(self.edit.is_fresh, 1.0, self.edit.share)
        ratio = np.where(self.edit.is_fresh, 1.0, b / a)
        moved = dataclasses.replace(self.edit, fresh=frozenset(), shares=tuple(map(float, ratio)))
        for tracked in self.members():
            tracked.weight.mul_(self.alone(tracked, moved).value)

    def draw(self, strength: float, seed: int, *, fresh: bool) -> None:
        """Random incoming weights for the later copies, or noise on them; vectors (biases, scales) get none."""
        for tracked in self.members():
            made = self.later(tracked).made
            if made is None or (tracked.edit.fill == "donor" and fresh):
                continue
            mask = made.broadcast_to(tracked.weight.shape)
            if tracked.edit.fill != "random":
                if fresh:
                    tracked.weight.masked_fill_(mask, 0)
                continue
            generator = tensor_rng(seed, tracked.edit.name)
            noise = torch.as_tensor(generator.standard_normal(tuple(tracked.weight.shape))).to(tracked.weight)
            drawn = strength * tracked.weight.std() * noise
            tracked.weight.copy_(
                torch.where(mask, drawn if fresh else tracked.weight + drawn, tracked.weight)
            )

    def forget(self, strength: float) -> None:
        for tracked in self.members():
            entries = self.later(tracked).fresh
            if entries is None:
                continue
            if strength == 1:
                self.trajectory.rejuvenate(tracked, entries)
            else:
                self.trajectory.fade(tracked, entries, 1 - strength)


def _unequal(edit: SpaceEdit, strength: float, seed: int) -> tuple[float, ...]:
    """Shares between 1 − strength/2 and 1 + strength/2 of equal parts."""
    rng = tensor_rng(seed, f"space {edit.space}")
    parts = edit.share * rng.uniform(1 - strength / 2, 1 + strength / 2, edit.after)
    totals = np.bincount(edit.source, weights=np.where(edit.is_fresh, 0, parts), minlength=edit.before)
    return tuple(
        float(p) for p in np.where(edit.is_fresh, 1.0, parts / np.maximum(totals[list(edit.source)], 1e-300))
    )


def _difference(before: Tensor, after: Tensor) -> float:
    scale = float(before.abs().max()) or 1.0
    return float((after - before).abs().max()) / scale
