"""Dense networks: actors, critics, gates, experts, and the usual heads."""

# mypy: disable-error-code="no-any-return"
# (calling a module gives Any)

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo_base import CORE, Net, Range, mlp

OBSERVATION = {"observation": ("batch", 7)}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish, "elu": nn.ELU,
    "softplus": nn.Softplus, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid,
}  # fmt: skip


class ActorCritic(nn.Module):
    """PPO's usual pair: separate trunks for the log-probabilities and the value."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(7, 13, 11, 5, activation=nn.Tanh), mlp(7, 17, 19, 1, activation=nn.Tanh)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return F.log_softmax(self.actor(observation), dim=-1), self.critic(observation)


class SACActor(nn.Module):
    """Haarnoja et al. 2018: observations normalised by running statistics; mean and clamped log deviation."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("var", torch.ones(7))
        self.fc1, self.fc2 = nn.Linear(7, 13), nn.Linear(13, 11)
        self.mu, self.log_std = nn.Linear(11, 3), nn.Linear(11, 3)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        x = ((observation - self.mean) / torch.sqrt(self.var + 1e-8)).clamp(-10, 10)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return torch.tanh(self.mu(x)), self.log_std(x).clamp(-5, 2)


class TwinQ(nn.Module):
    """Two critics of observation and action; the smaller value counts."""

    def __init__(self) -> None:
        super().__init__()
        self.q1, self.q2 = mlp(10, 13, 11, 1), mlp(10, 17, 19, 1)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat([observation, action], dim=-1)
        q1, q2 = self.q1(x), self.q2(x)
        return torch.minimum(q1, q2), q1, q2


class D2RL(nn.Module):
    """Sinha et al. 2020: the observation is concatenated to the input of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(7, 13), nn.Linear(20, 11), nn.Linear(18, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.fc1(observation)), observation], dim=1)
        return self.fc3(torch.cat([observation, F.relu(self.fc2(x))], dim=1))


class Selective(nn.Module):
    """Some of the features by their numbers, as where a policy sees less than its critic; and hidden units likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.q, self.value = (
            nn.Linear(4, 13),
            nn.Linear(13, 11),
            nn.Linear(11, 5),
            mlp(7, 17, 1),
        )

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.fc1(observation[:, [0, 1, 4, 5]]))
        x = F.relu(self.fc2(x[:, [*range(8, 13), *range(8)]]))
        return self.q(x), self.value(observation)


class CReLU(nn.Module):
    """Shang et al. 2016: each unit appears twice in the next layer's input, as relu(x) and relu(-x)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.q = nn.Linear(7, 13), nn.Linear(26, 11), nn.Linear(22, 5)

    def forward(self, observation: Tensor) -> Tensor:
        x = observation
        for layer in (self.fc1, self.fc2):
            x = F.relu(torch.cat([layer(x), -layer(x)], dim=1))
        return self.q(x)


class Gated(nn.Module):
    """A gated linear unit, then a chunked SiLU gate (SwiGLU): one layer makes both values and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gate1, self.gate2, self.q = nn.Linear(7, 26), nn.Linear(13, 22), nn.Linear(11, 5)

    def forward(self, observation: Tensor) -> Tensor:
        value, gate = self.gate2(F.glu(self.gate1(observation), dim=-1)).chunk(2, dim=-1)
        return self.q(value * F.silu(gate))


class MixtureOfExperts(nn.Module):
    """A softmax over three experts weighs what they answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(7, 11), nn.Linear(11, 3)
        self.experts = nn.ModuleList(mlp(11, width, 5) for width in (13, 17, 19))

    def forward(self, observation: Tensor) -> Tensor:
        x = torch.tanh(self.embed(observation))
        weights = self.gate(x).softmax(dim=1)
        return sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class HeadEnsemble(nn.Module):
    """The mean of three heads of different widths on one trunk (bootstrapped DQN)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(7, 13)
        self.heads = nn.ModuleList(mlp(13, width, 5) for width in (7, 11, 17))

    def forward(self, observation: Tensor) -> Tensor:
        x = F.relu(self.trunk(observation))
        return torch.stack([head(x) for head in self.heads]).mean(0)


class MultiDiscrete(nn.Module):
    """One layer of logits, split into three action components."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.logits = mlp(7, 13, 11), nn.Linear(11, 10)

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        return torch.split(self.logits(F.relu(self.trunk(observation))), [3, 5, 2], dim=1)


class QRDQN(nn.Module):
    """Dabney et al. 2018: 17 quantiles for each of 4 actions; values are their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 5, 3), nn.Linear(180, 11), nn.Linear(11, 68)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        quantiles = self.head(F.relu(self.fc(F.relu(self.conv(frames)).flatten(1)))).view(-1, 4, 17)
        return quantiles.mean(dim=2), quantiles


class EmbeddingPool(nn.Module):
    """Tokens [B, 6] -> embeddings, their mean, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(19, 11), mlp(11, 13, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.embedding(tokens).mean(dim=1))


def batchnorm_mlp() -> nn.Module:
    """CrossQ's batch-normalised layers, in evaluation mode."""
    first, second = (nn.Linear(7, 13), nn.BatchNorm1d(13)), (nn.Linear(13, 11), nn.BatchNorm1d(11))
    return nn.Sequential(nn.BatchNorm1d(7), *first, nn.ReLU(), *second, nn.ReLU(), nn.Linear(11, 5))


def weight_norm_mlp() -> nn.Module:
    """Salimans and Kingma 2016: direction and length of every row are parameters."""
    layers = [weight_norm(nn.Linear(i, o)) for i, o in ((7, 13), (13, 11), (11, 5))]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


WIDTHS = {"0": 13, "2": 11}

DENSE: tuple[Net, ...] = (
    *(Net(f"mlp_{name}", functools.partial(mlp, 7, 13, 11, 5, activation=kind), OBSERVATION, ("q",), WIDTHS)
      for name, kind in ACTIVATIONS.items()),
    Net("actor_critic", ActorCritic, OBSERVATION, ("log_probability", "value"),
        {"actor.0": 13, "actor.2": 11, "critic.0": 17, "critic.2": 19}),
    Net("sac_actor", SACActor, OBSERVATION, ("action_mean", "log_std"), {"fc1": 13, "fc2": 11}),
    Net("sac_twin_q", TwinQ, {"observation": ("batch", 7), "action": ("batch", 3)},
        ("least", "value1", "value2"), {"q1.0": 13, "q1.2": 11, "q2.0": 17, "q2.2": 19}),
    Net("d2rl", D2RL, OBSERVATION, ("q",), {"fc1": 13, "fc2": 11}),
    Net("selective", Selective, OBSERVATION, ("q", "value"),
        {"fc1:last": 5, "fc1:first": 8, "fc2": 11, "value.0": 17}, frozenset({"indexed"})),
    Net("crelu", CReLU, OBSERVATION, ("q",), {"fc1": 13, "fc2": 11}),
    Net("gated", Gated, OBSERVATION, ("q",), {"gate1:units": 13, "gate2:units": 11}, CORE | {"gating"}),
    Net("mixture_of_experts", MixtureOfExperts, OBSERVATION, ("q",),
        {"embed": 11, "experts.0.0": 13, "experts.1.0": 17, "experts.2.0": 19}, CORE | {"gating"}),
    Net("head_ensemble", HeadEnsemble, OBSERVATION, ("q",),
        {"trunk": 13, "heads.0.0": 7, "heads.1.0": 11, "heads.2.0": 17}),
    Net("multi_discrete", MultiDiscrete, OBSERVATION, ("move", "turn", "fire"),
        {"trunk.0": 13, "trunk.2": 11}),
    Net("qr_dqn", QRDQN, {"frames": ("batch", 3, 8, 8)}, ("q", "quantiles"), {"conv": 5, "fc": 11}),
    Net("embedding_pool", EmbeddingPool, {"tokens": ("batch", 6)}, ("q",), {"embedding": 11, "mlp.0": 13},
        ranges={"tokens": Range("int64", 0, 19)}),
    Net("batchnorm_mlp", batchnorm_mlp, OBSERVATION, ("q",), {"1": 13, "4": 11}),
    Net("weight_norm_mlp", weight_norm_mlp, OBSERVATION, ("q",), WIDTHS, frozenset({"weight_norm"})),
)  # fmt: skip
