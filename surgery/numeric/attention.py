"""Scaled dot-product attention and rotary position embedding (opset 23 on)."""

from __future__ import annotations

import math

import numpy as np

from surgery.arrays import Array
from surgery.errors import GraphError
from surgery.numeric import dual
from surgery.numeric.call import Call, Kernel


def attention(call: Call) -> tuple[Array, ...]:
    """softmax(softcap(scale·Q·Kᵀ) + mask)·V per head; then the keys, the values, and the scores asked for.

    A head of K and V serves q_heads/kv_heads consecutive heads of Q. A query that may look at no key gives
    zero, not NaN.
    """
    q = _heads(call, 0, "q_num_heads")
    keys = _with_past(_heads(call, 1, "kv_num_heads"), call.get(4))
    values = _with_past(_heads(call, 2, "kv_num_heads"), call.get(5))
    bias = _bias(call, q, keys)
    scores = _scores(call, q, keys)
    capped = _softcap(scores, call.number("softcap", 0.0))
    biased = capped if bias is None else np.asarray(capped + bias)
    weights = _attend(biased, bias)
    y = dual.matmul(weights, _repeated(values, q.shape[1]))
    if call[0].ndim == 3:
        y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)
    shown = (scores, capped, biased, weights)[call.integer("qk_matmul_output_mode")]
    return y, keys, values, shown


def _heads(call: Call, index: int, attribute: str) -> Array:
    """An operand as (batch, heads, length, size)."""
    x = call[index]
    if x.ndim == 4:
        return x
    heads = call.integer(attribute)
    if heads < 1:
        raise GraphError(f"an operand of rank 3 needs '{attribute}'")
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _with_past(x: Array, past: Array | None) -> Array:
    return x if past is None else np.concatenate([past, x], axis=2)


def _repeated(x: Array, heads: int) -> Array:
    return x if x.shape[1] == heads else np.repeat(x, heads // x.shape[1], axis=1)


def _scores(call: Call, q: Array, keys: Array) -> Array:
    """scale·Q·Kᵀ, half of the scale on either side."""
    scale = call.number("scale", 1.0) if "scale" in call.attributes else 1 / math.sqrt(q.shape[-1])
    half = np.asarray(math.sqrt(scale), q.real.dtype)
    return dual.matmul(np.asarray(q * half), np.asarray(_repeated(keys, q.shape[1]).swapaxes(2, 3) * half))


def _softcap(scores: Array, cap: float) -> Array:
    return scores if cap <= 0 else np.asarray(cap * dual.tanh(scores / cap))


def _attend(biased: Array, bias: Array | None) -> Array:
    """Softmax over the keys, with rows of zeros where the bias leaves no key."""
    peak = np.max(biased.real, axis=-1, keepdims=True)
    weights = dual.exp(np.asarray(biased - np.where(np.isneginf(peak), np.zeros((), peak.dtype), peak)))
    summed = np.asarray(weights.sum(axis=-1, keepdims=True))
    weights = dual.divide(weights, np.where(summed.real == 0, np.ones((), summed.dtype), summed))
    if bias is None:
        return weights
    nothing = np.isneginf(np.max(bias.real, axis=-1, keepdims=True))
    return np.where(nothing, np.zeros((), weights.dtype), weights)


def _bias(call: Call, q: Array, keys: Array) -> Array | None:
    """What is added to the scores: the mask given, and -inf at the keys that a query may not look at."""
    bias = _mask(call.get(3), q, keys)
    allowed = _allowed(call, q.shape[2], keys.shape[2])
    if allowed is None:
        return bias
    hidden = _hiding(allowed, q)
    return hidden if bias is None else np.asarray(bias + hidden)


def _hiding(allowed: Array, q: Array) -> Array:
    return np.where(allowed, np.zeros((), q.real.dtype), np.asarray(-np.inf, q.real.dtype))


def _mask(mask: Array | None, q: Array, keys: Array) -> Array | None:
    if mask is None:
        return None
    if mask.dtype.kind == "b":
        mask = _hiding(mask, q)
    missing = keys.shape[2] - mask.shape[-1]
    if missing > 0:
        mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    return np.broadcast_to(mask, (*mask.shape[:-2], *np.broadcast_shapes(mask.shape[-2:], (q.shape[2], 1))))


def _allowed(call: Call, queries: int, count: int) -> Array | None:
    """Which of `count` keys each query may look at by causality, window and filled cache; None if all."""
    past, filled = call.get(4), call.get(6)
    ahead = past.shape[2] if past is not None else 0
    offset = np.asarray(ahead) if filled is None else (filled.reshape(-1, 1, 1, 1) - queries)
    distance = np.arange(count) - (np.arange(queries)[:, None] + offset)
    left, right = call.integer("left_window_size", -1), call.integer("right_window_size", -1)
    rules = []
    if call.integer("is_causal"):
        rules.append(distance <= 0)
    if left >= 0:
        rules.append(distance >= -left)
    if right >= 0:
        rules.append(distance <= right)
    if filled is not None:
        rules.append(np.arange(count) < filled.reshape(-1, 1, 1, 1))
    if not rules:
        return None
    allowed = np.ones((queries, count), np.bool_)
    for rule in rules:
        allowed = allowed & rule
    return allowed


def rotary_embedding(call: Call) -> Array:
    """Pairs of features turned by an angle that depends on the position (Su et al., 2021).

    The pairs are the two halves of a head, or neighbours with `interleaved`; only the first
    `rotary_embedding_dim` features turn.
    """
    x, positions = call[0], call.get(3)
    flat = x.ndim == 3
    heads = (*x.shape[:2], call.integer("num_heads", 1), -1)
    x = x.reshape(heads) if flat else x.transpose(0, 2, 1, 3)  # (batch, length, heads, size)
    width = call.integer("rotary_embedding_dim") or x.shape[-1]
    cosine, sine = (
        np.expand_dims(cache if positions is None else cache[positions], 2) for cache in (call[1], call[2])
    )
    turned, still = x[..., :width], x[..., width:]
    if call.integer("interleaved"):
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
    first = np.asarray(dual.multiply(cosine, a) - dual.multiply(sine, b))
    second = np.asarray(dual.multiply(sine, a) + dual.multiply(cosine, b))
    if call.integer("interleaved"):
        turned = np.stack([first, second], axis=-1).reshape(turned.shape)
    else:
        turned = np.concatenate([first, second], axis=-1)
    y = np.concatenate([turned, still], axis=-1)
    return y.reshape(call[0].shape) if flat else y.transpose(0, 2, 1, 3)


KERNELS: dict[str, Kernel] = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
