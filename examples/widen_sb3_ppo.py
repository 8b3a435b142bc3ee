"""Stable-Baselines3's PPO, widened between two calls of `learn`.

    python examples/widen_sb3_ppo.py

A policy samples its actions, which a graph cannot express. So the deterministic part of it is wrapped in a module, and
that module is widened. PPO keeps its policy and its optimizer objects: they are changed in place.
"""

from __future__ import annotations

import argparse

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

import surgery
from surgery.torch import follow, operate


class Computation(nn.Module):
    """From observations to logits and values."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        features = self.policy.extract_features(observation)
        actor, critic = self.policy.mlp_extractor(features)
        return self.policy.action_net(actor), self.policy.value_net(critic)


def train(steps: int = 20_000, seed: int = 1) -> PPO:
    """Learn, widen, learn on."""
    model = PPO(
        "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [32, 32]}, n_steps=256, seed=seed, device="cpu"
    )
    model.learn(steps)
    net, optimizer = Computation(model.policy), model.policy.optimizer
    example = torch.zeros(2, *model.observation_space.shape)
    # actor and critic are separate networks; all four layers are doubled
    towers = [
        f"policy.mlp_extractor.{tower}_net.{layer}" for tower in ("policy", "value") for layer in (0, 2)
    ]
    done = operate(net, optimizer, example, lambda c: surgery.widen(c, widths=dict.fromkeys(towers, 64)))
    print(done.describe())
    trajectory = follow(optimizer, net, done.plan)
    model.learn(steps, reset_num_timesteps=False)
    trajectory.detach()  # from here on it is saved like any other model
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    train(**vars(parser.parse_args()))
