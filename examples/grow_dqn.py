"""A single-file DQN in the style of CleanRL that doubles its network during training and keeps learning.

    python examples/grow_dqn.py

Growing takes three lines (marked below). The optimizer, its hooks and every reference to the network stay the same
objects. New units get step counts of their own, so nothing overshoots.
"""

from __future__ import annotations

import argparse
import random
from collections import deque

import gymnasium
import numpy as np
import torch
from torch import nn

import surgery
from surgery.torch import follow, operate


class QNetwork(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 2)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(observation))


def wider(found: surgery.Checkpoint) -> surgery.Plan:
    return surgery.widen(found, widths={"body.0": 64, "body.2": 64})


def train(steps: int = 20_000, grow_at: int = 10_000, seed: int = 1) -> tuple[QNetwork, list[float]]:
    """Train, and return the network and the return of every episode."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    env = gymnasium.make("CartPole-v1")
    q, target = QNetwork(), QNetwork()
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)
    replay: deque[tuple[np.ndarray, int, float, np.ndarray, bool]] = deque(maxlen=10_000)
    returns, total = [], 0.0
    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        if step == grow_at:
            example = torch.as_tensor(observation)[None].repeat(2, 1)
            done = operate(q, optimizer, example, wider, also=[target])  # grow
            follow(optimizer, q, done.plan)  # gives new entries step counts of their own
            print(f"step {step}: {done.describe()}")
        if random.random() < max(0.05, 1 - step / (0.4 * steps)):
            action = int(env.action_space.sample())
        else:
            with torch.no_grad():
                action = int(q(torch.as_tensor(observation)).argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        replay.append((observation, action, float(reward), following, terminated))
        observation = following
        if terminated or truncated:
            returns.append(total)
            observation, total = env.reset()[0], 0.0
        if step >= 500 and step % 2 == 0:
            rows = [
                torch.as_tensor(np.array(column)) for column in zip(*random.sample(replay, 64), strict=True)
            ]
            seen, actions, rewards, next_seen, ended = rows
            with torch.no_grad():
                goal = rewards.float() + 0.99 * ~ended * target(next_seen).max(1).values
            loss = nn.functional.mse_loss(q(seen).gather(1, actions[:, None]).squeeze(1), goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 500 == 0:
            target.load_state_dict(q.state_dict())
            print(f"step {step}: mean return of the last 20 episodes {np.mean(returns[-20:] or [0]):.1f}")
    return q, returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--grow-at", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    train(**vars(parser.parse_args()))
