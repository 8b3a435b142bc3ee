"""RLlib's learners with the optimizer that the folder names: in the framework's own code it is always Adam.

A folder whose optimizer was swapped names one of these, so that training it on needs this package installed.
(ray/rllib/core/learner/torch/torch_learner.py `configure_optimizers_for_module`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner

from surgery_adapters.rllib.optimizers import SETTING, TEMPERATURE

_KINDS: Mapping[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


class _Chosen:
    """The networks' optimizers are of the kind, and with the settings, of `learner_config_dict`."""

    config: Any

    def register_optimizer(self, **keywords: Any) -> None:  # noqa: ANN401
        chosen = dict(self.config.learner_config_dict[SETTING])
        if keywords.get("optimizer_name") != TEMPERATURE:
            keywords["optimizer"] = _KINDS[chosen.pop("kind")](keywords["params"], **chosen)
        super().register_optimizer(**keywords)  # type: ignore[misc]


class PPO(_Chosen, PPOTorchLearner):  # type: ignore[misc]
    """PPO's."""


class IMPALA(_Chosen, IMPALATorchLearner):  # type: ignore[misc]
    """IMPALA's."""


class APPO(_Chosen, APPOTorchLearner):  # type: ignore[misc]
    """APPO's."""


class DQN(_Chosen, DQNTorchLearner):  # type: ignore[misc]
    """DQN's."""


class SAC(_Chosen, SACTorchLearner):  # type: ignore[misc]
    """SAC's."""
