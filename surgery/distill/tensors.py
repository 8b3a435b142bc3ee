"""A batch where the networks are, and the networks' answers to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.distill.network import Network


@dataclass(frozen=True)
class Tensors:
    """A batch on the device; B examples. Its shapes change between phases at most (a teacher's stretches come without a
    state of the student), so that graphs can be captured on it.

    Attributes:
      observation: (B, *observation) as the network takes it; of stretches (T, C, *observation).
      action: (B,) int64.
      returns: (B,)
      discount: (B,)
      next_observation: (B, *observation); of stretches empty.
      weight: (B,) importance weights.
      teacher: (B, A) the teacher's scores at `observation`; zeros where they are not used.
      begins: (T, C) bool, where an episode begins; empty without stretches, as what follows.
      state: (C, S) of the student before the first observation of each stretch.
      after: (B,) int64, which of the T · C observations follows n steps on.
    """

    observation: Tensor
    action: Tensor
    returns: Tensor
    discount: Tensor
    next_observation: Tensor
    weight: Tensor
    teacher: Tensor
    begins: Tensor
    state: Tensor
    after: Tensor


@dataclass(frozen=True)
class Answers:
    """Outputs of networks to a batch.

    Attributes:
      output: (B, A, …) of the student at the observations, with gradients.
      after: of the target n steps on.
      chooser: of whoever chooses the action there: the student with double learning, else the target.
    """

    output: Tensor
    after: Tensor | None
    chooser: Tensor | None


def answers(
    student: Network, target: Network, tensors: Tensors, *, temporal: bool, double: bool, burn_in: int
) -> Answers:
    """Ask the student, and the target where temporal differences are learned.

    Noisy layers draw anew for each pass: the student's for choosing, the target's, and last the student's for learning
    (Fortunato et al. 2018, arXiv:1706.10295, §3.1: ε, ε′ and ε″).
    """
    if student.states:
        return _unrolled(student, target, tensors, temporal=temporal, double=double, burn_in=burn_in)
    after = chooser = None
    if temporal:
        with torch.no_grad():
            target.draw_noise()
            after = chooser = target(tensors.next_observation)
            if double:
                student.draw_noise()
                chooser = student(tensors.next_observation)
    student.draw_noise()
    return Answers(student(tensors.observation), after, chooser)


def _unrolled(
    student: Network, target: Network, tensors: Tensors, *, temporal: bool, double: bool, burn_in: int
) -> Answers:
    """Networks with a memory run over stretches, both from the state that the student had there (R2D2)."""
    student.draw_noise()
    learned = range(burn_in, burn_in + len(tensors.action) // tensors.begins.shape[1])
    own = _run(student, tensors, learned)
    after = chooser = None
    if temporal:
        target.draw_noise()
        after = chooser = _run(target, tensors, range(0)).flatten(0, 1)[tensors.after]
        chooser = own.detach().flatten(0, 1)[tensors.after] if double else after
    return Answers(own[learned.start : learned.stop].flatten(0, 1), after, chooser)


def _run(network: Network, tensors: Tensors, learned: range) -> Tensor:
    """Outputs (T, C, …); gradients flow through the steps that are learned from, and no further."""
    state, outputs = network.unpacked(tensors.state), []
    for time, (observation, begins) in enumerate(zip(tensors.observation, tensors.begins, strict=True)):
        with torch.set_grad_enabled(time in learned):
            output, state = network.step(observation, network.cleared(state, begins))
        outputs.append(output)
    return torch.stack(outputs)
