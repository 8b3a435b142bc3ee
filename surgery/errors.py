"""Everything that can go wrong, as one tree; each class owns the exit status of the command line.

SurgeryError              2   the command or a file is wrong
├── FileError             2   a file cannot be read or written
│   ├── UnknownFormat     2   not a kind of file that we read
│   └── CorruptFile       2   the right kind, but damaged or hostile
├── MissingDependency     2   an optional package is not installed
├── ArgumentError         2   a value that no command could honour
│   └── UnknownName       2   a name that the model does not have (lists the nearest ones)
├── GraphError            2   a graph that is not valid ONNX, or that we cannot take in
├── PlanMismatch          2   a plan that does not fit the checkpoint it is applied to, or was edited into nonsense
├── RunFailed             1   training had to stop: not a number, a dead environment
├── Refused               1   the answer is no: a frozen space, no exact route
├── ClaimFailed           1   the result does not keep what the plan claimed
└── ProofFailed           3   the plan's own float64 proof fails: a bug of ours
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

WITHOUT_OPTIMIZER = "surgery convert FILE --no-optimizer -o OUT.onnx"
"""The command that reads a file of which only the optimizer's state cannot be read."""


def shape_text(shape: Iterable[object]) -> str:
    """A shape as messages and reports write it: `64×4×8×8`, `batch×4`, `?` for a size that nobody knows, `scalar`."""
    return "×".join("?" if str(size) == "None" else str(size) for size in shape) or "scalar"


def number_text(value: float, digits: int = 3) -> str:
    """`yes` and `no`, whole numbers with thousands apart, others with so many digits and all before the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        value = int(value)
        return f"{value:,}"
    whole = 10**digits - 0.5 <= abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def some_text(words: Iterable[str], most: int) -> str:
    """The first of some words, and how many more there are: `a, b and 3 more`."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"


def first_line(error: BaseException, *, typed: bool = False) -> str:
    """What another program's exception says, its first line; of one without words, its class.

    Args:
      typed: begin with the class, which says much of what comes out of arbitrary code: `KeyError: 'x'`.
    """
    name, lines = type(error).__name__, [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return name
    return f"{name}: {lines[0]}" if typed else lines[0]


class SurgeryError(Exception):
    """Base of all errors a user can meet; a traceback shows context and hint beneath the message.

    Args:
      message: what failed, in one line: had against wanted.
      where: label -> text, the context of the failure (file, space, node), printed beneath the message.
      hint: the next thing to do, best as a command.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, where: Mapping[str, object] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where: dict[str, str] = {}
        self.hint = hint
        self.within(**dict(where or {}))
        if hint:
            self.add_note(f"hint: {hint}")

    @property
    def kind(self) -> str:
        """The class name, as scripts see it in `--json` output."""
        return type(self).__name__

    def within(self, **where: object) -> SurgeryError:
        """Add context that only the caller knows (labels already present are kept); returns itself for `raise`."""
        added = {label: str(text) for label, text in where.items() if label not in self.where}
        self.where = {**added, **self.where}
        for label, text in added.items():
            self.add_note(f"  {label}  {text}")
        return self


class FileError(SurgeryError):
    """A file cannot be read or written."""


class UnknownFormat(FileError):
    """Not a kind of file that any adapter reads."""


class CorruptFile(FileError):
    """A file of the right kind that is damaged or hostile."""


class MissingDependency(SurgeryError):
    """An optional package is not installed; the hint is the exact install command."""


def missing(package: str, extra: str) -> MissingDependency:
    """The error for a package that one of our extras installs."""
    return MissingDependency(f"{package} is not installed", hint=f"pip install 'policy-surgery[{extra}]'")


class ArgumentError(SurgeryError):
    """A value that the command cannot honour."""


class UnknownName(ArgumentError):
    """A name that does not exist here; the hint lists the nearest names, or all when there are few.

    Args:
      otherwise: what else the hint should say.
    """

    def __init__(
        self,
        what: str,
        name: str,
        known: Iterable[str],
        *,
        where: Mapping[str, object] | None = None,
        otherwise: str | None = None,
    ) -> None:
        names = sorted(known)
        near = _nearest(name, names)
        shown = near or names[:12]
        label = "did you mean" if near else "there are" if len(names) <= 12 else f"some of the {len(names)}"
        hint = f"{label}: {', '.join(shown)}" if shown else f"this model has no {what}"
        hint = f"{hint}; {otherwise}" if otherwise else hint
        super().__init__(f"unknown {what} '{name}'", where=where, hint=hint)


def _nearest(name: str, names: list[str]) -> list[str]:
    """At most five that are like a name, and nearly as like it as the likest."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(a=other, b=name).ratio()

    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return [other for other in near if likeness(other) > likeness(near[0]) - 0.2]


class GraphError(SurgeryError):
    """A graph that is not valid ONNX, or that cannot be taken in."""


class PlanMismatch(SurgeryError):
    """A plan that does not fit the checkpoint it is applied to, or one that was read and fails its proof there."""


class RunFailed(SurgeryError):
    """Training had to stop; what was saved before is kept, and can be gone on with."""

    exit_code = 1


class Refused(SurgeryError):
    """The answer is no: what was asked for has no exact answer, and the reason is known."""

    exit_code = 1


class ClaimFailed(SurgeryError):
    """The result does not keep what the plan claimed; nothing has been written."""

    exit_code = 1


class ProofFailed(SurgeryError):
    """The float64 proof of a plan that was made here fails, a bug of this program; nothing has been written."""

    exit_code = 3
