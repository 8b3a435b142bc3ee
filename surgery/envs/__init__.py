"""Environments, several at once: Atari through ale-py, MinAtar, and any gymnasium id with discrete actions.

    envs = make(checkpoint.environment, 8, seed=0, training=False)
    observation = envs.reset()                  # (8, *envs.observation_shape)
    step = envs.step(actions)                   # actions (8,), numbers of the policy's outputs

What an episode is like (sticky actions, action set, frames, no-ops, life loss) is read from the contract, and from
nowhere else; `complete` fills in what a contract leaves open.
"""

from surgery.envs.contract import adjusted, complete
from surgery.envs.make import make
from surgery.envs.step import Envs, Step

__all__ = ["Envs", "Step", "adjusted", "complete", "make"]
