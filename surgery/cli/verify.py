"""`surgery verify`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output, table
from surgery.errors import number_text


@click.command("verify", short_help="Prove that two models compute the same function.")
@_options.file_argument("before")
@_options.file_argument("after")
@_options.seed
@_options.observations
@_options.reported
def command(*, before: Path, after: Path, seed: int, observations: Path | None, output: Output) -> int:
    """Prove that two models compute the same function.

    The exit status is 1 if they do not. Recurrent states of different sizes start at zero and are carried over several
    steps. Optimizer state is not compared: edits prove it when they are applied, and `surgery diff` shows it.

    \b
    Example:
      surgery verify agent.onnx wide.onnx
      surgery verify agent.onnx wide.onnx --observations recorded.npz
    """
    recorded = _files.read_observations(observations)
    with output.step("verifying"):
        report = surgery.verify(surgery.load(before), surgery.load(after), observations=recorded, seed=seed)
    output.show(report.to_json(), lambda: _text(report))
    return 0 if report.ok else 1


def _text(report: surgery.Report) -> str:
    rows = [
        (check.name, "ok" if check.ok else "FAILED", _amount(check.value), _amount(check.limit), check.detail)
        for check in report.checks
    ]
    return "\n".join([table(("check", "", "value", "limit", ""), rows), "", report.summary()])


def _amount(value: float | None) -> str:
    return "" if value is None else number_text(value)
