"""Judge a result against what it was made from."""

from __future__ import annotations

from surgery.checkpoint import Checkpoint
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, shape_text
from surgery.verify.judge import UNCHANGED, Recorded, judge, versions
from surgery.verify.over_time import judge_over_time
from surgery.verify.report import Check, Report

Shape = tuple[int | None, ...]


def verify(
    before: Checkpoint, after: Checkpoint, *, observations: Recorded | None = None, seed: int = 0
) -> Report:
    """Compare two models that should be the same function.

    Recurrent states of other sizes (the models were made wider) begin at zero, and the models are compared over
    `STEPS` observations.

    Args:
      before, after: models with the same inputs and outputs, but for the sizes of recurrent states.
      observations: recorded inputs by name, rows first; random ones in the declared range otherwise.
      seed: of the inputs.

    Returns:
      The report; `ok` says whether they are equal within rounding.

    Raises:
      ArgumentError: if their inputs or outputs differ.
    """
    if _same_interfaces(before, after):
        return judge(UNCHANGED, before, after, None, observations=observations, seed=seed)
    return judge_over_time(before, after, observations, seed)


def prove(
    plan: Plan,
    before: Checkpoint,
    after: Checkpoint,
    exact: Checkpoint,
    *,
    observations: Recorded | None,
    seed: int,
) -> Report:
    """Judge the result of a plan, its optimizer slots included.

    Args:
      after: the result as it would be stored.
      exact: the result in float64, before rounding.
    """
    return judge(plan, before, after, exact, observations=observations, seed=seed)


def _same_interfaces(before: Checkpoint, after: Checkpoint) -> bool:
    """Whether all sizes are the same; false if those of recurrent states are not.

    Raises:
      ArgumentError: others are not, either.
    """
    same = True
    for side in ("inputs", "outputs"):
        old = [(p.name, _shape(before, p.name)) for p in getattr(before.interface, side)]
        new = [(p.name, _shape(after, p.name)) for p in getattr(after.interface, side)]
        same &= old == new
        states = [
            {p.name for p in getattr(each.interface, side) if p.kind == "state"} for each in (before, after)
        ]
        if _beside(old, states[0]) != _beside(new, states[1]):
            raise ArgumentError(
                f"the models have different {side}",
                where={"before": _text(old), "after": _text(new)},
                hint="surgery diff shows what differs",
            )
    return same


def _beside(ports: list[tuple[str, Shape]], states: set[str]) -> list[tuple[str, Shape | int]]:
    """Names and shapes; of states the rank alone."""
    return [(name, len(shape) if name in states else shape) for name, shape in ports]


def _shape(checkpoint: Checkpoint, name: str) -> Shape:
    return tuple(d if isinstance(d, int) else None for d in checkpoint.value(name).shape or ())


def _text(ports: list[tuple[str, Shape]]) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in ports)


__all__ = ["Check", "Report", "prove", "verify", "versions"]
