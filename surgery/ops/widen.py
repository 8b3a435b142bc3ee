"""Widen: more units in some spaces, the same function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.edits.arithmetic import SpaceEdit, tensor_rng
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, Refused
from surgery.graph.layout import units
from surgery.graph.spaces import Analysis, Space
from surgery.ops.build import build
from surgery.ops.seats import Seats, seats, width_that_fits, with_linked

MAX_WIDTH = 1 << 20
"""Largest number of units that a space can be given."""

Init = Literal["auto", "zero", "net2net"]


def widen(
    checkpoint: Checkpoint,
    *,
    widths: Mapping[str, int] | None = None,
    factor: float | None = None,
    init: Init = "auto",
    shares: Literal["equal", "unequal"] = "equal",
    noise: float = 0.0,
    seed: int = 0,
) -> Plan:
    """Grow spaces without changing the function.

    Two initialisations. *zero*: new units get random incoming weights, and zero outgoing ones (OpenAI, 2019); new
    capacity learns at once. *net2net*: new units copy old ones, which share their outgoing weights (Chen et al., 2016).

    Args:
      checkpoint: any checkpoint; only shapes are read.
      widths: space -> new number of units.
      factor: instead of `widths`: every space that can grow becomes ceil(factor · size) wide; those that are shuffled
        take the next width at which every unit keeps its place in the shuffles; what constants alone make stays.
      init: "auto" takes zero where it is exact, else net2net.
      shares: how copies share outgoing weights, "equal" or "unequal" (drawn between half and one and a half parts).
      noise: added to copies, as a fraction of each tensor's standard deviation; the claim is then "changed".
      seed: of the random numbers.

    Returns:
      A plan that claims "equivalent" (or "changed" with noise).

    Raises:
      UnknownName: a space that is not there. ArgumentError: a width or factor that is not a growth.
      Refused: a space that cannot grow exactly, with the reason; no space can grow by the factor.

    References:
      Chen, Goodfellow, Shlens. Net2Net: Accelerating Learning via Knowledge Transfer. ICLR 2016.
      OpenAI. Dota 2 with Large Scale Deep Reinforcement Learning. 2019 (arXiv:1912.06680), appendix B.
    """
    _check(widths, factor, init, shares, noise)
    analysis = checkpoint.analysis
    frozen: list[tuple[str, str]] = []
    if widths is not None:
        wanted = with_linked(analysis, analysis.asked(widths))
        for space, width in wanted.items():
            _check_width(analysis, space, width, init)
            _check_multiple(space, width, wanted, init, shares)
            _check_seats(analysis, space, width)
    else:
        assert factor is not None
        wanted, frozen = _by_factor(analysis, factor, init, shares)
    chosen = {space: _choose(space, width, init) for space, width in wanted.items()}
    edits = [_edit(analysis, space, width, chosen[space], shares, seed) for space, width in wanted.items()]
    arguments: dict[str, Any] = {
        "widths": {space.name: width for space, width in wanted.items()},
        "init": init, "shares": shares, "noise": noise,
    }  # fmt: skip
    if factor is not None:
        arguments["factor"] = factor
    parting = [space for space in wanted if space.extreme is not None and chosen[space] == "net2net"]
    plan = build(
        checkpoint, analysis, "widen", edits, arguments=arguments, claim="changed" if noise else "equivalent",
        seed=seed, noise=noise, frozen=frozen, notes=[_parting(space) for space in parting],
        padded=[space.name for space in wanted if chosen[space] == "zero" and space.no_zero is not None],
    )  # fmt: skip
    return replace(plan, inexact_slots=tuple(space.name for space in parting))


def _parting(space: Space) -> str:
    """What there is to know of copies of which the largest is taken."""
    return (
        f"the function is the same, the trajectory of training is not: {space.extreme}, and only some of the "
        f"equal copies in '{space.name}' get its gradient"
    )


def _check(
    widths: Mapping[str, int] | None, factor: float | None, init: str, shares: str, noise: float
) -> None:
    if (not widths) == (factor is None):
        raise ArgumentError("nothing to widen to" if not widths else "widths and a factor at once",
                            hint="give either widths (SPACE=N) or one factor")  # fmt: skip
    if factor is not None and not (math.isfinite(factor) and factor > 1):
        raise ArgumentError(
            f"factor {factor} is not a growth", hint="a factor is a finite number greater than 1"
        )
    if init not in ("auto", "zero", "net2net"):
        raise ArgumentError(f"unknown initialisation '{init}'", hint="auto, zero or net2net")
    if shares not in ("equal", "unequal"):
        raise ArgumentError(f"unknown shares '{shares}'", hint="equal or unequal")
    if not (math.isfinite(noise) and noise >= 0):
        raise ArgumentError(f"noise {noise} is not a finite number, 0 or more")
    if (noise or shares == "unequal") and init != "net2net":
        raise ArgumentError("noise and unequal shares are for copies", hint="add --init net2net")


def _check_width(analysis: Analysis, space: Space, width: int, init: Init) -> None:
    where = {"space": f"{space.name} = {', '.join(f'{a.tensor}[{a.axis}]' for a in space.axes)}"}
    if width == space.size:
        raise ArgumentError(f"space '{space.name}' is {width} wide already", where=where)
    if width > MAX_WIDTH:
        raise ArgumentError(
            f"space '{space.name}' would be {width} wide; the limit is {MAX_WIDTH}", where=where
        )
    if width < space.size:
        raise ArgumentError(
            f"cannot widen space '{space.name}' to {width}: it is {space.size} wide", where=where,
            hint="surgery narrow makes layers narrower; surgery inspect lists the spaces",
        )  # fmt: skip
    reason = _refusal(space, init)
    if reason:
        hint = _undeclared_state(analysis, space)
        raise Refused(f"space '{space.name}' cannot grow exactly: {reason}", where=where, hint=hint)


def _check_multiple(space: Space, width: int, wanted: Mapping[Space, int], init: Init, shares: str) -> None:
    """Averaged units keep their mean only if all are copied equally often."""
    reason = _uneven(space, width / space.size, init, shares)
    if reason:
        raise Refused(f"space '{space.name}' cannot grow to {width} exactly: {reason}",
                      hint=f"widths that can: {2 * space.size}, {3 * space.size}, …")  # fmt: skip
    ratios = {other.name: size / other.size for other, size in wanted.items()}
    for name in space.alike:
        if ratios.get(name, 1.0) != width / space.size:
            raise Refused(f"'{space.name}' and '{name}' are averaged together: they must grow by the same multiple",
                          hint=" ".join(f"--width {s}=…" for s in space.alike))  # fmt: skip


def _check_seats(analysis: Analysis, space: Space, width: int) -> None:
    if not space.linked:
        return
    fitting = width_that_fits(analysis, space, width, MAX_WIDTH)
    if fitting != width:
        raise Refused(
            f"space '{space.name}' cannot grow to {width} exactly: some of its units would move to another part of "
            "a channel shuffle",
            hint=None if fitting is None else f"the next width at which none does: {fitting}",
        )


def _uneven(space: Space, ratio: float, init: Init, shares: str) -> str | None:
    if space.whole is None or (space.padding is not None and init != "net2net"):
        return None
    if ratio != int(ratio):
        return f"{space.whole}; it grows by whole multiples"
    return f"{space.whole}; its copies need equal shares" if shares != "equal" else None


def _constant(space: Space) -> str | None:
    return (
        f"made by the constant '{space.table}' alone; more of it would tell nothing new"
        if space.table
        else None
    )


def _refusal(space: Space, init: Init) -> str | None:
    """Why a space cannot take an initialisation; None if it can."""
    if not space.widenable:
        return space.reason
    if init == "zero":
        return None if space.padding is not None else space.no_zero
    return space.no_net2net if init == "net2net" else None


def _choose(space: Space, width: int, init: Init) -> Literal["zero", "net2net"]:
    """Fresh units where nothing averages them; under a normaliser copies where they come out even."""
    if init != "auto":
        return init
    even = space.no_net2net is None and (space.whole is None or width % space.size == 0)
    return "zero" if space.no_zero is None or not even else "net2net"


def _by_factor(
    analysis: Analysis, factor: float, init: Init, shares: str
) -> tuple[dict[Space, int], list[tuple[str, str]]]:
    if factor > MAX_WIDTH:
        raise ArgumentError(
            f"factor {factor:g} is beyond any layer", hint=f"spaces can be {MAX_WIDTH} wide at most"
        )
    wanted: dict[Space, int] = {}
    frozen: list[tuple[str, str]] = []
    for space in analysis.spaces:
        reason = _refusal(space, init) or _uneven(space, factor, init, shares) or _constant(space)
        if reason:
            if space.hidden:
                frozen.append((space.name, reason))
        else:
            wanted[space] = math.ceil(factor * space.size - 1e-9)
            _check_width(analysis, space, wanted[space], init)
    _seat(analysis, wanted, frozen)
    if not wanted:
        hints = [hint for space in analysis.spaces if (hint := _undeclared_state(analysis, space))]
        whole = math.ceil(factor)
        if any(
            not (_refusal(space, init) or _uneven(space, whole, init, shares)) for space in analysis.spaces
        ):
            hints.insert(0, f"a factor of {whole} fits")
        raise Refused(
            f"no space of this model can grow by a factor of {factor:g}", where=dict(frozen[:6]),
            hint=hints[0] if hints else "surgery inspect shows every axis",
        )  # fmt: skip
    return wanted, frozen


def _undeclared_state(analysis: Analysis, space: Space) -> str | None:
    """What to declare where units that go in and come out again are recurrent state; None for other spaces."""
    if set(space.kinds) != {"input", "output"}:
        return None
    ends = [
        f"--{side} {name}:state"
        for side, name, axes in analysis.ports
        if any(part.space == space.name for part in units(*axes))
    ]
    return f"if '{space.name}' is recurrent state, say so: surgery annotate MODEL {' '.join(ends)} -o OUT"


def _seat(analysis: Analysis, wanted: dict[Space, int], frozen: list[tuple[str, str]]) -> None:
    """Give spaces that are shuffled with each other the next width that fits all of them; leave out what has none."""
    done: dict[str, int | None] = {}
    for space in [space for space in wanted if space.linked]:
        alone = any(analysis.by_name[name] not in wanted for name in space.linked)
        if space.name not in done:
            fitting = None if alone else width_that_fits(analysis, space, wanted[space], MAX_WIDTH)
            done |= dict.fromkeys(space.linked, fitting)
        width = done[space.name]
        if width is None:
            frozen.append((space.name, "no width keeps all units in their parts of the channel shuffles"))
            del wanted[space]
        else:
            wanted[space] = width


def _edit(analysis: Analysis, space: Space, width: int, init: str, shares: str, seed: int) -> SpaceEdit:
    """Old units first, then the new ones; donors and sources are spread evenly over the old units."""
    rng = tensor_rng(seed, f"space {space.name}")
    if space.linked:
        source, fresh = _seated(seats(analysis, space.linked, width)[space.name], width, init, rng)
    else:
        source = np.concatenate([np.arange(space.size), _spread(space.size, width - space.size, rng)])
        fresh = np.arange(space.size, width) if init == "zero" else np.zeros(0, np.int64)
    uneven = _unequal(source, fresh, rng) if shares == "unequal" else None
    return SpaceEdit(space.name, space.size, tuple(source.tolist()), frozenset(fresh.tolist()), uneven)


def _spread(size: int, count: int, rng: np.random.Generator) -> Array:
    """So many of the numbers below a size, each about equally often."""
    rounds = math.ceil(count / size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)] or [np.zeros(0, np.int64)])[:count]


def _seated(groups: Seats, width: int, init: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """The source of every place, and the places of fresh units: among them those that no old unit can be copied to."""
    size = sum(len(old) for old, _ in groups)
    source, fresh = _spread(size, width, rng), np.zeros(width, bool)
    for old, places in groups:
        source[places[: len(old)]] = old
        more = places[len(old) :]
        fresh[more] = init == "zero" or not len(old)
        if len(old):
            source[more] = old[_spread(len(old), len(more), rng)]
    return source, np.flatnonzero(fresh)


def _unequal(source: Array, fresh: Array, rng: np.random.Generator) -> tuple[float, ...]:
    parts, copied = rng.uniform(0.5, 1.5, len(source)), np.ones(len(source), bool)
    copied[fresh] = False
    totals = np.bincount(source[copied], weights=parts[copied], minlength=int(source.max()) + 1)
    return tuple(np.where(copied, parts / np.where(copied, totals[source], 1), 1.0).tolist())
