"""Which output of a model is its policy, and how its numbers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.errors import ArgumentError, Refused, shape_text
from surgery.graph.choices import behind
from surgery.interface import Port

Kind = Literal["logits", "probabilities", "q_values", "atom_logits", "quantiles", "action"]

KINDS: tuple[Kind, ...] = ("logits", "probabilities", "q_values", "atom_logits", "quantiles", "action")
"""An actor is asked before a critic; an output that only names an action is asked last."""

TEMPERATURE: Mapping[Kind, float] = {
    "logits": 1.0,
    "probabilities": 1.0,
    "q_values": 0.1,
    "atom_logits": 0.1,
    "quantiles": 0.1,
    "action": 1.0,
}
"""By which scores are divided before a softmax: values as in QDagger (Agarwal et al., 2022, arXiv:2206.01626)."""


@dataclass(frozen=True)
class Head:
    """The output that is asked.

    Attributes:
      output: its name.
      kind: what its numbers are.
      actions: how many there are, forbidden ones included.
      allowed: which of them may be taken; None: all.
      support: (atoms,) the returns that the atoms of a distribution stand for.
    """

    output: str
    kind: Kind
    actions: int
    allowed: tuple[bool, ...] | None = None
    support: tuple[float, ...] | None = None


def find(checkpoint: Checkpoint, output: str | None = None) -> Head:
    """The head of a model.

    Args:
      output: the name of the output to ask; None: the only one that can be a policy, an actor before a critic.

    Raises:
      UnknownName: no such output.
      Refused: the actions are continuous.
      ArgumentError: no output can be a policy, or several can, or its shape does not fit what it is said to be.
    """
    ports = checkpoint.interface.outputs
    port = _choose(ports) if output is None else checkpoint.interface.output(output)
    if port.kind in ("mean", "log_std"):
        raise _continuous(port)
    if port.kind not in KINDS:
        raise ArgumentError(
            f"output '{port.name}' is said to be {port.kind}, which is no policy", hint=_declare(port.name)
        )
    kind = port.kind
    value = next(value for value in checkpoint.model.graph.outputs if value.name == port.name)
    actions, atoms = _sizes(checkpoint, port, kind, value)
    support = _support(port, atoms) if kind == "atom_logits" else None
    return Head(port.name, kind, actions, _allowed(checkpoint, port.name, actions), support)


def _choose(ports: Sequence[Port]) -> Port:
    for kind in KINDS:
        found = [port for port in ports if port.kind == kind]
        if len(found) > 1:
            names = ", ".join(port.name for port in found)
            raise ArgumentError(
                f"{len(found)} outputs are {kind}: {names}",
                hint=f"declare all but one to be something else: --output {found[-1].name}:other",
            )
        if found:
            return found[0]
    for port in ports:
        if port.kind in ("mean", "log_std"):
            raise _continuous(port)
    names = ", ".join(f"{port.name} ({port.kind})" for port in ports)
    raise ArgumentError(
        f"no output can be a policy: {names}",
        hint=f"{_declare(ports[0].name)}; several choices at once (MultiDiscrete) are not played",
    )


def _declare(name: str) -> str:
    return f"say what it is: surgery annotate MODEL --output {name}:logits -o OUT (or {', '.join(KINDS[1:])})"


def _continuous(port: Port) -> Refused:
    return Refused(
        f"output '{port.name}' is the {port.kind} of continuous actions, which this version does not play",
        hint="policies over discrete actions: " + ", ".join(KINDS),
    )


def _sizes(checkpoint: Checkpoint, port: Port, kind: Kind, value: ir.Value) -> tuple[int, int]:
    """The number of actions, and of atoms or quantiles of each."""
    shape = tuple(value.shape) if value.shape is not None else ()
    named = _named(checkpoint, port)
    if kind == "action":
        if value.dtype is not None and value.dtype.is_floating_point():
            raise Refused(
                f"output '{port.name}' gives actions as {value.dtype.name}, which are continuous",
                hint="discrete actions are whole numbers",
            )
        named = _chosen(checkpoint, port) if named is None else named
        if named is None:
            raise ArgumentError(
                f"'{port.name}' names actions, but nothing says how many there are",
                hint=f"surgery annotate MODEL --output '{port.name}:action,labels=[…]' -o OUT",
            )
        return named, 1
    wide = kind in ("atom_logits", "quantiles")
    last, inner = (shape[-2:-1], shape[-1:]) if wide else (shape[-1:], (1,))
    actions = last[0] if last and isinstance(last[0], int) else named
    atoms = inner[0] if inner and isinstance(inner[0], int) else None
    if actions is None or atoms is None or len(shape) < (3 if wide else 2):
        wanted = "batch×actions×atoms" if wide else "batch×actions"
        raise ArgumentError(
            f"output '{port.name}' is {shape_text(shape)}, {kind} are {wanted}", hint=_declare(port.name)
        )
    if actions < 2:
        raise ArgumentError(f"output '{port.name}' has {actions} action: that is no policy")
    return actions, atoms


def _named(checkpoint: Checkpoint, port: Port) -> int | None:
    actions = checkpoint.environment.settings.get("action_set")
    listed = len(actions) if isinstance(actions, tuple) else None
    return len(port.labels) if port.labels is not None else listed


def _chosen(checkpoint: Checkpoint, port: Port) -> int | None:
    """Among how many actions the graph chooses; None if that cannot be told, or if it makes several choices."""
    analysis = checkpoint.analysis
    found = behind(analysis, port.name)
    return analysis.space(found[0]).size if len(found) == 1 else None


def _support(port: Port, atoms: int) -> tuple[float, ...]:
    """Evenly spaced returns, as in C51 (Bellemare et al., 2017, arXiv:1707.06887)."""
    if not isinstance(port.low, float) or not isinstance(port.high, float):
        raise ArgumentError(
            f"nothing says which returns the {atoms} atoms of '{port.name}' stand for",
            hint=f"surgery annotate MODEL --output {port.name}:atom_logits,low=-10,high=10 -o OUT",
        )
    return tuple(float(value) for value in np.linspace(port.low, port.high, atoms))


def _allowed(checkpoint: Checkpoint, output: str, actions: int) -> tuple[bool, ...] | None:
    """What `action_mask` of the contract says about this output."""
    masks = checkpoint.environment.settings.get("action_mask")
    if masks is None:
        return None
    mask = masks.get(output) if isinstance(masks, Mapping) else masks
    if mask is None:
        return None
    if not isinstance(mask, tuple) or len(mask) != actions or not any(mask):
        raise ArgumentError(
            f"the contract's action_mask of '{output}' does not fit its {actions} actions: {mask!r}",
            hint="a list of true and false, one for each action",
        )
    return tuple(bool(one) for one in mask)
