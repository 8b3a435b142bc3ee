"""The real package is the judge: what it saved is read, changed and written, and it loads and trains on."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import surgery
from surgery.attach import bind
from surgery.cli import main
from surgery.errors import ArgumentError, Refused
from surgery.interface import PortPatch
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation
from surgery.port_kinds import infer
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from surgery_adapters.containers.pickle_tree import Made, Name, parse
from surgery_adapters.containers.spaces import change_box, read_space
from surgery_adapters.networks.layers import Layers
from tests.sb3_models import ROWS, Row, Saved, Uneven, answers, given, observations

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
LIMIT = 1e-5
EXTENSIBLE = (
    "dqn",
    "qrdqn",
    "ppo",
    "ppo elu",
    "a2c",
    "ppo dict",
    "dqn image",
    "sac",
    "td3",
    "tqc",
    "recurrent",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    return Saved(tmp_path_factory.mktemp("sb3"))


def inputs(row: Row, checkpoint: surgery.Checkpoint, count: int = 24) -> dict[str, np.ndarray]:
    """Observations, and random numbers for every other input."""
    rng, found = np.random.default_rng(1), observations(row, count)
    for value in checkpoint.model.graph.inputs:
        if value.name not in found:
            found[value.name] = rng.uniform(-1, 1, (count, *value.shape[1:])).astype(np.float32)
    return found


def outputs(checkpoint: surgery.Checkpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our graph computes."""
    cast = {
        name: array if array.dtype == np.int64 else array.astype(np.float32) for name, array in arrays.items()
    }
    return runtime(checkpoint.model)(cast)


def normalised(logits: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Logits as the framework's distribution holds them: of each component, their log-sum-exp subtracted."""
    parts = np.split(logits, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([p - np.log(np.exp(p).sum(axis=1, keepdims=True)) for p in parts], axis=1)


def agree(
    row: Row, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], limit: float = LIMIT
) -> None:
    """Every answer of the framework is ours, and the greedy action never differs."""
    sizes = [2, 3] if row.action == "choices" else [-1]
    for name, wanted in theirs.items():
        had = ours[name]
        if name == "logits":
            had = normalised(had, sizes if sizes != [-1] else [had.shape[1]])
        np.testing.assert_allclose(
            had, wanted, atol=limit * max(1.0, float(np.abs(wanted).max())), err_msg=name
        )
    for name in {"q_values", "logits"} & set(theirs):
        assert (ours[name].argmax(1) == theirs[name].argmax(1)).all() or row.action == "choices"


@pytest.mark.parametrize("name", ROWS)
def test_the_graph_computes_what_the_framework_computes(saved, name):
    row = ROWS[name]
    checkpoint = surgery.load(saved[name])
    arrays = inputs(row, checkpoint)
    theirs = answers(row.load(saved[name]), arrays)
    # every output is compared with the framework's own, but for the critic's state where there is a second LSTM
    untold = {p.name for p in checkpoint.interface.outputs} - set(theirs)
    assert all(part.startswith("lstm_critic") for part in untold)
    agree(row, outputs(checkpoint, arrays), theirs)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_optimizer_state_have_the_frameworks_names(saved, name):
    row = ROWS[name]
    checkpoint, model = surgery.load(saved[name]), row.load(saved[name])
    state = model.policy.state_dict()
    assert {n: tuple(t.shape) for n, t in checkpoint.tensors.items() if n in state} == {
        n: tuple(state[n].shape) for n in checkpoint.tensors if n in state
    }
    parts = {f"{name}.": getattr(model, name, None) for name in ("actor", "critic")}
    for prefix, owner in {"": model.policy, **parts}.items():
        optimizer = getattr(owner, "optimizer", None)
        if optimizer is None:
            continue
        for parameter_name, parameter in owner.named_parameters():
            for slot, value in optimizer.state.get(parameter, {}).items():
                full = f"{prefix}{parameter_name}"
                if slot == "step":
                    assert checkpoint.optimizer.steps[full] == float(value)
                else:
                    assert checkpoint.optimizer.slots[slot][full].numpy().tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("name", ROWS)
def test_a_graph_gets_the_state_of_all_its_optimizers_back(saved, name):
    whole = surgery.load(saved[name])
    bound = surgery.attach(whole.replace(optimizer=None), saved[name]).optimizer
    assert bound.steps == whole.optimizer.steps
    assert bound.groups == whole.optimizer.groups
    assert all(
        equal(bound.slots[slot][parameter], tensor)
        for slot, members in whole.optimizer.slots.items()
        for parameter, tensor in members.items()
    )


def test_an_actor_that_was_exported_alone_gets_the_state_of_its_own_optimizer(saved):
    whole = surgery.load(saved["sac"])
    parts = {n.removeprefix("actor."): t for n, t in whole.tensors.items() if n.startswith("actor.")}
    layers = Layers("actor", parts)
    latent = layers.mlp(layers.graph.input("observation", (5,)), "latent_pi.", "relu", last=True)
    layers.graph.output(layers.linear(latent, "mu"), "mean", (2,))
    actor = surgery.Checkpoint(layers.graph.model(), infer(layers.graph.model()))
    binding = bind(actor, saved["sac"])
    assert binding.optimizer == "actor.optimizer"
    assert {f"actor.{name}" for name in binding.state.parameters} < set(whole.optimizer.parameters)
    assert set(binding.dropped) == {"actor.log_std.weight", "actor.log_std.bias"}
    for slot, members in binding.state.slots.items():
        assert all(equal(whole.optimizer.slots[slot][f"actor.{n}"], tensor) for n, tensor in members.items())


@pytest.mark.parametrize("name", ROWS)
def test_a_copy_that_changes_nothing_is_the_same_byte_for_byte(saved, tmp_path, name):
    surgery.save(surgery.load(saved[name]), tmp_path / "copy.zip")
    with zipfile.ZipFile(saved[name]) as before, zipfile.ZipFile(tmp_path / "copy.zip") as after:
        assert before.namelist() == after.namelist()
        assert all(before.read(member) == after.read(member) for member in before.namelist())


@pytest.mark.parametrize("name", [name for name in ROWS if name != "ppo choices"])
def test_a_widened_model_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    row = ROWS[name]
    before = surgery.load(saved[name])
    result = surgery.apply(surgery.widen(before, factor=1.5, seed=1), before)
    result.save(tmp_path / "wide.zip")
    old, new = row.load(saved[name]), row.load(tmp_path / "wide.zip", more=0)
    arrays = observations(row, 24)
    greedy, wanted = (m.predict(given(arrays), deterministic=True)[0] for m in (new, old))
    np.testing.assert_allclose(greedy, wanted, atol=LIMIT)
    after = surgery.load(tmp_path / "wide.zip")
    wide = inputs(row, after)
    agree(row, outputs(after, wide), answers(new, wide))
    assert sum(p.numel() for p in new.policy.parameters()) > sum(p.numel() for p in old.policy.parameters())
    steps = dict(after.optimizer.steps)
    assert steps == dict(before.optimizer.steps)
    assert min(steps.values()) > 0
    new.learn(row.steps)
    new.save(tmp_path / "later.zip")
    later = surgery.load(tmp_path / "later.zip").optimizer.steps
    assert all(later[parameter] > step for parameter, step in steps.items())


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_only_what_the_plan_touched_differs(saved, tmp_path, name):
    before = surgery.load(saved[name])
    space = next(s for s in surgery.analyse(before.model, before.interface).spaces if s.widenable)
    plan = surgery.widen(before, widths={space.name: space.size + 3})
    surgery.apply(plan, before).save(tmp_path / "wide.zip")
    after = surgery.load(tmp_path / "wide.zip")
    changed = {entry.name for entry in surgery.diff(before, after).entries if entry.what == "tensor"}
    assert changed == {tensor.name for tensor in plan.tensors}
    with zipfile.ZipFile(saved[name]) as old, zipfile.ZipFile(tmp_path / "wide.zip") as new:
        settings = [json.loads(archive.read("data")) for archive in (old, new)]
        assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"policy_kwargs"}
        same = {n for n in old.namelist() if old.read(n) == new.read(n)}
        assert set(old.namelist()) - same == {"data", "policy.pth", "policy.optimizer.pth"}


def _extension(row: Row, checkpoint: surgery.Checkpoint) -> surgery.Plan:
    """One more feature in second place and one more action: in every part of a continuous policy."""
    name, axis = {"dict": ("position", ""), "image": ("observation", "[1]")}.get(
        row.observation, ("observation", "")
    )
    seen = [NewObservation(f"{name}{axis}", 1, 1)]
    if row.action == "choice":
        head = next(p.name for p in checkpoint.interface.outputs if p.kind in ("q_values", "logits"))
        return surgery.extend(checkpoint, seen, [NewAction(head, 1, "mean")])
    heads = [p.name for p in checkpoint.interface.outputs if p.kind in ("mean", "log_std", "action")]
    names = dict.fromkeys(heads if row.algorithm.__name__ == "TD3" else [h for h in heads if h != "action"])
    if row.algorithm.__name__ != "PPO":
        seen.append(NewObservation("critic_action", 1))
    return surgery.extend(checkpoint, seen, [NewAction(name, 1, "mean") for name in names])


@pytest.mark.parametrize("name", EXTENSIBLE)
def test_a_model_takes_one_more_observation_and_action_and_learns_on(saved, tmp_path, name):
    row = ROWS[name]
    before = surgery.load(saved[name])
    surgery.apply(_extension(row, before), before).save(tmp_path / "more.zip")
    old, new = row.load(saved[name]), row.load(tmp_path / "more.zip", more=1)
    assert new.observation_space == row.env(1).observation_space or row.observation in ("vector", "dict")
    arrays = observations(row, 24, more=1)
    key = "position" if row.observation == "dict" else "observation"
    fewer = {**arrays, key: np.delete(arrays[key], 1, axis=1)}
    greedy, wanted = (m.predict(given(a), deterministic=True)[0] for m, a in ((new, arrays), (old, fewer)))
    if row.action == "box":
        np.testing.assert_allclose(greedy[:, :2], wanted, atol=LIMIT)
    else:
        assert (greedy == wanted).all()
    new.learn(row.steps)
    new.save(tmp_path / "later.zip")
    steps, later = before.optimizer.steps, surgery.load(tmp_path / "later.zip").optimizer.steps
    assert all(later[parameter] > step for parameter, step in steps.items())


@pytest.mark.parametrize("name", ["dqn", "ppo", "td3", "recurrent"])
def test_episodes_through_predict_and_through_our_graph_are_the_same(saved, name):
    row = ROWS[name]
    model, checkpoint = row.load(saved[name]), surgery.load(saved[name])
    for seed in range(3):
        env, theirs, ours, state = row.env(), [], [], None
        observation, _ = env.reset(seed=seed)
        hidden = {v.name: np.zeros((1, *v.shape[1:]), np.float32) for v in checkpoint.model.graph.inputs}
        done = False
        while not done:
            action, state = model.predict(observation, state=state, deterministic=True,
                                          episode_start=np.array([not theirs]))  # fmt: skip
            found = outputs(checkpoint, {**hidden, "observation": observation[None]})
            hidden |= {k.removesuffix(".next"): v for k, v in found.items() if k.endswith(".next")}
            head = next(p for p in checkpoint.interface.outputs if p.kind in ("q_values", "logits", "action"))
            ours.append(found[head.name][0] if head.kind == "action" else found[head.name][0].argmax())
            theirs.append(action)
            observation, _, _, done, _ = env.step(action)
        np.testing.assert_allclose(ours, theirs, atol=LIMIT)


def test_the_command_line_takes_and_writes_the_frameworks_files(saved, tmp_path, capsys):
    source, wide, graph = str(saved["dqn"]), str(tmp_path / "wide.zip"), str(tmp_path / "agent.onnx")
    assert main(["inspect", source]) == 0
    assert "q_net_target.* is edited as q_net.* is" in capsys.readouterr().out
    assert main(["widen", source, "--factor", "2", "-o", wide]) == 0
    assert "q_net_target.q_net.0 12→24" in capsys.readouterr().out
    assert main(["verify", source, wide]) == 0
    assert main(["diff", source, wide]) == 0
    assert main(["convert", source, "-o", graph]) == 0
    assert main(["widen", graph, "--factor", "2", "-o", str(tmp_path / "wide.onnx")]) == 0
    back = str(tmp_path / "back.zip")
    assert main(["convert", str(tmp_path / "wide.onnx"), "--like", source, "-o", back]) == 0
    assert ROWS["dqn"].load(Path(back)).policy_kwargs["net_arch"] == [24, 18]
    assert surgery.load(wide).digest() == surgery.load(back).digest()
    capsys.readouterr()
    assert main(["convert", graph, "-o", str(tmp_path / "x.zip")]) == 2
    assert "--like" in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()


def test_target_networks_get_the_edits_and_the_random_numbers_of_their_originals(saved):
    before = surgery.load(saved["dqn"])
    with torch.no_grad():
        result = surgery.apply(surgery.widen(before, widths={"q_net.q_net.0": 20}, init="net2net"), before)
    assert [c.space for c in result.plan.changes] == ["q_net.q_net.0", "q_net_target.q_net.0"]
    assert result.plan.spaces[0].source == result.plan.spaces[1].source
    fresh = surgery.apply(
        surgery.widen(before, widths={"q_net_target.q_net.0": 20}, init="zero"), before
    ).checkpoint
    online, target = (fresh.tensors[f"{net}.q_net.0.weight"].numpy() for net in ("q_net", "q_net_target"))
    before_online, before_target = (
        before.tensors[f"{net}.q_net.0.weight"].numpy() for net in ("q_net", "q_net_target")
    )
    np.testing.assert_allclose(
        online[12:] / before_online.std(), target[12:] / before_target.std(), rtol=1e-5
    )


def test_widths_that_one_setting_cannot_express_are_refused_and_nothing_is_written(saved, tmp_path):
    before = surgery.load(saved["sac"])
    result = surgery.apply(surgery.widen(before, widths={"critic.qf0.0": 20}), before)
    with pytest.raises(Refused, match="one setting for all"):
        result.save(tmp_path / "wide.zip")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_model_is_no_place_to_write_to(saved, tmp_path):
    with pytest.raises(ArgumentError, match="the checkpoint has a parameter"):
        surgery.save(surgery.load(saved["dqn"]), tmp_path / "x.zip", like=saved["ppo"])


def test_the_lineage_and_the_contract_stay_in_the_file(saved, tmp_path):
    before = surgery.load(saved["ppo"])
    plan = surgery.extend(before, [], [NewAction("logits", 1, "never")])
    surgery.apply(plan, before).save(tmp_path / "more.zip")
    after = surgery.load(tmp_path / "more.zip")
    assert [step.operation for step in after.lineage] == ["extend"]
    assert after.environment.settings["action_mask"] == {"logits": (True, True, True, False)}


def test_what_was_declared_stays_in_the_file(saved, tmp_path):
    before = surgery.load(saved["dqn"])
    names = ["x", "y", "angle", "speed", "fuel"]
    said = surgery.annotate(before, inputs={"observation": PortPatch(labels=names)}, environment="Small-v0")
    surgery.save(said, tmp_path / "said.zip")
    after = surgery.load(tmp_path / "said.zip")
    assert after.interface == said.interface
    assert after.environment.id == "Small-v0"
    assert ROWS["dqn"].load(tmp_path / "said.zip").num_timesteps > 0


def test_adapt_fits_a_model_to_an_environment_and_it_loads_there_and_learns_on(saved, tmp_path, capsys):
    gymnasium.register("SmallAndUneven-v1", lambda: Uneven())
    try:
        more = str(tmp_path / "more.zip")
        words = ["adapt", str(saved["dqn"]), "--env", "SmallAndUneven-v1", "--unnamed", "append", "-o", more]
        assert main(words) == 0, capsys.readouterr().err
        env = gymnasium.make("SmallAndUneven-v1")
        model = ROWS["dqn"].algorithm.load(more, env=env, device="cpu")
        assert model.observation_space == env.observation_space
        assert model.action_space.n == 4
        old, seen = ROWS["dqn"].load(saved["dqn"]), observations(ROWS["dqn"], 16, more=2)["observation"]
        wanted, _ = old.predict(seen[:, :5], deterministic=True)
        assert (model.predict(seen, deterministic=True)[0] == wanted).all()
        model.learn(20)
    finally:
        del gymnasium.registry["SmallAndUneven-v1"]


def test_the_statistics_of_vec_normalize_are_read_and_follow(tmp_path):
    row = ROWS["ppo"]
    env = VecNormalize(DummyVecEnv([row.env]))
    model = row.algorithm(row.policy, env, seed=0, device="cpu", **row.settings)
    model.learn(20)
    model.save(tmp_path / "run.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    before = surgery.load(tmp_path / "run.zip")
    noted = before.environment.settings["normaliser"]["observation"]
    np.testing.assert_array_equal(noted["mean"], env.obs_rms.mean)
    surgery.apply(_extension(row, before), before).save(tmp_path / "more.zip")
    later = VecNormalize.load(str(tmp_path / "more.vecnormalize.pkl"), DummyVecEnv([lambda: row.env(1)]))
    np.testing.assert_array_equal(later.obs_rms.mean, np.insert(env.obs_rms.mean, 1, 0))
    np.testing.assert_array_equal(later.obs_rms.var, np.insert(env.obs_rms.var, 1, 1))
    assert later.observation_space == row.env(1).observation_space
    with (tmp_path / "more.zip").open("rb") as file:
        new = row.algorithm.load(file, env=later, device="cpu")
    raw = observations(row, 12, more=1)["observation"]
    wanted, _ = model.predict(env.normalize_obs(np.delete(raw, 1, axis=1)), deterministic=True)
    assert (new.predict(later.normalize_obs(raw), deterministic=True)[0] == wanted).all()
    new.learn(20)


def test_spaces_of_old_gym_are_read_and_changed_as_they_are_stored():
    """gym 0.17 under NumPy 1: `shape` without an underscore, arrays by `_reconstruct`, protocol 3."""
    state = {"dtype": np.dtype("f4"), "shape": (3,), "low": np.full(3, -1, "f4"), "high": np.ones(3, "f4")}
    tree = parse(pickle.dumps(state, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    space = Made(Name("gym.spaces.box", "Box"), (), "NEWOBJ", state=tree.root)
    found = read_space(space)
    assert (found.kind, found.shape) == ("Box", (3,))
    change_box(found, {0: (0, None, 1, 2)}, None, (5.0, 6.0, 7.0, 8.0))
    again = read_space(space)
    np.testing.assert_array_equal(again.low, np.array([-1, -np.inf, -1, -1], "f4"))
    np.testing.assert_array_equal(again.high, np.array([1, 6, 1, 1], "f4"))
