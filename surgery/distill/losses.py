"""The losses, as the papers write them. Pure functions of tensors; every one gives a value per example, (B,).

Averages over the batch are taken by the caller: a distillation loss that is *summed* over the batch is 32 times too
large at batch 32, which is how a much-used rendition of QDagger departs from the paper.

Shapes: B examples, A actions, N atoms or quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pick(values: Tensor, action: Tensor) -> Tensor:
    """The entries of (B, A, …) at actions (B,): (B, …)."""
    # not values[rows, action], whose derivative a GPU computes by sorting
    index = action.reshape(-1, 1, *(1,) * (values.dim() - 2)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index).squeeze(1)


def cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """CE(softmax(teacher), softmax(student)) of two (B, A) arrays that have been divided by their temperatures; (B,).

    QDagger (Agarwal et al. 2022, arXiv:2206.01626, §4.1) with both sides Q / τ. The released code has the KL
    divergence, which differs by the teacher's entropy, a constant: the gradients are the same. As in the paper there
    is no factor τ².
    """
    return -(functional.softmax(teacher, dim=1) * functional.log_softmax(student, dim=1)).sum(dim=1)


def best_action(teacher: Tensor, student: Tensor) -> Tensor:
    """−log softmax(student)[argmax teacher]: imitation of a teacher of whom only actions are known; (B,).

    The released code's `distill_best_action_only`.
    """
    return functional.cross_entropy(student, teacher.argmax(dim=1), reduction="none")


def conservative(values: Tensor, action: Tensor, temperature: float) -> Tensor:
    """logsumexp(Q / τ) − Q(a) / τ: conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779, equation 4); (B,).

    The form that the released code of QDagger pretrains with: both terms divided by τ, no factor τ in front.
    """
    scaled = values / temperature
    return torch.logsumexp(scaled, dim=1) - pick(scaled, action)


def large_margin(values: Tensor, expert: Tensor, margin: float) -> Tensor:
    """max_a [Q(a) + m·1(a ≠ a_E)] − Q(a_E): DQfD (Hester et al. 2018, arXiv:1704.03732, equation 2); (B,).

    The paper's maximum, not the mean over all actions of max(0, ·) that QDagger's released code has as its default.
    """
    others = torch.full_like(values, margin).scatter(1, expert[:, None], 0.0)
    return (values + others).amax(dim=1) - pick(values, expert)


def huber(error: Tensor, threshold: float = 1.0) -> Tensor:
    """½e² up to the threshold κ, κ(|e| − ½κ) beyond it."""
    return functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=threshold)


def temporal_difference(value: Tensor, next_value: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
    """Huber(R + γⁿ Q' − Q) for values (B,); the target carries no gradient. (B,)

    Huber, as Dopamine and QDagger's configurations, not the squared error of CleanRL's scripts.
    """
    return huber((returns + discount * next_value).detach() - value)


def projection(support: Tensor, probability: Tensor, returns: Tensor, discount: Tensor) -> Tensor:
    """The distribution of R + γⁿ Z on the atoms of Z (Bellemare et al. 2017, arXiv:1707.06887, algorithm 1).

    Args:
      support: (N,) equally spaced atoms.
      probability: (B, N) of Z.
      returns: (B,) R.
      discount: (B,) γⁿ.

    Returns:
      (B, N) probabilities; each shifted atom is shared by its two neighbours.
    """
    low, high = support[0], support[-1]
    shifted = (returns[:, None] + discount[:, None] * support).clamp(min=low, max=high)
    spacing = (high - low) / (len(support) - 1)
    distance = (shifted[:, None, :] - support[:, None]).abs() / spacing
    return ((1 - distance).clamp(0, 1) * probability[:, None, :]).sum(dim=2)


def categorical(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a projected distribution (B, N) and softmax(logits) (B, N): C51's loss; (B,)."""
    return -(target.detach() * functional.log_softmax(logits, dim=1)).sum(dim=1)


def quantile_huber(
    quantiles: Tensor, next_quantiles: Tensor, returns: Tensor, discount: Tensor, threshold: float = 1.0
) -> Tensor:
    """Σ_i mean_j ρ_τᵢ(R + γⁿ θ'_j − θ_i): QR-DQN (Dabney et al. 2018, arXiv:1710.10044, equation 10); (B,).

    Args:
      quantiles: (B, N) θ of the action taken.
      next_quantiles: (B, N) θ' of the greedy action.
      returns: (B,) R.
      discount: (B,) γⁿ.
      threshold: κ.
    """
    count = quantiles.shape[1]
    middle = (torch.arange(count, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / count
    target = (returns[:, None] + discount[:, None] * next_quantiles).detach()
    error = target[:, None, :] - quantiles[:, :, None]
    weight = (middle[:, None] - (error.detach() < 0).to(quantiles.dtype)).abs()
    return (weight * huber(error, threshold) / threshold).mean(dim=2).sum(dim=1)
