"""What the analysis knows of every operator: the rules' own words, and what follows from them for widening.

A rule says what happens to each axis in clauses, `axes: class[, what passes back]`, apart by `;`. The classes are the
keys of `CLASSES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgery.graph.rules import RULES
from surgery.graph.rules.elementwise import LIMITED
from surgery.numeric import supported
from surgery.numeric.kernels import KERNELS


@dataclass(frozen=True, slots=True)
class Class:
    """What an operator does to the units of an axis.

    Attributes:
      meaning: in words.
      exact: how such an axis can grow without changing the function.
    """

    meaning: str
    exact: str


CLASSES = {
    "pointwise": Class(
        "every unit of the result is computed from the same unit of the operands", "any width"
    ),
    "contraction": Class(
        "products of two operands are summed over it: in one of them, new units are zero, or copies share",
        "any width",
    ),
    "sum": Class("it is summed over: where they are made, new units are zero, or copies share", "any width"),
    "mean": Class("it is averaged over: every unit must be copied equally often", "whole multiples, copies"),
    "extreme": Class(
        "its largest or smallest unit is taken, which copies do not change", "any width, copies"
    ),
    "normalised": Class(
        "it is normalised: every unit is copied equally often, or new units are normalised to zero",
        "any width after linear layers, else whole multiples",
    ),
    "norm": Class(
        "magnitudes are summed over it: units that are zero change nothing", "any width, new units zero"
    ),
    "order statistic": Class(
        "its units compete: they are sorted, compared or normalised against each other", "fixed"
    ),
    "product": Class("its factors are regrouped; each grows by itself", "any width of each factor"),
    "ordered sum": Class("it is cut or joined; each part grows by itself", "any width of each part"),
    "free": Class("the operator creates it, as wide as the axes that it meets", "any width"),
    "frozen": Class("it keeps its size", "fixed"),
}
"""Class -> what it means. A width that an axis can take is taken only if all its other places allow it too."""

NO_RULE = "frozen, unless folded"
"""What becomes of an operator without a rule: folded if it computes with shapes and literals only, else refused."""

_LIMITED_DOMAIN = "any width (by copies, where it may not be finite)"
_CLAUSE = re.compile(rf"(?P<which>[^:;]+): (?P<kind>{'|'.join(CLASSES)})\b(?P<detail>[^;]*)")


@dataclass(frozen=True, slots=True)
class Clause:
    """What an operator does to some of its axes.

    Attributes:
      which: the axes, in words.
      kind: a key of `CLASSES`.
      detail: what else is to be said, such as what passes back.
      exact: how these axes can grow.
    """

    which: str
    kind: str
    detail: str
    exact: str


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the default ONNX domain.

    Attributes:
      name: its type.
      axes: what happens to each axis, in the rule's words; empty without a rule.
      clauses: the same, taken apart.
      formula: the first line of the rule's description.
      evaluated: whether the float64 evaluator, which proves edits, has a kernel for it.
    """

    name: str
    axes: str
    clauses: tuple[Clause, ...]
    formula: str
    evaluated: bool

    @property
    def ruled(self) -> bool:
        """Whether there is a rule for it."""
        return bool(self.clauses)

    @property
    def exact(self) -> str:
        """How its axes can grow, those that grow alike together."""
        alike: dict[str, list[str]] = {}
        for clause in self.clauses:
            alike.setdefault(clause.exact, []).append(clause.which)
        if len(alike) <= 1:
            return next(iter(alike), NO_RULE)
        return "; ".join(f"{', '.join(which)}: {exact}" for exact, which in alike.items())


def operators() -> list[Operator]:
    """Every operator with a rule, or with a kernel of ours alone, by name (a Constant is a tensor to the rules)."""
    return [_operator(name) for name in sorted({*RULES, *KERNELS} - {"Constant"})]


def clauses(name: str, axes: str) -> tuple[Clause, ...]:
    """A rule's words, taken apart.

    Raises:
      ValueError: they are not clauses, or name a class that is none of `CLASSES`.
    """
    found = []
    for text in axes.split(";"):
        match = _CLAUSE.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{name}: '{text.strip()}' is not 'axes: class', a class being {', '.join(CLASSES)}"
            )
        kind = match["kind"]
        exact = _LIMITED_DOMAIN if name in LIMITED and kind == "pointwise" else CLASSES[kind].exact
        found.append(Clause(match["which"], kind, match["detail"].removeprefix(",").strip(), exact))
    return tuple(found)


def _operator(name: str) -> Operator:
    rule = RULES.get(name)
    if rule is None:
        return Operator(name, "", (), "", supported(name))
    formula = (rule.describe.__doc__ or "").strip().split("\n")[0]
    return Operator(name, rule.axes, clauses(name, rule.axes), formula, supported(name))
