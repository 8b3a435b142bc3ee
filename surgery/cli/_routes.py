"""What the verbs that take `--to` share: find a route, take it, and report it layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _edits, _environment, _files
from surgery.cli._output import Output, plural, section, table
from surgery.errors import Refused

if TYPE_CHECKING:
    from surgery.ops.widen import Init
    from surgery.route import Journey
    from surgery.route.edits import Alignment, Row


@dataclass(frozen=True)
class Play:
    """Environment and length of the training that takes the place of a missing route."""

    environment: str | None
    frames: int


def fallback(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """`--or-distill` and what belongs to it, handed to the command as one `play`, None without it."""

    @click.option(
        "--or-distill", is_flag=True, help="If no exact route exists, distill into a new network instead."
    )
    @click.option(
        "--env",
        "environment",
        metavar="ID",
        help="With --or-distill: the environment, instead of the contract's.",
    )
    @click.option(
        "--frames",
        metavar="N",
        type=click.IntRange(min=1),
        default=10_000_000,
        show_default=True,
        help="With --or-distill: the number of frames to play.",
    )
    @functools.wraps(function)
    def command(*, or_distill: bool, environment: str | None, frames: int, **given: object) -> int | None:
        return function(play=Play(environment, frames) if or_distill else None, **given)

    return command


def travel(
    model: Path, to: str, editing: _edits.Editing, *, init: Init = "auto", play: Play | None = None
) -> None:
    """Take a model to an architecture by exact edits, and write it; or show the route.

    Where there is none and `play` is given, a new network is taught in the run directory OUT.run and written to OUT.
    """
    try:
        if editing.dry_run:
            _show(model, to, editing, init)
        else:
            _travel(model, to, editing, init)
    except Refused as refusal:
        if play is None:
            raise
        editing.output.note(f"{refusal.message}: {', '.join(f'{k}: {v}' for k, v in refusal.where.items())}")
        _distill(model, to, editing, play)


def _show(model: Path, to: str, editing: _edits.Editing, init: Init) -> None:
    """The route, unless the target that is named cannot hold what it leads to."""
    from surgery import route

    with editing.output.step(f"looking for a route to {to}"):
        checkpoint = surgery.load(model)
        name, found = route.survey(checkpoint, to)
        route.check(found, name, checkpoint)
        if editing.target is not None and checkpoint.origin is not None:
            accept = _accepted(checkpoint, editing.target)
            route.migrate(checkpoint, to, init=init, verify=False, seed=editing.proof.seed, accept=accept)
    editing.output.show(_survey(found, to), lambda: _rows(found.rows))


def _travel(model: Path, to: str, editing: _edits.Editing, init: Init) -> None:
    from surgery import route

    proof, output = editing.proof, editing.output
    path = _files.check_target(editing.target, [model], force=editing.force)
    with output.step(f"reading {model}"):
        checkpoint = surgery.load(model)
    with output.step("applying and verifying"):
        journey = route.migrate(
            checkpoint,
            to,
            init=init,
            verify=proof.verify,
            observations=proof.observations,
            seed=proof.seed,
            accept=_accepted(checkpoint, path),
        )
    with output.step(f"writing {path}"):
        journey.save(path, force=editing.force)
    output.show(report(journey, path), lambda: text(journey, path))


def _accepted(checkpoint: surgery.Checkpoint, target: Path) -> Callable[[surgery.Checkpoint], None]:
    """Refuses a result that the target cannot hold."""
    from surgery.storage import check_savable

    return lambda result: check_savable(lambda: result, checkpoint, target)


def report(journey: Journey, path: Path) -> dict[str, object]:
    """The object that a route prints under `--json`."""
    found = journey.report
    return {
        "output": str(path),
        "claim": "equivalent",
        "verified": found is not None,
        "exact": found.exact if found else None,
        "max_abs_error": found.max_abs_error if found else None,
        "max_rel_error": found.max_rel_error if found else None,
        "to": journey.target.name,
        "layers": [_layer(row) for row in journey.rows],
        "steps": [_step(result) for result in journey.results],
        "changes": [change for result in journey.results for change in _edits.changes(result.plan)],
    }


def _survey(found: Alignment, to: str) -> dict[str, object]:
    return {"to": to, "exact": not found.reasons, "layers": [_layer(row) for row in found.rows]}


def _layer(row: Row) -> dict[str, object]:
    return {
        "depth": row.depth,
        "name": row.name or None,
        "have": row.have or None,
        "want": row.want or None,
        "edits": [str(edit) for edit in row.edits],
        "reason": row.reason,
    }


def _step(result: surgery.Result) -> dict[str, object]:
    return {
        "operation": result.plan.operation,
        "claim": result.plan.claim,
        "plan": result.plan.to_json(),
        "changes": _edits.changes(result.plan),
    }


def text(journey: Journey, path: Path) -> str:
    """The layers, a line for every plan, and one that says how it ended."""
    if not journey.results:
        return f"{_rows(journey.rows)}\n\nit is '{journey.target.name}' already · wrote {path}"
    steps = [f"{result.plan.operation}: {_edits.changed(result.plan)}" for result in journey.results]
    end = [plural(len(steps), "step"), journey.report.summary() if journey.report else "not verified"]
    parts = [_rows(journey.rows), section("steps", "\n".join(steps)), " · ".join([*end, f"wrote {path}"])]
    return "\n\n".join(parts)


def _rows(rows: tuple[Row, ...]) -> str:
    lines = [("  " * row.depth + row.name, row.have or "–", row.want or "–", row.action) for row in rows]
    return table(("layer", "is", "becomes", "by"), lines)


def beside(
    model: Path, target: Path | None, to: str, proof: _edits.Proof, output: Output, *, force: bool
) -> None:
    """An untrained network of the architecture, or that of a file, beside the old one."""
    from surgery import architectures, route

    path = _files.check_target(target, [model], force=force)
    checkpoint = surgery.load(model)
    if checkpoint.origin is not None and path.suffix.lower() != ".onnx":
        raise Refused(
            "a framework's file has no place for a gate between two networks",
            hint="write it as a graph: -o OUT.onnx",
        )
    with output.step(f"putting {to} beside {model}"):
        file = route.file_of(to)
        if file is None:
            new = architectures.new_like(to, checkpoint, seed=proof.seed)
        else:
            new = surgery.load(file, optimizer=False)
        outcome = surgery.sidecar(checkpoint, new, observations=proof.observations, seed=proof.seed)
    outcome.save(path, force=force)
    found = outcome.report
    record = {
        "output": str(path), "claim": "identical", "verified": True, "exact": found.exact, "to": to, "gate": 0.0,
        "max_abs_error": found.max_abs_error, "max_rel_error": found.max_rel_error,
    }  # fmt: skip
    output.show(record, lambda: f"{to} beside {model} · gate 0 · {found.summary()} · wrote {path}")


def _named(checkpoint: surgery.Checkpoint, to: str) -> str:
    """The name of an architecture, under which an untrained network can be made; a file says it by its layers.

    Raises:
      Refused: they are those of no architecture that has a name.
    """
    from surgery import route

    name = to if route.file_of(to) is None else route.survey(checkpoint, to)[0].architecture
    if name is None:
        raise Refused(
            f"the network of '{to}' has no named architecture, so another like it cannot be made",
            hint="describe its layers in a file of your own: --to FILE.toml:NAME (docs/architectures.md)",
        )
    return name


def _distill(model: Path, to: str, editing: _edits.Editing, play: Play) -> None:
    from surgery.cli import _live, _training

    _training.library()
    from surgery.architectures.like import setting
    from surgery.distill import Options, execute, plan_distill

    checkpoint = surgery.load(model, optimizer=False)
    head = setting(checkpoint).head
    options = Options(
        frames=play.frames, seed=editing.proof.seed, head=head if head in ("c51", "qr") else "q"
    )
    target, output = editing.target, editing.output
    folder = Path(f"{target or model}.run")
    contract = _environment.contract(checkpoint.environment, play.environment, {})
    job = plan_distill(checkpoint, _named(checkpoint, to), folder, environment=contract, options=options)
    if editing.dry_run or target is None:
        _training.carry_out(job, output, dry_run=True)
        return
    with _live.live(output) as watch:
        outcome = execute(job, watch=watch, note=output.note)
    surgery.save(surgery.load(outcome.student), target, force=editing.force)
    found = {**_training.report_of(outcome), "output": str(target), "exact": False}
    output.show(found, lambda: f"{_training.text_of(outcome)} and {target}")
