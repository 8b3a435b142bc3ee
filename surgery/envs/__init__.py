"""Environments, several at once: Atari through ale-py, MinAtar, and any gymnasium id.

    envs = make(checkpoint.environment, 8, seed=0, training=False)
    observation = envs.reset()                  # (8, *envs.observation_shape)
    step = envs.step(actions)                   # actions (8,), numbers of the policy's outputs; (8, …) of a Box

What an episode is like (sticky actions, action set, frames, no-ops, life loss) is read from the contract, and from
nowhere else; `complete` fills in what a contract leaves open.
"""

from typing import TYPE_CHECKING

from surgery.envs.contract import adjusted, complete
from surgery.envs.description import describe
from surgery.envs.make import make
from surgery.envs.step import Envs, Step

if TYPE_CHECKING:
    from surgery.envs.anneal import AnnealActions as AnnealActions

__all__ = ["AnnealActions", "Envs", "Step", "adjusted", "complete", "describe", "make"]


def __getattr__(name: str) -> object:
    """`AnnealActions` is a gymnasium class, and imports gymnasium on first use."""
    if name != "AnnealActions":
        raise AttributeError(f"module 'surgery.envs' has no attribute '{name}'")
    from surgery.envs.anneal import AnnealActions

    return AnnealActions
