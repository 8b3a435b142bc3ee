"""Write the generated parts of the documentation anew: python docs/generate.py"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.graph.operators import CLASSES, NO_RULE, Operator, operators

PAGE = Path(__file__).parent / "operators.md"
ADAPTERS = Path(__file__).parent / "adapters.md"
FRAMEWORKS: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "adapters.toml").read_text(encoding="utf-8")
)
"""Framework -> what survives a round trip; tests/test_round_trips.py runs every line of it."""


def operator_page(text: str) -> str:
    """The page on operators with its tables as the registry has them."""
    known = operators()
    parts = {
        "classes": _table(("class", "meaning", "exact"), _classes()),
        "rules": _table(("operator", "axes", "exact", "float64"), _rules(known)),
        "unruled": f"{', '.join(f'`{o.name}`' for o in known if not o.ruled)}: {NO_RULE}.",
    }
    return _placed(text, parts)


def adapter_page(text: str) -> str:
    """The page on adapters with its table as `docs/adapters.toml` has it."""
    headings = (
        "", "networks", "optimizer", "targets", "settings", "spaces", "normaliser", "unchanged copy",
        "verbs that write back",
    )  # fmt: skip
    return _placed(text, {"round trips": _table(headings, map(_framework, FRAMEWORKS.values()))})


def _framework(row: Mapping[str, Any]) -> Sequence[str]:
    words = [str(row[key]) or "–" for key in ("settings", "spaces", "normaliser")]
    kept = ["yes" if row[key] else "–" for key in ("optimizer", "targets")]
    copied = {"bytes": "the same bytes", "values": "the same values"}[row["unchanged"]]
    return (
        row["read"],
        row["networks"],
        *kept,
        *words,
        copied,
        ", ".join(f"`{verb}`" for verb in row["written"]),
    )


def _placed(text: str, parts: Mapping[str, str]) -> str:
    """A page with other text between its marks."""
    for name, body in parts.items():
        found = re.search(rf"<!-- {name}: .* -->\n()(?s:.*?)()<!-- end of {name} -->", text)
        if found is None:
            raise ValueError(f"no place for '{name}' in the page")
        text = f"{text[: found.end(1)]}\n{body}\n\n{text[found.start(2) :]}"
    return text


def _classes() -> list[Sequence[str]]:
    return [(name, found.meaning, found.exact) for name, found in CLASSES.items()]


def _rules(known: Iterable[Operator]) -> list[Sequence[str]]:
    """One row for operators that share a rule and its words."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for o in known:
        if o.ruled:
            key = (o.formula, o.axes, o.exact, "yes" if o.evaluated else "no")
            alike.setdefault(key, []).append(f"`{o.name}`")
    return [
        (
            f"{', '.join(names)}<br>{_cell(formula)}",
            axes.replace("; ", "<br>"),
            exact.replace("; ", "<br>"),
            kernel,
        )
        for (formula, axes, exact, kernel), names in alike.items()
    ]


def _cell(text: str) -> str:
    """Formulas hold characters that Markdown reads."""
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for page, written in ((PAGE, operator_page), (ADAPTERS, adapter_page)):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
