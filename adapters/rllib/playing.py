"""Episodes through RLlib's own module, between its own connectors, and through our graph, step by step.

Loading a folder with the framework runs what it pickles: this is for folders that are one's own.
(ray/rllib/env/single_agent_env_runner.py `_sample`)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from surgery.adapters import Parity
from surgery.checkpoint import Checkpoint
from surgery.errors import Refused
from surgery_adapters.playing import MOST_STEPS, Array, Graph, Tally, loading, make, scale
from surgery_adapters.rllib.folder import RllibFolder

if TYPE_CHECKING:
    from surgery_adapters.playing import Env


class _Agent:
    """The framework's module between its connectors, acting greedily."""

    def __init__(self, folder: RllibFolder) -> None:
        place = folder.path.absolute()
        self._see = EnvToModulePipeline.from_checkpoint(str(place / "env_runner/env_to_module_connector"))
        self._do = ModuleToEnvPipeline.from_checkpoint(str(place / "env_runner/module_to_env_connector"))
        self.module: Any = RLModule.from_checkpoint(str(folder.module_folder.absolute()))

    def start(self, observation: Array, env: Env) -> None:
        """Begin an episode."""
        self._episode = SingleAgentEpisode(
            observations=[observation], observation_space=env.observation_space, action_space=env.action_space
        )

    def act(self, observation: Array) -> tuple[Array, Any, dict[str, Any]]:
        """The greedy action, as the module gives it and as the environment takes it, and what the module said.

        Raises:
          Refused: the module sees something else than the environment shows.
        """
        shared: dict[str, Any] = {"vector_env_episodes_map": {0: 0}}
        asked = {
            "episodes": [self._episode],
            "rl_module": self.module,
            "explore": False,
            "shared_data": shared,
        }
        batch = self._see(batch={}, **asked)
        seen = np.asarray(batch[Columns.OBS]).reshape(-1)
        if not np.array_equal(seen, np.asarray(observation, np.float32).reshape(-1)):
            raise Refused(
                "the folder's connectors change what the environment shows before the module sees it, and the graph "
                "is the module",
                hint="leave out --check; the graph takes what the connectors make",
            )
        said = self._do(batch=self.module.forward_inference(batch), **asked)
        found = {key: values[0] for key, values in said.items()}
        return (
            np.asarray(found[Columns.ACTIONS]),
            found.pop(Columns.ACTIONS_FOR_ENV, found[Columns.ACTIONS]),
            found,
        )

    def went_on(
        self, observation: Array, reward: float, over: tuple[bool, bool], said: dict[str, Any]
    ) -> None:
        """Take in what came of an action."""
        action = said.pop(Columns.ACTIONS)
        self._episode.add_env_step(
            observation, action, reward, terminated=over[0], truncated=over[1], extra_model_outputs=said
        )


def parity(path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int) -> Parity:
    """Play by the framework's greedy actions; see `surgery.adapters.Playing`."""
    folder = RllibFolder.open(path)
    space = folder.space("action_space")
    count = space.counts[0] if space.kind == "Discrete" else int(np.prod(space.shape))
    env = make(environment, tuple(folder.space("observation_space").shape), count)
    with loading("RLlib", path):
        agent = _Agent(folder)
    graph, tally = Graph(checkpoint), Tally(environment, scale(env.action_space))

    def ours(observation: Array) -> Array:
        said = graph.ask(np.asarray(observation)[None])[0]
        # the framework does not squash SAC's mean: TorchSquashedGaussian.to_deterministic
        return np.asarray(said.argmax()) if space.kind == "Discrete" else said

    try:
        for number in range(episodes):
            observation, _ = env.reset(seed=seed if number == 0 else None)
            graph.reset()
            agent.start(observation, env)
            total = 0.0
            for _ in range(MOST_STEPS):
                wanted, taken, said = agent.act(observation)
                tally.add(ours(observation), wanted)
                observation, reward, *over, _ = env.step(taken)
                agent.went_on(observation, float(reward), (bool(over[0]), bool(over[1])), said)
                total += float(reward)
                if any(over):
                    break
            tally.returns.append(total)
    finally:
        env.close()
    return tally.parity()
