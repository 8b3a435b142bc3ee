"""`surgery attach`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output, plural, section
from surgery.errors import number_text


@click.command("attach", short_help="Add the optimizer state of a training checkpoint to a graph.")
@_options.file_argument("model")
@_options.file_argument("source", metavar="CHECKPOINT")
@click.option("--network", metavar="NAME", help="The network in the checkpoint, if it holds several.")
@click.option("--optimizer", metavar="NAME", help="The optimizer in the checkpoint, if it holds several.")
@click.option(
    "--kind", metavar="KIND", help="The kind of optimizer, if its settings are ambiguous: adam, adamw."
)
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    source: Path,
    network: str | None,
    optimizer: str | None,
    kind: str | None,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Add the optimizer state of a training checkpoint to the graph that was exported from it.

    Parameters are matched by name and their values compared; nothing in CHECKPOINT is executed.

    \b
    Example:
      surgery attach agent.onnx checkpoint.pt -o agent-with-state.onnx
    """
    path = _files.check_target(target, [model, source], force=force)
    with output.step(f"reading {source}"):
        attached = surgery.attach(
            surgery.load(model), source, network=network, optimizer=optimizer, kind=kind
        )
    surgery.save(attached, path, force=force)
    report = _report(attached, path)
    output.show(report, lambda: _text(report))


def _report(checkpoint: surgery.Checkpoint, path: Path) -> dict[str, Any]:
    state, summary = checkpoint.optimizer, checkpoint.lineage[-1].summary
    return {
        "output": str(path),
        "bound": dict(summary) if isinstance(summary, Mapping) else {},
        "slots": {slot: len(tensors) for slot, tensors in state.slots.items()} if state else {},
        "step": max(state.steps.values(), default=None) if state else None,
    }


def _text(report: dict[str, Any]) -> str:
    bound, step = report["bound"], report["step"]
    line = [
        f"{bound['kind']} of {bound['network']}",
        plural(sum(report["slots"].values()), "slot"),
        *([f"step {number_text(step)}"] if step is not None else []),
        f"wrote {report['output']}",
    ]
    left = {"not in the graph": bound["dropped"], "without state": bound["stateless"]}
    notes = [section(title, "\n".join(names)) for title, names in left.items() if names]
    return "\n".join([" · ".join(line), *notes])
