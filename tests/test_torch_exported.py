"""TorchScript archives and exported programs: parameters are data, graphs are PyTorch's to load, if told so."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.adapters import Reading, find
from surgery.cli import main
from surgery.errors import ArgumentError, CorruptFile, Refused, SurgeryError
from surgery.verify.outputs import runtime

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Heads(nn.Module):
    """A residual branch, a buffer, two outputs"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(5, 8), nn.Linear(8, 8)
        self.policy, self.value = nn.Linear(8, 3), nn.Linear(8, 1)
        self.register_buffer("shift", torch.linspace(-1, 1, 5))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.first(observation - self.shift))
        x = x + torch.relu(self.branch(x))
        return self.policy(x), self.value(x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)
    )


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (plain, (5,)), "two heads": (Heads, (5,)), "images": (images, (3, 9, 9)),
}  # fmt: skip


def script(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, x).save(path)


def program(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)


def loaded(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()


WRITERS = {".pt": script, ".pt2": program}


def made(name: str, suffix: str, folder: Path) -> tuple[Path, nn.Module, torch.Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(4, *shape)
    path = folder / f"file{suffix}"
    WRITERS[suffix](net, x, path)
    return path, net, x


def same(ours: object, theirs: object) -> None:
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (ours, theirs)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trusted_file_is_its_graph_and_comes_back_wide_under_the_same_names(tmp_path, name, suffix):
    path, net, x = made(name, suffix, tmp_path)
    assert find(path)[0] == "torch_exported"
    checkpoint = surgery.load(path, reading=Reading(trust=True, observation=NETWORKS[name][1]))
    said = runtime(checkpoint.model)({checkpoint.interface.inputs[0].name: x.numpy()})
    wanted = net(x) if isinstance(net(x), tuple) else (net(x),)
    for ours, theirs in zip(said.values(), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
    result = surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint)
    result.save(tmp_path / f"wide{suffix}")
    wide = loaded(tmp_path / f"wide{suffix}")
    same(wide(x), net(x))
    same(wide(x[:1]), net(x[:1]))
    names = set(net.state_dict())
    assert set(wide.state_dict()) >= names - {"shift"}
    assert any(wide.state_dict()[key].shape != net.state_dict()[key].shape for key in names - {"shift"})
    again = surgery.load(
        tmp_path / f"wide{suffix}", reading=Reading(trust=True, observation=NETWORKS[name][1])
    )
    assert [step.operation for step in again.lineage] == ["widen"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_without_trust_parameters_are_data_and_the_network_is_told_like_that_of_a_state_dict(
    tmp_path, suffix
):
    path, net, x = made("dense", suffix, tmp_path)
    with pytest.raises(ArgumentError) as caught:
        surgery.load(path)
    assert "--trust" in caught.value.where["graph"]
    for reading in (Reading(activation="relu"), Reading(architecture="mlp-8")):
        said = runtime(surgery.load(path, reading=reading).model)({"observation": x.numpy()})
        np.testing.assert_allclose(said["q_values"], net(x).detach(), atol=1e-6)


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_numbers_are_written_into_the_file_and_its_graph_stays(tmp_path, suffix):
    path, net, x = made("dense", suffix, tmp_path)
    before = surgery.load(path, reading=Reading(activation="relu"))
    space = next(s.name for s in surgery.analyse(before.model, before.interface).spaces if s.widenable)
    result = surgery.apply(surgery.permute(before, orders={space: list(reversed(range(8)))}), before)
    result.save(tmp_path / f"turned{suffix}")
    turned = loaded(tmp_path / f"turned{suffix}")
    same(turned(x), net(x))
    assert torch.equal(turned.state_dict()["0.weight"], net.state_dict()["0.weight"].flip(0))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / f"turned{suffix}") as new:
        graph = [name for name in old.namelist() if "/code/" in name or name.endswith("model.json")]
        assert graph and all(old.read(name) == new.read(name) for name in graph)


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_widths_need_the_files_own_graph(tmp_path, suffix):
    path, *_ = made("dense", suffix, tmp_path)
    before = surgery.load(path, reading=Reading(activation="relu"))
    result = surgery.apply(surgery.widen(before, factor=2), before)
    with pytest.raises(Refused) as caught:
        result.save(tmp_path / f"wide{suffix}")
    assert "--trust" in caught.value.hint
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_command_line_goes_there_and_back(tmp_path, capsys, suffix):
    path, net, x = made("dense", suffix, tmp_path)
    graph, wide, back = (str(tmp_path / name) for name in ("a.onnx", "w.onnx", f"b{suffix}"))
    assert main(["convert", str(path), "--trust", "-o", graph]) == 0, capsys.readouterr().err
    assert main(["widen", graph, "--factor", "2", "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(path), "-o", back]) == 0, capsys.readouterr().err
    same(loaded(Path(back))(x), net(x))


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """The archive with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members.items():
            if (found := change(info.filename, content)) is not None:
                archive.writestr(found[0], found[1], info.compress_type)


def table(**changes: object) -> Callable[[str, bytes], tuple[str, bytes]]:
    """The table of weights with another entry for the first of them."""

    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if not name.endswith("model_weights_config.json"):
            return name, content
        held = json.loads(content)
        entry = held["config"]["0.weight"]
        for key, value in changes.items():
            (entry["tensor_meta"] if key in entry["tensor_meta"] else entry)[key] = value
        return name, json.dumps(held).encode()

    return change


HOSTILE: Mapping[str, tuple[str, Callable[[str, bytes], tuple[str, bytes] | None]]] = {
    "a weight elsewhere": (".pt2", table(path_name="../../../etc/passwd")),
    "a weight as a pickle": (".pt2", table(use_pickle=True)),
    "a weight of no type": (".pt2", table(dtype=99)),
    "a weight of another size": (".pt2", table(sizes=[{"as_int": 1 << 40}, {"as_int": 5}])),
    "a weight of negative size": (".pt2", table(sizes=[{"as_int": -8}, {"as_int": -5}])),
    "a weight with other strides": (".pt2", table(strides=[{"as_int": 1}, {"as_int": 8}])),
    "sizes that are text": (".pt2", table(sizes="8×5")),
    "a table that is no JSON": (".pt2", lambda n, c: (n, b"{" if n.endswith("weights_config.json") else c)),
    "a table that is a list": (".pt2", lambda n, c: (n, b"[]" if n.endswith("weights_config.json") else c)),
    "no table": (".pt2", lambda n, c: None if n.endswith("weights_config.json") else (n, c)),
    "notes that are no JSON": (
        ".pt2", lambda n, c: ("e/extra/surgery.json", b"{") if n.endswith("_format") else (n, c)),
    "a pickle that is cut": (".pt", lambda n, c: (n, c[:40] if n.endswith("/data.pkl") else c)),
    "a pickle that is a number": (".pt", lambda n, c: (n, b"\x80\x02K\x01." if n.endswith("/data.pkl") else c)),
    "a storage that is cut": (".pt", lambda n, c: (n, c[:8] if n.endswith("/data/0") else c)),
    "no storage": (".pt", lambda n, c: None if n.endswith("/data/0") else (n, c)),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_damaged_file_is_one_clear_error(tmp_path, what):
    suffix, change = HOSTILE[what]
    path, *_ = made("dense", suffix, tmp_path)
    rewritten(path, change)
    with pytest.raises(SurgeryError) as caught:
        surgery.load(path, reading=Reading(activation="relu"))
    assert caught.value.message and "\n" not in caught.value.message


def test_code_that_expands_is_refused_before_it_does(tmp_path):
    path, *_ = made("dense", ".pt", tmp_path)
    bomb = bytes(1 << 25)  # three of them
    rewritten(
        path, lambda name, content: (name, bomb if "/code/" in name and name.endswith(".py") else content)
    )
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CorruptFile, match="64 MiB"):
        surgery.load(path, reading=Reading(activation="relu"))
