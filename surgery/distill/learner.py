"""One gradient step: losses of a batch, backward, optimizer, target network; on CUDA as one captured graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from surgery.distill import losses
from surgery.distill.captured import Captured, Recorder, Staging
from surgery.distill.methods import Auxiliary
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.distill.tensors import Answers, Tensors, answers
from surgery.replay import Batch, Stretch

PARTS = ("loss", "temporal", "auxiliary", "agreement", "value")
"""What is averaged between two lines of the log: the whole loss, its parts, how often the student's greedy action is
the teacher's, the mean value of the action taken."""
_ALONE = Stretch(np.zeros((0, 0), np.bool_), np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
"""What transitions that are drawn one by one have of a stretch."""
EPS = {"adam": 1.5e-4, "rmsprop": 1e-5}
"""ε of each optimizer, outside the root: Dopamine's and the Nature DQN's."""


@dataclass(frozen=True)
class Objective:
    """What a gradient step minimises: `temporal · TD + weight · auxiliary`.

    Attributes:
      temporal: whether temporal differences are learned.
      auxiliary: what else is.
    """

    temporal: bool
    auxiliary: Auxiliary


Kind: TypeAlias = tuple[Objective, tuple[torch.Size, ...]]
"""Of steps that one graph can be captured for: what is minimised, and the shapes of the batch."""


class Learner:
    """The student, its target network and its optimizer.

    The learning rate and the auxiliary loss's weight are tensors on the device, so that a captured graph sees them
    change; the parts of the loss are summed there and read only when they are logged.

    Args:
      student: what learns.
      target: the same network, a copy that follows.
      optimizer: of the student's parameters; on CUDA capturable, with a tensor as learning rate.
      settings: of the run.
      actions: A.
      teacher_temperature: τ of the teacher's scores.
      teacher_acts: the teacher's scores are one-hot actions: imitate only the best one.
      recorder: records a step, to be replayed from then on; None: every step runs as it is.
      note: told what should be said once.
    """

    def __init__(
        self,
        student: Network,
        target: Network,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        *,
        actions: int,
        teacher_temperature: float = 1.0,
        teacher_acts: bool = False,
        recorder: Recorder | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.student, self.target, self.optimizer = student, target, optimizer
        self._settings, self._actions = settings, actions
        self._teacher_temperature, self._teacher_acts = teacher_temperature, teacher_acts
        device = student.device
        self._weight = torch.zeros((), device=device)
        self._sums = torch.zeros(len(PARTS), device=device)
        self._count = 0
        self._staging = Staging(device)
        self._alone = tuple(student.there(one) for one in (_ALONE.begins, _ALONE.after, _ALONE.state))
        self._recorder = recorder
        self._note = note
        self._captured: dict[Kind, Captured] = {}

    def update(self, batch: Batch, objective: Objective, *, weight: float, rate: float) -> Tensor:
        """One gradient step.

        Args:
          batch: drawn from a replay; with the teacher's scores where the objective asks for them.
          objective: what is minimised.
          weight: λ · coefficient.
          rate: learning rate.

        Returns:
          (B,) the temporal-difference loss of each example, on the device: new priorities. Overwritten by the next
          step when captured.
        """
        self._weight.fill_(weight)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        tensors = self._tensors(batch)
        self._count += 1
        if self._recorder is None:
            return self._step(tensors, objective)
        given = tuple(vars(tensors).values())
        kind = (objective, tuple(tensor.shape for tensor in given))
        if kind not in self._captured:
            self._captured[kind] = Captured(
                lambda *given: self._step(Tensors(*given), objective),
                self._recorder,
                failed=self._note,
            )
        return self._captured[kind](*given)

    def forget_graphs(self) -> None:
        """Capture anew: needed whenever a parameter or an optimizer's state has become another tensor."""
        self._captured.clear()

    def sync_target(self) -> None:
        """Copy the student to the target network."""
        self.target.copy_from(self.student)

    def read(self) -> Mapping[str, float]:
        """The means of `PARTS` since the last call; waits for the device. Empty if there was no step."""
        if not self._count:
            return {}
        means: list[float] = (self._sums / self._count).cpu().tolist()
        self._sums.zero_()
        self._count = 0
        return dict(zip(PARTS, means, strict=True))

    def _tensors(self, batch: Batch) -> Tensors:
        """The batch on the device; observations as they are kept, so that bytes travel and not floats."""
        student, stretch = self.student, batch.stretch
        columns = [batch.action, batch.returns, batch.discount, batch.weight]
        columns += [] if stretch is None else [stretch.begins, stretch.after]
        action, returns, discount, weight, *others = self._staging.send(columns)
        begins, after, state = self._alone if stretch is None else (*others, student.there(stretch.state))
        scores = batch.scores
        if scores is None:
            scores = torch.zeros(len(batch.action), self._actions, device=student.device)
        return Tensors(
            student.there(batch.observation), action, returns, discount, student.there(batch.next_observation),
            weight, student.there(scores), begins, state, after,
        )  # fmt: skip

    def _step(self, tensors: Tensors, objective: Objective) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss, per_example, parts = self._loss(tensors, objective)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._sums += torch.stack(parts)
        return per_example

    def _loss(self, tensors: Tensors, objective: Objective) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The loss, the temporal-difference loss per example, and `PARTS`."""
        settings = self._settings
        found = answers(
            self.student, self.target, tensors,
            temporal=objective.temporal, double=settings.double, burn_in=settings.burn_in,
        )  # fmt: skip
        values = self.student.values.expected(found.output)
        per_example = self._temporal(found, tensors)
        temporal = (tensors.weight * per_example).mean()
        auxiliary = torch.zeros_like(temporal)
        if objective.auxiliary != "none":
            auxiliary = (tensors.weight * self._auxiliary(values, tensors, objective.auxiliary)).mean()
        loss = temporal + self._weight * auxiliary
        counts = (tensors.weight > 0).float()  # stretches hold rows that are no transitions
        counts = counts / counts.sum()
        same = (counts * (values.argmax(dim=1) == tensors.teacher.argmax(dim=1))).sum()
        value = (counts * losses.pick(values, tensors.action)).sum()
        parts = [part.detach() for part in (loss, temporal, auxiliary, same, value)]
        return loss, per_example.detach(), parts

    def _temporal(self, found: Answers, tensors: Tensors) -> Tensor:
        """The target takes the best action by its own values, or with `double` by the student's."""
        if found.after is None or found.chooser is None:
            return torch.zeros_like(tensors.returns)
        best = self.student.best(found.chooser)
        here, there = losses.pick(found.output, tensors.action), losses.pick(found.after, best)
        return self.student.values.loss(here, there, tensors.returns, tensors.discount)

    def _auxiliary(self, values: Tensor, tensors: Tensors, kind: Auxiliary) -> Tensor:
        settings = self._settings
        if kind == "conservative":
            return losses.conservative(values, tensors.action, settings.temperature)
        if kind == "margin":
            return losses.large_margin(values, tensors.teacher.argmax(dim=1), settings.margin)
        student = values / settings.temperature
        if self._teacher_acts:
            return losses.best_action(tensors.teacher, student)
        return losses.cross_entropy(tensors.teacher / self._teacher_temperature, student)


def make_optimizer(
    kind: str, network: Network, rate: float, *, centered: bool = True, recorded: bool | None = None
) -> torch.optim.Optimizer:
    """Adam at Dopamine's ε of 1.5e-4 (fused), or RMSProp as the Nature DQN has it (centered, α 0.95, ε 1e-5).

    Args:
      kind: `adam` or `rmsprop`.
      network: whose parameters; noise is none.
      rate: learning rate.
      centered: whether RMSProp follows the mean of the gradients, too.
      recorded: whether steps are recorded, so that the rate must be a tensor; None: on a GPU.
    """
    there = network.device != "cpu"
    lr: float | Tensor = rate
    if there if recorded is None else recorded:
        lr = torch.tensor(rate, device=network.device)
    parameters = [parameter for parameter in network.module.parameters() if parameter.requires_grad]
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, eps=EPS[kind], fused=True, capturable=there)
    # PyTorch's loop over tensors reads a rate that is one, which a recording does not allow.
    return torch.optim.RMSprop(
        parameters,
        lr=lr,
        alpha=0.95,
        eps=EPS[kind],
        centered=centered,
        capturable=there,
        foreach=there or None,
    )
