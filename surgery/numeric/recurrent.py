"""Recurrent layers: RNN, GRU and LSTM in either direction or both.

Notation of the operators: T steps, N sequences, I inputs, H units, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from surgery.arrays import Array
from surgery.numeric import dual
from surgery.numeric.activation import RECURRENT, RECURRENT_DEFAULTS
from surgery.numeric.call import Call, Kernel
from surgery.numeric.dual import Unary

State: TypeAlias = tuple[Array, ...]  # (N, H) each; the hidden state first
Cell: TypeAlias = Callable[["Weights", Array, State], State]


@dataclass(frozen=True)
class Weights:
    """One direction.

    Attributes:
      w, r: input and recurrent weights, transposed: (I, gates·H) and (H, gates·H).
      wb, rb: their biases (gates·H).
      peepholes: (3·H) of an LSTM, or None.
      functions: activations in the operator's order.
      units: H.
    """

    w: Array
    r: Array
    wb: Array
    rb: Array
    peepholes: Array | None
    functions: tuple[Unary, ...]
    units: int

    def gate(self, x: Array, index: int) -> Array:
        """Gate `index` of a stack of gates along the last axis."""
        return x[..., index * self.units : (index + 1) * self.units]


def _layer(call: Call, gates: int, defaults: Sequence[str], states: int, cell: Cell) -> tuple[Array, ...]:
    """All directions of a layer: Y and the last states."""
    batch_first = bool(call.integer("layout"))
    x = call[0].swapaxes(0, 1) if batch_first else call[0]
    steps, batch = x.shape[:2]
    units = call[2].shape[-1]
    lengths = call.get(4)
    ends = np.full(batch, steps) if lengths is None else np.asarray(lengths, np.int64)
    direction = call.text("direction", "forward")
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    ys, lasts = [], []
    for at, back in enumerate(backwards):
        weights = _weights(call, at, gates, _functions(call, at, defaults, len(backwards)))
        start = tuple(_initial(call.get(5 + state), at, x, units, batch_first) for state in range(states))
        order = _order(ends, steps, back)
        y, last = _sweep(x if order is None else _in_order(x, order), weights, start, ends, cell)
        ys.append(y if order is None else _in_order(y, order))
        lasts.append(last)
    y = np.stack(ys, axis=1)  # (T, D, N, H)
    finals = [np.stack([last[state] for last in lasts]) for state in range(states)]  # (D, N, H)
    if batch_first:
        return (y.transpose(2, 0, 1, 3), *(final.swapaxes(0, 1) for final in finals))
    return (y, *finals)


def _sweep(x: Array, weights: Weights, state: State, ends: Array, cell: Cell) -> tuple[Array, State]:
    """The hidden states (T, N, H), zero after a sequence's end, and the states at the ends."""
    from_input = np.asarray(dual.matmul(x, weights.w) + weights.wb)
    hidden = []
    for step in range(x.shape[0]):
        moved = cell(weights, from_input[step], state)
        inside = (step < ends)[:, None]
        if inside.all():
            state = moved
            hidden.append(state[0])
        else:
            state = tuple(np.where(inside, new, old) for new, old in zip(moved, state, strict=True))
            hidden.append(np.where(inside, state[0], np.zeros((), state[0].dtype)))
    if not hidden:
        return np.zeros((0, *state[0].shape), state[0].dtype), state
    return np.stack(hidden), state


def _order(ends: Array, steps: int, back: bool) -> Array | None:
    """(T, N): which step of each sequence comes at each turn; its own inverse. None if as they are."""
    if not back:
        return None
    turns = np.arange(steps)[:, None]
    return np.where(turns < ends, ends - 1 - turns, turns)


def _in_order(x: Array, order: Array) -> Array:
    return np.asarray(x[order, np.arange(x.shape[1])])


def _initial(given: Array | None, direction: int, x: Array, units: int, batch_first: bool) -> Array:
    if given is None:
        return np.zeros((x.shape[1], units), x.real.dtype)
    return given[:, direction] if batch_first else given[direction]


def _weights(call: Call, direction: int, gates: int, functions: tuple[Unary, ...]) -> Weights:
    w, r, bias = call[1][direction], call[2][direction], call.get(3)
    units = r.shape[-1]
    both = np.zeros(2 * gates * units, w.real.dtype) if bias is None else bias[direction]
    peepholes = call.get(7) if gates == 4 else None
    return Weights(
        w=w.T,
        r=r.T,
        wb=both[: gates * units],
        rb=both[gates * units :],
        peepholes=None if peepholes is None else peepholes[direction],
        functions=functions,
        units=units,
    )


def _functions(call: Call, direction: int, defaults: Sequence[str], directions: int) -> tuple[Unary, ...]:
    """The activations of one direction; α and β are consumed by those that take them, in order."""
    names = [
        name.decode() if isinstance(name, bytes) else str(name) for name in call.attribute("activations", ())
    ] or list(defaults) * directions
    alphas, betas = list(call.attribute("activation_alpha", ())), list(call.attribute("activation_beta", ()))
    built = []
    for name in (name.lower() for name in names):
        settings = RECURRENT_DEFAULTS.get(name, ())
        alpha = (alphas.pop(0) if alphas else settings[0]) if settings else 0.0
        beta = (betas.pop(0) if betas else settings[1]) if len(settings) > 1 else 0.0
        built.append(RECURRENT[name](float(np.float32(alpha)), float(np.float32(beta))))
    mine = built[direction * len(defaults) : (direction + 1) * len(defaults)]
    # `clip` holds the arguments of f and g only: as onnxruntime has it, the cell state enters h as it is.
    return tuple(_clipped(function, call) if at < 2 else function for at, function in enumerate(mine))


def _clipped(function: Unary, call: Call) -> Unary:
    """`function` on an argument held within ±`clip`."""
    if "clip" not in call.attributes:
        return function
    bound = call.number("clip", 0.0)

    def clipped(x: Array) -> Array:
        limit = np.asarray(bound, x.real.dtype)
        return function(dual.minimum(dual.maximum(x, -limit), limit))

    return clipped


def _rnn_cell(p: Weights, x: Array, state: State) -> State:
    """H' = f(X·W + H·R + b)."""
    return (p.functions[0](np.asarray(x + dual.matmul(state[0], p.r) + p.rb)),)


def _gru_cell(linear_before_reset: bool) -> Cell:
    """Gates z, r, h. The reset acts on the hidden state, or on its product with R."""

    def cell(p: Weights, x: Array, state: State) -> State:
        (h,) = state
        f, g = p.functions
        n = 2 * p.units
        gates = f(np.asarray(x[:, :n] + dual.matmul(h, p.r[:, :n]) + p.rb[:n]))
        z, reset = p.gate(gates, 0), p.gate(gates, 1)
        if linear_before_reset:
            recurrent = dual.multiply(reset, np.asarray(dual.matmul(h, p.r[:, n:]) + p.rb[n:]))
        else:
            recurrent = np.asarray(dual.matmul(dual.multiply(reset, h), p.r[:, n:]) + p.rb[n:])
        candidate = g(np.asarray(x[:, n:] + recurrent))
        return (np.asarray(dual.multiply(1 - z, candidate) + dual.multiply(z, h)),)

    return cell


def _lstm_cell(coupled: bool) -> Cell:
    """Gates i, o, f, c; peepholes look at the old cell state for i and f, at the new one for o."""

    def cell(p: Weights, x: Array, state: State) -> State:
        h, c = state
        f, g, out = p.functions
        gates = np.asarray(x + dual.matmul(h, p.r) + p.rb)
        gi, go, gf, gc = (p.gate(gates, index) for index in range(4))
        if p.peepholes is not None:
            gi = np.asarray(gi + dual.multiply(p.gate(p.peepholes, 0), c))
            gf = np.asarray(gf + dual.multiply(p.gate(p.peepholes, 2), c))
        i = f(gi)
        forget = np.asarray(1 - i) if coupled else f(gf)
        c = np.asarray(dual.multiply(forget, c) + dual.multiply(i, g(gc)))
        if p.peepholes is not None:
            go = np.asarray(go + dual.multiply(p.gate(p.peepholes, 1), c))
        return dual.multiply(f(go), out(c)), c

    return cell


def rnn(call: Call) -> tuple[Array, ...]:
    """H' = f(X·W + H·R + b)."""
    return _layer(call, 1, ("Tanh",), 1, _rnn_cell)


def gru(call: Call) -> tuple[Array, ...]:
    """Cho et al., 2014."""
    return _layer(call, 3, ("Sigmoid", "Tanh"), 1, _gru_cell(bool(call.integer("linear_before_reset"))))


def lstm(call: Call) -> tuple[Array, ...]:
    """Hochreiter and Schmidhuber, 1997; peepholes of Gers and Schmidhuber, 2000."""
    return _layer(call, 4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm_cell(bool(call.integer("input_forget"))))


KERNELS: dict[str, Kernel] = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
