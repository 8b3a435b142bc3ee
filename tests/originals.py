"""Networks of the zoo with what they compute, and every plan that widens them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

import surgery
from surgery.edits.plan import Plan
from surgery.graph.spaces import Analysis, Space
from surgery.numeric import run
from surgery.ops.widen import Init
from surgery.verify.outputs import runtime
from tests import zoo

Arrays = Mapping[str, np.ndarray]

FLOAT64, FLOAT32 = 1e-13, 1e-6
FORMS: tuple[tuple[Init, str], ...] = (("zero", "equal"), ("net2net", "equal"), ("net2net", "unequal"))
ODD = 1.4
"""Growth of a single space: no whole multiple for any width of the zoo."""

EXPORTS = [
    pytest.param(name, style, id=f"{name}-{style}")
    for name, net in zoo.NETS.items()
    for style in zoo.STYLES
    if style not in net.impossible
]


@dataclasses.dataclass(frozen=True)
class Original:
    """A network and what it computes: two batches that differ in every symbolic size."""

    checkpoint: surgery.Checkpoint
    analysis: Analysis
    batches: tuple[Arrays, Arrays]
    exact: Arrays
    stored: tuple[Arrays, Arrays]
    limit: float


@functools.cache
def original(name: str, style: str) -> Original:
    checkpoint, rng = surgery.load(zoo.export(name, style)), np.random.default_rng(0)
    other = {symbol: size + 2 for symbol, size in zoo.SYMBOLS.items()}
    batches = zoo.sample(name, 2, rng), zoo.sample(name, 1, rng, other)
    exact, session = run(checkpoint.model, batches[0]), runtime(checkpoint.model)
    stored = session(dict(batches[0])), session(dict(batches[1]))
    limit = max(FLOAT32, 4 * relative(exact, stored[0]))
    return Original(checkpoint, checkpoint.analysis, batches, exact, stored, limit)


def relative(old: Arrays, new: Arrays) -> float:
    """The largest error over all outputs, each relative to its largest element; NaN if any element is."""
    assert old.keys() == new.keys()
    errors = [0.0]
    for key, value in old.items():
        assert value.shape == new[key].shape
        wide = value.astype(np.float64)
        with np.errstate(invalid="ignore"):
            errors.append(float(np.max(np.abs(wide - new[key])) / np.max(np.abs(wide))))
    return float(np.max(errors))


def padded(space: Space, init: Init) -> bool:
    """Whether this form of growth adds units that vanish under a normaliser."""
    return space.padding is not None and init != "net2net"


def grown(analysis: Analysis, space: Space, init: Init) -> dict[str, int]:
    """New widths of one space, and of those that must grow with it."""
    if space.whole is None or padded(space, init):
        return {space.name: math.ceil(ODD * space.size)}
    return {name: 3 * analysis.space(name).size for name in (space.name, *space.alike)}


def refusal(space: Space, init: Init, shares: str = "equal", factor: float = 2) -> str | None:
    """What the analysis says against this form of growth."""
    if not space.widenable:
        return space.reason or ""
    if padded(space, init):
        return None
    if space.whole and (shares != "equal" or factor != int(factor)):
        return space.whole
    return {"auto": None, "zero": space.no_zero, "net2net": space.no_net2net}[init]


def single(before: Original, forms: Sequence[tuple[Init, str]] = FORMS) -> Iterator[tuple[str, Plan]]:
    """Each space alone by a factor that is no integer, in every form that it can take."""
    for init, shares in forms:
        for space in before.analysis.spaces:
            if refusal(space, init, shares) is None:
                widths = grown(before.analysis, space, init)
                yield f"{space.name} {init} {shares}", _plan(before, init, shares, widths=widths)


def together(before: Original) -> Iterator[tuple[str, Plan]]:
    """All that can grow, by 1.5; "auto" only where it mixes the initialisations.

    By 2 only where that is another case: equal copies of all units, and what grows by whole multiples only.
    """
    spaces = before.analysis.spaces
    whole = any(space.widenable and space.whole for space in spaces)
    mixed = len({space.no_zero is None or padded(space, "zero") for space in spaces if space.widenable}) == 2
    for init, shares in ((("auto", "equal"),) if mixed else ()) + FORMS:
        for factor in (1.5, 2) if whole or (init, shares) == ("net2net", "equal") else (1.5,):
            if any(refusal(space, init, shares, factor) is None for space in spaces):
                yield f"all ×{factor} {init} {shares}", _plan(before, init, shares, factor=factor)


def _plan(before: Original, init: Init, shares: str, **how: object) -> Plan:
    return surgery.widen(before.checkpoint, init=init, shares=shares, **how)  # type: ignore[arg-type]
