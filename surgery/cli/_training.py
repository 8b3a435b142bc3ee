"""What the verbs that train have in common: settings given by hand, the environment, the run, its result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import surgery
from surgery.cli import _environment, _live, _options
from surgery.cli._output import Output, size, table
from surgery.errors import MissingDependency, number_text

if TYPE_CHECKING:
    from surgery.distill import Job, Options, Outcome
    from surgery.interface import Environment
    from surgery.json_values import Json


@dataclass(frozen=True)
class Training:
    """What every verb that trains is told beside what learns, and from whom."""

    environment: str | None
    settings: dict[str, Json]
    frames: int
    seed: int
    device: str
    envs: int
    changes: dict[str, object]
    dry_run: bool
    folder: Path
    output: Output

    def contract(self, checkpoint: surgery.Checkpoint) -> Environment:
        return _environment.contract(checkpoint.environment, self.environment, self.settings)

    def options(self, **student: Any) -> Options:  # noqa: ANN401
        from surgery.distill import Options

        return Options(self.frames, self.seed, self.device, self.envs, changes=self.changes, **student)


def _setting(word: str) -> tuple[str, object]:
    name, _, text = word.partition("=")
    if not name:
        raise ValueError
    return name, json.loads(text)


_settings = _options.by_name(_setting, "NAME=VALUE, with a number, true, false or null")


def options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The options of every verb that trains, handed to the command as one `training`."""

    @_options.reported
    @functools.wraps(function)
    def command(**given: Any) -> int | None:  # noqa: ANN401
        training = Training(**{field.name: given.pop(field.name) for field in fields(Training)})
        return function(training=training, **given)

    for option in reversed(
        (
            click.option(
                "--frames", metavar="N", type=click.IntRange(min=1), default=10_000_000, show_default=True,
                help="Frames to play (emulator frames on Atari, else environment steps); schedules scale with it.",
            ),
            _options.seed,
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                         help="Where the networks run; auto uses a GPU if PyTorch sees one."),
            click.option("--envs", metavar="N", type=click.IntRange(min=1), default=8, show_default=True,
                         help="Number of parallel environments."),
            click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, callback=_settings,
                         help="Change any setting of config.json, such as n_step=5."),
            click.option("-n", "--dry-run", is_flag=True, help="Print settings, time and memory; do not run."),
            click.option("-o", "--out", "folder", metavar="DIR", required=True,
                         type=click.Path(path_type=Path, file_okay=False),
                         help="Run directory; a run that is already there is resumed."),
        )
    ):  # fmt: skip
        command = option(command)
    return _environment.options(command)


def library() -> None:
    """Import what training needs.

    Raises:
      MissingDependency: with the command that installs it.
    """
    try:
        import gymnasium  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"training needs {error.name}, which is not installed", hint="pip install 'policy-surgery[rl]'"
        ) from error


def carry_out(job: Job, output: Output, *, dry_run: bool) -> None:
    """Forecast, then run or only say what would be done."""
    from surgery.distill import execute
    from surgery.distill.forecast import forecast

    fresh = not any((job.folder / "checkpoints").glob("*.pt"))
    if dry_run or fresh:
        with output.step("measuring a few steps"):
            expected = forecast(job)
        line = (
            f"about {_live.duration(expected.seconds)} (a gradient step {expected.update_seconds * 1e3:.3g} ms), "
            f"evaluations up to {_live.duration(expected.evaluation_seconds)}, "
            f"{size(expected.memory)} of memory for replay, {size(expected.disk)} of disk"
        )
        if dry_run:
            record = job.settings.to_json()
            report = {"output": str(job.folder), "settings": record, "forecast": asdict(expected)}
            rows = table(("setting", "value"), _rows(record))
            output.show(report, lambda: "\n".join((rows, "", line, *expected.cautions)))
            return
        for text in (line, *expected.cautions):
            output.note(text)
    with _live.live(output) as watch:
        outcome = execute(job, watch=watch, note=output.note)
    output.show(report_of(outcome), lambda: text_of(outcome))


def _rows(record: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value)) for name, value in record.items()]


def report_of(outcome: Outcome) -> dict[str, object]:
    """The object printed under `--json`."""
    found = asdict(outcome)
    native = None if outcome.native is None else str(outcome.native)
    paths = {"folder": str(outcome.folder), "student": str(outcome.student), "best": str(outcome.best)}
    return {**found, **paths, "native": native}


def text_of(outcome: Outcome) -> str:
    """One line: what the student is worth, what it took, where it is."""
    others = [f"random {number_text(outcome.random, 4)}"]
    if outcome.teacher is not None:
        others = [f"teacher {number_text(outcome.teacher, 4)}", *others, f"score {outcome.score or 0:.2f}"]
    if outcome.best_return > outcome.mean_return:
        best = f"{number_text(outcome.best_return, 4)} after {outcome.best_frames:,} frames"
        others.append(f"best {best}: {outcome.best.name}")
    return " · ".join(
        (
            f"return {number_text(outcome.mean_return, 4)} ({', '.join(others)})",
            f"{outcome.frames:,} frames, {outcome.updates:,} updates, {_live.duration(outcome.seconds)}",
            f"wrote {outcome.student}{f' and {outcome.native.name}' if outcome.native else ''}",
        )
    )
