"""`surgery finish`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output


@click.command("finish", short_help="Remove the old network once the gate is 1.")
@_options.file_argument("model")
@_options.seed
@_options.observations
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *, model: Path, seed: int, observations: Path | None, target: Path, force: bool, output: Output
) -> None:
    """Remove the old network from one with a sidecar, once the gate is 1; proved to be exact.

    \b
    Example:
      surgery finish both.onnx -o impala.onnx
    """
    path = _files.check_target(target, [model], force=force)
    recorded = _files.read_observations(observations)
    with output.step(f"taking the old network out of {model}"):
        outcome = surgery.finish(surgery.load(model), observations=recorded, seed=seed)
    outcome.save(path, force=force)
    report = {
        "output": str(path),
        "claim": "identical",
        "exact": outcome.report.exact,
        "max_abs_error": outcome.report.max_abs_error,
        "max_rel_error": outcome.report.max_rel_error,
    }
    output.show(report, lambda: f"the new network alone · {outcome.report.summary()} · wrote {path}")
