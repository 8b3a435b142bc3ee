"""The student's replay and the teacher's: what they keep, whether they fit, and batches of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from surgery.arrays import Array
from surgery.distill.methods import Method
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.envs import Envs, Step
from surgery.replay import (
    NOWHERE,
    Batch,
    Layout,
    Replay,
    Transitions,
    Window,
    check_fits,
    check_memory,
    estimate,
)
from surgery.replay.frames import put

ASKING = ("imitate", "margin")
"""Auxiliary losses that ask the teacher."""


@dataclass(frozen=True)
class _Shape:
    """One replay.

    Attributes:
      transitions: its capacity. setting: its name; None: that of a recording.
      rows: with those for closing frames and first stacks, which are no transitions.
      scores: actions for which the teacher's scores are kept.
      window: of a student with a memory, which draws stretches.
    """

    layout: Layout
    transitions: int
    setting: str | None
    rows: int
    prioritised: bool
    scores: int
    window: Window | None

    @property
    def size(self) -> int:
        """Bytes that it takes once it is full."""
        return estimate(
            self.rows, self.layout.frame, self.layout.dtype,
            prioritised=self.prioritised, scores=self.scores, window=self.window,
        )  # fmt: skip


def make_replays(
    settings: Settings,
    method: Method,
    envs: Envs,
    student: Network,
    *,
    recorded: Transitions | None,
    device: str,
) -> tuple[Replay, Replay | None]:
    """The student's and the teacher's; that they fit, as far as they are needed at once, is checked first.

    Args:
      settings: of the run.
      method: says whether the teacher's is needed, and who asks the teacher.
      envs: whose observations are kept.
      student: with a memory or without.
      recorded: transitions that one of them will be filled with.
      device: `cuda` keeps the frames there, where they fit into four fifths of what is free.

    Raises:
      ArgumentError: too little memory; transitions of another game.
    """
    asks = method.online_loss in ASKING
    shapes = [_shape(settings.replay, "replay", settings, envs, student, asks=asks, own=True)]
    if recorded is not None:
        check_fits(recorded, shapes[0].layout, actions=envs.actions)
    if method.collects:
        count = settings.teacher_data if recorded is None else len(recorded)
        setting = "teacher_data" if recorded is None else None
        asks = method.offline_loss in ASKING
        shapes.append(_shape(count, setting, settings, envs, student, asks=asks, own=False))
    total, place = sum(shape.size for shape in shapes), "cpu"
    if device == "cuda" and total < 0.8 * _free():
        place = "cuda"
    else:
        largest = max(shapes, key=lambda shape: shape.size)
        beside = total - largest.size if method.rehearsal else 0
        check_memory(largest.transitions, largest.size, beside=beside, setting=largest.setting)
    made = [
        Replay(
            shape.layout, shape.rows, n_step=settings.n_step, gamma=settings.gamma, clip=settings.clip,
            prioritised=shape.prioritised, device=place, scores=shape.scores, window=shape.window,
        )
        for shape in shapes
    ]  # fmt: skip
    return made[0], made[1] if method.collects else None


def keep(
    replay: Replay,
    observation: Array,
    begins: Array,
    actions: Array,
    step: Step,
    scores: torch.Tensor | None,
    state: torch.Tensor | None = None,
) -> None:
    """Add what one step of the environments gave to a replay; see `Replay.add`."""
    replay.add(
        observation, actions, step.reward, step.terminated, step.truncated, step.next_observation,
        scores=scores, state=state, begins=begins,
    )  # fmt: skip


def mixed(batch: Batch, teacher: Replay, ratio: float, generator: np.random.Generator) -> Batch:
    """The batch with each element swapped for one of the teacher's with some probability, independently.

    Args:
      batch: B transitions of the student; changed in place where its arrays are.
      teacher: the teacher's transitions.
      ratio: the probability.
      generator: of the swaps and of what is drawn.
    """
    size = len(batch.rows)
    swapped = np.flatnonzero(generator.random(size) < ratio)
    if not len(swapped):
        return batch
    other = teacher.sample(len(swapped), generator)
    for name in ("observation", "action", "returns", "discount", "next_observation"):
        put(getattr(batch, name), swapped, getattr(other, name))
    weight, rows = batch.weight.copy(), batch.rows.copy()
    weight[swapped], rows[swapped] = 1.0, NOWHERE
    return replace(batch, weight=weight, rows=rows)


def _free() -> int:
    """Bytes that are free on the GPU, or that PyTorch keeps there and nobody uses."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _shape(
    transitions: int,
    setting: str | None,
    settings: Settings,
    envs: Envs,
    student: Network,
    *,
    asks: bool,
    own: bool,
) -> _Shape:
    """`own`: of what the student plays itself; elsewhere nothing has priority, and its state is not known."""
    layout = Layout.of(
        envs.observation_shape, envs.observation_dtype, envs=envs.num_envs, stacked=envs.stacked
    )
    stretch = layout.stack + settings.burn_in + 2 * settings.unroll + settings.n_step + 1
    window = None
    if student.states:
        window = Window(settings.burn_in, settings.unroll, student.state_size if own else 0)
    rows = max(round(1.05 * transitions), envs.num_envs * 2 * stretch)
    return _Shape(
        layout, transitions, setting, rows, settings.prioritised and own, envs.actions if asks else 0, window
    )
