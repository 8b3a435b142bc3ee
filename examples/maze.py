"""A maze that needs memory, many games in parallel: a cue shown at the start says where to turn at the end."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LENGTH, LEFT, RIGHT, FORWARD, JUMP = 5, 0, 1, 2, 3


class Maze:
    """Parallel games; every step costs 0.05, the right turn at the end gives 1."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng, self.allowed_share = np.random.default_rng(seed), 0.0
        self.cue, self.place, self.age, self.allowed = np.zeros((4, count))
        self.start(np.ones(count, bool))

    def start(self, which: np.ndarray) -> None:
        self.cue[which], self.place[which], self.age[which] = self.rng.choice((-1, 1), which.sum()), 0, 0
        self.allowed[which] = self.rng.random(which.sum()) < self.allowed_share

    def observation(self, features: int) -> Tensor:
        seen = [self.cue * (self.age == 0), self.place / LENGTH, self.allowed]
        return torch.as_tensor(np.stack(seen[:features], 1), dtype=torch.float32)

    def step(self, action: np.ndarray) -> tuple[Tensor, Tensor]:
        at_end, turned = self.place >= LENGTH, action < FORWARD
        right = at_end & turned & ((action == RIGHT) == (self.cue > 0))
        self.place = np.minimum(
            self.place + (action == FORWARD) + 2 * (action == JUMP) * self.allowed, LENGTH
        )
        self.age += 1
        done = (at_end & turned) | (self.age >= 4 * LENGTH)
        self.start(done)
        return torch.as_tensor(1.0 * right - 0.05, dtype=torch.float32), torch.as_tensor(done).float()
