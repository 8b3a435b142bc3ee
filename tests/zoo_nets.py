"""The suite: 18 kinds of network that published agents are made of, most in small widths."""

# mypy: disable-error-code="no-any-return"
# (calling a module gives Any)

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo_base import CORE, MASK, PIXELS, Net


class Nature(nn.Module):
    """Mnih et al. 2015, at its real size: uint8 frames [B, 4, 84, 84] -> action values [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2)
        self.conv3, self.fc, self.q = nn.Conv2d(64, 64, 3), nn.Linear(3136, 512), nn.Linear(512, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(frames.float() / 255.0))))
        return self.q(F.relu(self.fc(F.relu(self.conv3(x)).flatten(1))))


class NatureNHWC(nn.Module):
    """Frames [B, H, W, C], and a flatten in H, W, C order, as TensorFlow and JAX agents have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 7, 4, 2), nn.Conv2d(7, 11, 3)
        self.fc, self.q = nn.Linear(5 * 5 * 11, 17), nn.Linear(17, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv1(frames.permute(0, 3, 1, 2).float() / 255.0))
        x = F.relu(self.conv2(x)).permute(0, 2, 3, 1)
        return self.q(F.relu(self.fc(x.reshape(x.shape[0], -1))))


class Dueling(nn.Module):
    """Wang et al. 2016: value + advantage - mean over the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2)
        self.value1, self.value2 = nn.Linear(125, 11), nn.Linear(11, 1)
        self.advantage1, self.advantage2 = nn.Linear(125, 13), nn.Linear(13, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv(frames)).flatten(1)
        value, advantage = self.value2(F.relu(self.value1(x))), self.advantage2(F.relu(self.advantage1(x)))
        return value + advantage - advantage.mean(1, keepdim=True)


class C51(nn.Module):
    """Bellemare et al. 2017: 51 atoms per action; expectation under the softmax."""

    support: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(7, 13), nn.Linear(13, 11), nn.Linear(11, 5 * 51)
        self.register_buffer("support", torch.linspace(-3, 3, 51))

    def forward(self, observation: Tensor) -> Tensor:
        x = self.head(F.relu(self.fc2(F.relu(self.fc1(observation)))))
        return (F.softmax(x.view(-1, 5, 51), dim=2) * self.support).sum(2)


class Residual(nn.Module):
    """IMPALA's pre-activation residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Impala(nn.Module):
    """Espeholt et al. 2018: three stacks of conv, max-pool, two residual blocks; policy and value heads."""

    def __init__(self, depths: tuple[int, ...] = (5, 7, 11)) -> None:
        super().__init__()
        stacks, channels = [], 3
        for depth in depths:
            conv, pool = nn.Conv2d(channels, depth, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)
            stacks.append(nn.Sequential(conv, pool, Residual(depth), Residual(depth)))
            channels = depth
        self.stacks = nn.Sequential(*stacks)
        self.fc, self.policy, self.value = nn.Linear(9 * channels, 13), nn.Linear(13, 6), nn.Linear(13, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc(F.relu(self.stacks(frames)).flatten(1)))
        return self.policy(x), self.value(x)


class LSTMPolicy(nn.Module):
    """Observations [B, T, F] and the state [1, B, H] -> logits [B, T, A], values [B, T, 1], next state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lstm = nn.Linear(7, 11), nn.LSTM(11, 13, batch_first=True)
        self.policy, self.value = nn.Linear(13, 5), nn.Linear(13, 1)

    def forward(self, observation: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, (h, c) = self.lstm(F.relu(self.encoder(observation)), (h, c))
        return self.policy(x), self.value(x), h, c


class GRUPolicy(nn.Module):
    """Two stacked GRU layers; the state [2, B, H] goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru = nn.Linear(7, 11), nn.GRU(11, 13, num_layers=2, batch_first=True)
        self.policy = nn.Linear(13, 5)

    def forward(self, observation: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, h = self.gru(torch.tanh(self.encoder(observation)), h)
        return self.policy(x), h


class LSTMCellLoop(nn.Module):
    """An LSTM cell unrolled over four steps by a Python loop: each weight is used four times."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell, self.q = nn.Linear(7, 11), nn.LSTMCell(11, 13), nn.Linear(13, 5)

    def forward(self, observation: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for step in range(4):
            h, c = self.cell(F.relu(self.encoder(observation[:, step])), (h, c))
        return self.q(h), h, c


class SharedEncoder(nn.Module):
    """One encoder applied to two views, its results concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 11), nn.ReLU())
        self.fc, self.q = nn.Linear(22, 17), nn.Linear(17, 5)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x = torch.cat([self.encoder(left), self.encoder(right)], dim=1)
        return self.q(F.relu(self.fc(x)))


class ConvScalars(nn.Module):
    """Flattened convolution features, scalar features, and an encoding of the scalars, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scalars1 = nn.Conv2d(3, 5, 3, 2), nn.Linear(4, 7)
        self.fc, self.q = nn.Linear(5 * 16 + 4 + 7, 13), nn.Linear(13, 6)

    def forward(self, frames: Tensor, scalars: Tensor) -> Tensor:
        image = F.relu(self.conv(frames)).flatten(1)
        x = torch.cat([image, scalars, torch.tanh(self.scalars1(scalars))], dim=1)
        return self.q(F.relu(self.fc(x)))


class EntityAttention(nn.Module):
    """Masked attention over entities [B, N, F]: 3 heads of 5, then the masked mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 11)
        self.query, self.key = nn.Linear(11, 15), nn.Linear(11, 15)
        self.values, self.out, self.q = nn.Linear(11, 15), nn.Linear(15, 11), nn.Linear(11, 5)

    def forward(self, entities: Tensor, mask: Tensor) -> Tensor:
        x = F.relu(self.embed(entities))
        batch, count = x.shape[0], x.shape[1]
        heads = [f(x).view(batch, count, 3, 5).transpose(1, 2) for f in (self.query, self.key, self.values)]
        scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(5)
        weights = scores.masked_fill(~mask[:, None, None, :], -1e9).softmax(dim=-1)
        x = x + self.out((weights @ heads[2]).transpose(1, 2).reshape(batch, count, 15))
        present = mask.float().unsqueeze(-1)
        return self.q((x * present).sum(1) / present.sum(1).clamp(min=1.0))


class TwinCritics(nn.Module):
    """Two critics as one ensemble: weights [2, in, out], contracted by einsum; values [2, B]."""

    def __init__(self) -> None:
        super().__init__()
        pairs = ((7 + 3, 13), (13, 11), (11, 1))
        self.weights = nn.ParameterList(torch.randn(2, i, o) / math.sqrt(i) for i, o in pairs)
        self.biases = nn.ParameterList(torch.randn(2, 1, o) * 0.1 for _, o in pairs)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([observation, action], dim=1)
        x = F.relu(torch.einsum("bi,eio->ebo", x, self.weights[0]) + self.biases[0])
        x = F.relu(torch.einsum("ebi,eio->ebo", x, self.weights[1]) + self.biases[1])
        return (torch.einsum("ebi,eio->ebo", x, self.weights[2]) + self.biases[2]).squeeze(-1)


class NoisyLinear(nn.Module):
    """Fortunato et al. 2018, with the noise of training: mu + sigma * epsilon."""

    weight_epsilon: Tensor
    bias_epsilon: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out_features = outputs
        self.weight_mu = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), 0.5 / math.sqrt(inputs)))
        self.bias_mu = nn.Parameter(torch.zeros(outputs))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), 0.5 / math.sqrt(inputs)))
        row, column = torch.randn(outputs), torch.randn(inputs)
        self.register_buffer("weight_epsilon", torch.outer(row, column))
        self.register_buffer("bias_epsilon", row)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_mu + self.weight_sigma * self.weight_epsilon
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.bias_epsilon)


def noisy_net() -> nn.Module:
    """A plain layer and two noisy ones, as in Rainbow's head."""
    return nn.Sequential(nn.Linear(7, 13), nn.ReLU(), NoisyLinear(13, 11), nn.ReLU(), NoisyLinear(11, 5))


class PixelShuffle(nn.Module):
    """Conv to 4*C channels, shuffled into C channels of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 4 * 5, 3, padding=1)
        self.shuffle, self.conv3 = nn.PixelShuffle(2), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv3(F.relu(self.shuffle(self.conv2(F.relu(self.conv1(frames))))))


class SpaceToDepth(nn.Module):
    """[B, C, H, W] -> [B, 4*C, H/2, W/2] between two convolutions, by reshapes or by strided slices."""

    def __init__(self, *, strided: bool) -> None:
        super().__init__()
        self.strided = strided
        self.conv1, self.conv2 = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(28, 5, 3)
        self.q = nn.Linear(5 * 9, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv1(frames))
        if self.strided:
            x = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
        else:
            x = x.reshape(-1, 7, 5, 2, 5, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 28, 5, 5)
        return self.q(F.relu(self.conv2(x)).flatten(1))


class FiLM(nn.Module):
    """Perez et al. 2018: an instruction scales and shifts every channel of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        self.encoder, self.film1, self.film2 = nn.Linear(4, 11), nn.Linear(11, 10), nn.Linear(11, 14)
        self.q = nn.Linear(7, 6)

    def forward(self, frames: Tensor, instruction: Tensor) -> Tensor:
        code, x = F.relu(self.encoder(instruction)), frames
        for conv, film in ((self.conv1, self.film1), (self.conv2, self.film2)):
            scale, shift = film(code)[:, :, None, None].chunk(2, dim=1)
            x = F.relu((1 + scale) * conv(x) + shift)
        return self.q(x.mean(dim=(2, 3)))


class ResidualLayerNorm(nn.Module):
    """Pre-normalised residual MLP: x + W2 relu(W1 norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 11)
        self.norms = nn.ModuleList(nn.LayerNorm(11) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(11, width) for width in (13, 17))
        self.down = nn.ModuleList(nn.Linear(width, 11) for width in (13, 17))
        self.q = nn.Linear(11, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = self.embed(observation)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(F.relu(up(norm(x))))
        return self.q(self.norms[2](x))


class PointerActions(nn.Module):
    """One logit per offered action: a query from the state times a key from the action's features."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 11))
        self.key = nn.Sequential(nn.Linear(5, 17), nn.ReLU(), nn.Linear(17, 11))

    def forward(self, observation: Tensor, actions: Tensor) -> Tensor:
        query = self.state(observation).unsqueeze(2)
        return torch.matmul(self.key(actions), query).squeeze(2)


IMPALA_HIDDEN = {f"stacks.{i}.0": n for i, n in enumerate((5, 7, 11))}
IMPALA_HIDDEN |= {f"stacks.{i}.{j}.conv1": n for i, n in enumerate((5, 7, 11)) for j in (2, 3)}
OBSERVATION = {"observation": ("batch", 7)}

RL_SUITE: tuple[Net, ...] = (
    Net("nature_dqn", Nature, {"frames": ("batch", 4, 84, 84)}, ("q",),
        {"conv1": 32, "conv2": 64, "conv3": 64, "fc": 512}, ranges={"frames": PIXELS}),
    Net("nature_nhwc", NatureNHWC, {"frames": ("batch", 16, 16, 4)}, ("q",),
        {"conv1": 7, "conv2": 11, "fc": 17}, ranges={"frames": PIXELS}),
    Net("dueling", Dueling, {"frames": ("batch", 3, 12, 12)}, ("q",),
        {"conv": 5, "value1": 11, "advantage1": 13}),
    Net("c51", C51, OBSERVATION, ("q",), {"fc1": 13, "fc2": 11}),
    Net("impala", Impala, {"frames": ("batch", 3, 20, 20)}, ("logits", "value"), {**IMPALA_HIDDEN, "fc": 13}),
    Net("lstm_policy", LSTMPolicy,
        {"observation": ("batch", "time", 7), "h": (1, "batch", 13), "c": (1, "batch", 13)},
        ("logits", "value", "h_next", "c_next"), {"encoder": 11, "lstm": 13}, frozenset({"recurrent"})),
    Net("gru_policy", GRUPolicy, {"observation": ("batch", "time", 7), "h": (2, "batch", 13)},
        ("logits", "h_next"), {"encoder": 11, "gru": 13}, frozenset({"recurrent"})),
    Net("lstm_cell_loop", LSTMCellLoop,
        {"observation": ("batch", 4, 7), "h": ("batch", 13), "c": ("batch", 13)},
        ("q", "h_next", "c_next"), {"encoder": 11, "cell": 13}, CORE | {"recurrent"}),
    Net("shared_encoder", SharedEncoder, {"left": ("batch", 7), "right": ("batch", 7)}, ("q",),
        {"encoder.0": 13, "encoder.2": 11, "fc": 17}),
    Net("conv_scalars", ConvScalars, {"frames": ("batch", 3, 10, 10), "scalars": ("batch", 4)}, ("q",),
        {"conv": 5, "scalars1": 7, "fc": 13}),
    Net("entity_attention", EntityAttention,
        {"entities": ("batch", "entities", 7), "mask": ("batch", "entities")}, ("q",),
        {"embed": 11, "query:heads": 3, "query:head": 5, "values:head": 5},
        frozenset({"attention"}), ranges={"mask": MASK}),
    Net("twin_critics", TwinCritics, {"observation": ("batch", 7), "action": ("batch", 3)}, ("q",),
        {"weights.0": 13, "weights.1": 11}, frozenset({"einsum"})),
    Net("noisy_net", noisy_net, OBSERVATION, ("q",), {"0": 13, "2": 11}),
    Net("pixel_shuffle", PixelShuffle, {"frames": ("batch", 3, 6, 6)}, ("frame",),
        {"conv1": 7, "conv2:channels": 5}, frozenset({"rearrange"})),
    Net("space_to_depth", lambda: SpaceToDepth(strided=False), {"frames": ("batch", 3, 10, 10)}, ("q",),
        {"conv1": 7, "conv2": 5}),
    Net("space_to_depth_strided", lambda: SpaceToDepth(strided=True), {"frames": ("batch", 3, 10, 10)},
        ("q",), {"conv1": 7, "conv2": 5}),
    Net("film", FiLM, {"frames": ("batch", 3, 8, 8), "instruction": ("batch", 4)}, ("q",),
        {"conv1": 5, "conv2": 7, "encoder": 11}, CORE | {"gating"}),
    Net("residual_layernorm", ResidualLayerNorm, OBSERVATION, ("q",),
        {"embed": 11, "up.0": 13, "up.1": 17}, frozenset({"normaliser"})),
    Net("pointer_actions", PointerActions, {"observation": ("batch", 7), "actions": ("batch", "actions", 5)},
        ("logits",), {"state.0": 13, "state.2": 11, "key.0": 17}, frozenset({"attention"})),
)  # fmt: skip
