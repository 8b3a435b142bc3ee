"""One gradient step: losses of a batch, backward, optimizer, target network; on CUDA as one captured graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from surgery.distill import losses
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.replay import Batch

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

PARTS = ("loss", "temporal", "auxiliary", "agreement", "value")
"""What is averaged between two lines of the log: the whole loss, its parts, how often the student's greedy action is
the teacher's, the mean value of the action taken."""
_WARM_UP = 3
EPS = {"adam": 1.5e-4, "rmsprop": 1e-5}
"""ε of each optimizer, outside the root: Dopamine's and the Nature DQN's."""


@dataclass(frozen=True)
class Objective:
    """What a gradient step minimises: `temporal · TD + weight · auxiliary`.

    Attributes:
      temporal: whether temporal differences are learned.
      auxiliary: one of `methods.AUXILIARIES`.
    """

    temporal: bool
    auxiliary: str


@dataclass(frozen=True)
class Tensors:
    """A batch on the device; B examples.

    Attributes:
      observation: (B, *observation) as the network takes it.
      action: (B,) int64.
      returns: (B,)
      discount: (B,)
      next_observation: (B, *observation)
      weight: (B,) importance weights.
      teacher: (B, A) the teacher's scores at `observation`; zeros where they are not used.
    """

    observation: Tensor
    action: Tensor
    returns: Tensor
    discount: Tensor
    next_observation: Tensor
    weight: Tensor
    teacher: Tensor


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
    ) -> None:
        self.student, self.target, self.optimizer = student, target, optimizer
        self._settings, self._actions = settings, actions
        self._teacher_temperature, self._teacher_acts = teacher_temperature, teacher_acts
        device = student.device
        self._weight = torch.zeros((), device=device)
        self._sums = torch.zeros(len(PARTS), device=device)
        self._count = 0
        self._captured: dict[Objective, Captured] = {}

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
        if self.student.device != "cuda":
            return self._step(tensors, objective)
        if objective not in self._captured:
            self._captured[objective] = Captured(lambda given: self._step(given, objective))
        return self._captured[objective](tensors)

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
        means: list[float] = (self._sums / self._count).tolist()
        self._sums.zero_()
        self._count = 0
        return dict(zip(PARTS, means, strict=True))

    def _tensors(self, batch: Batch) -> Tensors:
        student = self.student
        columns = [batch.action, batch.returns, batch.discount, batch.weight]
        action, returns, discount, weight = (self._small(column) for column in columns)
        scores = batch.scores
        if scores is None:
            scores = torch.zeros(len(batch.rows), self._actions, device=student.device)
        elif not isinstance(scores, Tensor):
            scores = torch.from_numpy(scores)
        return Tensors(
            student.tensor(batch.observation),
            action,
            returns,
            discount,
            student.tensor(batch.next_observation),
            weight,
            scores.to(student.device, torch.float32),
        )

    def _small(self, column: Array) -> Tensor:
        tensor = torch.from_numpy(column)
        if self.student.device == "cuda":
            return tensor.pin_memory().to("cuda", non_blocking=True)
        return tensor

    def _step(self, tensors: Tensors, objective: Objective) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss, per_example, parts = self._loss(tensors, objective)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._sums += torch.stack(parts)
        return per_example

    def _loss(self, tensors: Tensors, objective: Objective) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The loss, the temporal-difference loss per example, and `PARTS`."""
        output = self.student(tensors.observation)
        values = self.student.values.expected(output)
        per_example = torch.zeros_like(tensors.returns)
        if objective.temporal:
            per_example = self._temporal(output, tensors)
        temporal = (tensors.weight * per_example).mean()
        auxiliary = torch.zeros_like(temporal)
        if objective.auxiliary != "none":
            auxiliary = (tensors.weight * self._auxiliary(values, tensors, objective.auxiliary)).mean()
        loss = temporal + self._weight * auxiliary
        same = (values.argmax(dim=1) == tensors.teacher.argmax(dim=1)).float().mean()
        value = losses.pick(values, tensors.action).mean()
        parts = [part.detach() for part in (loss, temporal, auxiliary, same, value)]
        return loss, per_example.detach(), parts

    def _temporal(self, output: Tensor, tensors: Tensors) -> Tensor:
        """The target takes the best action by its own values, or with `double` by the student's."""
        read = self.student.values
        with torch.no_grad():
            after = self.target(tensors.next_observation)
            chooser = self.student(tensors.next_observation) if self._settings.double else after
            best = read.expected(chooser).argmax(dim=1)
        return read.loss(output, tensors.action, after, best, tensors.returns, tensors.discount)

    def _auxiliary(self, values: Tensor, tensors: Tensors, kind: str) -> Tensor:
        settings = self._settings
        if kind == "conservative":
            return losses.conservative(values, tensors.action, settings.temperature)
        if kind == "margin":
            return losses.large_margin(values, tensors.teacher.argmax(dim=1), settings.margin)
        student = values / settings.temperature
        if self._teacher_acts:
            return losses.best_action(tensors.teacher, student)
        return losses.cross_entropy(tensors.teacher / self._teacher_temperature, student)


class Captured:
    """A step as one CUDA graph: launched as a whole, on buffers that stay where they are.

    The first calls run as they are, on a side stream, as capturing demands (they are real steps, not copies); then the
    step is recorded without being run, and from there on replayed.
    """

    def __init__(self, step: Callable[[Tensors], Tensor]) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors | None = None
        self._output: Tensor | None = None

    def __call__(self, tensors: Tensors) -> Tensor:
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._aside(tensors)
        if self._graph is None or self._inputs is None:
            self._capture(tensors)
        inputs, graph = cast(Tensors, self._inputs), cast("torch.cuda.CUDAGraph", self._graph)
        for field in fields(Tensors):
            getattr(inputs, field.name).copy_(getattr(tensors, field.name), non_blocking=True)
        graph.replay()
        return cast(Tensor, self._output)

    def _aside(self, tensors: Tensors) -> Tensor:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._step(tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _capture(self, tensors: Tensors) -> None:
        self._inputs = Tensors(
            **{field.name: getattr(tensors, field.name).clone() for field in fields(Tensors)}
        )
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._step(self._inputs)


class Arriving:
    """Numbers on their way from the device to the host; on the CPU they are there."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> Array:
        """The numbers; waits for those still on their way."""
        if self._event is not None:
            self._event.synchronize()
        numbers: Array = self._host.numpy()
        return numbers


def make_optimizer(kind: str, network: Network, rate: float) -> torch.optim.Optimizer:
    """Adam at Dopamine's ε of 1.5e-4 (fused), or RMSProp as the Nature DQN has it (centered, α 0.95, ε 1e-5)."""
    cuda = network.device == "cuda"
    lr: float | Tensor = torch.tensor(rate, device="cuda") if cuda else rate
    parameters = list(network.module.parameters())
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, eps=EPS[kind], fused=True, capturable=cuda)
    return torch.optim.RMSprop(parameters, lr=lr, alpha=0.95, eps=EPS[kind], centered=True, capturable=cuda)
