"""Features extractors of Stable-Baselines3 with layers that can be chosen; there they are written into the code.

A model whose convolutions were changed names one of these classes: training it on needs `surgery_adapters` installed.
Parameters have the names that they have in `NatureCNN` and `CombinedExtractor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import gymnasium
import torch
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class NatureCNN(BaseFeaturesExtractor):
    """The convolutions of the Nature DQN, 8×8/4, 4×4/2, 3×3/1, then a dense layer; or others, and more of them.

    Args:
      observation_space: a Box of shape (C, H, W).
      channels: of the convolutions.
      features_dim: width of the last dense layer.
      normalized_image: whether images are given as numbers between 0 and 1.
      kernels, strides, paddings: of the convolutions.
      hidden: widths of dense layers before the last.

    References:
      Mnih et al. Human-level control through deep reinforcement learning. Nature 518, 2015.
    """

    def __init__(
        self,
        observation_space: gymnasium.spaces.Box,
        channels: Sequence[int] = (32, 64, 64),
        features_dim: int = 512,
        normalized_image: bool = False,
        kernels: Sequence[int] = (8, 4, 3),
        strides: Sequence[int] = (4, 2, 1),
        paddings: Sequence[int] = (0, 0, 0),
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__(observation_space, features_dim)
        if not is_image_space(observation_space, normalized_image=normalized_image):
            raise ValueError(f"NatureCNN is for images, not for {observation_space}")
        before, layers = observation_space.shape[0], list[nn.Module]()
        for after, kernel, stride, padding in zip(channels, kernels, strides, paddings, strict=True):
            layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]
            before = after
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.cnn(torch.zeros(1, *observation_space.shape)).shape[1]
        widths, dense = [flat, *hidden, features_dim], list[nn.Module]()
        for read, made in pairwise(widths):
            dense += [nn.Linear(read, made), nn.ReLU()]
        self.linear = nn.Sequential(*dense)

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
      layers: key of an image -> further arguments of its `NatureCNN`: kernels, strides, paddings, hidden.
    """

    def __init__(
        self,
        observation_space: gymnasium.spaces.Dict,
        channels: Mapping[str, Sequence[int]] | None = None,
        features_dims: Mapping[str, int] | None = None,
        normalized_image: bool = False,
        layers: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> None:
        super().__init__(observation_space, features_dim=1)
        extractors: dict[str, nn.Module] = {}
        total = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                width = (features_dims or {}).get(key, 256)
                chosen = (channels or {}).get(key, (32, 64, 64))
                assert isinstance(space, gymnasium.spaces.Box)
                extractors[key] = NatureCNN(
                    space, chosen, width, normalized_image, **(layers or {}).get(key, {})
                )
                total += width
            else:
                extractors[key] = nn.Flatten()
                total += get_flattened_obs_dim(space)
        self.extractors = nn.ModuleDict(extractors)
        self._features_dim = total

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Entries by key, each (batch, ...) -> (batch, features)"""
        return torch.cat([extractor(observations[key]) for key, extractor in self.extractors.items()], dim=1)
