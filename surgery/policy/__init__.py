"""A trained network as a policy that can be asked, whatever its outputs are.

    policy = load(checkpoint)
    policy.scores(observation)                  # (n, actions): Q-values or logits
    policy.act(observation, mode="greedy", generator=np.random.default_rng(0))

Reads what outputs and inputs mean from the interface, and frames, scale and forbidden actions from the environment
contract; looks at nothing else of the network.
"""

from surgery.policy.policy import Backend, Mode, Policy, load

__all__ = ["Backend", "Mode", "Policy", "load"]
