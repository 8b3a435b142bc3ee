"""`surgery convert`"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import surgery
from surgery.cli import _environment, _files, _options
from surgery.cli._output import Output, plural
from surgery.errors import ArgumentError

if TYPE_CHECKING:
    from surgery.adapters import Parity


@click.command("convert", short_help="Convert a framework's file to a graph, or back.")
@_options.file_argument("source", metavar="SRC")
@click.option(
    "--like",
    metavar="FILE",
    type=_options.FILE,
    help="The framework's file that the model came from; OUT is a changed copy.",
)
@click.option(
    "--activation", metavar="NAME", help="Activation between layers, if not in the file: relu, tanh, elu."
)
@click.option(
    "--observation",
    metavar="SHAPE",
    callback=_options.shape,
    help="Shape of one observation, if not in the file: 4,84,84.",
)
@click.option(
    "--module", metavar="PKG:CALLABLE", help="Your code that builds the network; it is imported and called."
)
@click.option(
    "--architecture",
    metavar="NAME",
    help="Architecture of the network, such as nature-x2 (surgery list architectures).",
)
@click.option("--head", metavar="HEAD", help="Head of the network, if sizes are ambiguous: q, c51, qr ….")
@click.option(
    "--graph",
    metavar="FILE",
    type=_options.FILE,
    help="An .onnx that the framework exported from this very file.",
)
@click.option("--trust", is_flag=True, help="Let PyTorch load the file, which runs code that the file names.")
@click.option(
    "--check",
    "environment",
    metavar="ENV",
    help="First play 3 episodes in the file's own framework; the graph must choose the same actions. "
    "ENV is recorded in the contract, unless the file names another.",
)
@_options.no_optimizer
@_options.output_file(required=True)
@_options.force
@_options.reported
def command(
    *,
    source: Path,
    like: Path | None,
    activation: str | None,
    observation: tuple[int, ...] | None,
    module: str | None,
    architecture: str | None,
    head: str | None,
    graph: Path | None,
    trust: bool,
    environment: str | None,
    no_optimizer: bool,
    target: Path,
    force: bool,
    output: Output,
) -> None:
    """Convert a framework's file to a graph, or write a graph back into a framework's file.

    The graph holds all networks of the file and their optimizer state. To convert back, --like names the file that the
    graph came from: the result is a copy of it in which only what you edited differs.

    \b
    Example:
      surgery convert run.zip -o agent.onnx
      surgery convert run.zip --check CartPole-v1 --trust -o agent.onnx
      surgery widen   agent.onnx --factor 2 -o wide.onnx
      surgery convert wide.onnx --like run.zip -o wide.zip
      surgery convert model.pt --activation tanh -o agent.onnx
      surgery convert model.pt --architecture impala-x2 -o agent.onnx
      surgery convert model.keras --graph exported.onnx -o agent.onnx
    """
    from surgery.adapters import Reading

    path = _files.check_target(target, [source, *([like] if like else [])], force=force)
    native = source.is_dir() or path.suffix.lower() == source.suffix.lower()
    if like is None and path.suffix.lower() != ".onnx" and not native:
        raise ArgumentError(
            f"no {path.suffix or 'file'} to copy and change is given",
            hint="name it with --like FILE",
        )
    reading = Reading(
        activation=activation, observation=observation, module=module, architecture=architecture, head=head,
        trust=trust, graph=graph,
    )  # fmt: skip
    with output.step(f"reading {source}"):
        checkpoint = surgery.load(source, optimizer=not no_optimizer, reading=reading)
    parity = None if environment is None else _played(source, checkpoint, environment, output, trust=trust)
    if checkpoint.environment.id is None and environment is not None:
        named = replace(checkpoint.environment, id=_environment.plain(environment))
        checkpoint = checkpoint.replace(environment=named)
    with output.step(f"writing {path}"):
        surgery.save(checkpoint, path, force=force, like=like)
    report = {**_report(checkpoint, path), "parity": None if parity is None else asdict(parity)}
    output.show(report, lambda: _text(report))


def _played(
    source: Path, checkpoint: surgery.Checkpoint, environment: str, output: Output, *, trust: bool
) -> Parity:
    """The graph beside the file's own framework."""
    from surgery.adapters import Playing, find

    name, adapter = find(source)
    if not isinstance(adapter, Playing):
        raise ArgumentError(
            f"files of {name} cannot be played in their framework here", hint="leave out --check"
        )
    if not trust:
        raise ArgumentError(
            f"--check lets the framework load {source}, which runs code that the file pickles",
            hint="if the file is your own, add --trust",
        )
    with output.step(f"playing {environment}"):
        parity = adapter.parity(source, checkpoint, environment)
    parity.check()
    return parity


def _report(checkpoint: surgery.Checkpoint, path: Path) -> dict[str, Any]:
    state, interface = checkpoint.optimizer, checkpoint.interface
    return {
        "output": str(path),
        "source": dict(checkpoint.source),
        "inputs": [port.name for port in interface.inputs],
        "outputs": [port.name for port in interface.outputs],
        "copies": dict(checkpoint.copies),
        "tensors": len(checkpoint.tensors),
        "optimizer": state.kind if state else None,
        "slots": sum(map(len, state.slots.values())) if state else 0,
    }


def _text(report: dict[str, Any]) -> str:
    line = [
        f"{', '.join(report['inputs'])} → {', '.join(report['outputs'])}",
        plural(report["tensors"], "tensor"),
        *(_same_actions(report["parity"]) if report["parity"] else []),
        *([f"{report['optimizer']}, {plural(report['slots'], 'slot')}"] if report["optimizer"] else []),
        f"wrote {report['output']}",
    ]
    return " · ".join(line)


def _same_actions(parity: dict[str, Any]) -> list[str]:
    episodes = plural(len(parity["returns"]), "episode")
    played = f"{episodes} of {parity['environment']}, {parity['steps']:,} steps: the framework's actions"
    return [played, *parity["assumed"]]
