"""What verification found: a list of checks, each with its value and its limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.edits.plan import Claim


@dataclass(frozen=True, slots=True)
class Check:
    """One measurement.

    Attributes:
      name: what was measured.
      ok: whether it is within the limit; true for measurements without one.
      value: what was found; NaN counts as a failure.
      limit: the largest value allowed; None if it was only measured.
      detail: where the value comes from, in words.
    """

    name: str
    ok: bool
    value: float
    limit: float | None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "ok": self.ok,
            "value": self.value,
            "limit": self.limit,
            "detail": self.detail,
        }


def measured(name: str, value: float, limit: float | None, detail: str = "") -> Check:
    """A check that holds if the value is at most the limit; NaN never is."""
    return Check(name, limit is None or bool(value <= limit), float(value), limit, detail)


@dataclass(frozen=True)
class Report:
    """The outcome of a verification, and what is needed to repeat it.

    Attributes:
      claim: what was to be shown.
      checks: the measurements.
      max_abs_error, max_rel_error: of the outputs in float32.
      apart: outputs that the change is meant to show in, and that were not compared.
      context: seeds, numbers of probes, versions, digests.
    """

    claim: Claim
    checks: tuple[Check, ...]
    max_abs_error: float
    max_rel_error: float
    context: Mapping[str, Any] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check is within its limit."""
        return all(check.ok for check in self.checks)

    @property
    def exact(self) -> bool:
        """Whether the function is the same within rounding."""
        return self.ok and self.claim != "changed"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def failures(self) -> dict[str, str]:
        """The checks that do not hold -> what was found, for an error."""
        return {
            check.name: f"{check.value:.3g}, limit {check.limit}; {check.detail}" for check in self.failed
        }

    def check(self, name: str) -> Check | None:
        """A check by name."""
        return next((check for check in self.checks if check.name == name), None)

    def summary(self) -> str:
        """One line."""
        if self.claim == "changed":
            return f"outputs change by at most {self.max_abs_error:.2g}"
        if self.ok:
            names = ", ".join(f"'{name}'" for name in self.apart)
            return f"outputs equal (max |Δ| {self.max_abs_error:.2g})" + (
                f" but for {names}" if names else ""
            )
        worst = self.failed[0]
        return f"not equal: {worst.name} {worst.value:.3g}, limit {worst.limit:.3g}{_after(worst.detail)}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the witness that is stored with a result."""
        return {
            "claim": self.claim,
            "ok": self.ok,
            "exact": self.exact,
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "checks": [check.to_json() for check in self.checks],
            **({"apart": list(self.apart)} if self.apart else {}),
            **self.context,
        }


def _after(detail: str) -> str:
    return f" ({detail})" if detail else ""
