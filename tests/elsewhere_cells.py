"""A step of a GRU and of an LSTM with its derivative, as GPUs have them in one kernel; every gate (n, H)."""

from __future__ import annotations

import torch
from torch import Tensor

Bias = Tensor | None


def gru_cell(
    x: Tensor, h: Tensor, old: Tensor, x_bias: Bias = None, h_bias: Bias = None
) -> tuple[Tensor, ...]:
    """Gates r, z, n: h' = n + z·(h − n), and what the derivative needs."""
    from_x, from_h = _biased(x, x_bias).chunk(3, 1), _biased(h, h_bias).chunk(3, 1)
    r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
    n = torch.tanh(from_x[2] + r * from_h[2])
    return n + z * (old - n), torch.cat([r, z, n, old, from_h[2]], 1)


def gru_cell_backward(grad: Tensor, kept: Tensor, has_bias: bool) -> tuple[Bias, ...]:
    r, z, n, old, last = kept.chunk(5, 1)
    for_n = grad * (1 - z) * (1 - n * n)
    for_r, for_z = for_n * last * r * (1 - r), grad * (old - n) * z * (1 - z)
    x, h = torch.cat([for_r, for_z, for_n], 1), torch.cat([for_r, for_z, for_n * r], 1)
    return x, h, grad * z, x.sum(0) if has_bias else None, h.sum(0) if has_bias else None


def lstm_cell(
    x: Tensor, h: Tensor, cell: Tensor, x_bias: Bias = None, h_bias: Bias = None
) -> tuple[Tensor, ...]:
    """Gates i, f, g, o: c' = f·c + i·g, h' = o·tanh c', and what the derivative needs."""
    i, f, g, o = (_biased(x, x_bias) + _biased(h, h_bias)).chunk(4, 1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new = f * cell + i * g
    return o * torch.tanh(new), new, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(
    grad: Bias, grad_cell: Bias, cell: Tensor, new: Tensor, kept: Tensor, has_bias: bool
) -> tuple[Bias, ...]:
    i, f, g, o = kept.chunk(4, 1)
    tanh = torch.tanh(new)
    grad = torch.zeros_like(cell) if grad is None else grad
    whole = grad * o * (1 - tanh**2) + (0 if grad_cell is None else grad_cell)
    inward = [whole * g * i * (1 - i), whole * cell * f * (1 - f), whole * i * (1 - g * g)]
    gates = torch.cat([*inward, grad * tanh * o * (1 - o)], 1)
    return gates, whole * f, gates.sum(0) if has_bias else None


def _biased(gates: Tensor, bias: Bias) -> Tensor:
    return gates if bias is None else gates + bias
