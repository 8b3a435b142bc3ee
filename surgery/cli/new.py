"""`surgery new`"""

from __future__ import annotations

from pathlib import Path

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output, plural, table
from surgery.errors import ArgumentError, shape_text
from surgery.json_values import Json


@click.command("new", short_help="Create an untrained network of a named architecture.")
@click.argument("architecture", metavar="ARCH")
@click.option("--like", "teacher", metavar="TEACHER", type=_options.FILE,
              help="Take observations, actions, environment and head from this model.")  # fmt: skip
@click.option(
    "--observation",
    metavar="SHAPE",
    callback=_options.shape,
    help="Without --like: the observation shape, such as 4,84,84.",
)
@click.option(
    "--actions", metavar="N", type=click.IntRange(min=1), help="Without --like: the number of actions."
)
@click.option("--head", metavar="HEAD", help="q, dueling, c51, qr, rainbow, actor-critic or gaussian.")
@click.option("--noisy", is_flag=True, help="Noisy dense layers; the noise is zero outside of training.")
@_options.seed
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    architecture: str,
    teacher: Path | None,
    observation: tuple[int, ...] | None,
    actions: int | None,
    head: str | None,
    noisy: bool,
    seed: int,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Create an untrained network: a student to distill into, for example.

    ARCH is a name with modifiers (`surgery list architectures`), or FILE.toml:NAME.

    \b
    Example:
      surgery new impala --like teacher.onnx -o student.onnx
      surgery new mlp-256-256-tanh --observation 8 --actions 4 --head actor-critic -o student.onnx
    """
    from surgery import architectures

    path = _files.check_target(target, [teacher] if teacher else [], force=force)
    if teacher is not None:
        if observation or actions:
            raise ArgumentError("observations and actions are those of the teacher", hint="leave --like out")
        like = surgery.load(teacher, optimizer=False)
        made = architectures.new_like(architecture, like, head=head, seed=seed, noisy=noisy)
    elif observation is None or actions is None:
        raise ArgumentError(
            "which observations and actions?", hint="--like TEACHER, or --observation and --actions"
        )
    else:
        made = architectures.new(
            architecture, observation=observation, actions=actions, head=head or "q", seed=seed, noisy=noisy
        )
    surgery.save(made, path, force=force)
    layers = _layers(made)
    report: dict[str, object] = {
        "output": str(path),
        "architecture": architecture,
        "parameters": sum(tensor.size for tensor in made.tensors.values()),
        "layers": layers,
    }
    output.show(report, lambda: _text(report, layers))


def _layers(checkpoint: surgery.Checkpoint) -> list[dict[str, Json]]:
    from surgery.tensors import shape_of

    return [{"tensor": name, "shape": list(shape_of(tensor))} for name, tensor in checkpoint.tensors.items()]


def _text(report: dict[str, object], layers: list[dict[str, Json]]) -> str:
    rows = [(row["tensor"], shape_text(row["shape"])) for row in layers]  # type: ignore[arg-type]
    count = report["parameters"]
    assert isinstance(count, int)
    return f"{table(('tensor', 'shape'), rows)}\n{plural(count, 'parameter')} · wrote {report['output']}"
