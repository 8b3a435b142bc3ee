"""Convolutional building blocks: normalised, grouped, shuffled, dense, gated, transposed, pooled."""

# mypy: disable-error-code="no-any-return"
# (calling a module gives Any)

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo_base import CORE, Net, mlp


class BatchNormResNet(nn.Module):
    """Two conv-bn pairs and a strided 1x1 shortcut, as in ResNet's downsampling block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(5, 11, 3, 2, 1, bias=False), nn.BatchNorm2d(11)
        self.conv2, self.bn2 = nn.Conv2d(11, 7, 3, 1, 1, bias=False), nn.BatchNorm2d(7)
        self.shortcut = nn.Sequential(nn.Conv2d(5, 7, 1, 2, bias=False), nn.BatchNorm2d(7))
        self.q = nn.Linear(7, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.q(F.relu(y + self.shortcut(x)).mean(dim=(2, 3)))


class MobileNet(nn.Module):
    """Sandler et al. 2018: expand, filter each channel by itself, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, 2, 1)
        self.expand, self.bn1 = nn.Conv2d(5, 13, 1, bias=False), nn.BatchNorm2d(13)
        self.depthwise, self.bn2 = nn.Conv2d(13, 13, 3, padding=1, groups=13, bias=False), nn.BatchNorm2d(13)
        self.project, self.bn3 = nn.Conv2d(13, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.q = nn.Linear(5, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        y = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        return self.q((x + self.bn3(self.project(y))).mean(dim=(2, 3)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """[B, groups * C, H, W] -> [B, C * groups, H, W]."""
    channels, pixels = x.shape[1] // groups, x.shape[2:]
    return x.view(-1, groups, channels, *pixels).transpose(1, 2).reshape(-1, groups * channels, *pixels)


class ShuffleNet(nn.Module):
    """Zhang et al. 2018: grouped 1x1, channel shuffle, depthwise, grouped 1x1, add; three groups.

    Each group of the depthwise layer's consumer takes an equal part of each group of its producer, so the 18
    channels grow in blocks of 3 x 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gconv1 = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 18, 1, groups=3)
        self.depthwise, self.gconv2 = nn.Conv2d(18, 18, 3, 1, 1, groups=18), nn.Conv2d(18, 12, 1, groups=3)
        self.q = nn.Linear(12, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.stem(frames))
        y = self.depthwise(channel_shuffle(F.relu(self.gconv1(x)), 3))
        return self.q(F.relu(x + self.gconv2(y)).mean(dim=(2, 3)))


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018: half of the channels pass by, then both halves are shuffled; three units in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        widths = (5, 7, 11)
        self.inner = nn.ModuleList(nn.Conv2d(6, width, 1) for width in widths)
        self.outer = nn.ModuleList(nn.Conv2d(width, 6, 3, padding=1) for width in widths)
        self.q = nn.Linear(12, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.stem(frames))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            left, right = x.chunk(2, dim=1)
            x = channel_shuffle(torch.cat([left, F.relu(outer(F.relu(inner(right))))], dim=1), 2)
        return self.q(x.mean(dim=(2, 3)))


class EachChannel(nn.Module):
    """A 3x3 convolution of every channel by itself, as many as the weight has."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(channels, 1, 3, 3) / 3), stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, 1, groups=self.weight.shape[0])


def _normed(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]


class ShuffleUnit(nn.Module):
    """One unit of Ma et al. 2018 with n channels on either side: the first of a stage strides, and has two branches."""

    def __init__(self, inputs: int, n: int, stride: int) -> None:
        super().__init__()
        self.left = None
        if stride > 1:
            self.left = nn.Sequential(
                EachChannel(inputs, stride), nn.BatchNorm2d(inputs), *_normed(inputs, n), nn.ReLU()
            )
        self.right = nn.Sequential(
            *_normed(inputs if stride > 1 else n, n), nn.ReLU(), EachChannel(n, stride), nn.BatchNorm2d(n),
            *_normed(n, n), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.left is None else (self.left(x), x)
        return channel_shuffle(torch.cat([left, self.right(right)], dim=1), 2)


class ShuffleNetStages(nn.Module):
    """ShuffleNet V2 as published: stem, stages of one unit and of three, last 1x1; 7 channels cannot be halved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, 1, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.stages = nn.Sequential(*(
            nn.Sequential(ShuffleUnit(inputs, n, 2), *(ShuffleUnit(inputs, n, 1) for _ in range(more)))
            for inputs, n, more in ((7, 7, 0), (14, 10, 2))
        ))  # fmt: skip
        self.last, self.q = nn.Sequential(*_normed(20, 9), nn.ReLU()), nn.Linear(9, 6)

    def forward(self, frames: Tensor) -> Tensor:
        return self.q(self.last(self.stages(self.stem(frames))).mean(dim=(2, 3)))


SHUFFLED = ("1.0.left.2", "1.0.right.5", "1.1.right.5", "1.2.right.5")
"""The layers of the second stage of `ShuffleNetStages`, whose units are shuffled together."""


class DenseNet(nn.Module):
    """Huang et al. 2017: bn-relu-conv layers that append to their input, then a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (5, 8, 10))
        self.grow = nn.ModuleList((nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)))
        self.transition, self.pool, self.q = nn.Conv2d(10, 7, 1), nn.AvgPool2d(2), nn.Linear(7 * 16, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        for norm, conv in zip(self.norms, self.grow, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], dim=1)
        return self.q(self.pool(self.transition(F.relu(self.norms[2](x)))).flatten(1))


class SqueezeExcite(nn.Module):
    """Hu et al. 2018: channel gates from the channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 11, 3), nn.Conv2d(11, 5, 1), nn.Conv2d(5, 11, 1)
        self.q = nn.Linear(11, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv(frames))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))))
        return self.q((x * gate).amax(dim=(2, 3)))


class CBAM(nn.Module):
    """Woo et al. 2018: means and maxima over space weigh channels, then those over channels weigh pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.channels = nn.Conv2d(3, 11, 3), mlp(11, 8, 11)
        self.pixels, self.q = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(11, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv(frames))
        gate = self.channels(x.mean(dim=(2, 3))) + self.channels(x.amax(dim=(2, 3)))
        x = x * torch.sigmoid(gate)[:, :, None, None]
        gate = torch.cat([x.max(dim=1, keepdim=True).values, x.mean(dim=1, keepdim=True)], dim=1)
        return self.q((x * torch.sigmoid(self.pixels(gate))).amax(dim=(2, 3)))


class EfficientZero(nn.Module):
    """A step of the model of Ye et al. 2021: the latent state is brought between 0 and 1 over all of its units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv1, self.bn1 = nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.squeeze, self.reward = (
            nn.Conv2d(5, 3, 1),
            nn.Sequential(nn.Linear(48, 13), nn.ReLU(), nn.Linear(13, 1)),
        )

    def forward(self, action: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn(self.conv(torch.cat([hidden, action], dim=1))) + hidden)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        flat = x.flatten(1)
        low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
        hidden = ((flat - low) / (high - low + 1e-5)).view(hidden.shape)
        return self.reward(F.relu(self.squeeze(hidden)).flatten(1)), hidden


class Temporal(nn.Module):
    """Causal dilated convolutions over [B, F, T] with a residual; the last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, 7, 3), nn.Conv1d(7, 7, 3, dilation=2)
        self.conv3, self.q = nn.Conv1d(7, 11, 3, 2), nn.Linear(11, 5)

    def forward(self, history: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.pad(history, (2, 0))))
        x = x + F.relu(self.conv2(F.pad(x, (4, 0))))
        return self.q(F.relu(self.conv3(x))[:, :, -1])


class Decoder(nn.Module):
    """A world model's decoder: dense, reshape, two transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.deconv1 = nn.Linear(7, 5 * 9), nn.ConvTranspose2d(5, 11, 3, 2)
        self.deconv2 = nn.ConvTranspose2d(11, 3, 4, 2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        x = F.relu(self.fc(latent)).view(-1, 5, 3, 3)
        return torch.sigmoid(self.deconv2(F.relu(self.deconv1(x))))


class FrameSlices(nn.Module):
    """Frames minus their predecessors, and hidden channels cut into a gating and a gated part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gate = nn.Conv2d(7, 9, 3), nn.Conv2d(4, 5, 1)
        self.q = nn.Linear(5 * 36, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.conv1(torch.cat([frames, frames[:, 1:] - frames[:, :-1]], dim=1))
        return self.q((torch.sigmoid(self.gate(F.relu(x[:, :4]))) * x[:, 4:]).flatten(1))


class Pools(nn.Module):
    """Adaptive average and maximum pools to 2x2 and 1x1, a padded maximum pool between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mean, self.max = nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(1)
        self.q = nn.Linear(7 * 4 + 7, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.pool(F.relu(self.conv1(frames)))))
        return self.q(torch.cat([self.mean(x).flatten(1), self.max(x).flatten(1)], dim=1))


def gap_head() -> nn.Module:
    """Two convolutions, global average pool, linear."""
    convs = (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU())
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 6))


def prelu_net() -> nn.Module:
    """A slope per channel after the convolution, one slope for all units after the linear layer."""
    conv = (nn.Conv2d(3, 5, 3), nn.PReLU(5), nn.Flatten())
    return nn.Sequential(*conv, nn.Linear(180, 11), nn.PReLU(), nn.Linear(11, 6))


FRAMES = {"frames": ("batch", 3, 8, 8)}

CONVOLUTIONAL: tuple[Net, ...] = (
    Net("batchnorm_resnet", BatchNormResNet, FRAMES, ("q",), {"stem.0": 5, "conv1": 11, "conv2": 7}),
    Net("mobilenet", MobileNet, FRAMES, ("q",), {"stem": 5, "expand": 13}),
    Net("shufflenet", ShuffleNet, FRAMES, ("q",), {"stem:group": 4, "gconv1:block": 2}),
    Net("shufflenet_v2", ShuffleNetV2, FRAMES, ("q",),
        {**{f"inner.{i}": n for i, n in enumerate((5, 7, 11))}, **{f"outer.{i}": 6 for i in range(3)},
         "stem:left": 6, "stem:right": 6}),
    Net("shufflenet_stages", ShuffleNetStages, FRAMES, ("q",),
        {"stem.0": 7, "last.0": 9, "stages.0.0.right.0": 7, "stages.0.0.left.2": 7,
         **{f"stages.{unit}": 10 for unit in SHUFFLED}, **{f"stages.1.{k}.right.0": 10 for k in range(3)}}),
    Net("densenet", DenseNet, FRAMES, ("q",), {"stem": 5, "grow.0": 3, "grow.1": 2, "transition": 7}),
    Net("cbam", CBAM, FRAMES, ("q",), {"conv": 11, "channels.0": 8}, CORE | {"gating"}),
    Net("efficientzero", EfficientZero, {"action": ("batch", 1, 4, 4), "hidden": ("batch", 5, 4, 4)},
        ("reward", "hidden_next"), {"conv": 5, "conv1": 7, "squeeze": 3, "reward.0": 13}, frozenset({"recurrent"})),
    Net("squeeze_excite", SqueezeExcite, FRAMES, ("q",), {"conv": 11, "squeeze": 5}, CORE | {"gating"}),
    Net("temporal_conv", Temporal, {"history": ("batch", 4, 9)}, ("q",), {"conv1": 7, "conv3": 11}),
    Net("decoder", Decoder, {"latent": ("batch", 7)}, ("frame",), {"fc:channels": 5, "deconv1": 11},
        frozenset({"transposed"})),
    Net("frame_slices", FrameSlices, {"frames": ("batch", 4, 8, 8)}, ("q",),
        {"conv1:gate": 4, "conv1:value": 5}, CORE | {"gating"}),
    Net("pools", Pools, FRAMES, ("q",), {"conv1": 5, "conv2": 7}),
    Net("gap_head", gap_head, FRAMES, ("q",), {"0": 5, "2": 7}),
    Net("prelu", prelu_net, FRAMES, ("q",), {"0": 5, "3": 11}),
)  # fmt: skip
