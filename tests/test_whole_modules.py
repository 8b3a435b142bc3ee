"""Whole modules (`torch.save(model)`) are read as data and written back as modules that torch loads, and runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import ArgumentError, CorruptFile, Refused, SurgeryError
from surgery.verify.outputs import runtime
from tests.torch_models import NatureActorCritic, Residual, Sequence

SEQUENCES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (5,), "auto"),
    "activations with settings": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.LeakyReLU(0.3), nn.Linear(8, 7), nn.ELU(0.7), nn.Linear(7, 6), nn.GELU("tanh"),
            nn.Linear(6, 6), nn.Hardtanh(-0.5, 2.0), nn.Linear(6, 5), nn.ReLU6(), nn.Linear(5, 5), nn.Softsign(),
            nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 3)), (5,), "auto"),
    "activations without": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 7), nn.Mish(), nn.Linear(7, 6), nn.SELU(), nn.Linear(6, 5),
            nn.Sigmoid(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,), "auto"),
    "sequences in sequences": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Dropout(0.5),
            nn.Sequential(nn.Identity(), nn.Linear(8, 6, bias=False), nn.ReLU()), nn.Linear(6, 3)), (5,), "auto"),
    "normalised": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.LayerNorm(8, eps=1e-3), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6, eps=1e-2),
            nn.ReLU(), nn.Linear(6, 3)), (5,), "net2net"),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 8, (3, 2), dilation=(1, 2), padding="same"), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(72, 6), nn.ReLU(),
            nn.Linear(6, 3)), (3, 24, 24), "auto"),
    "signals": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)), (2, 10), "auto"),
}  # fmt: skip


def trained(net: nn.Module, x: torch.Tensor) -> torch.optim.Optimizer:
    """Statistics, and an optimizer that has made a step."""
    optimizer = torch.optim.Adam(net.parameters())
    net.train()(x).square().sum().backward()
    optimizer.step()
    net.eval()
    return optimizer


def trust(path: Path) -> object:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_is_the_graph_and_comes_back_wide_as_a_module(tmp_path, name):
    make, shape, init = SEQUENCES[name]
    torch.manual_seed(0)
    net, target, x = make(), make(), torch.randn(6, *shape)
    optimizer = trained(net, x)
    trained(target, x)
    torch.save(
        {"model": net, "target": target, "optimizer": optimizer.state_dict(), "n": 3}, tmp_path / "x.pt"
    )
    checkpoint = surgery.load(tmp_path / "x.pt", reading=Reading(observation=shape))
    found = runtime(checkpoint.model)({"observation": x.numpy()})
    np.testing.assert_allclose(found["q_values"], net(x).detach(), atol=1e-5)
    np.testing.assert_allclose(found["q_values_target"], target(x).detach(), atol=1e-5)
    surgery.apply(surgery.widen(checkpoint, factor=2, init=init), checkpoint).save(tmp_path / "wide.pt")
    wide = trust(tmp_path / "wide.pt")
    for key, old in (("model", net), ("target", target)):
        new = wide[key]
        assert {str(layer) for layer in new.modules()} != {str(layer) for layer in old.modules()}
        torch.testing.assert_close(new(x), old(x), atol=1e-5, rtol=1e-4)
        for layer in new.modules():  # what a layer remembers is what one made with these sizes does
            if isinstance(layer, nn.Linear):
                assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
            if isinstance(layer, nn.Conv1d | nn.Conv2d):
                assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                assert layer.running_var.shape == (layer.num_features,)
            if isinstance(layer, nn.LayerNorm):
                assert layer.weight.shape == layer.normalized_shape
    again = torch.optim.Adam(wide["model"].parameters())
    again.load_state_dict(wide["optimizer"])
    wide["model"](x).sum().backward()
    again.step()
    assert {float(state["step"]) for state in again.state.values()} == {2.0}
    assert wide["n"] == 3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (nn.Conv2d, {"padding": 1, "dilation": (2, 1)}),
        (nn.Conv2d, {"padding": "same"}),
        (nn.Conv2d, {"padding": "valid", "stride": 2}),
        (nn.Conv2d, {"padding": 1, "padding_mode": "circular"}),
        (nn.Conv2d, {"padding": 1, "groups": 2}),
        (nn.ConvTranspose2d, {"padding": 1, "stride": 2}),
    ],
)
def test_a_larger_kernel_comes_back_with_the_padding_that_it_needs(tmp_path, kind, settings):
    torch.manual_seed(0)
    net, x = nn.Sequential(kind(4, 6, 3, **settings), nn.Tanh(), nn.Flatten()), torch.randn(2, 4, 9, 9)
    net.append(nn.Linear(net(x).shape[1], 3))
    torch.save(net, tmp_path / "x.pt")
    checkpoint = surgery.load(tmp_path / "x.pt", reading=Reading(observation=(4, 9, 9), trust=True))
    surgery.apply(surgery.grow_kernel(checkpoint, {"0": (5, 7)}), checkpoint).save(tmp_path / "large.pt")
    large = trust(tmp_path / "large.pt")
    assert large[0].weight.shape[2:] == large[0].kernel_size == (5, 7)
    torch.testing.assert_close(large(x), net(x))
    with torch.no_grad():
        large[0].weight += 0.1  # as after training: new taps read what lies around
    made = kind(4, 6, (5, 7), **settings | {"padding": large[0].padding})
    made.load_state_dict(large[0].state_dict())
    torch.testing.assert_close(large[0](x), made(x))


class Grouped(nn.Module):
    """Averages per group: no number of the file says how many groups there are at another width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Attentive(nn.Module):
    """Attention as a layer of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


@pytest.mark.parametrize(
    ("make", "shape", "change", "reason"),
    [
        (Grouped, (3, 6, 6), lambda c: surgery.widen(c, factor=2, init="net2net"), "GroupNorm of another width"),
        (Grouped, (3, 6, 6), lambda c: surgery.grow_kernel(c, {"conv": 4}), "pads both sides alike"),
        (Attentive, (4, 5), lambda c: surgery.widen(c, factor=2), "MultiheadAttention of another width"),
    ],
)  # fmt: skip
def test_what_no_setting_of_a_layer_can_follow_is_refused(tmp_path, make, shape, change, reason):
    torch.save(make().eval(), tmp_path / "x.pt")
    checkpoint = surgery.load(tmp_path / "x.pt", reading=Reading(observation=shape, trust=True))
    with pytest.raises(Refused, match=reason):
        surgery.apply(change(checkpoint), checkpoint).save(tmp_path / "y.pt")
    assert not (tmp_path / "y.pt").exists()


def test_a_bare_module_that_is_not_changed_is_the_same_module(tmp_path):
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(net, tmp_path / "x.pt")
    surgery.save(surgery.load(tmp_path / "x.pt"), tmp_path / "copy.pt")
    old, new = trust(tmp_path / "x.pt"), trust(tmp_path / "copy.pt")
    assert str(old) == str(new)
    assert all(torch.equal(old.state_dict()[key], value) for key, value in new.state_dict().items())


def test_a_module_of_ones_own_gives_its_sequences_and_says_what_is_only_in_its_code(tmp_path):
    torch.manual_seed(0)
    net, x = NatureActorCritic(), torch.rand(3, 4, 84, 84) * 255
    torch.save(net, tmp_path / "x.pt")
    found = runtime(surgery.load(tmp_path / "x.pt").model)({"observation": x.numpy()})
    np.testing.assert_allclose(found["logits"], net.actor(net.network(x / 255)).detach(), atol=1e-5)
    torch.save(Residual(), tmp_path / "y.pt")
    with pytest.raises(SurgeryError) as caught:
        surgery.load(tmp_path / "y.pt")
    assert isinstance(caught.value, ArgumentError | Refused)


class Unlike(nn.Module):
    def __init__(self, network: nn.Module, **others: object) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(6, 3)
        self.others = others


ASKED: Mapping[str, Callable[[], nn.Module]] = {
    "a list": lambda: Unlike(nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6)])),
    "a trunk without an activation at its end": lambda: Unlike(nn.Sequential(nn.Linear(5, 6))),
    "a layer without a rule": lambda: Unlike(nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1))),
    "a setting without a rule": lambda: nn.Sequential(nn.Linear(5, 6), nn.Softplus(2.0), nn.Linear(6, 3)),
    "a recurrence": lambda: Unlike(nn.LSTM(5, 6)),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_only_the_code_says_is_asked_for(tmp_path, what):
    torch.save(ASKED[what](), tmp_path / "x.pt")
    with pytest.raises(Refused) as caught:
        surgery.load(tmp_path / "x.pt", reading=Reading(activation="relu"))
    assert "--module" in caught.value.hint


@pytest.mark.parametrize("words", [["--trust"], ["--module", "tests.torch_models:Residual"]])
def test_the_code_is_run_only_where_a_person_says_so(tmp_path, capsys, words):
    torch.manual_seed(0)
    net = Residual()
    torch.save({"model": net, "epoch": 3}, tmp_path / "x.pt")
    graph, wide, back = (str(tmp_path / name) for name in ("a.onnx", "w.onnx", "w.pt"))
    assert main(["convert", str(tmp_path / "x.pt"), "-o", graph]) in (1, 2)
    assert main(["convert", str(tmp_path / "x.pt"), *words, "-o", graph]) == 0, capsys.readouterr().err
    assert main(["widen", graph, "--factor", "2", "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(tmp_path / "x.pt"), "-o", back]) == 0, capsys.readouterr().err
    new, x = trust(tmp_path / "w.pt")["model"], torch.randn(5, 5)
    assert (new.first.out_features, new.branch.in_features) == (16, 16)
    for ours, theirs in zip(new(x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("words", [["--trust"], ["--module", "code_from_here:Own"]])
def test_code_is_found_in_the_folder_in_which_one_works(tmp_path, monkeypatch, capsys, words):
    (tmp_path / "code_from_here.py").write_text(
        "from torch import nn\nclass Own(nn.Linear):\n    def __init__(self): super().__init__(5, 3)\n"
    )
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        own = importlib.import_module("code_from_here").Own()
    torch.save({"model": own}, tmp_path / "x.pt")
    del sys.modules["code_from_here"]
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "x.pt", *words, "--observation", "5", "-o", "a.onnx"]) == 0, (
        capsys.readouterr().err
    )
    assert sys.modules.pop("code_from_here") and str(tmp_path) not in sys.path


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_a_trap_inside_a_module_is_carried_and_one_beside_it_is_refused_and_neither_runs(tmp_path):
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    net.hook = Trap(tmp_path / "trap")
    torch.save(net, tmp_path / "x.pt")
    checkpoint = surgery.load(tmp_path / "x.pt")
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "wide.pt")
    torch.save({"model": Sequence(), "hook": Trap(tmp_path / "trap")}, tmp_path / "y.pt")
    with pytest.raises(CorruptFile, match="which is not data"):
        surgery.load(tmp_path / "y.pt", reading=Reading(activation="relu"))
    assert not (tmp_path / "trap").exists()


def test_a_damaged_module_is_an_error_or_harmless_and_never_a_traceback(tmp_path):
    torch.save(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    start, end = content.index(b"ctorch.nn") if b"ctorch.nn" in content else 64, content.index(b"data/0")
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(content)
        for place in rng.integers(start, end, 1 + int(rng.integers(3))):
            broken[place] = rng.integers(256)
        (tmp_path / "y.pt").write_bytes(broken)
        try:
            checkpoint = surgery.load(tmp_path / "y.pt")
            surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "z.pt", force=True)
        except SurgeryError as error:
            assert "\n" not in error.message


def test_a_module_that_holds_itself_is_an_error(tmp_path):
    net = nn.Sequential(nn.Linear(5, 8))
    net.add_module("again", net)
    torch.save(net, tmp_path / "x.pt")
    with pytest.raises(CorruptFile, match="nested"):
        surgery.load(tmp_path / "x.pt")
