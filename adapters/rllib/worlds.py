"""The environment that a folder's agent plays in, as far as the folder records it.

(ray/rllib/env/wrappers/atari_wrappers.py, `wrap_atari_for_new_api_stack`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import gymnasium
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack

from surgery_adapters.containers.spaces import Space
from surgery_adapters.playing import fitting, found, is_game, make
from surgery_adapters.rllib.connectors import Connectors
from surgery_adapters.rllib.folder import RllibFolder

if TYPE_CHECKING:
    from surgery_adapters.playing import Env

_GAMES = (
    "frameskip", "full_action_space", "repeat_action_probability", "mode", "difficulty",
    "max_num_frames_per_episode",
)  # fmt: skip
"""Settings of ALE's environments."""


def world(folder: RllibFolder, connectors: Connectors, environment: str) -> tuple[Env, tuple[str, ...]]:
    """An environment that fits a folder, and what of it the folder does not record.

    Args:
      environment: gymnasium's id. Images from −1 to 1 of a game of ALE are those of the framework's own wrapper; the
        folder's `env_config` has settings of the game, or of the environment that it names itself.

    Raises:
      ArgumentError: no such environment, or one that does not fit.
    """
    shown, acts = connectors.shown, folder.space("action_space")
    count = acts.counts[0] if acts.kind == "Discrete" else math.prod(acts.shape)
    settings = folder.algorithm.get("env_config")
    settings = settings if isinstance(settings, Mapping) else {}
    shape = None if shown is None or shown.kind == "Dict" else shown.shape
    with found(environment):
        if shown is None or shape is None or len(shape) != 3 or not is_game(environment):
            own = settings if environment == folder.algorithm.get("env") else {}
            return fitting(gymnasium.make(environment, **own), environment, shape, count), ()
        if not _wrapped(shown):
            return make(environment, shape, count), ()
        known = {key: value for key, value in settings.items() if key in _GAMES}
        game = gymnasium.make(environment, **{"frameskip": 1, **known})
        colours, (side, _, frames) = shape[2] == 3, shape
        env = wrap_atari_for_new_api_stack(
            game, dim=side, framestack=None if colours or frames == 1 else frames, grayscale=not colours
        )
    assumed = "the wrapper's frame skip of 4", *(["3 channels as colours"] if colours else [])
    return fitting(env, environment, shape, count), (f"not recorded: {' and '.join(assumed)}",)


def _wrapped(shown: Space) -> bool:
    """Whether these are images as the framework's wrapper makes them."""
    if shown.low is None or shown.high is None or shown.shape[0] != shown.shape[1]:
        return False
    return shown.dtype == "float32" and bool((shown.low == -1).all() and (shown.high == 1).all())
