"""`--architecture NAME`: a state dict whose network a person names is that network, whatever its layers are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import ArgumentError, Refused, UnknownName
from surgery.verify.outputs import runtime


class Nature(nn.Module):
    """Names that say nothing, and heads that are made first"""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(12, 1)
        self.one, self.two, self.three = nn.Conv2d(4, 8, 8, 4), nn.Conv2d(8, 16, 4, 2), nn.Conv2d(16, 16, 3)
        self.hidden, self.pi = nn.Linear(16 * 49, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        x = relu(self.three(relu(self.two(relu(self.one(x / 255))))))
        x = relu(self.hidden(x.flatten(1)))
        return {"logits": self.pi(x), "value": self.v(x)}


class Rainbow(nn.Module):
    """Streams side by side, of one shape: their names say which is which."""

    def __init__(self, value: str = "fc_h_v", advantage: str = "fc_h_a") -> None:
        super().__init__()
        self.names = (advantage, value, "fc_z_a", "fc_z_v")
        self.trunk = nn.Linear(5, 7)
        for name, (width, out) in zip(self.names, ((7, 6), (7, 6), (6, 3), (6, 1)), strict=True):
            self.add_module(name, nn.Linear(width, out))

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        x = relu(self.trunk(x))
        one, two, three, four = (self.get_submodule(name) for name in self.names)
        a, v = three(relu(one(x))), four(relu(two(x)))
        return {"q_values": v + a - a.mean(1, keepdim=True)}


class Stage(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(after, after, 3, padding=1) for _ in range(2)) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = max_pool2d(self.first(x), 3, 2, 1)
        for one, two in self.blocks:
            x = x + two(relu(one(relu(x))))
        return x


class Impala(nn.Module):
    """Residual blocks in names of their own"""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Stage(3, 4), Stage(4, 8), Stage(8, 8))
        self.dense, self.q = nn.Linear(8 * 64, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"q_values": self.q(relu(self.dense(relu(self.stages(x / 255)).flatten(1))))}


class Recurrent(nn.Module):
    """A core of PyTorch's own, its state zero"""

    def __init__(self, core: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.pi, self.encoder, self.core, self.v = (
            nn.Linear(16, 3), nn.Linear(5, 12), core(12, 16), nn.Linear(16, 1))  # fmt: skip

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        y, after = self.core(relu(self.encoder(x))[None])
        states = after if isinstance(after, tuple) else (after,)
        named = {f"{name}_next": value[0] for name, value in zip(("hidden", "cell"), states, strict=False)}
        return {"logits": self.pi(y[0]), "value": self.v(y[0]), **named}


class Gaussian(nn.Module):
    """A deviation that no observation changes"""

    def __init__(self) -> None:
        super().__init__()
        self.actor_logstd = nn.Parameter(torch.tensor([[-0.5, 0.25]]))
        self.body, self.mu, self.vf = nn.Linear(5, 9), nn.Linear(9, 2), nn.Linear(9, 1)

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        x = torch.tanh(self.body(x))
        return {"mean": self.mu(x), "value": self.vf(x), "log_std": self.actor_logstd.expand(len(x), 2)}


@dataclass(frozen=True)
class Row:
    network: Callable[[], nn.Module]
    architecture: str
    shape: tuple[int, ...] = (5,)
    observation: tuple[int, ...] | None = None


ROWS: Mapping[str, Row] = {
    "nature": Row(Nature, "nature-x0.25-fc12", (4, 84, 84)),
    "impala, images of another size": Row(Impala, "impala-x0.25-fc12", (3, 64, 64), (3, 64, 64)),
    "dueling": Row(Rainbow, "mlp-7-6"),
    "lstm": Row(lambda: Recurrent(nn.LSTM), "lstm-16-fc12"),
    "gru": Row(lambda: Recurrent(nn.GRU), "gru-16-fc12"),
    "gaussian": Row(Gaussian, "mlp-9-tanh"),
}


def made(row: Row) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net, other = row.network(), row.network()
    optimizer = torch.optim.Adam(net.parameters())
    sum(value.square().sum() for value in net(inputs(row)).values()).backward()
    optimizer.step()
    return net, other, optimizer


def inputs(row: Row) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(3, *row.shape) * (255 if len(row.shape) == 3 else 1)


def answers(checkpoint: surgery.Checkpoint, x: torch.Tensor) -> Mapping[str, np.ndarray]:
    zeros = {
        value.name: np.zeros((len(x), value.shape[1]), np.float32)
        for value in checkpoint.model.graph.inputs if value.name != "observation"
    }  # fmt: skip
    return runtime(checkpoint.model)({"observation": x.numpy(), **zeros})


@pytest.mark.parametrize("name", ROWS)
def test_the_named_architecture_with_the_files_weights_is_the_network_and_its_target(tmp_path, name):
    row = ROWS[name]
    net, target, optimizer = made(row)
    content = {"model": net.state_dict(), "target": target.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "x.pt")
    reading = Reading(architecture=row.architecture, observation=row.observation)
    checkpoint = surgery.load(tmp_path / "x.pt", reading=reading)
    x = inputs(row)
    found = answers(checkpoint, x)
    with torch.no_grad():
        for suffix, network in (("", net), ("_target", target)):
            for key, wanted in network(x).items():
                np.testing.assert_allclose(found[f"{key}{suffix}"], wanted, atol=2e-6)
    assert checkpoint.copies == {"target.": ""}
    assert set(checkpoint.optimizer.slots["exp_avg"]) == {key for key, _ in net.named_parameters()}


@pytest.mark.parametrize("name", ROWS)
def test_it_goes_back_wider_under_its_own_names(tmp_path, name):
    row = ROWS[name]
    net, _, optimizer = made(row)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}, tmp_path / "x.pt")
    reading = Reading(architecture=row.architecture, observation=row.observation)
    checkpoint = surgery.load(tmp_path / "x.pt", reading=reading)
    result = surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint)
    result.save(tmp_path / "wide.pt")
    after = torch.load(tmp_path / "wide.pt", weights_only=True)
    assert list(after["model"]) == list(net.state_dict())
    assert after["step"] == 7
    assert any(after["model"][key].shape != value.shape for key, value in net.state_dict().items())
    moments = [state["exp_avg"].shape for state in after["optimizer"]["state"].values()]
    assert moments == [after["model"][key].shape for key, _ in net.named_parameters()]
    if "-x" not in row.architecture:  # read again, under the name of what it has become
        numbers = row.architecture.split("-")
        wide = "-".join(str(2 * int(n)) if n.isdecimal() else n.replace("fc12", "fc24") for n in numbers)
        again = surgery.load(tmp_path / "wide.pt", reading=Reading(architecture=wide))
        x = inputs(row)
        before, now = answers(checkpoint, x), answers(again, x)
        for key in ("q_values", "logits", "mean"):
            if key in before:
                np.testing.assert_allclose(now[key], before[key], atol=2e-6)


def test_names_that_were_sorted_are_put_in_order_by_their_numbers(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.ReLU())), nn.Linear(5, 2))
    save_file(dict(sorted(net.state_dict().items())), tmp_path / "x.safetensors")
    reading = Reading(architecture="mlp-5-5-5-5-5-5")
    x = torch.randn(4, 5)
    found = answers(surgery.load(tmp_path / "x.safetensors", reading=reading), x)
    np.testing.assert_allclose(found["q_values"], net(x).detach(), atol=1e-6)


REFUSED: Mapping[str, tuple[Callable[[], object], Reading, type[Exception], tuple[str, ...]]] = {
    "other widths": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3)).state_dict(),
        Reading(architecture="mlp-8-8"), ArgumentError, ("is not 'mlp-8-8'", "fc2 [8, 8] [8]", "4 [3, 9] [3]")),
    "no layer in common": (
        lambda: nn.Linear(5, 8).state_dict(), Reading(architecture="mlp-64"), ArgumentError,
        ("no layer that could be the first or the last", "weight [8, 5]")),
    "a layer more": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 8), nn.Linear(8, 3)).state_dict(),
        Reading(architecture="mlp-8-8"), ArgumentError, ("is not 'mlp-8-8'", "fc2 [8, 8] [8]", "[8, 7] [8]")),
    "no such name": (
        lambda: nn.Linear(5, 8).state_dict(), Reading(architecture="natur"), UnknownName, ("nature",)),
    "no such head": (
        lambda: nn.Linear(5, 8).state_dict(), Reading(architecture="mlp-8", head="qq"), UnknownName, ("qr",)),
    "atoms or many actions": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 102)).state_dict(),
        Reading(architecture="mlp-8"), ArgumentError, ("q, c51", "--head")),
    "code and a name": (
        lambda: nn.Linear(5, 8).state_dict(), Reading(architecture="mlp-8", module="a:b"), ArgumentError, ("both",)),
    "two networks": (
        lambda: {"policy": nn.Linear(5, 8).state_dict(), "value": nn.Linear(5, 1).state_dict()},
        Reading(architecture="mlp-8"), ArgumentError, ("policy, value", "--module")),
    "streams without words": (
        lambda: Rainbow("left", "right").state_dict(), Reading(architecture="mlp-7-6", head="dueling"),
        Refused, ("left", "--module")),
    "names that were sorted": (
        lambda: dict(sorted(nn.ModuleDict(
            {"in": nn.Linear(5, 6), "z": nn.Linear(6, 6), "a": nn.Linear(6, 6), "out": nn.Linear(6, 2)}
        ).state_dict().items())),
        Reading(architecture="mlp-6-6-6"), Refused, ("a, z",)),
    "entities": (
        lambda: nn.Linear(5, 8).state_dict(), Reading(architecture="transformer-128"), ArgumentError,
        ("--observation",)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_one_error_that_says_what_differs(tmp_path, what):
    make, reading, kind, words = REFUSED[what]
    torch.save(make(), tmp_path / "x.pt")
    with pytest.raises(kind) as caught:
        surgery.load(tmp_path / "x.pt", reading=reading)
    said = " ".join([caught.value.message, *caught.value.where.values(), caught.value.hint or ""])
    assert all(word in said for word in words), said


def test_a_head_that_sizes_do_not_tell_can_be_said(tmp_path, capsys):
    torch.save(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 102)).state_dict(), tmp_path / "x.pt")
    words = ["convert", str(tmp_path / "x.pt"), "--architecture", "mlp-8", "-o", str(tmp_path / "a.onnx")]
    assert main(words) == 2
    assert "--head" in capsys.readouterr().err
    assert main([*words, "--head", "c51"]) == 0
    found = surgery.load(tmp_path / "a.onnx")
    assert [port.kind for port in found.interface.outputs] == ["atom_logits"]
