"""Scaled dot-product attention and rotary position embedding (opset 23 on)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Results, Translation


def attention(call: Call) -> Results:
    """PyTorch's own kernel where only the result is asked for and nothing unusual is."""
    used = [v for v in call.node.outputs[1:] if v.name and (v.uses() or v.is_graph_output())]
    settings = {
        "q_heads": call.integer("q_num_heads"),
        "kv_heads": call.integer("kv_num_heads"),
        "scale": call.number("scale", 1.0) if "scale" in call.attributes else None,
        "causal": bool(call.integer("is_causal")),
        "softcap": call.number("softcap", 0.0),
        "window": (call.integer("left_window_size", -1), call.integer("right_window_size", -1)),
        "mode": call.integer("qk_matmul_output_mode"),
    }
    operands = [call[0], call[1], call[2], *(call.get(index) for index in range(3, 7))]
    y = call.emit(attended, *operands, bool(used), **settings)
    return call.parts(y, len(call.node.outputs))


def attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, past_k: Tensor | None, past_v: Tensor | None,
    filled: Tensor | None, all_outputs: bool, *, q_heads: int, kv_heads: int, scale: float | None, causal: bool,
    softcap: float, window: tuple[int, int], mode: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """softmax(softcap(scale·Q·Kᵀ) + mask)·V per head; the keys, the values, and the scores asked for."""
    flat = q.dim() == 3
    q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
    keys = k if past_k is None else torch.cat([past_k, k], 2)
    values = v if past_v is None else torch.cat([past_v, v], 2)
    ahead = 0 if past_k is None else past_k.shape[2]
    bias = _bias(q, keys, mask, filled, ahead, causal, window)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    shown = None
    if all_outputs or softcap > 0:
        y, shown = _in_steps(q, keys, values, bias, scale, softcap, mode)
    else:
        y = F.scaled_dot_product_attention(
            q, keys, values, bias, scale=scale, enable_gqa=q.shape[1] != keys.shape[1]
        )
        if bias is not None:
            y = torch.where(_nothing(bias), torch.zeros((), dtype=y.dtype, device=y.device), y)
    return (y.transpose(1, 2).flatten(2) if flat else y), keys, values, shown


def _heads(x: Tensor, heads: int) -> Tensor:
    """(batch, heads, length, size)."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _nothing(bias: Tensor) -> Tensor:
    """Queries that may look at no key."""
    return torch.isneginf(bias).all(-1, keepdim=True)


def _in_steps(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float, mode: int
) -> tuple[Tensor, Tensor]:
    """The result and the scores of the stage that `mode` names."""
    each = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    scores = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).transpose(2, 3)
    capped = softcap * torch.tanh(scores / softcap) if softcap > 0 else scores
    biased = capped if bias is None else capped + bias
    weights = torch.softmax(biased, -1)
    if bias is not None:
        zero = torch.zeros((), dtype=weights.dtype, device=weights.device)
        weights = torch.where(_nothing(bias), zero, weights)
    return weights @ v, (scores, capped, biased, weights)[mode]


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, filled: Tensor | None, ahead: int, causal: bool,
    window: tuple[int, int],
) -> Tensor | None:  # fmt: skip
    """What is added to the scores: the mask given, and -inf at the keys that a query may not look at."""
    allowed = _allowed(q, k, filled, ahead, causal, window)
    bias = None
    if mask is not None:
        bias = _hiding(mask, q) if mask.dtype == torch.bool else mask
        missing = k.shape[2] - bias.shape[-1]
        bias = F.pad(bias, (0, missing), value=-math.inf) if missing > 0 else bias
    if allowed is None:
        return bias
    return _hiding(allowed, q) if bias is None else bias + _hiding(allowed, q)


def _hiding(allowed: Tensor, q: Tensor) -> Tensor:
    zero = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
    return zero.masked_fill(~allowed, -math.inf)


def _allowed(
    q: Tensor, k: Tensor, filled: Tensor | None, ahead: int, causal: bool, window: tuple[int, int]
) -> Tensor | None:
    """Which keys each query may look at by causality, window and filled cache; None if all."""
    keys = torch.arange(k.shape[2], device=q.device)
    queries = torch.arange(q.shape[2], device=q.device)[:, None]
    offset = ahead if filled is None else filled.reshape(-1, 1, 1, 1) - q.shape[2]
    distance = keys - (queries + offset)
    rules = [distance <= 0] if causal else []
    rules += [distance >= -window[0]] if window[0] >= 0 else []
    rules += [distance <= window[1]] if window[1] >= 0 else []
    rules += [keys < filled.reshape(-1, 1, 1, 1)] if filled is not None else []
    if not rules:
        return None
    allowed = rules[0]
    for rule in rules[1:]:
        allowed = allowed & rule
    return allowed


def rotary_embedding(call: Call) -> Results:
    """Pairs of features turned by an angle that depends on the position."""
    width, heads = call.integer("rotary_embedding_dim"), call.integer("num_heads", 1)
    operands = (call[0], call[1], call[2], call.get(3))
    return call.emit(turned, *operands, bool(call.integer("interleaved")), width, heads)


def turned(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor | None,
    interleaved: bool,
    width: int,
    heads: int,
) -> Tensor:
    """Pairs (halves of a head, or neighbours) turned; features behind `width` stay."""
    flat = x.dim() == 3
    parts = x.reshape(*x.shape[:2], heads, -1) if flat else x.transpose(1, 2)  # (batch, length, heads, size)
    width = width or parts.shape[-1]
    cosine = (cosine if positions is None else cosine[positions]).unsqueeze(2)
    sine = (sine if positions is None else sine[positions]).unsqueeze(2)
    moving, still = parts[..., :width], parts[..., width:]
    if interleaved:
        a, b = moving[..., 0::2], moving[..., 1::2]
    else:
        a, b = moving[..., : width // 2], moving[..., width // 2 :]
    first, second = cosine * a - sine * b, sine * a + cosine * b
    moving = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    y = torch.cat([moving, still], -1)
    return y.flatten(2) if flat else y.transpose(1, 2)


TRANSLATIONS: dict[str, Translation] = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
