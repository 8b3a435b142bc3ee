"""Episodes through RLlib's own module, between its own connectors, and through our graph, step by step.

Loading a folder with the framework runs what it pickles: this is for folders that are one's own.
(ray/rllib/env/single_agent_env_runner.py `_sample`)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from surgery.adapters import Parity
from surgery.arrays import Array
from surgery.checkpoint import Checkpoint
from surgery.envs.step import alive
from surgery_adapters.playing import MOST_STEPS, Graph, Tally, loading, scale
from surgery_adapters.rllib.connectors import Connectors
from surgery_adapters.rllib.folder import RllibFolder
from surgery_adapters.rllib.worlds import world

if TYPE_CHECKING:
    from surgery_adapters.playing import Env


class _Agent:
    """The framework's module between its connectors, acting greedily; statistics of filters stay what they are."""

    def __init__(self, folder: RllibFolder) -> None:
        place = folder.path.absolute()
        self._see = EnvToModulePipeline.from_checkpoint(str(place / "env_runner/env_to_module_connector"))
        self._do = ModuleToEnvPipeline.from_checkpoint(str(place / "env_runner/module_to_env_connector"))
        self.module: Any = RLModule.from_checkpoint(str(folder.module_folder.absolute()))
        for connector in self._see.connectors:
            if isinstance(connector, MeanStdFilter):
                connector._update_stats = False

    def start(self, observation: Any, env: Env) -> None:  # noqa: ANN401
        """Begin an episode."""
        self._episode = SingleAgentEpisode(
            observation_space=env.observation_space, action_space=env.action_space
        )
        self._episode.add_env_reset(observation)

    def act(self) -> tuple[Array, Array, Any, dict[str, Any]]:
        """What the module sees, its greedy action, that action as the environment takes it, and all that it said."""
        shared: dict[str, Any] = {"vector_env_episodes_map": {0: 0}}
        asked = {
            "episodes": [self._episode],
            "rl_module": self.module,
            "explore": False,
            "shared_data": shared,
        }
        batch = self._see(batch={}, **asked)
        seen = np.asarray(batch[Columns.OBS])
        said = self._do(batch=self.module.forward_inference(batch), **asked)
        found = {key: values[0] for key, values in said.items()}
        return (
            seen,
            np.asarray(found[Columns.ACTIONS]),
            found.pop(Columns.ACTIONS_FOR_ENV, found[Columns.ACTIONS]),
            found,
        )

    def went_on(self, observation: Any, reward: float, over: tuple[bool, bool], said: dict[str, Any]) -> None:  # noqa: ANN401
        """Take in what came of an action."""
        action = said.pop(Columns.ACTIONS)
        self._episode.add_env_step(
            observation, action, reward, terminated=over[0], truncated=over[1], extra_model_outputs=said
        )


class _Ours:
    """Our graph, which sees what the environment shows or, where only the connectors can make it, what they make."""

    def __init__(self, checkpoint: Checkpoint, folder: RllibFolder, connectors: Connectors, env: Env) -> None:
        self._given = bool(connectors.untold)
        self.graph = Graph(checkpoint, normalised=self._given)
        self._shape, self._space = folder.space("observation_space").shape, env.observation_space
        self._choices = isinstance(env.action_space, gymnasium.spaces.Discrete)

    def act(self, observation: Any, seen: Array) -> Array:  # noqa: ANN401
        """What it wants, of what the environment shows, or of what the module sees."""
        if not self._given and not isinstance(self._space, gymnasium.spaces.Box):
            observation = gymnasium.spaces.flatten(self._space, observation)
        said = self.graph.ask(np.reshape(seen if self._given else observation, (1, *self._shape)))[0]
        # the framework does not squash SAC's mean: TorchSquashedGaussian.to_deterministic
        return np.asarray(said.argmax()) if self._choices else said


def parity(path: Path, checkpoint: Checkpoint, environment: str, *, episodes: int, seed: int) -> Parity:
    """Play by the framework's greedy actions; see `surgery.adapters.Playing`."""
    folder = RllibFolder.open(path)
    connectors = Connectors.read(folder)
    with loading("RLlib", path):
        agent = _Agent(folder)
    env, assumed = world(folder, connectors, environment)
    if connectors.untold:
        assumed = (*assumed, f"with the framework's {' and '.join(connectors.untold)}")
    tally = Tally(environment, scale(env.action_space), assumed)
    try:
        ours = _Ours(checkpoint, folder, connectors, env)
        for number in range(episodes):
            tally.returns.append(_episode(env, agent, ours, tally, seed if number == 0 else None))
    finally:
        env.close()
    return tally.parity()


def _episode(env: Env, agent: _Agent, ours: _Ours, tally: Tally, seed: int | None) -> float:
    """Play one, and return what it gave."""
    with alive(tally.environment):
        observation, _ = env.reset(seed=seed)
    ours.graph.reset()
    agent.start(observation, env)
    total = 0.0
    for _ in range(MOST_STEPS):
        seen, wanted, taken, said = agent.act()
        tally.add(ours.act(observation, seen), wanted)
        with alive(tally.environment):
            observation, reward, *over, _ = env.step(taken)
        agent.went_on(observation, float(reward), (bool(over[0]), bool(over[1])), said)
        total += float(reward)
        if any(over):
            break
    return total
