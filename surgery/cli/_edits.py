"""What the verbs that edit have in common: carry out a plan, write the result, say what changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output, plural, section
from surgery.errors import SurgeryError, number_text

if TYPE_CHECKING:
    import numpy as np

    from surgery.recipe import Recipe


@dataclass(frozen=True)
class Proof:
    """How a result is verified before it is written."""

    verify: bool
    observations: dict[str, np.ndarray] | None
    seed: int


def carry_out(
    plan: surgery.Plan,
    checkpoint: surgery.Checkpoint,
    target: Path,
    proof: Proof,
    output: Output,
    *,
    force: bool,
) -> surgery.Result:
    """Apply, verify, and write `target`, if that can hold the result."""
    check_holds(plan, checkpoint, target)
    with output.step("applying and verifying" if proof.verify else "applying"):
        result = surgery.apply(
            plan, checkpoint, verify=proof.verify, observations=proof.observations, seed=proof.seed
        )
    with output.step(f"writing {target}"):
        result.save(target, force=force)
    return result


@dataclass(frozen=True)
class Editing:
    """What every verb that edits one model is told beside the edit itself."""

    target: Path | None
    proof: Proof
    output: Output
    force: bool
    dry_run: bool

    def edit(self, model: Path, describe: Callable[[surgery.Checkpoint], surgery.Plan]) -> None:
        """Plan, then either show the plan or carry it out and say what changed."""
        output = self.output
        path = None if self.dry_run else _files.check_target(self.target, [model], force=self.force)
        with output.step(f"analysing {model}"):
            checkpoint = surgery.load(model)
            plan = describe(checkpoint)
        if path is None:
            plan = noted(plan, checkpoint, model, self.target)
            output.show(plan_report(plan), plan.describe)
            return
        result = carry_out(plan, checkpoint, path, self.proof, output, force=self.force)
        output.show(edit_report(result, path), lambda: edit_text(result, path))


def check_holds(plan: surgery.Plan, checkpoint: surgery.Checkpoint, target: Path) -> None:
    """Refuse a target that cannot hold the result of a plan.

    Raises:
      ArgumentError, Refused: see `surgery.storage.check_savable`.
    """
    from surgery.operate import preview
    from surgery.storage import check_savable

    check_savable(lambda: preview(plan, checkpoint), checkpoint, target)


def noted(
    plan: surgery.Plan, checkpoint: surgery.Checkpoint, model: Path, target: Path | None
) -> surgery.Plan:
    """A plan that says why the model's own file cannot hold the result, where no other target is named.

    Raises:
      ArgumentError, Refused: the target that is named cannot.
    """
    from surgery.operate import preview

    note = unheld(lambda: preview(plan, checkpoint), checkpoint, model, target)
    return plan if note is None else replace(plan, notes=(*plan.notes, note))


def unheld(
    make: Callable[[], surgery.Checkpoint], checkpoint: surgery.Checkpoint, model: Path, target: Path | None
) -> str | None:
    """Why the model's own file cannot hold a result, where no other target is named; None if it can.

    Args:
      make: the result, its tensors computed when they are read. checkpoint: what it is made of.

    Raises:
      ArgumentError, Refused: the target that is named cannot.
    """
    from surgery.storage import check_savable

    try:
        check_savable(make, checkpoint, target or model)
    except SurgeryError as error:
        if target is not None:
            raise
        return f"{model.name} cannot hold the result: {error.message}; -o OUT.onnx can"
    return None


def options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The options of every verb that edits one model, handed to the command as one `editing`."""

    @_options.seed
    @_options.observations
    @_options.no_verify
    @_options.dry_run
    @_options.output_file()
    @_options.force
    @_options.reported
    @functools.wraps(function)
    def command(
        *,
        seed: int,
        observations: Path | None,
        no_verify: bool,
        dry_run: bool,
        target: Path | None,
        force: bool,
        output: Output,
        **given: object,
    ) -> int | None:
        proof = Proof(not no_verify, _files.read_observations(observations), seed)
        return function(editing=Editing(target, proof, output, force, dry_run), **given)

    return command


def plan_report(plan: surgery.Plan) -> dict[str, object]:
    """The plan as `surgery apply` reads it."""
    return dict(plan.to_json())


def edit_report(result: surgery.Result, target: Path) -> dict[str, object]:
    """The object that an edit prints under `--json`."""
    plan, report = result.plan, result.report
    return {
        "output": str(target),
        "claim": plan.claim,
        "verified": report is not None,
        "exact": report.exact if report else None,
        "max_abs_error": report.max_abs_error if report else None,
        "max_rel_error": report.max_rel_error if report else None,
        "changes": changes(plan),
        "frozen": [{"space": space, "reason": reason} for space, reason in plan.frozen],
        "notes": list(plan.notes),
        "recipe": found.to_json() if (found := _recipe(result)) else None,
    }


def changes(plan: surgery.Plan) -> list[dict[str, object]]:
    """The spaces that a plan changes, as `--json` has them."""
    return [
        {"space": c.space, "from": c.before, "to": c.after, "tensors": c.tensors, "slots": c.slots}
        for c in plan.changes
    ]


def edit_text(result: surgery.Result, target: Path) -> str:
    """One line that says what changed, and beneath it what did not and why."""
    plan, report = result.plan, result.report
    line = [changed(plan), report.summary() if report else "not verified", f"wrote {target}"]
    notes = {"notes": "\n".join([*plan.notes, *_measurements(result)])}
    notes |= {"frozen": "\n".join(f"{space}: {reason}" for space, reason in plan.frozen)}
    if found := _recipe(result):
        notes["optimizer settings"] = found.describe()
    return "\n".join([" · ".join(line), *(section(title, body) for title, body in notes.items() if body)])


def changed(plan: surgery.Plan) -> str:
    """`network.0 16→32 · 5 tensors, 10 slots`"""
    tensors = sum(change.tensors for change in plan.changes)
    slots = sum(change.slots for change in plan.changes)
    counts = plural(tensors, "tensor") + (f", {plural(slots, 'slot')}" if slots else "")
    return " · ".join([*map(str, plan.changes), counts])


def _measurements(result: surgery.Result) -> list[str]:
    """What a proof has measured and sets no limit to: how often new actions are taken."""
    if result.report is None or result.plan.claim == "changed":
        return []
    checks = [check for check in result.report.checks if check.limit is None]
    return [f"{check.name}: {number_text(check.value)} ({check.detail})" for check in checks]


def _recipe(result: surgery.Result) -> Recipe | None:
    """The settings under which the optimizer goes on as before; None if there is no optimizer state."""
    state = result.checkpoint.optimizer
    return surgery.recipe(result.plan, state) if state else None
