"""Networks as training scripts define them, the checkpoints that those scripts save, and what the networks answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

State = dict[str, torch.Tensor]
Answers = Callable[[nn.Module, torch.Tensor], dict[str, torch.Tensor]]


class TanhActorCritic(nn.Module):
    """CleanRL, ppo.py"""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1))
        self.actor = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class PolicyAndValue(nn.Module):
    """skrl: two models, one optimizer"""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        self.value = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


class ContinuousActorCritic(nn.Module):
    """CleanRL, ppo_continuous_action.py"""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        self.actor_mean = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
        self.actor_logstd = nn.Parameter(torch.tensor([[-0.5, 0.25]]))


class EluActorCritic(nn.Module):
    """rsl_rl, ActorCritic: the deviation itself is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor([0.5, 1.5]))
        self.actor = nn.Sequential(nn.Linear(5, 9), nn.ELU(), nn.Linear(9, 8), nn.ELU(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(5, 9), nn.ELU(), nn.Linear(9, 1))


class SacActor(nn.Module):
    """CleanRL, sac_continuous_action.py, without the squashing"""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 12), nn.Linear(12, 12)
        self.fc_mean, self.fc_logstd = nn.Linear(12, 2), nn.Linear(12, 2)
        self.register_buffer("action_scale", torch.ones(2))

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc2(torch.relu(self.fc1(x))))


class Tianshou(nn.Module):
    """tianshou: an actor with a network before its last layer"""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = nn.Module()
        self.preprocess.model = nn.Module()
        self.preprocess.model.model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU())
        self.last = nn.Module()
        self.last.model = nn.Sequential(nn.Linear(7, 3))


class Normalised(nn.Module):
    """Layer norm before the activation, batch norm on the next layer"""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Sequential(
            nn.Linear(5, 8),
            nn.LayerNorm(8),
            nn.SiLU(),
            nn.Linear(8, 7),
            nn.BatchNorm1d(7),
            nn.SiLU(),
            nn.Linear(7, 3),
        )


class TwoQ(nn.Module):
    """An agent that holds its target network"""

    def __init__(self) -> None:
        super().__init__()
        self.q_network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        self.target_network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


class OnlineOnly(TwoQ):
    """Code that computes one of the two"""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.q_network(observation)


class Sequence(nn.Module):
    """CleanRL, dqn.py"""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class NatureActorCritic(nn.Module):
    """CleanRL, ppo_atari.py, with fewer channels"""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(4, 5, 8, 4), nn.ReLU(), nn.Conv2d(5, 6, 4, 2), nn.ReLU(), nn.Conv2d(6, 7, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(7 * 7 * 7, 12), nn.ReLU(),
        )  # fmt: skip
        self.actor, self.critic = nn.Linear(12, 4), nn.Linear(12, 1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(torch.relu(self.conv0(torch.relu(x)))) + x


class ConvSequence(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.res_block0, self.res_block1 = ResidualBlock(after), ResidualBlock(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)
        return self.res_block1(self.res_block0(x))


class Impala(nn.Module):
    """CleanRL, qdagger_dqn_atari_impalacnn.py, with fewer channels"""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            ConvSequence(4, 3), ConvSequence(3, 4), ConvSequence(4, 5), nn.Flatten(), nn.ReLU(),
            nn.Linear(5 * 11 * 11, 12), nn.ReLU(), nn.Linear(12, 4),
        )  # fmt: skip


class ImpalaActorCritic(nn.Module):
    """CleanRL, ppo_procgen.py, with fewer channels"""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            ConvSequence(4, 3), ConvSequence(3, 4), ConvSequence(4, 5), nn.Flatten(), nn.ReLU(),
            nn.Linear(5 * 11 * 11, 12), nn.ReLU(),
        )  # fmt: skip
        self.actor, self.critic = nn.Linear(12, 4), nn.Linear(12, 1)


class Residual(nn.Module):
    """What no state dict tells: a residual branch, an activation that is nowhere else, two heads"""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(5, width), nn.Linear(width, width)
        self.policy, self.value = nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.softsign(self.first(observation))
        x = x + nn.functional.gelu(self.branch(x))
        return self.policy(x), self.value(x)


@dataclasses.dataclass(frozen=True)
class Row:
    """A network, its file, and what it answers.

    Attributes:
      network: its class. answers: outputs by the names that ours have.
      content: what is saved: of the module, a module like it, and its optimizer.
      suffix: of the file. activation: what a person has to say.
      optimizer: of the training.
      image: whether it reads images of 84×84 with values up to 255.
    """

    network: Callable[[], nn.Module]
    answers: Answers
    content: Callable[[nn.Module, nn.Module, torch.optim.Optimizer], object]
    suffix: str = ".pt"
    activation: str | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    image: bool = False

    def make(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        """The network after three updates with random gradients, one like it, and the optimizer."""
        torch.manual_seed(0)
        net, other = self.network().eval(), self.network().eval()
        optimizer = self.optimizer(net.parameters(), lr=1e-3)
        for _ in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return net, other, optimizer

    def save(self, folder: Path) -> tuple[Path, nn.Module, nn.Module, torch.optim.Optimizer]:
        """Write the file."""
        made = self.make()
        path = folder / f"file{self.suffix}"
        torch.save(self.content(*made), path)
        return (path, *made)

    def inputs(self) -> torch.Tensor:
        """A batch of observations."""
        torch.manual_seed(1)
        return torch.rand(6, 4, 84, 84).mul(255).round() if self.image else torch.randn(6, 5)


def _bare(net: nn.Module, other: nn.Module, optimizer: torch.optim.Optimizer) -> object:
    return net.state_dict()


def _model(net: nn.Module, other: nn.Module, optimizer: torch.optim.Optimizer) -> object:
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 3,
        "rng": torch.get_rng_state(),
    }


ROWS: Mapping[str, Row] = {
    "cleanrl ppo": Row(
        TanhActorCritic, lambda m, x: {"logits": m.actor(x), "value": m.critic(x)}, _bare, ".cleanrl_model"
    ),
    "cleanrl ppo atari": Row(
        NatureActorCritic,
        lambda m, x: {"logits": m.actor(m.network(x / 255)), "value": m.critic(m.network(x / 255))},
        _bare, ".cleanrl_model", image=True,
    ),
    "cleanrl dqn": Row(Sequence, lambda m, x: {"q_values": m.network(x)}, _bare, ".cleanrl_model"),
    "cleanrl impala": Row(
        Impala, lambda m, x: {"q_values": m.network(x / 255)}, _bare, ".cleanrl_model", image=True,
    ),
    "cleanrl impala ppo": Row(
        ImpalaActorCritic,
        lambda m, x: {"logits": m.actor(m.network(x / 255)), "value": m.critic(m.network(x / 255))},
        _bare, ".cleanrl_model", image=True,
    ),
    "impala and target": Row(
        Impala,
        lambda m, x: {"q_values": m.network(x / 255)},
        lambda net, other, optimizer: {"model": net.state_dict(), "target": other.state_dict()},
        image=True,
    ),
    "cleanrl sac": Row(
        SacActor,
        lambda m, x: {"mean": m.fc_mean(m.trunk(x)), "action_log_std": m.fc_logstd(m.trunk(x))},
        _bare, ".cleanrl_model",
    ),
    "cleanrl continuous": Row(
        ContinuousActorCritic,
        lambda m, x: {
            "mean": m.actor_mean(x), "value": m.critic(x), "action_log_std": m.actor_logstd.expand(len(x), 2)},
        _model, activation="tanh",
    ),
    "model and target": Row(
        Sequence,
        lambda m, x: {"q_values": m.network(x)},
        lambda net, other, optimizer: {
            "target": other.state_dict(), "model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3},
        activation="relu",
    ),
    "target within": Row(
        TwoQ, lambda m, x: {"q_values": m.q_network(x), "q_values_target_network": m.target_network(x)}, _model,
        activation="ReLU",
    ),
    "rsl_rl": Row(
        EluActorCritic,
        lambda m, x: {"mean": m.actor(x), "value": m.critic(x), "action_log_std": m.std.log().expand(len(x), 2)},
        lambda net, other, optimizer: {
            "model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "iter": 7,
            "infos": None},
        activation="elu", optimizer=torch.optim.AdamW,
    ),
    "tianshou": Row(
        Tianshou, lambda m, x: {"q_values": m.last.model(m.preprocess.model.model(x))}, _model, ".pth", "relu",
        torch.optim.RMSprop,
    ),
    "normalised": Row(Normalised, lambda m, x: {"q_values": m.q(x)}, _model, activation="silu"),
    "skrl": Row(
        PolicyAndValue,
        lambda m, x: {"logits": m.policy(x), "value": m.value(x)},
        lambda net, other, optimizer: {
            "policy": net.policy.state_dict(), "value": net.value.state_dict(),
            "optimizer": optimizer.state_dict(),
            "observation_preprocessor": {
                "running_mean": torch.zeros(5).double(), "running_variance": torch.ones(5).double(),
                "current_count": torch.tensor(1.0).double()},
        },
        activation="tanh",
    ),
}  # fmt: skip
