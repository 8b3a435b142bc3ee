"""`surgery list`"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points

import click

from surgery.cli import _options
from surgery.cli._output import Output, table
from surgery.errors import shape_text
from surgery.json_values import Json

Row = dict[str, Json]


@click.command("list", short_help="List architectures, methods, operators or adapters.")
@click.argument("what", type=click.Choice(["architectures", "methods", "operators", "adapters"]))
@_options.reported
def command(*, what: str, output: Output) -> None:
    """List the architectures, distillation methods, operators or adapters that this installation supports.

    For an architecture: its layers and, with a Q head and the observation shown, its size; names take modifiers. For an
    operator: its axis rule, the widths at which its axes change exactly, and whether the float64 proof can evaluate it.
    An operator without a rule freezes the axes that it touches, unless it is shape arithmetic.

    \b
    Example:
      surgery list architectures
      surgery list operators --json
    """
    rows = {
        "architectures": _architectures,
        "methods": _methods,
        "adapters": _adapters,
        "operators": _operators,
    }[what]()
    notes = _modifiers() if what == "architectures" else []
    extra = {"modifiers": notes} if notes else {}
    output.show({what: rows, **extra}, lambda: "\n\n".join(_text(part) for part in (rows, notes) if part))


def _text(rows: list[Row]) -> str:
    """One column per key, those that only scripts want left out."""
    shown = [{key: cell for key, cell in row.items() if not isinstance(cell, list)} for row in rows]
    return table(list(shown[0]), [list(row.values()) for row in shown]) if shown else "none"


def _architectures() -> list[Row]:
    from surgery.architectures import examples

    return [
        {
            "name": example.name,
            "layers": example.layers,
            "observation": shape_text(example.observation),
            "actions": example.actions,
            "parameters": example.parameters,
            "about": example.about,
        }
        for example in examples()
    ]


def _modifiers() -> list[Row]:
    from surgery.architectures.names import MODIFIERS

    return [{"modifier": name, "about": about} for name, about in MODIFIERS.items()]


def _methods() -> list[Row]:
    from surgery.distill.methods import METHODS

    return [
        {"name": method.name, "about": method.summary, "from": method.paper, "followed": method.note}
        for method in METHODS.values()
    ]


def _adapters() -> list[Row]:
    from surgery.adapters import GROUP

    return [_adapter(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _adapter(point: EntryPoint) -> Row:
    try:
        point.load()
    except ImportError as error:
        status = f"cannot be used: {error}"
    else:
        status = "ready"
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    return {"name": point.name, "status": status, "module": point.value, "from": origin}


def _operators() -> list[Row]:
    from surgery.graph.operators import operators

    return [
        {
            "name": operator.name,
            "axes": operator.axes or "no rule",
            "exact": operator.exact,
            "float64": operator.evaluated,
            "rule": operator.ruled,
            "classes": [asdict(clause) for clause in operator.clauses],
        }
        for operator in operators()
    ]
