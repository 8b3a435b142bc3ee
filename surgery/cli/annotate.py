"""`surgery annotate`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

import surgery
from surgery.cli import _environment, _files, _options
from surgery.cli._output import Output
from surgery.errors import ArgumentError
from surgery.interface import Bound

if TYPE_CHECKING:
    from surgery.interface import PortPatch
    from surgery.json_values import Json

_ITEM = re.compile(r",(?![^\[]*\])")  # a comma that is not inside brackets
SPEC = "SPEC is KIND,low=X,high=X,labels=[A,B]: any of these"


@click.command("annotate", short_help="Declare what inputs and outputs mean, and the environment.")
@_options.file_argument("model")
@click.option(
    "--input",
    "inputs",
    metavar="NAME:SPEC",
    multiple=True,
    help="SPEC: KIND,low=X,high=X,labels=[A,B], all optional; X may be a list by feature, [0,?,1], ? if unbounded.",
)
@click.option(
    "--output",
    "outputs",
    metavar="NAME:SPEC",
    multiple=True,
    help="The same for an output; its labels name actions.",
)
@click.option("--env", "environment", metavar="ID", help="The environment that the agent was trained for.")
@click.option(
    "--env-setting",
    "settings",
    metavar="KEY=JSON",
    multiple=True,
    callback=_environment.settings,
    help="A setting of the environment, such as sticky_actions=0.25.",
)
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    model: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    environment: str | None,
    settings: dict[str, Json],
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Declare what the inputs and outputs of a model mean, and the environment that it was trained for.

    Whatever you do not name stays as it is. Weights and outputs do not change.

    \b
    Example:
      surgery annotate agent.onnx -o annotated.onnx \\
          --input observation:observation,low=0,high=255 \\
          --output 'logits:logits,labels=[noop,fire,right,left]' \\
          --env ALE/Breakout-v5 --env-setting sticky_actions=0.25
    """
    if not (inputs or outputs or environment or settings):
        raise ArgumentError("nothing to declare", hint="surgery annotate --help")
    path = _files.check_target(target, [model], force=force)
    annotated = surgery.annotate(
        surgery.load(model),
        inputs=_ports(inputs, "--input"),
        outputs=_ports(outputs, "--output"),
        environment=None if environment is None else _environment.plain(environment),
        settings=settings,
    )
    surgery.save(annotated, path, force=force)
    output.show(
        _report(annotated, path), lambda: f"declared {', '.join(_declared(annotated))} · wrote {path}"
    )


def _report(checkpoint: surgery.Checkpoint, path: Path) -> dict[str, Json]:
    return {
        "output": str(path),
        "interface": checkpoint.interface.to_json(),
        "environment": checkpoint.environment.to_json(),
    }


def _declared(checkpoint: surgery.Checkpoint) -> list[str]:
    ports = [*checkpoint.interface.inputs, *checkpoint.interface.outputs]
    names = [f"{port.name} ({port.kind})" for port in ports if port.declared]
    return [*names, *([checkpoint.environment.id] if checkpoint.environment.id else [])]


def _ports(words: tuple[str, ...], option: str) -> dict[str, PortPatch]:
    """`NAME:SPEC …` by name. A name may hold colons itself: the last one before any list counts."""
    patches: dict[str, PortPatch] = {}
    for word in words:
        name, colon, _ = word.partition("[")[0].rpartition(":")
        if not (name and colon):
            raise ArgumentError(f"{option} '{word}' is not NAME:SPEC")
        if name in patches:
            raise ArgumentError(f"{option} declares '{name}' twice")
        try:
            patches[name] = _port(word[len(name) + 1 :])
        except ValueError as error:
            raise ArgumentError(f"{option} '{word}': {error}", hint=SPEC) from error
    return patches


def _port(text: str) -> PortPatch:
    """`KIND,low=X,high=X,labels=[A,B]`: any of these, in any order."""
    from surgery.interface import PortPatch

    fields: dict[str, str] = {}
    for item in filter(None, _ITEM.split(text)):
        key, equals, value = item.partition("=")
        key, value = (key, value) if equals else ("kind", item)
        if key in fields or key not in {"kind", "low", "high", "labels"}:
            raise ValueError(f"{key} is {'given twice' if key in fields else 'not known'}")
        fields[key] = value
    labels = fields.get("labels")
    return PortPatch(
        kind=fields.get("kind"),
        low=_bound(fields.get("low")),
        high=_bound(fields.get("high")),
        labels=None if labels is None else _items(labels),
    )


def _bound(text: str | None) -> Bound:
    if text is None:
        return None
    if not text.startswith("["):
        return float(text)
    return tuple(None if item == "?" else float(item) for item in _items(text))


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]
