"""A trained network as a policy that can be asked, whatever its outputs are.

    policy = load(checkpoint)
    policy.scores(observation)                  # (n, actions): Q-values or logits; not of continuous actions
    policy.meet(envs.observation_shape, envs.parts, envs.takes)     # the bounds of continuous actions are there
    policy.act(observation, mode="greedy", generator=np.random.default_rng(0))

Reads what outputs and inputs mean from the interface, and frames, scale and forbidden actions from the environment
contract; looks at nothing else of the network. Names are imported on first use, and torch when it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.policy.policy import Backend as Backend
    from surgery.policy.policy import Mode as Mode
    from surgery.policy.policy import Policy as Policy
    from surgery.policy.policy import load as load

__all__ = ["Backend", "Mode", "Policy", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'surgery.policy' has no attribute '{name}'")
    return getattr(import_module("surgery.policy.policy"), name)
