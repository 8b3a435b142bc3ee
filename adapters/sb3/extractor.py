"""Features extractors of Stable-Baselines3 with widths that can be chosen; there they are written into the code.

A model whose convolutions were widened names one of these classes: training it on needs `surgery_adapters` installed.
Parameters have the names that they have in `NatureCNN` and `CombinedExtractor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gymnasium
import torch
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class NatureCNN(BaseFeaturesExtractor):
    """The convolutions of the Nature DQN: 8×8/4, 4×4/2, 3×3/1, then a dense layer.

    Args:
      observation_space: a Box of shape (C, H, W).
      channels: of the three convolutions.
      features_dim: width of the dense layer.
      normalized_image: whether images are given as numbers between 0 and 1.

    References:
      Mnih et al. Human-level control through deep reinforcement learning. Nature 518, 2015.
    """

    def __init__(
        self,
        observation_space: gymnasium.spaces.Box,
        channels: Sequence[int] = (32, 64, 64),
        features_dim: int = 512,
        normalized_image: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim)
        if not is_image_space(observation_space, normalized_image=normalized_image):
            raise ValueError(f"NatureCNN is for images, not for {observation_space}")
        widths = [observation_space.shape[0], *channels]
        layers: list[nn.Module] = []
        for k, (kernel, stride) in enumerate(((8, 4), (4, 2), (3, 1))):
            layers += [nn.Conv2d(widths[k], widths[k + 1], kernel, stride), nn.ReLU()]
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.cnn(torch.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(flat, features_dim), nn.ReLU())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(batch, C, H, W) -> (batch, features_dim)"""
        features: torch.Tensor = self.linear(self.cnn(observations))
        return features


class CombinedExtractor(BaseFeaturesExtractor):
    """One extractor per entry of a Dict observation, results side by side: a `NatureCNN` for images, else flattened.

    Args:
      observation_space: a Dict.
      channels: key of an image -> channels of its convolutions; (32, 64, 64) where it is not named.
      features_dims: key of an image -> width of its dense layer; 256 where it is not named.
      normalized_image: whether images are given as numbers between 0 and 1.
    """

    def __init__(
        self,
        observation_space: gymnasium.spaces.Dict,
        channels: Mapping[str, Sequence[int]] | None = None,
        features_dims: Mapping[str, int] | None = None,
        normalized_image: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim=1)
        extractors: dict[str, nn.Module] = {}
        total = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                width = (features_dims or {}).get(key, 256)
                chosen = (channels or {}).get(key, (32, 64, 64))
                assert isinstance(space, gymnasium.spaces.Box)
                extractors[key] = NatureCNN(space, chosen, width, normalized_image)
                total += width
            else:
                extractors[key] = nn.Flatten()
                total += get_flattened_obs_dim(space)
        self.extractors = nn.ModuleDict(extractors)
        self._features_dim = total

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Entries by key, each (batch, ...) -> (batch, features)"""
        return torch.cat([extractor(observations[key]) for key, extractor in self.extractors.items()], dim=1)
