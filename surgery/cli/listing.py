"""`surgery list`"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

from surgery.cli import _options
from surgery.cli._output import Output, table


@click.command("list", short_help="List what this installation knows.")
@click.argument("what", type=click.Choice(["operators", "adapters"]))
@_options.reported
def command(*, what: str, output: Output) -> None:
    """List what this installation knows: the operators with an axis rule, or the adapters to frameworks.

    \b
    Example:
      surgery list adapters
      surgery list operators --json
    """
    rows = {"adapters": _adapters, "operators": _operators}[what]()
    output.show({what: rows}, lambda: _text(rows))


def _text(rows: list[dict[str, str]]) -> str:
    return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "none"


def _adapters() -> list[dict[str, str]]:
    from surgery.adapters import GROUP

    return [_adapter(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _adapter(point: EntryPoint) -> dict[str, str]:
    try:
        point.load()
    except ImportError as error:
        status = f"cannot be used: {error}"
    else:
        status = "ready"
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    return {"name": point.name, "status": status, "module": point.value, "from": origin}


def _operators() -> list[dict[str, str]]:
    from surgery.graph.rules import RULES

    return [{"name": name, "axes": RULES[name].axes} for name in sorted(RULES)]
