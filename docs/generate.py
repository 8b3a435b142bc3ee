"""Write the generated parts of the documentation anew: python docs/generate.py"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from surgery.graph.operators import CLASSES, NO_RULE, Operator, operators

PAGE = Path(__file__).parent / "operators.md"


def operator_page(text: str) -> str:
    """The page on operators with its tables as the registry has them."""
    known = operators()
    parts = {
        "classes": _table(("class", "meaning", "exact"), _classes()),
        "rules": _table(("operator", "axes", "exact", "float64"), _rules(known)),
        "unruled": f"{', '.join(f'`{o.name}`' for o in known if not o.ruled)}: {NO_RULE}.",
    }
    for name, body in parts.items():
        found = re.search(rf"<!-- {name}: .* -->\n()(?s:.*?)()<!-- end of {name} -->", text)
        if found is None:
            raise ValueError(f"no place for '{name}' in the page on operators")
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
    PAGE.write_text(operator_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
