"""A gradient step of QDagger, ours against a plain rendition of the textbook update, side by side in one process.

    OMP_NUM_THREADS=1 python benchmarks/distill_speed.py --to nature impala [--device cuda] [--out FILE.json]

Plain: eager float32, NCHW, a replay of stacked observations and their successors on the host, one optimizer call per
tensor list as PyTorch has it. Ours: what `surgery distill` runs. Same networks, batch, teacher and loss; what is timed
is drawing a batch, the teacher's and the target's forward passes, the student's forward and backward pass, and Adam.
The textbook asks the teacher about every example of every batch; ours once about every transition when it is made,
which are 4 per gradient step (counted in).
On the CPU the numbers are CPU milliseconds, so that other load on the machine counts little; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import surgery
from surgery.architectures import new
from surgery.distill.learner import Learner, Objective, make_optimizer
from surgery.distill.methods import METHODS
from surgery.distill.network import Network, choose_precision
from surgery.distill.settings import Settings
from surgery.distill.values import Expected
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
        generator = np.random.default_rng(0)
        self.observation, self.after = (
            generator.integers(0, 255, (ROWS, *SHAPE), np.uint8) for _ in range(2)
        )
        self.action = generator.integers(0, ACTIONS, ROWS)
        self.reward = generator.random(ROWS, np.float32)
        self.done = np.zeros(ROWS, np.float32)

    def __call__(self) -> None:
        index = np.random.randint(0, ROWS, self.batch)
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
    """What the loop runs."""

    def __init__(
        self, arch: str, teacher: surgery.Checkpoint, batch: int, device: str, precision: torch.dtype
    ) -> None:
        settings = Settings.scaled(METHODS["qdagger"], teacher.environment, frames=10**6, seed=0, envs=8)
        self.settings = settings.changed({"batch": batch})
        untrained = student_of(arch)
        student, target = (
            Network(to_module(untrained), Expected(), SHAPE, device=device, precision=precision)
            for _ in range(2)
        )
        target.module.requires_grad_(False)
        target.freeze(untrained)
        optimizer = make_optimizer("adam", student, 1e-4)
        self.learner = Learner(student, target, optimizer, self.settings, actions=ACTIONS)
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
            scores = np.ones((1, ACTIONS), np.float32)
            self.replay.add(before, np.array([i % ACTIONS]), np.ones(1), never, never, after, scores=scores)

    def __call__(self) -> None:
        self.owed += self.settings.update_period / len(self.seen)
        while self.owed >= 1:  # 8 environments take a step
            self.owed -= 1
            self.teacher.scores(self.seen)
        batch = self.replay.sample(self.settings.batch, self.generator)
        self.learner.update(batch, Objective(True, "imitate"), weight=3.0, rate=1e-4)


def student_of(arch: str) -> surgery.Checkpoint:
    return new(arch, observation=SHAPE, actions=ACTIONS, scale=1 / 255, seed=1)


def milliseconds(step: Callable[[], None], count: int, device: str) -> float:
    """Of one step: of the CPU, or of the clock with the device waited for."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    begun = clock()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (clock() - begun) / count


def compare(arch: str, words: argparse.Namespace) -> dict:
    teacher = surgery.load(words.teacher)
    best = choose_precision(words.device, SHAPE)
    variants: dict[str, Callable[[], None]] = {
        "plain": Plain(arch, to_module(teacher), words.batch, words.device),
        "ours float32": Ours(arch, teacher, words.batch, words.device, torch.float32),
    }
    if best != torch.float32:
        variants["ours bfloat16"] = Ours(arch, teacher, words.batch, words.device, best)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        milliseconds(step, 5, words.device)
    for _ in range(words.rounds):
        for name, step in variants.items():
            times[name].append(milliseconds(step, words.steps, words.device))
    plain = statistics.median(times["plain"])
    return {
        name: {"milliseconds": round(statistics.median(some), 2), "times": round(plain / statistics.median(some), 2),
               "spread": [round(min(some), 2), round(max(some), 2)]}
        for name, some in times.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", nargs="+", default=["nature", "impala"])
    parser.add_argument("--teacher", type=Path, default=Path("examples/teachers/breakout-ppo.onnx"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    hardware = (
        torch.cpu.get_capabilities()["cpu_name"] if words.device == "cpu" else torch.cuda.get_device_name()
    )
    found = {
        "unit": "CPU ms per step" if words.device == "cpu" else "ms per step",
        "batch": words.batch, "hardware": hardware, "torch": torch.__version__, "python": platform.python_version(),
        "students": {arch: compare(arch, words) for arch in words.to},
    }  # fmt: skip
    for arch, rows in found["students"].items():
        for name, row in rows.items():
            print(
                f"{arch:10s} {name:14s} {row['milliseconds']:8.2f} ms  x{row['times']:.2f}  {row['spread']}"
            )
    if words.out:
        words.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
