"""The gradient steps that `distill_speed.py` compares: the textbook's, and ours."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional

import surgery
from surgery.architectures import new
from surgery.distill.captured import recorder_of
from surgery.distill.learner import Learner, Objective, make_optimizer
from surgery.distill.methods import METHODS
from surgery.distill.network import Network
from surgery.distill.settings import Settings
from surgery.distill.values import values_of
from surgery.policy import load
from surgery.replay import Layout, Replay
from surgery.torch import to_module

SHAPE, ACTIONS, ROWS = (4, 84, 84), 4, 4000


class Plain:
    """The update as it is written in textbooks and single-file scripts."""

    def __init__(self, arch: str, teacher: torch.nn.Module, batch: int, device: str) -> None:
        self.student = to_module(student_of(arch)).to(device)
        self.target, self.teacher = copy.deepcopy(self.student), teacher.to(device)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-4, eps=1.5e-4)
        self.batch, self.device = batch, device
        self.draws = generator = np.random.default_rng(0)
        self.observation, self.after = (
            generator.integers(0, 255, (ROWS, *SHAPE), np.uint8) for _ in range(2)
        )
        self.action = generator.integers(0, ACTIONS, ROWS)
        self.reward = generator.random(ROWS, np.float32)
        self.done = np.zeros(ROWS, np.float32)

    def __call__(self) -> None:
        index = self.draws.integers(0, ROWS, self.batch)
        observation, after = (
            torch.tensor(array[index]).to(self.device).float() for array in (self.observation, self.after)
        )
        action, reward, done = (
            torch.tensor(array[index]).to(self.device) for array in (self.action, self.reward, self.done)
        )
        with torch.no_grad():
            goal = reward + 0.99**3 * (1 - done) * self.target(after).max(dim=1).values
            wanted = functional.softmax(self.teacher(observation)[0], dim=1)
        values = self.student(observation)
        temporal = functional.huber_loss(values.gather(1, action[:, None])[:, 0], goal)
        imitation = -(wanted * functional.log_softmax(values / 0.1, dim=1)).sum(dim=1).mean()
        self.optimizer.zero_grad()
        (temporal + 3.0 * imitation).backward()
        self.optimizer.step()


class Ours:
    """What the loop runs.

    Args:
      captured: as a CUDA graph on a GPU; else every step runs as it is.
      frozen: whether the target is asked in onnxruntime, where a run does that.
      compiled: the networks by `torch.compile`, which no run does: in bfloat16 only.
    """

    def __init__(
        self, arch: str, teacher: surgery.Checkpoint, batch: int, device: str, precision: torch.dtype, *,
        head: str = "q", captured: bool = True, frozen: bool = True, compiled: bool = False,
    ) -> None:  # fmt: skip
        settings = Settings.scaled(METHODS["qdagger"], teacher.environment, frames=10**6, seed=0, envs=8)
        self.settings = settings.changed({"batch": batch})
        self.said: list[str] = []
        untrained = student_of(arch, head)
        student, target = (
            Network(
                to_module(untrained), values_of(untrained), SHAPE, device=device, precision=precision,
                at_once=False if compiled else None,
            )
            for _ in range(2)
        )  # fmt: skip
        for network in (student, target) if compiled else ():
            network._half = torch.compile(network.module)
        target.module.requires_grad_(False)
        if frozen:
            target.freeze(untrained)
        optimizer = make_optimizer("adam", student, 1e-4)
        self.learner = Learner(
            student,
            target,
            optimizer,
            self.settings,
            actions=ACTIONS,
            recorder=recorder_of(device) if captured else None,
            note=self.said.append,
        )
        self.teacher = load(teacher, device=device)
        self.generator = np.random.default_rng(0)
        layout = Layout(1, SHAPE[1:], "uint8", 4)
        self.replay = Replay(layout, ROWS, n_step=3, device=device, scores=ACTIONS)
        self.seen = self.generator.integers(0, 255, (8, *SHAPE), np.uint8)
        self.owed = 0.0
        self._fill()

    def _fill(self) -> None:
        frames = self.generator.integers(0, 255, (ROWS, *SHAPE[1:]), np.uint8)
        never = np.zeros(1, bool)
        for i in range(4, ROWS - 8):
            before, after = frames[None, i - 4 : i], frames[None, i - 3 : i + 1]
            scores = self.generator.normal(size=(1, ACTIONS)).astype(np.float32)
            self.replay.add(before, np.array([i % ACTIONS]), np.ones(1), never, never, after, scores=scores)

    def __call__(self) -> None:
        self.owed += self.settings.update_period / len(self.seen)
        while self.owed >= 1:  # 8 environments take a step
            self.owed -= 1
            self.teacher.scores(self.seen)
        batch = self.replay.sample(self.settings.batch, self.generator)
        self.learner.update(batch, Objective(True, "imitate"), weight=3.0, rate=1e-4)


def student_of(arch: str, head: str = "q") -> surgery.Checkpoint:
    noisy = head == "rainbow"
    return new(arch, observation=SHAPE, actions=ACTIONS, scale=1 / 255, seed=1, head=head, noisy=noisy)
