"""New layers and other optimizers in the framework's own files: it loads them, does the same, and trains on."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.cli import main
from surgery.errors import Refused
from surgery.ops.extend import NewObservation
from tests.sb3_models import ACTIONS, ROWS, Row, Saved, World, given, observations

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
LIMIT = 1e-5


def rectified(row: Row) -> Row:
    """The same with ReLU, behind which an identity is exact."""
    kwargs = {**row.settings.get("policy_kwargs", {}), "activation_fn": torch.nn.ReLU}
    return dataclasses.replace(row, settings={**row.settings, "policy_kwargs": kwargs})


GROWING: Mapping[str, Row] = {
    **{name: ROWS[name] for name in tuple(ROWS)},
    **{f"{name} relu": rectified(ROWS[name]) for name in ("ppo", "ppo dict", "a2c tf", "recurrent")},
}
DEEPER: Mapping[str, tuple[str, object]] = {
    "dqn": ("q_net.q_net.2", [12, 9, 9, 9]),
    "qrdqn": ("quantile_net.quantile_net.0", [12, 12, 12, 9]),
    "sac": ("actor.latent_pi.2", {"pi": [12, 9, 9, 9], "qf": [12, 9]}),
    "td3": ("actor.mu.0", {"pi": [11, 11, 11], "qf": [12, 9]}),
    "tqc": ("actor.latent_pi.0", {"pi": [12, 12, 12, 9], "qf": [12, 9]}),
    "ppo relu": ("mlp_extractor.policy_net.2", {"pi": [64, 64, 64, 64], "vf": [64, 64]}),
    "ppo dict relu": ("mlp_extractor.value_net.0", {"pi": [12, 9], "vf": [12, 12, 12, 9]}),
    "a2c tf relu": ("mlp_extractor.value_net.2", {"pi": [12, 9], "vf": [12, 9, 9, 9]}),
    "recurrent relu": ("mlp_extractor.policy_net.0", {"pi": [12, 12, 12, 9], "vf": [12, 9]}),
}
"""Model -> the layer behind which two new ones go, and the framework's setting afterwards."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    return Saved(tmp_path_factory.mktemp("sb3"), GROWING)


def moments(model: object) -> list[tuple[tuple[int, ...], dict[str, torch.Tensor]]]:
    """The state of all optimizers, parameter by parameter: its shape, and its slots."""
    owners = [model.policy, getattr(model, "actor", None), getattr(model, "critic", None)]
    found = [owner.optimizer for owner in owners if getattr(owner, "optimizer", None) is not None]
    return [
        (tuple(parameter.shape), dict(optimizer.state[parameter]))
        for optimizer in found
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def same_actions(row: Row, before: Path, after: Path) -> object:
    """The model in the second file, which does what the one in the first does."""
    old, new = row.load(before), row.load(after, more=0)
    arrays = observations(row, 24)
    greedy, wanted = (m.predict(given(arrays), deterministic=True)[0] for m in (new, old))
    np.testing.assert_allclose(greedy, wanted, atol=LIMIT)
    return new


@pytest.mark.parametrize("name", DEEPER)
def test_a_deeper_model_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    row, (after, sizes) = GROWING[name], DEEPER[name]
    before = surgery.load(saved[name])
    surgery.apply(surgery.deepen(before, after, count=2), before).save(tmp_path / "deeper.zip")
    new = same_actions(row, saved[name], tmp_path / "deeper.zip")
    assert new.policy_kwargs["net_arch"] == sizes
    old, deeper = moments(row.load(saved[name])), moments(new)
    steps = [float(state["step"]) for _, state in deeper]
    assert len(deeper) == len(old) + 4
    assert [step for step in steps if step == 0] == [0.0] * 4
    kept = [entry for entry, step in zip(deeper, steps, strict=True) if step]
    for (shape, state), (wanted, was) in zip(kept, old, strict=True):
        assert shape == wanted
        assert all(torch.equal(torch.as_tensor(state[slot]), torch.as_tensor(was[slot])) for slot in was)
    fresh = [state for (_, state), step in zip(deeper, steps, strict=True) if not step]
    started = 1.0 if name == "a2c tf relu" else 0.0  # the framework's own RMSProp starts at one
    assert all((state["square_avg"] == started).all() for state in fresh if "square_avg" in state)
    new.learn(row.steps)
    trained = [float(state["step"]) for _, state in moments(new)]
    assert all(later > step for later, step in zip(trained, steps, strict=True))
    new.save(tmp_path / "later.zip")
    assert (
        surgery.load(tmp_path / "later.zip").tensors.keys()
        == surgery.load(tmp_path / "deeper.zip").tensors.keys()
    )


CONTINUOUS = {"ppo elu": "mean", "ppo sde": "mean", "sac": "mean", "td3": "action", "tqc": "mean"}
"""Model -> the output that a new action is asked of."""


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_new_continuous_action_takes_its_deviation_and_the_critics_with_it(saved, tmp_path, name):
    row = GROWING[name]
    words = [
        "extend",
        str(saved[name]),
        "--action",
        f"{CONTINUOUS[name]}+1",
        "-o",
        str(tmp_path / "more.zip"),
    ]
    assert main(words) == 0
    world = World("vector", "box")
    world.action_space = ACTIONS["box"](1)
    new = row.algorithm.load(tmp_path / "more.zip", env=world, device="cpu")
    arrays = observations(row, 24)
    greedy, wanted = (m.predict(given(arrays), deterministic=True)[0] for m in (new, row.load(saved[name])))
    np.testing.assert_allclose(greedy[:, :2], wanted, atol=LIMIT)
    np.testing.assert_allclose(greedy[:, 2], 0, atol=LIMIT)
    new.learn(20)


def test_critics_of_one_setting_are_deepened_together(saved, tmp_path, capsys):
    one = ["deepen", str(saved["sac"]), "--after", "critic.qf0.0", "-o", str(tmp_path / "deeper.zip")]
    assert main(one) == 1
    assert "one setting for all" in capsys.readouterr().err
    assert main([*one, "--after", "critic.qf1.0", "--after", "critic_target.qf1.0"]) == 0
    new = same_actions(GROWING["sac"], saved["sac"], tmp_path / "deeper.zip")
    assert new.policy_kwargs["net_arch"] == {"pi": [12, 9], "qf": [12, 12, 9]}
    new.learn(20)


def test_what_the_file_does_not_hold_is_refused_before_anything_is_computed(
    saved, tmp_path, capsys, monkeypatch
):
    """A residual branch behind a tanh: no linear layer there is exact."""
    monkeypatch.setattr("surgery.operate.prove", lambda *_, **__: pytest.fail("it was proved"))
    words = ["deepen", str(saved["ppo"]), "--after", "mlp_extractor.policy_net.2"]
    target = tmp_path / "x.zip"
    for more in ([], ["--dry-run"]):
        assert main([*words, "-o", str(target), *more]) == 1
        said = capsys.readouterr().err
        assert "cannot hold this network" in said
        assert "-o OUT.onnx" in said
    assert not list(tmp_path.iterdir())
    assert main([*words, "--dry-run"]) == 0
    assert "cannot hold the result" in capsys.readouterr().out


def test_what_the_file_does_not_hold_goes_into_a_graph(saved, tmp_path):
    words = [
        "deepen",
        str(saved["ppo"]),
        "--after",
        "mlp_extractor.policy_net.2",
        "-o",
        str(tmp_path / "x.onnx"),
    ]
    assert main(words) == 0


@pytest.mark.parametrize("name", ["recurrent", "recurrent shared"])
def test_a_recurrent_layer_behind_the_frameworks_goes_into_a_graph(saved, tmp_path, name):
    target = tmp_path / "deeper.onnx"
    words = ["deepen", str(saved[name]), "--after", "lstm_actor", "--kind", "recurrent", "-o", str(target)]
    assert main(words) == 0
    old, new = surgery.load(saved[name]).interface, surgery.load(target).interface
    assert len(new.inputs) == len(old.inputs) + 2 and {port.kind for port in new.inputs[-2:]} == {"state"}


def test_a_route_ends_in_the_frameworks_file(saved, tmp_path):
    target = tmp_path / "far.zip"
    assert main(["migrate", str(saved["dqn"]), "--to", "mlp-24-24-24-24", "-o", str(target)]) == 0
    new = same_actions(GROWING["dqn"], saved["dqn"], target)
    assert new.policy_kwargs["net_arch"] == [
        24,
        24,
        24,
        24,
    ]  # of the target network, too, which nobody trains
    new.learn(40)
    again = tmp_path / "again.zip"
    assert main(["migrate", str(saved["dqn"]), "--to", str(target), "-o", str(again)]) == 0
    assert GROWING["dqn"].load(again).policy_kwargs["net_arch"] == [24, 24, 24, 24]


def test_only_names_settings_and_new_layers_differ_in_a_deeper_file(saved, tmp_path):
    before = surgery.load(saved["dqn"])
    surgery.apply(surgery.deepen(before, "q_net.q_net.0"), before).save(tmp_path / "deeper.zip")
    old, new = (
        GROWING["dqn"].load(path).policy.state_dict() for path in (saved["dqn"], tmp_path / "deeper.zip")
    )
    moved = {"2": "4", "4": "6"}
    for name, tensor in old.items():
        *path, place, leaf = name.split(".")
        assert torch.equal(new[".".join([*path, moved.get(place, place), leaf])], tensor)
    assert list(new) == sorted(new, key=lambda name: (name.startswith("q_net_target"), name.split(".")[-2]))
    with zipfile.ZipFile(saved["dqn"]) as a, zipfile.ZipFile(tmp_path / "deeper.zip") as b:
        same = {name for name in a.namelist() if a.read(name) == b.read(name)}
        assert set(a.namelist()) - same == {"data", "policy.pth", "policy.optimizer.pth"}


SWAPS = [
    ("dqn", "rmsprop", "RMSprop"),
    ("dqn", "adamw", "AdamW"),
    ("ppo", "sgd", "SGD"),
    ("a2c", "adam", "Adam"),
    ("a2c tf", "adam", "Adam"),
    ("sac", "rmsprop", "RMSprop"),
    ("td3", "adamw", "AdamW"),
]


@pytest.mark.parametrize(("name", "to", "cls"), SWAPS)
def test_another_optimizer_is_loaded_with_its_state_and_learns_on(saved, tmp_path, name, to, cls):
    row = GROWING[name]
    before = surgery.load(saved[name])
    swap = surgery.swap_optimizer(before, to)
    swap.save(tmp_path / "other.zip")
    new = same_actions(row, saved[name], tmp_path / "other.zip")
    optimizers = [
        owner.optimizer
        for owner in (new.policy, getattr(new, "actor", None), getattr(new, "critic", None))
        if getattr(owner, "optimizer", None) is not None
    ]
    assert all(type(optimizer) is getattr(torch.optim, cls) for optimizer in optimizers)
    [rate] = {group.hyper["lr"] for group in swap.checkpoint.optimizer.groups}
    assert new.lr_schedule(1.0) == rate
    found = surgery.load(tmp_path / "other.zip").optimizer
    assert found.kind == to
    for slot, held in swap.checkpoint.optimizer.slots.items():
        for parameter, tensor in held.items():
            assert np.array_equal(found.slots[slot][parameter].numpy(), tensor.numpy())
    count = [float(state.get("step", 0)) for _, state in moments(new)]
    new.learn(row.steps)
    later = [float(state.get("step", 0)) for _, state in moments(new)]
    assert to == "sgd" or all(a > b for a, b in zip(later, count, strict=True))
    new.save(tmp_path / "later.zip")


def test_the_frameworks_own_rmsprop_is_written_where_epsilon_is_inside_the_root(saved, tmp_path):
    before = surgery.load(saved["dqn"])
    options = {"eps_inside_root": True, "starts_at_one": True}
    surgery.swap_optimizer(before, "rmsprop", **options).save(tmp_path / "tf.zip")
    assert type(GROWING["dqn"].load(tmp_path / "tf.zip").policy.optimizer).__name__ == "RMSpropTFLike"


def test_a_learning_rate_per_tensor_is_refused_with_the_option_that_is_not(saved, tmp_path, capsys):
    words = [
        "optimizer",
        str(saved["dqn"]),
        "--to",
        "rmsprop",
        "--match",
        "tensor",
        "-o",
        str(tmp_path / "x.zip"),
    ]
    assert main(words) == 1
    assert "--match all" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 1
    assert not list(tmp_path.iterdir())


def test_a_schedule_that_is_a_function_is_not_scaled(tmp_path):
    row = dataclasses.replace(
        ROWS["dqn"], settings={**ROWS["dqn"].settings, "learning_rate": lambda left: 1e-3 * (left + 1)}
    )
    row.train(tmp_path / "run.zip")
    before = surgery.load(tmp_path / "run.zip")
    with pytest.raises(Refused, match="a schedule"):
        surgery.swap_optimizer(before, "rmsprop").save(tmp_path / "x.zip")
    surgery.swap_optimizer(before, "rmsprop", match="none").save(tmp_path / "x.zip")
    same_actions(row, tmp_path / "run.zip", tmp_path / "x.zip").learn(20)


EDITS = {
    "narrow": lambda c: surgery.narrow(c, widths={"q_net.q_net.0": 7}, by="l1"),
    "retire": lambda c: surgery.retire(c, [surgery.Retired("observation", 2, 0.5)]),
    "reorder": lambda c: surgery.reorder(c, {"observation": [4, 3, 2, 1, 0]}),
    "extend in front": lambda c: surgery.extend(c, [NewObservation("observation", 2, 0)], []),
}


@pytest.mark.parametrize("verb", EDITS)
def test_what_other_edits_give_trains_on_in_the_framework(saved, tmp_path, verb):
    before = surgery.load(saved["dqn"])
    result = surgery.apply(EDITS[verb](before), before)
    result.save(tmp_path / "edited.zip")
    size = result.checkpoint.model.graph.inputs[0].shape[1]
    new = GROWING["dqn"].load(tmp_path / "edited.zip", more=0 if size == 5 else None)
    assert new.observation_space.shape == (size,)
    if size == 5:
        new.learn(40)
    plan = surgery.widen(before, factor=2)
    wide = surgery.apply(plan, before).checkpoint
    surgery.apply(surgery.invert(plan, wide), wide).save(tmp_path / "back.zip")
    back = same_actions(GROWING["dqn"], saved["dqn"], tmp_path / "back.zip")
    assert back.policy_kwargs["net_arch"] == [12, 9]


IMAGES = {
    "convolution": ("dqn image", lambda c: surgery.deepen(c, "q_net.features_extractor.cnn.4")),
    "convolution between": ("ppo image", lambda c: surgery.deepen(c, "features_extractor.cnn.0", count=2)),
    "dense": ("dqn image", lambda c: surgery.deepen(c, "q_net.features_extractor.linear.0")),
    "kernel": (
        "sac image",
        lambda c: surgery.grow_kernel(
            c, {f"{part}.features_extractor.cnn.4": 5 for part in ("actor", "critic")}
        ),
    ),
    "in a dict": ("ppo dict", lambda c: surgery.deepen(c, "features_extractor.extractors.camera.cnn.2")),
}


@pytest.mark.parametrize("what", IMAGES)
def test_features_extractors_take_new_convolutions_and_kernels(saved, tmp_path, what):
    name, edit = IMAGES[what]
    before, row = surgery.load(saved[name]), GROWING[name]
    result = surgery.apply(edit(before), before)
    result.save(tmp_path / "changed.zip")
    new = same_actions(row, saved[name], tmp_path / "changed.zip")
    assert new.policy_kwargs["features_extractor_class"].__module__ == "surgery_adapters.sb3.extractor"
    new.learn(row.steps)
    new.save(tmp_path / "later.zip")
    again = surgery.load(tmp_path / "later.zip")
    assert again.model.graph.num_nodes() == result.checkpoint.model.graph.num_nodes()
