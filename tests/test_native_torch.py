"""PyTorch and CleanRL files: the graph of the names is the network, and torch loads what is written back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import surgery
from surgery.adapters import Reading
from surgery.cli import main
from surgery.errors import ArgumentError, Refused
from surgery.operate import preview
from surgery.storage import check_savable
from surgery.verify.outputs import runtime
from tests.test_pytorch_files import same
from tests.torch_models import ROWS, Residual, Row

BARE = {name for name in ROWS if "impala" in name or ("cleanrl" in name and name != "cleanrl continuous")}
"""Files without optimizer state."""


def load(row: Row, path: Path) -> surgery.Checkpoint:
    return surgery.load(path, reading=Reading(activation=row.activation))


def flat(content: object, path: tuple = ()) -> dict[tuple, object]:
    """Every number, text and tensor of a nested object, by its place."""
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {place: leaf for key, item in items for place, leaf in flat(item, (*path, key)).items()}
    return {path: content}


@pytest.mark.parametrize("name", ROWS)
def test_the_graph_computes_what_the_network_computes(tmp_path, name):
    row = ROWS[name]
    path, net, _, _ = row.save(tmp_path)
    x = row.inputs()
    with torch.no_grad():
        wanted = {key: value.numpy() for key, value in row.answers(net, x).items()}
    found = runtime(load(row, path).model)({"observation": x.numpy()})
    assert wanted.keys() <= found.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, rtol=1e-5)
        assert (found[key].argmax(1) == value.argmax(1)).all()


@pytest.mark.parametrize("name", [name for name in ROWS if name not in BARE])
def test_optimizer_state_is_under_the_parameters_names(tmp_path, name):
    row = ROWS[name]
    path, net, _, optimizer = row.save(tmp_path)
    state = load(row, path).optimizer
    names = [n for n, _ in net.named_parameters()]
    if name == "skrl":  # two networks: the second one's names have its own in front
        names = [n.removeprefix("policy.") for n in names]
    for full, parameter in zip(names, net.parameters(), strict=True):
        for slot, value in optimizer.state[parameter].items():
            assert state.steps[full] == 3 if slot == "step" else same(state.slots[slot][full], value)


@pytest.mark.parametrize("name", ROWS)
def test_a_copy_that_changes_nothing_holds_the_same_and_a_wide_one_only_what_was_touched(tmp_path, name):
    row = ROWS[name]
    path, *_ = row.save(tmp_path)
    before, checkpoint = flat(torch.load(path, weights_only=True)), load(row, path)
    surgery.save(checkpoint, tmp_path / f"copy{row.suffix}")
    copied = flat(torch.load(tmp_path / f"copy{row.suffix}", weights_only=True))
    assert list(before) == list(copied)
    assert all(
        torch.equal(a, copied[k]) if isinstance(a, torch.Tensor) else a == copied[k]
        for k, a in before.items()
    )
    init = "net2net" if name == "normalised" else "auto"
    plan = surgery.widen(checkpoint, factor=2, init=init)
    surgery.apply(plan, checkpoint).save(tmp_path / f"wide{row.suffix}")
    wide = flat(torch.load(tmp_path / f"wide{row.suffix}", weights_only=True))
    assert list(before) == list(wide)
    touched = [k for k, a in before.items() if isinstance(a, torch.Tensor) and a.shape != wide[k].shape]
    assert touched
    others = [k for k in before if k not in touched and not isinstance(before[k], torch.Tensor)]
    assert all(before[k] == wide[k] for k in others)


def test_the_framework_computes_the_same_with_the_wide_file_and_its_optimizer_goes_on(tmp_path):
    path, net, target, _ = ROWS["model and target"].save(tmp_path)
    checkpoint = load(ROWS["model and target"], path)
    plan = surgery.widen(checkpoint, widths={"network.0": 16, "network.2": 9}, init="net2net")
    surgery.apply(plan, checkpoint).save(tmp_path / "wide.pt")
    content = torch.load(tmp_path / "wide.pt", weights_only=True)
    x = torch.randn(6, 5)
    for old, key in ((net, "model"), (target, "target")):
        wide = nn.Module()
        wide.network = nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3)
        )
        wide.load_state_dict(content[key])
        torch.testing.assert_close(wide.network(x), old.network(x))
    optimizer = torch.optim.Adam(wide.parameters())
    optimizer.load_state_dict(content["optimizer"])
    wide.network(x).sum().backward()
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("name", ["cartpole-dqn", "minatar-breakout-dqn"])
def test_a_trained_agents_file_is_the_graph_that_was_exported_from_it(teachers, name):
    graph = surgery.load(teachers / f"{name}.onnx")
    found = surgery.load(teachers / f"{name}.pt", reading=Reading(activation="relu"))
    shape = [n if isinstance(n, int) else 64 for n in graph.model.graph.inputs[0].shape]
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    ours, theirs = (runtime(c.model)({"observation": x})["q_values"] for c in (found, graph))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert found.copies == {"target.": ""}
    assert found.optimizer.kind in ("adam", "rmsprop")


def test_views_that_share_a_storage_are_told_apart(tmp_path):
    """cuDNN keeps all weights of a layer in one storage: a wide one gets its own, the others keep theirs."""
    storage = torch.arange(100.0)
    state = {
        "q.0.weight": storage[:40].view(8, 5), "q.0.bias": storage[40:48], "q.2.weight": storage[48:72].view(3, 8),
        "q.2.bias": storage[72:75],
    }  # fmt: skip
    torch.save(state, tmp_path / "one.pt")
    checkpoint = surgery.load(tmp_path / "one.pt", reading=Reading(activation="relu"))
    surgery.apply(surgery.widen(checkpoint, factor=2, init="net2net"), checkpoint).save(tmp_path / "two.pt")
    wide = torch.load(tmp_path / "two.pt", weights_only=True)
    assert wide["q.0.weight"].shape == (16, 5)
    assert torch.equal(wide["q.2.bias"], state["q.2.bias"])
    assert torch.equal(wide["q.0.weight"][:8], state["q.0.weight"])


def test_names_in_alphabetical_order_are_put_in_the_order_of_the_data(tmp_path):
    row = ROWS["cleanrl ppo atari"]
    net, _, _ = row.make()
    torch.save(dict(sorted(net.state_dict().items())), tmp_path / "x.cleanrl_model")
    found = runtime(surgery.load(tmp_path / "x.cleanrl_model").model)({"observation": row.inputs().numpy()})
    with torch.no_grad():
        for name, wanted in row.answers(net, row.inputs()).items():
            np.testing.assert_allclose(found[name], wanted, atol=1e-6)


def test_two_names_of_one_tensor_stay_one(tmp_path):
    net = ROWS["cleanrl dqn"].network()
    state = net.state_dict()
    state["alias"] = state["network.0.weight"]
    torch.save(state, tmp_path / "tied.cleanrl_model")
    checkpoint = surgery.load(tmp_path / "tied.cleanrl_model")
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "wide.cleanrl_model")
    wide = torch.load(tmp_path / "wide.cleanrl_model", weights_only=True)
    assert wide["alias"].data_ptr() == wide["network.0.weight"].data_ptr()


UNKNOWN = {
    "activation": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), ArgumentError, "--activation"),
    "image size": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 8, 4), nn.ReLU(), nn.Conv2d(4, 4, 5, 1)), ArgumentError, "--observation"),
    "strides": (lambda: nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.Conv2d(4, 4, 5)), ArgumentError, "--observation"),
    "recurrence": (lambda: nn.Sequential(nn.Embedding(4, 5), nn.Conv1d(3, 4, 5)), Refused, "--module"),
    "sizes": (lambda: nn.ModuleDict({"a": nn.Linear(5, 8), "b": nn.Linear(9, 3)}), Refused, "--module"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_a_state_dict_does_not_tell_is_asked_for(tmp_path, what):
    make, kind, hint = UNKNOWN[what]
    torch.save(make().state_dict(), tmp_path / "x.pt")
    with pytest.raises(kind) as caught:
        surgery.load(tmp_path / "x.pt")
    assert hint in (caught.value.hint or "")


def test_the_command_line_asks_and_takes_the_answer(tmp_path, capsys):
    path, *_ = ROWS["model and target"].save(tmp_path)
    graph, wide, back = (str(tmp_path / name) for name in ("a.onnx", "w.onnx", "w.pt"))
    assert main(["widen", str(path), "--factor", "2", "-o", back]) == 2
    assert "--activation" in capsys.readouterr().err
    assert main(["convert", str(path), "--activation", "relu", "-o", graph]) == 0
    assert main(["widen", graph, "--factor", "2", "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(path), "-o", back]) == 0
    assert torch.load(back, weights_only=True)["target"]["network.0.weight"].shape == (16, 5)
    assert main(["convert", str(path), "--activation", "rleu", "-o", graph, "--force"]) == 2
    assert "relu" in capsys.readouterr().err


def test_a_state_dict_as_safetensors_comes_in_and_goes_out(tmp_path):
    from safetensors.torch import load_file, save_file

    row = ROWS["cleanrl dqn"]
    net, _, _ = row.make()
    save_file(net.state_dict(), tmp_path / "x.safetensors", {"format": "pt"})
    checkpoint = surgery.load(tmp_path / "x.safetensors", reading=Reading(activation="relu"))
    found = runtime(checkpoint.model)({"observation": row.inputs().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found["q_values"], net.network(row.inputs()), atol=1e-6)
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "y.safetensors")
    assert load_file(tmp_path / "y.safetensors")["network.0.weight"].shape == (16, 5)


def test_contract_and_lineage_stay_in_the_file_and_torch_does_not_mind(tmp_path):
    path, *_ = ROWS["model and target"].save(tmp_path)
    before = load(ROWS["model and target"], path)
    said = surgery.annotate(before, environment="CartPole-v1", settings={"frame_skip": 4})
    result = surgery.apply(surgery.widen(said, factor=2), said)
    result.save(tmp_path / "wide.pt")
    after = surgery.load(tmp_path / "wide.pt", reading=Reading(activation="relu"))
    assert after.environment == said.environment
    assert [step.operation for step in after.lineage] == ["widen"]
    assert set(torch.load(tmp_path / "wide.pt", weights_only=True)) == {
        "model",
        "target",
        "optimizer",
        "step",
    }


def test_a_module_that_a_person_names_makes_the_graph_of_all_its_copies(tmp_path, capsys):
    net, target = Residual(), Residual()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 5))[0].square().sum().backward()
    optimizer.step()
    content = {"model": net.state_dict(), "target": target.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "x.pt")
    graph, wide, back = (str(tmp_path / name) for name in ("a.onnx", "w.onnx", "w.pt"))
    words = ["convert", str(tmp_path / "x.pt"), "--module", "tests.torch_models:Residual", "-o", graph]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["widen", graph, "--factor", "2", "-o", wide]) == 0
    assert main(["convert", wide, "--like", str(tmp_path / "x.pt"), "-o", back]) == 0, capsys.readouterr().err
    after, x = torch.load(back, weights_only=True), torch.randn(7, 5)
    for old, key in ((net, "model"), (target, "target")):
        new = Residual(16)
        new.load_state_dict(after[key])
        for ours, theirs in zip(new(x), old(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    torch.optim.Adam(new.parameters()).load_state_dict(after["optimizer"])
    assert after["optimizer"]["state"][2]["exp_avg"].shape == (16, 16)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("tests.torch_models", "PACKAGE.MODULE:CALLABLE"),
        ("tests.nowhere:Net", "does not make a module"),
        ("tests.torch_models:Row", "does not make a module"),
        ("builtins:dict", "makes a dict"),
        ("tests.torch_models:Sequence", "have the parameters of the file"),
    ],
)
def test_code_that_does_not_make_the_network_is_an_error(tmp_path, module, message):
    torch.save(Residual().state_dict(), tmp_path / "x.pt")
    with pytest.raises(ArgumentError) as caught:
        surgery.load(tmp_path / "x.pt", reading=Reading(module=module))
    assert message in caught.value.message + (caught.value.hint or "")


def test_a_copy_that_the_graph_does_not_compute_is_not_left_behind(tmp_path):
    path, *_ = ROWS["target within"].save(tmp_path)
    partial = surgery.load(path, reading=Reading(module="tests.torch_models:OnlineOnly"))
    assert not any(name.startswith("target") for name in partial.tensors)
    result = surgery.apply(surgery.widen(partial, factor=2), partial)
    with pytest.raises(Refused, match="was not changed along"):
        result.save(tmp_path / "wide.pt")
    assert not (tmp_path / "wide.pt").exists()


def deeper(row: Row, tmp_path: Path, after: str) -> tuple[Path, dict[str, object]]:
    """The file with two more layers, and what it holds."""
    path, *_ = row.save(tmp_path)
    checkpoint = load(row, path)
    plan = surgery.deepen(checkpoint, after, count=2, kind="identity")
    surgery.apply(plan, checkpoint).save(tmp_path / f"deeper{row.suffix}")
    return tmp_path / f"deeper{row.suffix}", torch.load(tmp_path / f"deeper{row.suffix}", weights_only=True)


def test_new_layers_are_numbered_as_a_sequence_does_and_the_optimizer_goes_on(tmp_path):
    row = ROWS["model and target"]
    path, content = deeper(row, tmp_path, "network.0")
    net = nn.Module()
    sizes = [5, 8, 8, 8, 6, 3]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    net.network = nn.Sequential(*layers[:-1])
    for key in ("model", "target"):
        assert list(content[key]) == list(net.state_dict())
        assert list(content[key]._metadata) == list(net.state_dict()._metadata)
        net.load_state_dict(content[key])
    _, old, _, was = row.save(tmp_path)
    net.load_state_dict(content["model"])
    x = torch.randn(6, 5)
    torch.testing.assert_close(net.network(x), old.network(x), rtol=0, atol=0)
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.load_state_dict(content["optimizer"])
    new = [name for name, _ in net.named_parameters() if name.split(".")[1] in ("2", "4")]
    steps = {name: float(optimizer.state[p]["step"]) for name, p in net.named_parameters()}
    assert {name for name, step in steps.items() if step == 0} == set(new)
    kept = [optimizer.state[p] for name, p in net.named_parameters() if name not in new]
    for state, parameter in zip(kept, old.parameters(), strict=True):
        assert all(torch.equal(state[slot], value) for slot, value in was.state[parameter].items())
    net.network(x).sum().backward()
    optimizer.step()
    again = load(row, path).optimizer
    assert [name for name, step in again.steps.items() if step == 0] == new


@pytest.mark.parametrize("name", ["cleanrl dqn", "cleanrl ppo atari", "tianshou", "target within"])
def test_deeper_files_are_read_as_the_same_function(tmp_path, name):
    row = ROWS[name]
    after = {"cleanrl ppo atari": "network.7", "tianshou": "preprocess.model.model.2"}.get(name, "")
    after = after or ("q_network.0" if name == "target within" else "network.2")
    path, _ = deeper(row, tmp_path, after)
    x = {"observation": row.inputs().numpy()}
    before, now = (runtime(load(row, file).model)(x) for file in (row.save(tmp_path)[0], path))
    assert all(np.array_equal(before[output], now[output]) for output in before)


def test_a_swapped_optimizer_is_loaded_by_the_new_class_and_steps(tmp_path):
    row = ROWS["model and target"]
    path, net, *_ = row.save(tmp_path)
    swap = surgery.swap_optimizer(load(row, path), "rmsprop", centered=True)
    swap.save(tmp_path / "rms.pt")
    content = torch.load(tmp_path / "rms.pt", weights_only=True)
    optimizer = torch.optim.RMSprop(net.parameters())
    [group], [usual] = (state["param_groups"] for state in (content["optimizer"], optimizer.state_dict()))
    assert group.keys() == usual.keys()
    optimizer.load_state_dict(content["optimizer"])
    for name, parameter in net.named_parameters():
        for slot, held in swap.checkpoint.optimizer.slots.items():
            assert same(held[name], optimizer.state[parameter][slot])
    net.network(torch.randn(6, 5)).sum().backward()
    optimizer.step()
    assert content["step"] == 3


def test_settings_of_the_same_optimizer_follow(tmp_path):
    row = ROWS["model and target"]
    path, *_ = row.save(tmp_path)
    surgery.swap_optimizer(load(row, path), "adam", lr=5e-4, betas=[0.8, 0.99]).save(tmp_path / "set.pt")
    [group] = torch.load(tmp_path / "set.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (group["lr"], group["betas"]) == (5e-4, (0.8, 0.99))


def _named(tmp_path: Path) -> tuple[surgery.Checkpoint, surgery.Plan]:
    checkpoint = load(ROWS["cleanrl sac"], ROWS["cleanrl sac"].save(tmp_path)[0])
    return checkpoint, surgery.deepen(checkpoint, "fc1")


def _code(tmp_path: Path) -> tuple[surgery.Checkpoint, surgery.Plan]:
    path = ROWS["cleanrl dqn"].save(tmp_path)[0]
    reading = Reading(module="tests.torch_models:Residual", observation=(5,))
    torch.save(Residual().state_dict(), path)
    checkpoint = surgery.load(path, reading=reading)
    return checkpoint, surgery.deepen(checkpoint, "first", kind="residual")


def _branch(tmp_path: Path) -> tuple[surgery.Checkpoint, surgery.Plan]:
    checkpoint = load(ROWS["cleanrl dqn"], ROWS["cleanrl dqn"].save(tmp_path)[0])
    return checkpoint, surgery.deepen(checkpoint, "network.0", kind="residual")


def _scale(tmp_path: Path) -> tuple[surgery.Checkpoint, surgery.Plan]:
    checkpoint = load(ROWS["cleanrl dqn"], ROWS["cleanrl dqn"].save(tmp_path)[0])
    return checkpoint, surgery.deepen(checkpoint, "network.0", kind="rezero")


def _by_name(tmp_path: Path) -> tuple[surgery.Checkpoint, surgery.Plan]:
    """An optimizer whose state stands under names, as `torch.distributed.checkpoint` writes it."""
    path, net, *_ = ROWS["model and target"].save(tmp_path)
    content, names = torch.load(path, weights_only=True), [name for name, _ in net.named_parameters()]
    [group], state = content["optimizer"]["param_groups"], content["optimizer"]["state"]
    group["params"], content["optimizer"]["state"] = names, {names[k]: kept for k, kept in state.items()}
    torch.save(content, path)
    checkpoint = load(ROWS["model and target"], path)
    return checkpoint, surgery.deepen(checkpoint, "network.0")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_named, "a name of its own"),
        (_code, "your code"),
        (_branch, "cannot hold"),
        (_scale, "no sequence"),
        (_by_name, "does not number"),
    ],
)
def test_layers_that_no_sequence_holds_are_refused_by_shapes_alone(tmp_path, make, says):
    checkpoint, plan = make(tmp_path)
    with pytest.raises(Refused, match=says) as caught:
        check_savable(lambda: preview(plan, checkpoint), checkpoint, tmp_path / f"x{checkpoint.path.suffix}")
    assert "-o OUT.onnx" in caught.value.hint


def test_safetensors_get_deeper_too(tmp_path):
    torch.manual_seed(0)
    net = ROWS["cleanrl dqn"].network()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    checkpoint = surgery.load(tmp_path / "net.safetensors", reading=Reading(activation="relu"))
    surgery.apply(surgery.deepen(checkpoint, "network.2"), checkpoint).save(tmp_path / "deeper.safetensors")
    found = load_file(tmp_path / "deeper.safetensors")
    assert set(found) == {f"network.{place}.{leaf}" for place in (0, 2, 4, 6) for leaf in ("weight", "bias")}
    assert torch.equal(found["network.6.weight"], net.network[4].weight)
    assert torch.equal(found["network.4.weight"], torch.eye(6))
