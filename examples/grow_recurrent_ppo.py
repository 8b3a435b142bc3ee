"""As with OpenAI Five: a recurrent agent whose observation, actions and LSTM grow while it trains.

    python examples/grow_recurrent_ppo.py

The environment (maze.py) changes during training. First it gets a new observation ("jumping is allowed here"), then a
new action (jump: two cells at once) that works in a growing share of the games. Finally the LSTM is widened, and its
states in running games are carried over.
"""

from __future__ import annotations

import numpy as np
import torch
from maze import JUMP, Maze
from torch import Tensor, nn
from torch.distributions import Categorical

from surgery import NewAction, NewObservation, extend, widen
from surgery.torch import follow, grow_states, operate


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lstm = nn.Linear(2, 16), nn.LSTM(16, 16, batch_first=True)
        self.actor, self.critic = nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, observation: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        encoded = torch.tanh(self.encoder(observation)).unsqueeze(1)
        x, (h, c) = self.lstm(encoded, (h, c))
        return self.actor(x.squeeze(1)), self.critic(x.squeeze(1)), h, c


def rerun(policy: Policy, seen: list[Tensor], done: list[Tensor], h: Tensor, c: Tensor) -> list[Tensor]:
    """Logits (T, N, A) and values (T, N) of a rollout, from its first state on."""
    logits, values = [], []
    for observation, ended in zip(seen, done, strict=True):
        out, value, h, c = policy(observation, h, c)
        h, c = h * (1 - ended[None, :, None]), c * (1 - ended[None, :, None])
        logits.append(out), values.append(value.squeeze(1))
    return [torch.stack(logits), torch.stack(values)]


def train(iterations: int = 240, games: int = 64, seed: int = 1) -> tuple[Policy, list[float]]:
    """PPO; returns the policy and the mean reward of every iteration."""
    torch.manual_seed(seed)
    maze, policy, trajectory = Maze(games, seed), Policy(), None
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    names = {"output_names": ("logits", "value", "h_next", "c_next")}
    h, c, rewards_seen = torch.zeros(1, games, 16), torch.zeros(1, games, 16), []
    surgeries = {
        iterations // 4: lambda found: extend(found, [NewObservation("observation", 1)]),
        iterations // 2: lambda found: extend(found, (), [NewAction("logits", 1, "logit", 1.0)]),
        3 * iterations // 4: lambda found: widen(found, widths={"lstm": 32}),
    }
    for iteration in range(iterations):
        if iteration in surgeries:
            if trajectory is not None:
                trajectory.detach()
            example = (maze.observation(policy.encoder.in_features), h, c)
            done = operate(policy, optimizer, example, surgeries[iteration], export_options=names)
            trajectory = follow(optimizer, policy, done.plan)  # new entries count their own steps
            h, c = grow_states(done, {"h": h, "c": c}).values()  # the states of running games
            print(f"iteration {iteration}: {done.describe()}")
        maze.allowed_share = max(0.0, min(1.0, 4 * iteration / iterations - 2))  # the new rule, gradually
        first, seen, actions, rewards, ended, logps = (h, c), [], [], [], [], []
        with torch.no_grad():
            for _ in range(16):
                seen.append(maze.observation(policy.encoder.in_features))
                logits, _, h, c = policy(seen[-1], h, c)
                choice = Categorical(logits=logits)
                actions.append(choice.sample()), logps.append(choice.log_prob(actions[-1]))
                reward, finished = maze.step(actions[-1].numpy())
                rewards.append(reward), ended.append(finished)
                h, c = h * (1 - finished[None, :, None]), c * (1 - finished[None, :, None])
            last = policy(maze.observation(policy.encoder.in_features), h, c)[1].squeeze(1)
            old, advantage, gain = rerun(policy, seen, ended, *first)[1], [], torch.zeros(games)
            for t, following in reversed(list(enumerate([*old[1:], last]))):
                gain = rewards[t] + (1 - ended[t]) * 0.97 * (following + 0.95 * gain) - old[t]
                advantage.insert(0, gain)
        advantages, chosen, before = torch.stack(advantage), torch.stack(actions), torch.stack(logps)
        for _ in range(4):
            logits, values = rerun(policy, seen, ended, *first)
            choice = Categorical(logits=logits)
            ratio, normed = (choice.log_prob(chosen) - before).exp(), advantages / (advantages.std() + 1e-8)
            gained = torch.minimum(ratio * normed, ratio.clamp(0.8, 1.2) * normed).mean()
            loss = (values - old - advantages).square().mean() - gained - 0.01 * choice.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rewards_seen.append(float(torch.stack(rewards).mean()))
        if iteration % 20 == 0:
            recent, jumps = np.mean(rewards_seen[-20:]), float((chosen == JUMP).float().mean())
            print(f"iteration {iteration}: reward {recent:.3f} a step, {jumps:.0%} jumps")
    return policy, rewards_seen


if __name__ == "__main__":
    train()
