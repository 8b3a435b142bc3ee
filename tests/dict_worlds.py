"""Environments that show dictionaries, registered: `--env tests.dict_worlds:Signals-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Signals(gymnasium.Env[Any, int]):
    """Twelve steps; a point for the action that `goal` names, and none for one that `legal` forbids."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "goal": spaces.Discrete(3),
            "camera": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "legal": spaces.MultiBinary(3),
        }
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        self._step = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict]:
        gained = float(action == self._goal and self._legal[action])
        self._step += 1
        return self._seen(), gained, self._step == 12, False, {}

    def _seen(self) -> dict[str, Any]:
        draw = self.np_random
        self._goal = int(draw.integers(3))
        self._legal = np.array([draw.random() < 0.7 or k == self._goal for k in range(3)], np.int8)
        camera = draw.integers(0, 256, (36, 36, 1)).astype(np.uint8)
        place = draw.uniform(-1, 1, 2).astype(np.float32)
        return {"place": place, "goal": self._goal, "camera": camera, "legal": self._legal}


gymnasium.register("Signals-v0", Signals)
