"""Networks in which units see each other: normalisers, recurrent state, attention, products, ties."""

# mypy: disable-error-code="no-any-return"
# (calling a module gives Any)

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo_base import CORE, Net, Range, mlp


class GroupNormCNN(nn.Module):
    """Two convolutions with group normalisation: 3 groups of 4, 2 groups of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.conv2, self.norm2 = nn.Conv2d(12, 10, 3, 2), nn.GroupNorm(2, 10)
        self.q = nn.Linear(90, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(frames)))
        return self.q(F.relu(self.norm2(self.conv2(x))).flatten(1))


class ChannelLayerNormCNN(nn.Module):
    """DreamerV3's encoder: layer normalisation over each pixel's channels, by a permutation, and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1, bias=False) for i, o in ((3, 5), (5, 7)))
        self.norms = nn.ModuleList((nn.LayerNorm(5, eps=1e-3), nn.LayerNorm(7, eps=1e-3)))
        self.q = nn.Linear(28, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.q(x.flatten(1))


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, as language models write it out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RMSNormMLP(nn.Module):
    """A residual MLP; both kinds of RMS normalisation, written out and torch's own."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(7, 11), norm(11), norm(11)
        self.up, self.down, self.q = nn.Linear(11, 13), nn.Linear(13, 11), nn.Linear(11, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = self.embed(observation)
        x = x + self.down(F.silu(self.up(self.norm1(x))))
        return self.q(self.norm2(x))


class Transformer(nn.Module):
    """`nn.TransformerEncoderLayer` (fused q, k, v) on entities, a class token and learned positions."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(7, 12), nn.Parameter(torch.zeros(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 7, 12) * 0.1)
        self.layer = nn.TransformerEncoderLayer(12, 3, 17, 0.0, batch_first=True, norm_first=norm_first)
        self.q = nn.Linear(12, 5)

    def forward(self, entities: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(entities.shape[0], -1, -1), self.embed(entities)], dim=1)
        return self.q(self.layer(x + self.position)[:, 0])


class MultiheadPool(nn.Module):
    """`nn.MultiheadAttention` with a query from the state and keys from the entities."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.embed = nn.Linear(5, 10), nn.Linear(7, 11)
        self.attention = nn.MultiheadAttention(10, 2, 0.0, kdim=11, vdim=11, batch_first=True)
        self.q = nn.Linear(10, 5)

    def forward(self, observation: Tensor, entities: Tensor) -> Tensor:
        query, keys = F.relu(self.state(observation)).unsqueeze(1), F.relu(self.embed(entities))
        return self.q(self.attention(query, keys, keys, need_weights=False)[0].squeeze(1))


class GRUStep(nn.Module):
    """One step of a GRU cell; the state goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell, self.q = nn.Linear(7, 11), nn.GRUCell(11, 13), nn.Linear(13, 5)

    def forward(self, observation: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(F.relu(self.encoder(observation)), h)
        return self.q(h), h


class Elman(nn.Module):
    """Elman 1990, as a step: two layers, and no cell whose gates join the old state to the new one."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.state, self.q = nn.Linear(7, 13), nn.Linear(13, 13, bias=False), nn.Linear(13, 5)

    def forward(self, observation: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.input(observation) + self.state(h))
        return self.q(h), h


class Mamba(nn.Module):
    """A step of Gu and Dao 2023: the last three inputs are convolved, then states decay as fast as the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Linear(7, 11), nn.Linear(11, 26, bias=False), nn.Linear(13, 11)
        self.filter, self.bias = nn.Parameter(torch.randn(13, 3)), nn.Parameter(torch.zeros(13))
        self.select, self.rate = nn.Linear(13, 2 + 5 + 5, bias=False), nn.Linear(2, 13)
        self.decay, self.skip = nn.Parameter(torch.randn(13, 5)), nn.Parameter(torch.ones(13))
        self.q = nn.Linear(11, 5)

    def forward(self, observation: Tensor, window: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stream = self.embed(observation)
        x, gate = self.inner(stream).chunk(2, dim=-1)
        window = torch.cat([window[:, :, 1:], x.unsqueeze(-1)], dim=-1)
        x = F.silu((window * self.filter).sum(-1) + self.bias)
        rate, write, read = self.select(x).split([2, 5, 5], dim=-1)
        rate = F.softplus(self.rate(rate)).unsqueeze(-1)
        h = torch.exp(-rate * torch.exp(self.decay)) * h + rate * write.unsqueeze(1) * x.unsqueeze(-1)
        y = (h @ read.unsqueeze(-1)).squeeze(-1) + self.skip * x
        return self.q(stream + self.out(y * F.silu(gate))), window, h


class LSTMReader(nn.Module):
    """An LSTM from a zero state over [B, T, F]: its last step, or the mean over both directions' steps."""

    def __init__(self, *, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.encoder = nn.Linear(7, 11)
        self.lstm = nn.LSTM(11, 13, batch_first=True, bidirectional=bidirectional)
        self.fc, self.q = nn.Linear(26 if bidirectional else 13, 17), nn.Linear(17, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = self.lstm(F.relu(self.encoder(observation)))[0]
        return self.q(F.relu(self.fc(x.mean(dim=1) if self.bidirectional else x[:, -1])))


class DRQN(nn.Module):
    """Hausknecht and Stone 2015: frames [B, T, C, H, W] folded into one batch, encoded, then an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3, 2), nn.Linear(45, 11)
        self.lstm, self.q = nn.LSTM(11, 13, batch_first=True), nn.Linear(13, 6)

    def forward(self, frames: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, time = frames.shape[:2]
        x = F.relu(self.conv(frames.reshape(batch * time, 3, 8, 8))).flatten(1)
        x, (h, c) = self.lstm(F.relu(self.fc(x)).view(batch, time, 11), (h, c))
        return self.q(x), h, c


class SpatialAttention(nn.Module):
    """Zambaldi et al. 2018: the pixels of a feature map attend to each other; maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, 2)
        self.attention = nn.MultiheadAttention(10, 2, 0.0, batch_first=True)
        self.norm, self.q = nn.LayerNorm(10), nn.Linear(10, 6)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.relu(self.conv(frames)).flatten(2).transpose(1, 2)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.q(x.amax(dim=1))


class SpatialSoftmax(nn.Module):
    """Levine et al. 2016: where each channel is active, as the expected pixel position."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.q = nn.Conv2d(3, 7, 3), nn.Linear(14, 13), nn.Linear(13, 5)
        self.register_buffer("grid", torch.cartesian_prod(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 6)))

    def forward(self, frames: Tensor) -> Tensor:
        keypoints = self.conv(frames).flatten(2).softmax(dim=-1) @ self.grid
        return self.q(F.relu(self.fc(keypoints.flatten(1))))


class SimNorm(nn.Module):
    """TD-MPC2's latent: a softmax within each group of four units; it grows by whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.q = nn.Linear(7, 24), nn.Linear(24, 13), nn.Linear(13, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = self.embed(observation).view(-1, 6, 4).softmax(dim=-1).flatten(1)
        return self.q(F.mish(self.fc(x)))


class Maxout(nn.Module):
    """Goodfellow et al. 2013: each unit is the larger of two linear pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.q = nn.Linear(7, 26), nn.Linear(13, 5)

    def forward(self, observation: Tensor) -> Tensor:
        return self.q(self.pieces(observation).view(-1, 13, 2).amax(dim=2))


class SuccessorFeatures(nn.Module):
    """Barreto et al. 2017: features of each action [B, 5, D] times the task's weights [B, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.features, self.task = nn.Linear(7, 13), nn.Linear(13, 55), nn.Linear(4, 11)

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        features = self.features(F.relu(self.trunk(observation))).view(-1, 5, 11)
        return torch.einsum("bad,bd->ba", features, self.task(task))


class CosineAttention(nn.Module):
    """Liu et al. 2022, Swin V2: two heads of 5 compare the directions of queries and keys, each by its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(7, 10) for _ in range(3))
        self.scale, self.q = nn.Parameter(torch.full((2, 1, 1), 10.0)), nn.Linear(10, 5)

    def forward(self, entities: Tensor) -> Tensor:
        split = len(self.scale), -1
        query, key, value = (
            f(entities).unflatten(-1, split).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        weights = (query @ key.transpose(2, 3) * self.scale).softmax(dim=-1)
        return self.q((weights @ value).transpose(1, 2).flatten(2).mean(dim=1))


class NormalisedHeads(nn.Module):
    """Dehghani et al. 2023: queries and keys are normalised head by head, here by their root mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(7, 12) for _ in range(3))
        self.norm_q, self.norm_k, self.q = nn.RMSNorm(4, eps=1e-6), nn.RMSNorm(4, eps=1e-6), nn.Linear(12, 5)

    def forward(self, entities: Tensor) -> Tensor:
        query, key, value = (
            f(entities).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = (self.norm_q(query) @ self.norm_k(key).transpose(2, 3) / 2).softmax(dim=-1)
        return self.q((weights @ value).transpose(1, 2).flatten(2).mean(dim=1))


class SimbaV2(nn.Module):
    """Lee et al. 2025: every state of a residual stream is a direction, and moves towards what the block gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = (
            nn.Linear(*size, bias=False) for size in ((8, 11), (11, 13), (13, 11))
        )
        self.gain, self.scale = nn.Parameter(torch.ones(11)), nn.Parameter(torch.ones(13))
        self.rate, self.q = nn.Parameter(torch.full((11,), 0.3)), nn.Linear(11, 5)

    def forward(self, observation: Tensor) -> Tensor:
        shifted = F.pad(observation, (0, 1), value=3.0)
        x = F.normalize(self.gain * self.embed(F.normalize(shifted, dim=-1)), dim=-1)
        towards = F.normalize(self.down(F.relu(self.scale * self.up(x))), dim=-1)
        return self.q(F.normalize(x + self.rate * (towards - x), dim=-1))


class IQN(nn.Module):
    """Dabney et al. 2018: a cosine embedding of quantile fractions [B, N] multiplies the state's."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cosine, self.fc = nn.Linear(7, 11), nn.Linear(8, 11), nn.Linear(11, 13)
        self.q = nn.Linear(13, 5)
        self.register_buffer("frequencies", torch.arange(8) * torch.pi)

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        code = F.relu(self.cosine(torch.cos(fractions.unsqueeze(-1) * self.frequencies)))
        x = F.relu(self.fc(code * F.relu(self.embed(observation)).unsqueeze(1)))
        return self.q(x).mean(dim=1)


class QMix(nn.Module):
    """Rashid et al. 2018: layers of the state make the positive weights that mix three agents' values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1, self.bias1 = nn.Linear(7, 3 * 11), nn.Linear(7, 11)
        self.weight2, self.bias2 = mlp(7, 13, 11), mlp(7, 17, 1)

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        mix = self.weight1(state).abs().view(-1, 3, 11)
        x = F.elu(torch.bmm(values.unsqueeze(1), mix) + self.bias1(state).unsqueeze(1))
        return (torch.bmm(x, self.weight2(state).abs().unsqueeze(2)).squeeze(2)) + self.bias2(state)


class TiedEmbedding(nn.Module):
    """The embedding of the tokens is also the output layer: its columns are made by it and read by it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(17, 11), mlp(11, 13, 11)

    def forward(self, token: Tensor) -> Tensor:
        return self.mlp(self.embedding(token)) @ self.embedding.weight.t()


SEQUENCE = {"observation": ("batch", "time", 7)}
TOKENS = Range("int64", 0, 17)
ATTENTION, NORMALISER = frozenset({"attention"}), frozenset({"normaliser"})
RECURRENT = frozenset({"recurrent"})
TRANSFORMER = {"embed": 12, "layer.self_attn:heads": 3, "layer.self_attn:head": 4, "layer.linear1": 17}

MIXING: tuple[Net, ...] = (
    Net("groupnorm_cnn", GroupNormCNN, {"frames": ("batch", 3, 8, 8)}, ("q",),
        {"conv1:groups": 3, "conv2:groups": 2}, NORMALISER),
    Net("channel_layernorm_cnn", ChannelLayerNormCNN, {"frames": ("batch", 3, 8, 8)}, ("q",),
        {"convs.0": 5, "convs.1": 7}, NORMALISER),
    Net("rmsnorm", lambda: RMSNormMLP(RMSNorm), {"observation": ("batch", 7)}, ("q",),
        {"embed": 11, "up": 13}, NORMALISER),
    Net("rmsnorm_builtin", lambda: RMSNormMLP(nn.RMSNorm), {"observation": ("batch", 7)}, ("q",),
        {"embed": 11, "up": 13}, NORMALISER, impossible={"torchscript": "no symbolic for aten::rms_norm"}),
    Net("transformer", lambda: Transformer(norm_first=False), {"entities": ("batch", 6, 7)}, ("q",),
        TRANSFORMER, ATTENTION | NORMALISER),
    Net("transformer_prenorm", lambda: Transformer(norm_first=True), {"entities": ("batch", 6, 7)}, ("q",),
        TRANSFORMER, ATTENTION | NORMALISER),
    Net("multihead_pool", MultiheadPool, {"observation": ("batch", 5), "entities": ("batch", "entities", 7)},
        ("q",), {"state": 10, "embed": 11, "attention:heads": 2, "attention:head": 5}, ATTENTION),
    Net("cosine_attention", CosineAttention, {"entities": ("batch", 6, 7)}, ("q",),
        {"query:heads": 2, "value:head": 5}, ATTENTION, frozen={"query:head": 5}),
    Net("normalised_heads", NormalisedHeads, {"entities": ("batch", 6, 7)}, ("q",),
        {"query:heads": 3, "query:head": 4, "value:head": 4}, ATTENTION | NORMALISER,
        impossible={"torchscript": "no symbolic for aten::rms_norm"}),
    Net("simba_v2", SimbaV2, {"observation": ("batch", 7)}, ("q",), {"embed": 11, "up": 13},
        NORMALISER),
    Net("gru_step", GRUStep, {"observation": ("batch", 7), "h": ("batch", 13)}, ("q", "h_next"),
        {"encoder": 11, "cell": 13}, CORE | RECURRENT),
    Net("elman_step", Elman, {"observation": ("batch", 7), "h": ("batch", 13)}, ("q", "h_next"),
        {"input": 13}, RECURRENT),
    Net("mamba_step", Mamba,
        {"observation": ("batch", 7), "conv_state": ("batch", 13, 3), "ssm_state": ("batch", 13, 5)},
        ("q", "conv_state_next", "ssm_state_next"),
        {"embed": 11, "inner:units": 13, "select:rate": 2, "select:states": 5}, RECURRENT),
    Net("lstm_zero_state", lambda: LSTMReader(bidirectional=False), SEQUENCE, ("q",),
        {"encoder": 11, "lstm": 13, "fc": 17}, RECURRENT),
    Net("lstm_bidirectional", lambda: LSTMReader(bidirectional=True), SEQUENCE, ("q",),
        {"encoder": 11, "lstm": 13, "fc": 17}, RECURRENT),
    Net("drqn", DRQN,
        {"frames": ("batch", "time", 3, 8, 8), "h": (1, "batch", 13), "c": (1, "batch", 13)},
        ("q", "h_next", "c_next"), {"conv": 5, "fc": 11, "lstm": 13}, RECURRENT),
    Net("spatial_attention", SpatialAttention, {"frames": ("batch", 3, 8, 8)}, ("q",),
        {"conv": 10, "attention:heads": 2, "attention:head": 5}, ATTENTION | NORMALISER),
    Net("spatial_softmax", SpatialSoftmax, {"frames": ("batch", 3, 8, 8)}, ("q",), {"conv": 7, "fc": 13}),
    Net("simnorm", SimNorm, {"observation": ("batch", 7)}, ("q",), {"embed:groups": 6, "fc": 13},
        CORE | NORMALISER),
    Net("maxout", Maxout, {"observation": ("batch", 7)}, ("q",), {"pieces:units": 13, "pieces:each": 2}),
    Net("successor_features", SuccessorFeatures, {"observation": ("batch", 7), "task": ("batch", 4)}, ("q",),
        {"trunk": 13, "features:each": 11}, frozenset({"einsum"})),
    Net("iqn", IQN, {"observation": ("batch", 7), "fractions": ("batch", 6)}, ("q",), {"embed": 11, "fc": 13},
        CORE | {"gating"}, {"fractions": Range("float32", 0, 1)}),
    Net("qmix", QMix, {"values": ("batch", 3), "state": ("batch", 7)}, ("total",),
        {"weight1:units": 11, "weight2.0": 13, "bias2.0": 17}, frozenset({"bilinear"})),
    Net("tied_embedding", TiedEmbedding, {"token": ("batch",)}, ("logits",), {"mlp.0": 13},
        CORE | {"tied"}, {"token": TOKENS}, {"embedding": 11}),
)  # fmt: skip
