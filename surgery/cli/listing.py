"""`surgery list`"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points

import click

from surgery.cli import _options
from surgery.cli._output import Output, table
from surgery.json_values import Json

Row = dict[str, Json]


@click.command("list", short_help="List what this installation knows.")
@click.argument("what", type=click.Choice(["operators", "adapters"]))
@_options.reported
def command(*, what: str, output: Output) -> None:
    """List what this installation knows: operators, what happens to each axis, or adapters to frameworks.

    Of each operator: what its axis rule says, how wide its axes can become exactly, and whether the float64 proof
    can evaluate it. What has no rule, and is not shape arithmetic, freezes the axes that it touches.

    \b
    Example:
      surgery list adapters
      surgery list operators --json
    """
    rows = {"adapters": _adapters, "operators": _operators}[what]()
    output.show({what: rows}, lambda: _text(rows))


def _text(rows: list[Row]) -> str:
    """One column per key, those that only scripts want left out."""
    shown = [{key: cell for key, cell in row.items() if not isinstance(cell, list)} for row in rows]
    return table(list(shown[0]), [list(row.values()) for row in shown]) if shown else "none"


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
