"""`surgery inspect`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import surgery
from surgery.cli import _files, _options
from surgery.cli._output import Output, plural, section, size, table
from surgery.errors import number_text, shape_text

if TYPE_CHECKING:
    from surgery.graph.spaces import Analysis

Report = dict[str, Any]


@click.command("inspect", short_help="Show layers, spaces, couplings and frozen axes.")
@_options.file_argument("model")
@click.option(
    "--graph",
    "target",
    metavar="OUT.html",
    type=_options.FILE,
    help="Draw the graph, spaces in colour, as one self-contained HTML page.",
)
@_options.force
@_options.no_optimizer
@_options.reported
def command(*, model: Path, target: Path | None, force: bool, no_optimizer: bool, output: Output) -> None:
    """Show the layers of a model, its spaces, how they are coupled, and which axes are frozen and why.

    A space is a set of tensor axes that must change together, such as the output units of a layer and everything that
    reads them; `surgery widen --width` takes its name.

    \b
    Example:
      surgery inspect agent.onnx
      surgery inspect agent.onnx --json
      surgery inspect agent.onnx --graph agent.html
    """
    from surgery.aliases import recognised
    from surgery.cli._inspection import inspection

    if target is not None:
        _files.check_target(target, [model], force=force)
    with output.step(f"analysing {model}"):
        checkpoint = surgery.load(model, optimizer=not no_optimizer)
        found, analysis = recognised(checkpoint)
        report = inspection(checkpoint, analysis, model, found)
    if target is not None:
        with output.step(f"drawing {target}"):
            _draw(analysis, model, target, force=force)
        report["graph"] = str(target)
    output.show(report, lambda: _text(report))
    if target is not None:
        output.note(f"wrote {target}")


def _draw(analysis: Analysis, model: Path, target: Path, *, force: bool) -> None:
    from surgery.draw import draw
    from surgery.files import replacing

    with replacing([target], force=force, sources=[model]) as [part]:
        part.write_text(draw(analysis, title=model.name), encoding="utf-8")


def _text(report: Report) -> str:
    sections = {
        "architecture": _architecture(report["architecture"]),
        "interface": _ports(report),
        "layers": _layers(report["layers"]),
        "spaces": _spaces(report["spaces"]),
        "frozen": _frozen(report["spaces"]),
        "fixed": _fixed(report["spaces"]),
        "optimizer": _optimizer(report["optimizer"]),
        "copies": "\n".join(
            f"{copy}* is edited as {original}* is" for copy, original in report["copies"].items()
        ),
        "environment": _environment(report["environment"]),
        "scores": _scores(report),
        "lineage": _lineage(report["lineage"]),
    }
    return "\n\n".join([_header(report), *(section(title, body) for title, body in sections.items() if body)])


def _header(report: Report) -> str:
    return " · ".join(
        [
            report["file"],
            size(report["bytes"]),
            plural(report["parameters"], "parameter"),
            f"opset {report['opset']}",
            f"digest {report['digest'][:12]}",
        ]
    )


def _ports(report: Report) -> str:
    rows = [
        (
            side,
            port["name"],
            "?" if port["shape"] is None else shape_text(port["shape"]),
            port["dtype"] or "?",
            port["kind"],
            "declared" if port["declared"] else "inferred",
            _range(port["low"], port["high"]),
            ", ".join(port["labels"] or ()),
        )
        for side in ("input", "output")
        for port in report[f"{side}s"]
    ]
    return table(("", "name", "shape", "type", "kind", "", "range", "labels"), rows)


def _architecture(found: Report | None) -> str:
    """Its name, or its family and its layers; nothing for what has no name."""
    if found is None or found["family"] is None:
        return ""
    return str(found["name"] or f"{found['family']}: {' · '.join(found['layers'])}")


def _layers(layers: list[Report]) -> str:
    rows = [
        (
            layer["name"],
            ", ".join(layer["operators"]),
            ", ".join(f"{_last(name)} {shape_text(shape)}" for name, shape in layer["tensors"].items()),
        )
        for layer in layers
    ]
    return table(("layer", "operator", "tensors"), rows)


def _spaces(spaces: list[Report]) -> str:
    rows = [
        (
            space["name"],
            space["size"],
            ", ".join(space["aliases"]),
            ", ".join(space["inits"]),
            _axes(space, makes=True),
            _axes(space, makes=False),
        )
        for space in spaces
        if space["widenable"]
    ]
    headings = ("space", "size", "also", "init", "made by", "read by")
    return table(headings, rows) if rows else "none that can be widened"


def _axes(space: Report, *, makes: bool) -> str:
    """`conv.weight[0]`, with its layout if an axis is more than the space: `fc.weight[1] = conv · 49`."""
    return ", ".join(
        f"{axis['tensor']}[{axis['axis']}]{'' if axis['layout'] == space['name'] else ' = ' + axis['layout']}"
        for axis in space["axes"]
        if axis["makes"] == makes
    )


def _frozen(spaces: list[Report]) -> str:
    rows = [(space["name"], space["size"], space["reason"]) for space in spaces if _is_frozen(space)]
    return table(("space", "size", "why"), rows) if rows else "none"


def _is_frozen(space: Report) -> bool:
    return space["hidden"] and not space["widenable"] and not space["chosen"]


def _fixed(spaces: list[Report]) -> str:
    """Axes that are no layer's width, by kind: of inputs and outputs, choices that a graph makes itself."""
    kinds: dict[str, list[str]] = {}
    for space in spaces:
        text = f"{space['name']} {space['size']}"
        if not space["hidden"]:
            kind = next(kind for kind in space["kinds"] if kind in ("input", "output"))
            kinds.setdefault(kind, []).append(text)
        elif space["chosen"]:
            changed = f"surgery extend --action {space['chosen'][0]}+K"
            kinds.setdefault("choice", []).append(f"{text} ({changed})")
    return table(("kind", "axes"), [(kind, ", ".join(axes)) for kind, axes in kinds.items()]) if kinds else ""


def _optimizer(state: Report | None) -> str:
    if state is None:
        return "none"
    slots = ", ".join(f"{slot} ({count})" for slot, count in state["slots"].items())
    lines = [f"{state['kind']} · step {number_text(state['step'] or 0)} · slots {slots}"]
    for group in state["groups"]:
        hyper = " · ".join(
            f"{key} {value}" for key, value in group["hyper"].items() if value not in (None, False)
        )
        lines.append(f"{plural(len(group['parameters']), 'parameter')}: {hyper}")
    return "\n".join(lines)


def _environment(environment: Report) -> str:
    lines = [environment["id"]] if environment["id"] else []
    settings = {key: value for key, value in environment["settings"].items() if key != "scores"}
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in settings.items())])


def _scores(report: Report) -> str:
    """What `surgery evaluate` has recorded, and whether of this very network."""
    rows = [
        (
            score["mode"],
            f"{number_text(score['mean'])} ± {number_text(score['std'], 2)}",
            score["episodes"],
            " · ".join(f"{key} {json.dumps(value)}" for key, value in score.get("settings", {}).items()),
            "" if score.get("model", report["digest"]) == report["digest"] else score["model"][:12],
        )
        for score in report["environment"]["settings"].get("scores", ())
    ]
    return table(("played", "return", "episodes", "with", "by another model"), rows) if rows else ""


def _lineage(steps: list[Report]) -> str:
    rows = [
        (step["operation"], ", ".join(parent[:12] for parent in step["parents"]), _done(step["summary"]))
        for step in steps
    ]
    return table(("step", "of", "what"), rows) if rows else ""


def _done(summary: object) -> str:
    """What a step of the lineage says of itself: the spaces that it changed, or the first of its settings."""
    from surgery.edits.plan import Change

    if isinstance(summary, list):
        spaces = [
            item for item in summary if isinstance(item, dict) and {"space", "from", "to"} <= item.keys()
        ]
        return " · ".join(str(Change(item["space"], item["from"], item["to"], 0, 0)) for item in spaces)
    if isinstance(summary, dict):
        told = [f"{key} {value}" for key, value in summary.items() if isinstance(value, str | int | float)]
        return " · ".join(told[:3])
    return ""


def _range(low: object, high: object) -> str:
    return "" if low is None and high is None else f"{_bound(low)} … {_bound(high)}"


def _bound(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_bound(item) for item in value)}]"
    return "?" if value is None else f"{value:g}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
