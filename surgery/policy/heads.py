"""Which outputs of a model are its policy, and how their numbers are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from surgery.checkpoint import Checkpoint
from surgery.envs.actions import ActionSpace
from surgery.errors import ArgumentError, shape_text
from surgery.graph.choices import behind, is_drawn
from surgery.interface import Port
from surgery.policy.arrays import Arrays, Read
from surgery.policy.laws import Law
from surgery.policy.moves import candidates, is_number, moves
from surgery.policy.named import Names
from surgery.policy.scores import Kind, Scores

KINDS: tuple[Kind, ...] = ("logits", "probabilities", "q_values", "atom_logits", "quantiles", "action")
"""An actor is asked before a critic; an output that only names an action is asked last."""


class Head(Protocol):
    """The outputs that are asked.

    Attributes:
      output: the first one. outputs: all of them.
      kind: what its numbers are.
      actions: how many numbers it has of an action: of one of several, a score for each, forbidden ones included.
      allowed: which of them may be taken; None: all.
      temperature: what scores are divided by before a softmax, unless it is said.
      draws: whether it was trained to draw its actions.
      scored: whether it gives scores of single actions.
    """

    @property
    def output(self) -> str: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def actions(self) -> int: ...
    @property
    def allowed(self) -> tuple[bool, ...] | None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def draws(self) -> bool: ...
    @property
    def scored(self) -> bool: ...

    def reader(self, arrays: Arrays) -> Read:
        """What makes one array of the outputs of n observations, as `law` takes it.

        Raises, when it is called:
          ArgumentError: an output is not what it was taken for.
        """

    def law(self, space: ActionSpace | None, temperature: float) -> Law:
        """How that becomes actions; space: what the environment takes, if one has been met.

        Raises:
          ArgumentError: the environment takes other actions.
        """


def find(checkpoint: Checkpoint, output: str | None = None) -> Head:
    """The head of a model.

    Args:
      output: the name of the output to ask; None: the only one that can be a policy, an actor before a critic.

    Raises:
      UnknownName: no such output.
      ArgumentError: no output can be a policy, or several can, or its shape does not fit what it is said to be.
    """
    ports = _choose(checkpoint) if output is None else [checkpoint.interface.output(output)]
    heads = [_head(checkpoint, port) for port in ports]
    return heads[0] if len(heads) == 1 else _beside([head for head in heads if isinstance(head, Scores)])


def _beside(heads: Sequence[Scores]) -> Scores:
    """Several outputs as one head: each of them is one choice."""
    allowed = tuple(one for head in heads for one in head.allowed or (True,) * head.actions)
    return Scores(
        heads[0].output,
        heads[0].kind,
        len(allowed),
        None if all(allowed) else allowed,
        branches=tuple((head.output, head.actions) for head in heads),
    )


def _head(checkpoint: Checkpoint, port: Port) -> Head:
    value = checkpoint.value(port.name)
    if port.kind == "mean" or (port.kind == "action" and is_number(value)):
        return moves(checkpoint, port)
    if port.kind not in KINDS:
        raise ArgumentError(
            f"output '{port.name}' is declared as {port.kind}, which is not a policy",
            hint=_declare(port.name),
        )
    kind = port.kind
    last = value.shape[-1] if kind == "action" and value.shape is not None and len(value.shape) > 1 else 1
    if isinstance(last, int) and last > 1:
        return Names(port.name, last)
    actions, atoms = _sizes(checkpoint, port, kind, value)
    support = _support(port, atoms) if kind == "atom_logits" else None
    return Scores(port.name, kind, actions, _allowed(checkpoint, port.name, actions), support)


def _choose(checkpoint: Checkpoint) -> list[Port]:
    """The outputs to ask: one, or the logits of several choices."""
    ports, numbers = checkpoint.interface.outputs, candidates(checkpoint)
    every = [[port for port in ports if port.kind == kind and port not in numbers] for kind in KINDS]
    at = KINDS.index("q_values")  # behind what only an actor gives
    found = next((group for group in (*every[:at], numbers, *every[at:]) if group), [])
    if found and found[0].kind == "action":
        found = [port for port in found if not is_drawn(checkpoint.value(port.name))] or found
    if len(found) > 1 and found[0].kind != "logits":
        names = ", ".join(f"{port.name}" for port in found)
        raise ArgumentError(
            f"{len(found)} outputs are {found[0].kind}: {names}",
            hint=f"declare all but one to be something else: --output {found[-1].name}:other",
        )
    if found:
        return found
    names = ", ".join(f"{port.name} ({port.kind})" for port in ports)
    raise ArgumentError(
        f"no output can be a policy: {names}",
        hint=_declare(ports[0].name),
    )


def _declare(name: str) -> str:
    others = ", ".join((*KINDS[1:], "mean"))
    return f"say what it is: surgery annotate MODEL --output {name}:logits -o OUT (or {others})"


def _sizes(checkpoint: Checkpoint, port: Port, kind: Kind, value: ir.Value) -> tuple[int, int]:
    """The number of actions, and of atoms or quantiles of each."""
    shape = tuple(value.shape) if value.shape is not None else ()
    named = _named(checkpoint, port)
    if kind == "action":
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
        raise ArgumentError(f"output '{port.name}' has {actions} action: that is not a policy")
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
    mask = checkpoint.environment.action_mask(output)
    if mask is None:
        return None
    if not isinstance(mask, tuple) or len(mask) != actions or not any(mask):
        raise ArgumentError(
            f"the contract's action_mask of '{output}' does not fit its {actions} actions: {mask!r}",
            hint="a list of true and false, one for each action",
        )
    return tuple(bool(one) for one in mask)
