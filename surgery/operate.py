"""Carry out a plan and prove what it claims, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from surgery.arrays import Array
from surgery.checkpoint import Checkpoint, check_finite
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.edits.ports import record_ports
from surgery.errors import ClaimFailed, PlanMismatch, ProofFailed
from surgery.interface import LineageStep
from surgery.storage import save
from surgery.verify import Report, prove, versions


@dataclass(frozen=True)
class Result:
    """What came of a plan.

    Attributes:
      checkpoint: the new one, its lineage one step longer.
      report: what verification found; None if it was not asked for.
      plan: what was done.
    """

    checkpoint: Checkpoint
    report: Report | None
    plan: Plan

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the checkpoint; see `surgery.save`."""
        return save(self.checkpoint, path, force=force)


def apply(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    verify: bool = True,
    observations: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Result:
    """Carry out a plan and judge the result by what the plan claims.

    Args:
      plan: made for this checkpoint, or for one with the same graph.
      checkpoint: left as it is.
      verify: whether to judge at all.
      observations: recorded inputs to judge on; random ones in the declared range otherwise.
      seed: of the inputs.

    Returns:
      The new checkpoint and the report.

    Raises:
      PlanMismatch: if the plan does not fit the checkpoint; if it was read, and its float64 proof fails.
      GraphError: if a tensor contains NaN or infinity.
      ClaimFailed: if the stored result does not keep the claim.
      ProofFailed: if the float64 proof of a plan that was made here fails, which is a bug.
    """
    check_finite(checkpoint)
    after, report = preview(plan, checkpoint), None
    if verify:
        with _answerable(plan):
            exact = execute(plan, checkpoint, double=True)
            report = prove(plan, checkpoint, after, exact, observations=observations, seed=seed)
            _enforce(report, plan)
        *before, step = after.lineage
        witness = {**report.to_json(), "plan": plan.digest(), "notes": list(plan.notes)}
        after = after.replace(lineage=(*before, replace(step, witness=witness)))
    return Result(after, report, plan)


def preview(plan: Plan, checkpoint: Checkpoint) -> Checkpoint:
    """What `apply` gives, not judged yet: its tensors are computed when they are read.

    Raises:
      PlanMismatch, Refused: see `surgery.edits.execute.execute`.
    """
    with _answerable(plan):
        after = execute(plan, checkpoint)
    step = LineageStep(
        operation=plan.operation,
        parents=(checkpoint.digest(),),
        versions=versions(),
        seed=plan.seed,
        summary=[
            *({"space": c.space, "from": c.before, "to": c.after} for c in plan.changes),
            *record_ports(plan),
        ],
    )
    return after.replace(lineage=(*checkpoint.lineage, step))


def is_result(plan: Plan, checkpoint: Checkpoint, result: Checkpoint) -> bool:
    """Whether a checkpoint says of itself that it was made from another by this plan, and verified."""
    last = result.lineage[-1] if result.lineage else None
    witness = last.witness if last is not None and isinstance(last.witness, Mapping) else {}
    return (
        last is not None
        and last.parents == (checkpoint.digest(),)
        and witness.get("plan") == plan.digest()
        and witness.get("ok") is True
    )


@contextmanager
def _answerable(plan: Plan) -> Iterator[None]:
    """We answer for the plans of our operations; one that was read may be edited, or made for another graph.

    Raises:
      PlanMismatch: in place of a proof that fails, where the plan was read.
    """
    try:
        yield
    except ProofFailed as error:
        if not plan.read:
            raise
        raise PlanMismatch(
            f"the plan does not do what it claims here: {error.message}",
            where=error.where,
            hint=f"it was edited, or made for another graph: make a new plan '{plan.operation}' for this model",
        ) from error


def _enforce(report: Report, plan: Plan) -> None:
    if report.ok:
        return
    proofs = [
        check
        for check in report.failed
        if "float64" in check.name or check.name in ("structure", "optimizer slots")
    ]
    if proofs:
        raise ProofFailed(
            f"the proof of '{plan.operation}' fails: {proofs[0].name} {proofs[0].value:.3g}", where=report.failures,
            hint="this is a bug of ours: please report it, with the model and the plan",
        )  # fmt: skip
    raise ClaimFailed(
        f"'{plan.operation}' claims {plan.claim}, but the stored result is not: {report.failed[0].name}",
        where=report.failures,
        hint="write it anyway with --no-verify, or store the model in a wider precision",
    )  # fmt: skip
