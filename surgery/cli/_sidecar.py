"""What `surgery sidecar` and `surgery migrate --route sidecar` do alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import surgery
from surgery.cli import _files
from surgery.cli._output import Output
from surgery.errors import ArgumentError

if TYPE_CHECKING:
    from surgery.cli._edits import Proof


def join(
    model: Path, other: str, target: Path | None, proof: Proof, output: Output, *, force: bool, dry_run: bool
) -> None:
    """Put the network of a file or of a named architecture beside a trained one, and write both."""
    if not proof.verify:
        raise ArgumentError("a side-car is always proved", hint="leave --no-verify out")
    files = [model, Path(other)] if other.endswith(".onnx") else [model]
    path = None if dry_run else _files.check_target(target, files, force=force)
    with output.step(f"joining {model} and {other}"):
        checkpoint = surgery.load(model)
        outcome = surgery.sidecar(
            checkpoint, _new(other, checkpoint, proof.seed), observations=proof.observations, seed=proof.seed
        )
    if path is not None:
        outcome.save(path, force=force)
    report = outcome.report
    found = {
        "output": None if path is None else str(path),
        "route": "sidecar",
        "claim": report.claim,
        "gate": 0.0,
        "exact": report.exact,
        "max_abs_error": report.max_abs_error,
        "max_rel_error": report.max_rel_error,
        "checks": [check.to_json() for check in report.checks],
    }
    wrote = "nothing written" if path is None else f"wrote {path}"
    output.show(found, lambda: f"y = (1 − g)·old + new, g = 0 · {report.summary()} · {wrote}")


def _new(other: str, checkpoint: surgery.Checkpoint, seed: int) -> surgery.Checkpoint:
    """A file, or an untrained network of a named architecture for the same task."""
    if other.endswith(".onnx"):
        return surgery.load(other)
    from surgery.architectures import new_like

    return new_like(other, checkpoint, seed=seed)
