"""`surgery sidecar`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output


@click.command("sidecar", short_help="Put a new network beside the old one, exactly.")
@_options.file_argument("model")
@_options.file_argument("new")
@_options.seed
@_options.observations
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    new: Path,
    seed: int,
    observations: Path | None,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Put a network of another family beside a trained one: y = (1 − g) · old(x) + new(x).

    NEW's last layer is set to zero, so that with g = 0 the outputs are those of MODEL, bit by bit. Training
    moves the gate g (the tensor sidecar.gate) to 1; then `surgery finish` takes the old network out.

    \b
    Example:
      surgery new impala --like nature.onnx -o impala.onnx
      surgery sidecar nature.onnx impala.onnx -o both.onnx
    """
    path = _files.check_target(target, [model, new], force=force)
    recorded = _files.read_observations(observations)
    with output.step(f"joining {model} and {new}"):
        outcome = surgery.sidecar(surgery.load(model), surgery.load(new), observations=recorded, seed=seed)
    outcome.save(path, force=force)
    report = {"output": str(path), "claim": "identical", "gate": 0.0, **_report(outcome.report)}
    output.show(report, lambda: f"gate 0 · {outcome.report.summary()} · wrote {path}")


def _report(report: surgery.Report) -> dict[str, object]:
    return {
        "exact": report.exact,
        "max_abs_error": report.max_abs_error,
        "max_rel_error": report.max_rel_error,
        "checks": [check.to_json() for check in report.checks],
    }
