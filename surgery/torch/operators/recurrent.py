"""RNN, GRU and LSTM: PyTorch's own kernels where they compute the same, else a loop over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.numeric.activation import RECURRENT_DEFAULTS
from surgery.torch.call import Call, Operand, Ref, Results, Translation
from surgery.torch.host import Size

State: TypeAlias = tuple[Tensor, ...]  # (N, H) each; the hidden state first
Unary: TypeAlias = "Callable[[Tensor], Tensor]"
Functions: TypeAlias = tuple[tuple[str, float, float], ...]  # name, α, β of each activation

# Which of ONNX's gates stands where in PyTorch's weights: i, o, f, c -> i, f, g, o and z, r, h -> r, z, n.
ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
DEFAULTS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
NATIVE = {"RNN": torch.rnn_tanh, "GRU": torch.gru, "LSTM": torch.lstm}


def recurrent(call: Call) -> Results:
    """A layer in one or both directions: its outputs (T, D, N, H) and the last states (D, N, H)."""
    kind, direction = call.node.op_type, call.text("direction", "forward")
    functions = _functions(call, 2 if direction == "bidirectional" else 1)
    plain = all(name == DEFAULTS[kind][at % len(DEFAULTS[kind])] for at, (name, _, _) in enumerate(functions))
    same = (
        plain
        and "clip" not in call.attributes
        and not call.has(4)
        and not call.has(7)
        and not call.integer("input_forget")
        and (kind != "GRU" or call.integer("linear_before_reset"))
    )
    return _native(call, kind, direction) if same else _stepwise(call, kind, direction, functions)


def _native(call: Call, kind: str, direction: str) -> Results:
    """PyTorch's kernel, on the parameters themselves where the graph only moves their rows about."""
    both, backwards, batch_first = (
        direction == "bidirectional",
        direction == "reverse",
        bool(call.integer("layout")),
    )
    weights = _own_weights(call, kind)
    if weights is None:
        w = call.emit(regated, call[1], call[2], call.get(3), ORDER[kind])
        each = 4 if call.has(3) else 2
        weights = [Ref(f"{w}[{at}]") for at in range(each * (2 if both else 1))]
    states = [call.get(5), *([call.get(6)] if kind == "LSTM" else [])]
    x = call.method(call[0], "flip", 1 if batch_first else 0) if backwards else call[0]
    settings = (NATIVE[kind], weights, call.has(3), both, batch_first)
    results = call.emit(layer, x, states, *_settings(call, settings))
    names = 3 if kind == "LSTM" else 2
    outputs = call.parts(results, names)
    if backwards:
        outputs[0] = call.method(_ref(outputs[0]), "flip", 1 if batch_first else 0)
    return outputs


def _settings(call: Call, settings: tuple[Any, ...]) -> tuple[Any, ...]:
    function, *rest = settings
    return (Size(call.emitter.source(function)), *rest)


def _ref(operand: Operand) -> Ref:
    assert isinstance(operand, Ref)
    return operand


def layer(
    x: Tensor,
    states: list[Tensor | None],
    function: Callable[..., Any],
    weights: Sequence[Tensor],
    has_bias: bool,
    both: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """One call of PyTorch's recurrent kernel: Y (T, D, N, H) and the last states, or all batch first."""
    directions, batch = 2 if both else 1, x.shape[0 if batch_first else 1]
    units = weights[1].shape[1]
    zeros = None
    start = []
    for state in states:
        if state is None:
            zeros = x.new_zeros(directions, batch, units) if zeros is None else zeros
            state = zeros
        elif batch_first:
            state = state.transpose(0, 1).contiguous()
        start.append(state)
    time = 1 if batch_first else 0
    exported = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    if x.shape[time] == 1 and not (both or exported or x.device.type in ("cpu", "meta")):
        last = single_step(x.select(time, 0), [state[0] for state in start], function, weights)
        y: Any = last[0].movedim(0, time)
    else:
        hidden: Any = tuple(start) if len(start) > 1 else start[0]
        train = torch.is_grad_enabled()
        y, *last = function(x, hidden, weights, has_bias, 1, 0.0, train, both, batch_first)
    y = y.unflatten(-1, (directions, units))  # (T, N, D, H) or (N, T, D, H)
    if batch_first:
        return (y, *(state.transpose(0, 1) for state in last))
    return (y.transpose(1, 2), *last)


def single_step(
    x: Tensor, state: list[Tensor], function: Callable[..., Any], weights: Sequence[Tensor]
) -> list[Tensor]:
    """The states (1, N, H) after one step of the cell, on x (N, I) and states (N, H), as a GPU does it best.

    cuDNN's layer would gather weights that are not its own into one block at every call. Under autocast it computes in
    float16 whatever was asked for, and a memory that is carried on and on is rounded each time: here it is not.
    """
    cell: Any = torch.gru_cell if function is torch.gru else torch.rnn_tanh_cell
    cell = torch.lstm_cell if function is torch.lstm else cell
    with torch.autocast(x.device.type, enabled=False):
        x, *state = (tensor.to(weights[0].dtype) for tensor in (x, *state))
        hidden: Any = state if len(state) > 1 else state[0]
        found = cell(x, hidden, *weights)
    return [one[None] for one in (found if isinstance(found, tuple) else (found,))]


def regated(w: Tensor, r: Tensor, b: Tensor | None, order: tuple[int, ...]) -> list[Tensor]:
    """Weights (D, gates·H, ·) and biases (D, 2·gates·H) as PyTorch's list, its gates in PyTorch's order."""
    gates, flat = len(order), []
    for direction in range(w.shape[0]):
        parts = [w[direction], r[direction]]
        if b is not None:
            parts += list(b[direction].chunk(2))
        for part in parts:
            blocks = part.chunk(gates)
            flat.append(torch.cat([blocks[gate] for gate in order]) if gates > 1 else part)
    return flat


def _own_weights(call: Call, kind: str) -> list[Ref] | None:
    """The stored tensors that PyTorch's kernel takes, if the operands are nothing but their rows reordered."""
    order, weights = ORDER[kind], []
    columns = []
    for index in (1, 2, 3):
        if not call.has(index):
            continue
        moved = call.emitter.origin(call.node.inputs[index])
        if moved is None:
            return None
        columns.append(moved)
    for direction in range(columns[0].shape[0]):
        parts = [column[direction] for column in columns[:2]]
        parts += list(np.split(columns[2][direction], 2)) if len(columns) > 2 else []
        for part in parts:
            blocks = np.split(part, len(order))
            found = call.emitter.whole(np.concatenate([blocks[gate] for gate in order]))
            if found is None:
                return None
            weights.append(found)
    return weights


def _functions(call: Call, directions: int) -> Functions:
    """The activations in order; α and β are consumed by those that take them."""
    stated = call.attribute("activations", ())
    names = [(x.decode() if isinstance(x, bytes) else str(x)).lower() for x in stated]
    names = names or list(DEFAULTS[call.node.op_type]) * directions
    alphas, betas = list(call.attribute("activation_alpha", ())), list(call.attribute("activation_beta", ()))
    built = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise call.refuse(f"no activation '{name}'")
        settings = RECURRENT_DEFAULTS.get(name, ())
        alpha = (alphas.pop(0) if alphas else settings[0]) if settings else 0.0
        beta = (betas.pop(0) if betas else settings[1]) if len(settings) > 1 else 0.0
        built.append((name, float(np.float32(alpha)), float(np.float32(beta))))
    return tuple(built)


_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "relu": lambda x, alpha, beta: torch.relu(x),
    "leakyrelu": lambda x, alpha, beta: F.leaky_relu(x, alpha),
    "thresholdedrelu": lambda x, alpha, beta: F.threshold(x, alpha, 0.0),
    "tanh": lambda x, alpha, beta: torch.tanh(x),
    "scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "hardsigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "elu": lambda x, alpha, beta: F.elu(x, alpha),
    "softsign": lambda x, alpha, beta: F.softsign(x),
    "softplus": lambda x, alpha, beta: F.softplus(x),
}


def _stepwise(call: Call, kind: str, direction: str, functions: Functions) -> Results:
    states = [call.get(5), *([call.get(6)] if kind == "LSTM" else [])]
    settings = {
        "kind": kind,
        "direction": direction,
        "functions": tuple(functions),
        "clip": call.number("clip", 0.0) if "clip" in call.attributes else None,
        "variant": bool(call.integer("input_forget") or call.integer("linear_before_reset")),
        "batch_first": bool(call.integer("layout")),
    }
    operands = (call[0], call[1], call[2], call.get(3), call.get(4), states, call.get(7))
    return call.parts(call.emit(stepwise, *operands, **settings), 3 if kind == "LSTM" else 2)


def stepwise(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, states: list[Tensor | None],
    peepholes: Tensor | None, *, kind: str, direction: str, functions: Functions, clip: float | None,
    variant: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All directions of a layer, step by step, with everything that ONNX allows."""
    x = x.transpose(0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    ends = None if lengths is None else lengths.to(x.device).long()
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    each, ys, lasts = len(functions) // len(backwards), [], []
    for at, back in enumerate(backwards):
        own = functions[at * each : (at + 1) * each]
        cell = partial(
            _CELLS[kind],
            r=r[at],
            rb=None if b is None else b[at].chunk(2)[1],
            peepholes=None if peepholes is None else list(peepholes[at].chunk(3)),
            f=[_activation(function, None if place > 1 else clip) for place, function in enumerate(own)],
            variant=variant,
        )
        order = _order(ends, steps, batch, x.device) if back else None
        start = tuple(_initial(state, at, x, r.shape[-1], batch_first) for state in states)
        moving = x if order is None else x[order, torch.arange(batch, device=x.device)]
        y, last = _sweep(F.linear(moving, w[at], None if b is None else b[at].chunk(2)[0]), start, ends, cell)
        ys.append(y if order is None else y[order, torch.arange(batch, device=x.device)])
        lasts.append(last)
    y = torch.stack(ys, 1)  # (T, D, N, H)
    finals = [torch.stack([last[state] for last in lasts]) for state in range(len(states))]
    if batch_first:
        return (y.permute(2, 0, 1, 3), *(final.transpose(0, 1) for final in finals))
    return (y, *finals)


def _activation(function: tuple[str, float, float], clip: float | None) -> Callable[[Tensor], Tensor]:
    name, alpha, beta = function
    if clip is None:
        return lambda x: _ACTIVATIONS[name](x, alpha, beta)
    return lambda x: _ACTIVATIONS[name](x.clamp(-clip, clip), alpha, beta)


def _initial(given: Tensor | None, at: int, x: Tensor, units: int, batch_first: bool) -> Tensor:
    if given is None:
        return x.new_zeros(x.shape[1], units)
    return given[:, at] if batch_first else given[at]


def _order(ends: Tensor | None, steps: int, batch: int, device: torch.device) -> Tensor:
    """(T, N): which step of each sequence comes at each turn; its own inverse."""
    turns = torch.arange(steps, device=device)[:, None].expand(steps, batch)
    if ends is None:
        return steps - 1 - turns
    return torch.where(turns < ends, ends - 1 - turns, turns)


def _sweep(
    x: Tensor, state: State, ends: Tensor | None, cell: Callable[[Tensor, State], State]
) -> tuple[Tensor, State]:
    """The hidden states (T, N, H), zero after a sequence's end, and the states at the ends."""
    hidden = []
    for step in range(x.shape[0]):
        moved = cell(x[step], state)
        if ends is None:
            state = moved
            hidden.append(state[0])
            continue
        inside = (step < ends)[:, None]
        state = tuple(torch.where(inside, new, old) for new, old in zip(moved, state, strict=True))
        hidden.append(torch.where(inside, state[0], torch.zeros_like(state[0])))
    return torch.stack(hidden) if hidden else state[0].new_zeros(0, *state[0].shape), state


def _rnn_cell(
    x: Tensor,
    state: State,
    *,
    r: Tensor,
    rb: Tensor | None,
    peepholes: list[Tensor] | None,
    f: list[Unary],
    variant: bool,
) -> State:
    """H' = f(X·W + H·R + b)."""
    return (f[0](x + F.linear(state[0], r, rb)),)


def _gru_cell(
    x: Tensor,
    state: State,
    *,
    r: Tensor,
    rb: Tensor | None,
    peepholes: list[Tensor] | None,
    f: list[Unary],
    variant: bool,
) -> State:
    """Gates z, r, h. The reset acts on the hidden state, or (`variant`) on its product with R."""
    (h,) = state
    n = 2 * h.shape[-1]
    gate_bias, last_bias = (None, None) if rb is None else (rb[:n], rb[n:])
    z, reset = f[0](x[:, :n] + F.linear(h, r[:n], gate_bias)).chunk(2, -1)
    if variant:
        candidate = f[1](x[:, n:] + reset * F.linear(h, r[n:], last_bias))
    else:
        candidate = f[1](x[:, n:] + F.linear(reset * h, r[n:], last_bias))
    return ((1 - z) * candidate + z * h,)


def _lstm_cell(
    x: Tensor,
    state: State,
    *,
    r: Tensor,
    rb: Tensor | None,
    peepholes: list[Tensor] | None,
    f: list[Unary],
    variant: bool,
) -> State:
    """Gates i, o, f, c; peepholes look at the old cell state for i and f, at the new one for o."""
    h, c = state
    i, o, forget, g = (x + F.linear(h, r, rb)).chunk(4, -1)
    if peepholes is not None:
        i, forget = i + peepholes[0] * c, forget + peepholes[2] * c
    i = f[0](i)
    c = (1 - i if variant else f[0](forget)) * c + i * f[1](g)
    if peepholes is not None:
        o = o + peepholes[1] * c
    return f[0](o) * f[2](c), c


_CELLS: dict[str, Callable[..., State]] = {"RNN": _rnn_cell, "GRU": _gru_cell, "LSTM": _lstm_cell}

TRANSLATIONS: dict[str, Translation] = {"RNN": recurrent, "GRU": recurrent, "LSTM": recurrent}
