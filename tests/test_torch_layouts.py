"""Checkpoints of rsl_rl, skrl, Tianshou, TorchRL and rl_games, and CleanRL's that hold more than one state dict."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.adapters import Reading
from surgery.errors import Refused
from surgery.ops.extend import NewObservation
from surgery.verify.outputs import runtime
from tests.fixtures.torch_dicts.make import AGENTS, torchrl_sac

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
FILES = Path(__file__).parent / "fixtures" / "torch_dicts"
PACKAGES = {
    "rsl_rl": "rsl_rl",
    "skrl": "skrl",
    "tianshou": "tianshou",
    "torchrl": "torchrl",
    "rl_games": "rl_games",
}
COPIES = {
    "skrl-sac": {"target_critic_1.": "critic_1.", "target_critic_2.": "critic_2."},
    "tianshou-dqn": {"model_old.module.model.model.": "policy.model.model.model."},
    "tianshou-sac": {"critic_old.module.": "critic.", "critic2_old.module.": "critic2."},
    "torchrl-dqn": {"target_value_network_params.": "value_network_params."},
    "torchrl-sac": {"target_qvalue_network_params.": "qvalue_network_params."},
    "torchrl-td3": {
        "target_actor_network_params.": "actor_network_params.",
        "target_qvalue_network_params.": "qvalue_network_params.",
    },
}
Arrays = Mapping[str, np.ndarray]


def activation(name: str) -> str:
    return {"tianshou-ppo": "tanh"}.get(name, "relu" if "tianshou" in name or "torchrl" in name else "elu")


def load(path: Path, name: str) -> surgery.Checkpoint:
    return surgery.load(path, reading=Reading(activation=activation(name)))


def recorded(name: str) -> Arrays:
    with np.load(FILES / "answers.npz") as archive:
        return {key.partition("/")[2]: archive[key] for key in archive.files if key.startswith(f"{name}/")}


def asked(checkpoint: surgery.Checkpoint, known: Arrays) -> dict[str, np.ndarray]:
    return runtime(checkpoint.model)(
        {value.name: known[value.name] for value in checkpoint.model.graph.inputs}
    )


def agrees(found: Arrays, wanted: Arrays, inputs: set[str]) -> None:
    assert (wanted.keys() - inputs) <= found.keys()
    for key in wanted.keys() - inputs:
        np.testing.assert_allclose(found[key], wanted[key], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_the_graph_answers_what_the_framework_answered(name):
    checkpoint, known = load(FILES / f"{name}.pt", name), recorded(name)
    inputs = {value.name for value in checkpoint.model.graph.inputs}
    assert inputs <= known.keys()
    agrees(asked(checkpoint, known), known, inputs)
    assert dict(checkpoint.copies) == COPIES.get(name, {})


def test_a_deviation_that_comes_from_the_observation_is_one():
    checkpoint = load(FILES / "tianshou-sac.pt", "tianshou-sac")
    assert checkpoint.interface.output("action_log_std").kind == "log_std"


def test_quantiles_and_atoms_are_told_by_what_stands_beside_the_layers(tmp_path):
    """Tianshou's: the middles of quantiles are a buffer of the algorithm, the atoms one of its policy alone."""
    torch.manual_seed(0)
    net = sequence(5, 12, 60)
    layers = {
        f"{k}.{key}": tensor
        for k in ("policy.model", "model_old.module")
        for key, tensor in net.state_dict().items()
    }
    for more, name, sizes in (
        ({"tau_hat": torch.rand(1, 20, 1)}, "quantiles", [3, 20]),
        ({"policy.support": torch.linspace(-1, 1, 15)}, "atom_logits", [4, 15]),
    ):
        torch.save({**more, **layers}, tmp_path / "x.pt")
        checkpoint = load(tmp_path / "x.pt", "tianshou-ppo")
        assert checkpoint.interface.output(name).kind == name
        value = next(value for value in checkpoint.model.graph.outputs if value.name == name)
        assert list(value.shape)[1:] == sizes
        assert dict(checkpoint.copies) == {"model_old.module.": "policy.model."}


@pytest.mark.parametrize("name", AGENTS)
def test_the_optimizers_state_is_that_of_every_trained_parameter(name):
    """All of them have had three updates; a temperature's stays where it is."""
    checkpoint = load(FILES / f"{name}.pt", name)
    copies = tuple(checkpoint.copies)
    trained = {
        key for key, tensor in checkpoint.tensors.items()
        if tensor.dtype.is_floating_point() and not key.startswith(copies)
        and not key.rpartition(".")[2].startswith(("_", "running_", "count"))
    }  # fmt: skip
    assert set(checkpoint.optimizer.steps) == trained
    assert set(checkpoint.optimizer.steps.values()) == {3.0}


@pytest.mark.parametrize("name", AGENTS)
def test_a_wide_file_is_the_same_function_for_us_and_for_the_framework(tmp_path, name):
    checkpoint, known = load(FILES / f"{name}.pt", name), recorded(name)
    result = surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint)
    result.save(tmp_path / "wide.pt")
    again = load(tmp_path / "wide.pt", name)
    inputs = {value.name for value in again.model.graph.inputs}
    agrees(asked(again, known), known, inputs)
    pytest.importorskip(PACKAGES[name.partition("-")[0]])
    agent = AGENTS[name](18)
    agent.load(torch.load(tmp_path / "wide.pt", weights_only=False))
    with torch.no_grad():
        found = agent.answers({key: torch.from_numpy(known[key]) for key in inputs})
    agrees(
        {key: value.numpy() for key, value in found.items()}, known, {*inputs, *(known.keys() - found.keys())}
    )
    agent.train()
    optimizer, parameters = agent.trained[0]
    assert {float(optimizer.state[parameter]["step"]) for parameter in parameters} == {6.0}


@pytest.mark.parametrize(
    "name", [name for name in AGENTS if name.startswith(("rsl_rl", "skrl-ppo", "skrl-shared", "rl_games"))]
)
def test_statistics_of_observations_grow_with_them(tmp_path, name):
    checkpoint = load(FILES / f"{name}.pt", name)
    plan = surgery.extend(checkpoint, [NewObservation("observation", 1)], [])
    assert [note.split()[0] for note in plan.notes] == ["'critic_observation'"] * (name == "rsl_rl")
    surgery.apply(plan, checkpoint).save(tmp_path / "more.pt")
    content = torch.load(tmp_path / "more.pt", weights_only=False)
    if name.startswith("skrl"):
        statistics = content["observation_preprocessor"]
        assert statistics["running_mean"].shape == statistics["running_variance"].shape == (6,)
        assert content["value_preprocessor"]["running_mean"].shape == (1,)
        return
    if name.startswith("rl_games"):
        statistics = {
            key: tensor for key, tensor in content["model"].items() if key.startswith("running_mean_std")
        }
        assert [tuple(tensor.shape) for tensor in statistics.values()] == [(6,), (6,), ()]
        assert (statistics["running_mean_std.running_var"] > 0).all()
        return
    actor = content["actor_state_dict"]
    assert actor["obs_normalizer._mean"].shape == (1, 6)
    torch.testing.assert_close(actor["obs_normalizer._var"], actor["obs_normalizer._std"] ** 2)


DEEPER = {
    "tianshou-dqn": "policy.model.model.model",
    "tianshou-sac": "policy.actor.preprocess.model.model",
    "torchrl-dqn": "value_network_params.module.0.module",
    "torchrl-sac": "qvalue_network_params.module",
}
"""Sequences of layers with ReLU between them, which hold other layers behind 2."""


@pytest.mark.parametrize("name", DEEPER)
def test_new_layers_have_names_and_state_also_where_a_state_dict_holds_more_than_tensors(tmp_path, name):
    checkpoint, known, sequence = load(FILES / f"{name}.pt", name), recorded(name), DEEPER[name]
    result = surgery.apply(surgery.deepen(checkpoint, f"{sequence}.2", kind="identity"), checkpoint)
    result.save(tmp_path / "deep.pt")
    again = load(tmp_path / "deep.pt", name)
    inputs = {value.name for value in again.model.graph.inputs}
    agrees(asked(again, known), known, inputs)
    assert {f"{sequence}.4.weight", f"{sequence}.4.bias"} <= again.tensors.keys()
    slots = again.optimizer.slots["exp_avg"]
    assert len(slots) == 2 + len(checkpoint.optimizer.slots["exp_avg"])
    assert not slots[f"{sequence}.4.weight"].numpy().any()
    before, after = (
        torch.load(path, weights_only=False) for path in (FILES / f"{name}.pt", tmp_path / "deep.pt")
    )
    assert set(before) - set(checkpoint.tensors) == set(after) - set(again.tensors)


def test_torchrl_goes_on_with_a_new_layer_in_all_critics_and_a_new_observation(tmp_path):
    """The critics of one tensor are edited alike; a new feature stands behind the action and the old observation."""
    name = "torchrl-sac"
    checkpoint, known = load(FILES / f"{name}.pt", name), dict(recorded(name))
    deep = surgery.apply(surgery.deepen(checkpoint, f"{DEEPER[name]}.2"), checkpoint).checkpoint
    new = [NewObservation("observation", 1), NewObservation("critic_observation", 1)]
    plan = surgery.extend(deep, new)
    assert not plan.notes
    surgery.apply(plan, deep).save(tmp_path / "more.pt")
    content = torch.load(tmp_path / "more.pt", weights_only=False)
    assert content["loss"]["target_qvalue_network_params.module.4.weight"].shape == (2, 9, 9)
    assert content["loss"]["qvalue_network_params.module.0.weight"].shape == (2, 9, 8)
    pytest.importorskip("torchrl")
    agent = torchrl_sac(depth=3, seen=6)
    agent.load(content)
    seen = {
        key: torch.from_numpy(np.pad(known.pop(key), ((0, 0), (0, 1)), constant_values=7))
        for key in ("observation", "critic_observation")
    }
    with torch.no_grad():
        agrees({key: value.numpy() for key, value in agent.answers(seen).items()}, known, set())
    agent.train()
    optimizer, parameters = agent.trained[0]
    assert {float(optimizer.state[parameter]["step"]) for parameter in parameters} >= {6.0}


# ---- more than one state dict, and sizes that are equal by chance ---------------------------------------------------


class Actor(nn.Module):
    """CleanRL, td3_continuous_action.py"""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.register_buffer("action_scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("action_bias", torch.tensor([0.0, 0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.tanh(self.fc_mu(x)) * self.action_scale + self.action_bias


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(7, 12), nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def test_the_networks_of_cleanrls_td3_stand_in_a_tuple(tmp_path):
    torch.manual_seed(0)
    actor, critics = Actor(), [Critic(), Critic()]
    torch.save(tuple(net.state_dict() for net in (actor, *critics)), tmp_path / "td3.cleanrl_model")
    checkpoint = surgery.load(tmp_path / "td3.cleanrl_model")
    x, both = torch.randn(6, 5), torch.randn(6, 7)
    known = {"observation": x.numpy(), "critic_observation": both.numpy()}
    with torch.no_grad():
        wanted = {"action": actor(x), "qf1": critics[0](both), "qf2": critics[1](both)}
    agrees(asked(checkpoint, known), {key: value.numpy() for key, value in wanted.items()}, set())
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "wide.cleanrl_model")
    wide = torch.load(tmp_path / "wide.cleanrl_model", weights_only=True)
    assert isinstance(wide, tuple)
    assert [net["fc2.weight"].shape for net in wide] == [(24, 24)] * 3


def test_cleanrls_c51_has_its_atoms_in_the_file(tmp_path):
    torch.manual_seed(0)
    net = nn.Module()
    net.register_buffer("atoms", torch.linspace(-10, 10, 51))
    net.network = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3 * 51))
    content = {"model_weights": net.state_dict(), "args": {"n_atoms": 51, "v_min": -10, "v_max": 10}}
    torch.save(content, tmp_path / "c51.cleanrl_model")
    checkpoint, x = surgery.load(tmp_path / "c51.cleanrl_model"), torch.randn(6, 5)
    port = checkpoint.interface.output("atom_logits")
    assert (port.kind, port.low, port.high) == ("atom_logits", -10, 10)
    found = asked(checkpoint, {"observation": x.numpy()})["atom_logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, net.network(x).view(6, 3, 51), atol=1e-6)
    surgery.apply(surgery.widen(checkpoint, factor=2), checkpoint).save(tmp_path / "wide.cleanrl_model")
    wide = torch.load(tmp_path / "wide.cleanrl_model", weights_only=True)
    assert wide["args"] == content["args"]
    assert wide["model_weights"]["network.0.weight"].shape == (24, 5)


def sequence(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def apart(names: tuple[str, ...], *sizes: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: sequence(*sizes) for name in names})


def test_networks_with_as_many_actions_as_observations_stay_apart(tmp_path):
    """Where sizes do not tell, names do: a critic does not read what the actor makes."""
    torch.manual_seed(0)
    for names, outputs in (
        (("actor", "critic"), ("logits", "value")),
        (("critic", "actor"), ("value", "logits")),
        (("q1", "q2"), ("q_values", "q2")),
    ):
        nets, x = apart(names, 3, 8, 3), torch.randn(6, 3)
        if "critic" in names:
            nets["critic"] = sequence(3, 8, 1)
        torch.save(nets.state_dict(), tmp_path / "x.pt")
        found = asked(load(tmp_path / "x.pt", "tianshou-ppo"), {"observation": x.numpy()})
        with torch.no_grad():
            for name, output in zip(names, outputs, strict=True):
                np.testing.assert_allclose(found[output], nets[name](x), atol=1e-6)


def test_an_actor_beside_critics_of_its_actions_makes_means(tmp_path):
    """In one module, with a target; twice as wide as the actions it makes means and what deviations are made of."""
    torch.manual_seed(0)
    for width, wanted in ((2, ["mean"]), (4, ["mean", "scale"])):
        agent = nn.ModuleDict(
            {"actor": sequence(5, 8, width), "q1": sequence(7, 8, 1), "q2": sequence(7, 8, 1)}
        )
        torch.save({"model": agent.state_dict(), "target": agent.state_dict()}, tmp_path / "x.pt")
        checkpoint = load(tmp_path / "x.pt", "tianshou-ppo")
        outputs = {port.name: port.kind for port in checkpoint.interface.outputs}
        assert list(outputs)[: len(wanted) + 2] == [*wanted, "q1", "q2"]
        assert (outputs["mean"], outputs["q1"]) == ("mean", "other")
        found = asked(
            checkpoint,
            {"observation": np.ones((1, 5), np.float32), "critic_observation": np.ones((1, 7), np.float32)},
        )
        with torch.no_grad():
            np.testing.assert_allclose(found["q2"], agent["q2"](torch.ones(1, 7)), atol=1e-6)
            made = np.concatenate([found[name] for name in wanted], axis=1)
            np.testing.assert_allclose(made, agent["actor"](torch.ones(1, 5)), atol=1e-6)


def test_heads_read_the_trunk_of_their_own_network(tmp_path):
    """Stable-Baselines3's layout: both trunks come before both heads."""
    torch.manual_seed(0)
    nets = nn.ModuleDict({"policy_net": sequence(5, 8, 7), "value_net": sequence(5, 8, 7)})
    whole = nn.ModuleDict(
        {"mlp_extractor": nets, "action_net": nn.Linear(7, 3), "value_net": nn.Linear(7, 1)}
    )
    torch.save(whole.state_dict(), tmp_path / "x.pt")
    x = torch.randn(6, 5)
    found = asked(load(tmp_path / "x.pt", "tianshou-ppo"), {"observation": x.numpy()})
    with torch.no_grad():
        wanted = {
            "logits": whole["action_net"](torch.tanh(nets["policy_net"](x))),
            "value": whole["value_net"](torch.tanh(nets["value_net"](x))),
        }
    agrees(found, {key: value.numpy() for key, value in wanted.items()}, set())


AMBIGUOUS = {
    "two trunks, and heads without a name": nn.ModuleDict(
        {"one": sequence(5, 8), "two": sequence(5, 8), "left": nn.Linear(8, 3), "right": nn.Linear(8, 2)}
    ),
    "a second network, or the rest of the first": nn.ModuleDict(
        {"one": sequence(3, 8, 3), "two": sequence(3, 8, 2)}
    ),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_what_neither_names_nor_sizes_tell_is_refused(tmp_path, what):
    torch.save(AMBIGUOUS[what].state_dict(), tmp_path / "x.pt")
    with pytest.raises(Refused) as caught:
        load(tmp_path / "x.pt", "tianshou-ppo")
    assert "--module" in caught.value.hint
