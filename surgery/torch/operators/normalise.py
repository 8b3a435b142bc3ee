"""Normalisers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.torch.call import Call, Results, Translation
from surgery.torch.host import Size


def batch_normalization(call: Call) -> Results:
    """By stored statistics in evaluation; by those of the batch, which update the stored ones, in training."""
    epsilon, momentum = call.number("epsilon", 1e-5), call.number("momentum", 0.9)
    operands = (call[0], call[3], call[4], call[1], call[2])
    always = call.integer("training_mode") or (call.version < 14 and len(call.node.outputs) > 1)
    if always:
        return call.parts(call.emit(by_batch, *operands, 1 - momentum, epsilon), len(call.node.outputs))
    return call.emit(F.batch_norm, *operands, Size("self.training"), _rounded(1 - momentum), epsilon)


def _rounded(momentum: float) -> float:
    """The momentum as it was before it was stored in float32."""
    return float(f"{momentum:.6g}")


def by_batch(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    bias: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    """Normalised by the batch's own statistics; the running ones (population variance) and the batch's."""
    axes = (0, *range(2, x.dim()))
    batch_mean, batch_variance = x.mean(axes), x.var(axes, unbiased=False)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    running_mean = mean * (1 - momentum) + batch_mean * momentum
    running_variance = variance * (1 - momentum) + batch_variance * momentum
    return y, running_mean, running_variance, batch_mean, batch_variance


def instance_normalization(call: Call) -> Results:
    """Each channel of each sample over its spatial axes."""
    return call.emit(by_instance, call[0], call[1], call[2], call.number("epsilon", 1e-5))


def by_instance(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalised over the axes from the third on, also where those hold one element."""
    return F.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_normalization(call: Call) -> Results:
    """Each group of channels of each sample; scale and bias per group in opset 18, per channel later."""
    groups = call.integer("num_groups", 1)
    per_group = call.version < 21 and call.shape(1) == [groups]
    channels = call.size(0, 1)
    if per_group and channels != groups:
        return call.emit(by_group, call[0], groups, call[1], call[2], call.number("epsilon", 1e-5))
    return call.emit(F.group_norm, call[0], groups, call[1], call[2], call.number("epsilon", 1e-5))


def by_group(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Scale and bias per group, as opset 18 has it."""
    each = x.shape[1] // groups
    return F.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def layer_normalization(call: Call) -> Results:
    """Over all axes from `axis` on; then the mean and the inverse deviation."""
    epsilon, axis, scale = call.number("epsilon", 1e-5), call.integer("axis", -1), call.shape(1)
    if len(call.node.outputs) > 1 and any(v.uses() or v.is_graph_output() for v in call.node.outputs[1:]):
        y = call.emit(by_layer, call[0], call[1], call.get(2), axis, epsilon)
        return call.parts(y, len(call.node.outputs))
    trailing = -axis if axis < 0 else call.rank(0) - axis
    if scale is None or None in scale or len(scale) != trailing:
        return call.parts(call.emit(by_layer, call[0], call[1], call.get(2), axis, epsilon), 1)[0]
    return call.emit(F.layer_norm, call[0], tuple(scale), call[1], call.get(2), epsilon)


def by_layer(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised over all axes from `axis` on, the mean, and the inverse deviation."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalization(call: Call) -> Results:
    """x / √(mean x² + ε) over all axes from `axis` on, times the scale."""
    return call.emit(by_size, call[0], call[1], call.integer("axis", -1), call.number("epsilon", 1e-5))


def by_size(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """x / √(mean x² + ε), scaled."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def local_response(call: Call) -> Results:
    """x / (bias + α/size · Σ x² over `size` neighbouring channels)^β."""
    alpha, beta, bias = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("bias", 1.0)
    return call.emit(by_neighbours, call[0], call.integer("size", 1), alpha, beta, bias)


def by_neighbours(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Normalised by the channels around each."""
    widths = [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2]
    summed = F.pad(x.square(), widths).unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * summed) ** beta


def lp_normalization(call: Call) -> Results:
    """x over its p-norm along `axis`; a vector of norm zero stays zero."""
    return call.emit(by_norm, call[0], call.integer("axis", -1), call.integer("p", 2))


def by_norm(x: Tensor, axis: int, p: int) -> Tensor:
    """x over its p-norm."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def mean_variance_normalization(call: Call) -> Results:
    """(x - mean) / (deviation + 1e-9) over `axes`."""
    return call.emit(standardised, call[0], tuple(call.integers("axes", (0, 2, 3))))


def standardised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """(x - mean) / (deviation + 1e-9)."""
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


TRANSLATIONS: dict[str, Translation] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "LRN": local_response,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
}
