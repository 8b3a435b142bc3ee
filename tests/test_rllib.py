"""The real package is the judge: what RLlib saved is read, changed and written, and it loads and trains on.

It runs where Ray is installed (`nox -s rllib`); `test_rllib_files.py` runs everywhere, on a folder that it wrote.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

import ray
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

import surgery
from surgery.errors import FileError, Refused
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation
from surgery.verify.outputs import runtime
from tests.rllib_models import ROWS, Row, answers, learn, load, module_of, optimizers

pytestmark = pytest.mark.filterwarnings("ignore")
LIMIT = 1e-5
PLACE = Path("learner_group/learner/rl_module/default_policy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    """A trained algorithm of every kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("rllib")
    torch.set_num_threads(1)

    class Saved(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = folder / name.replace(" ", "-")
            ROWS[name].train(self[name])
            return self[name]

    yield Saved()
    ray.shutdown()


def agree(had: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], *, every: bool = True) -> None:
    """Every answer of the framework is ours, and the greedy action never differs."""
    untold = had.keys() - wanted.keys()
    assert not every or untold <= {
        "value_target",
        *(name for name in had if name.startswith("encoder.critic")),
    }
    for name, theirs in wanted.items():
        np.testing.assert_allclose(
            had[name], theirs, atol=LIMIT * max(1.0, float(np.abs(theirs).max())), err_msg=name
        )
        if name in ("q_values", "logits"):
            assert (had[name].argmax(1) == theirs.argmax(1)).all()


def slots_are_carried(checkpoint: surgery.Checkpoint, algorithm: object) -> None:
    """The framework's optimizers hold exactly our slots and steps, for all parameters that are in the graph."""
    names = {parameter: name for name, parameter in module_of(algorithm).named_parameters()}
    state, seen = checkpoint.optimizer, 0
    for optimizer in optimizers(algorithm):
        for parameter, held in optimizer.state.items():
            if (name := names.get(parameter)) is None:  # SAC's temperature
                continue
            for slot, value in held.items():
                if slot == "step":
                    assert state.steps[name] == float(value) > 0
                else:
                    assert state.slots[slot][name].numpy().tobytes() == value.numpy().tobytes(), (slot, name)
                    seen += 1
    assert seen == sum(map(len, state.slots.values())) > 0


@pytest.mark.parametrize("name", ROWS)
def test_the_graph_computes_what_the_framework_computes(saved, name):
    checkpoint, algorithm = surgery.load(saved[name]), load(saved[name])
    arrays = ROWS[name].inputs(checkpoint)
    agree(runtime(checkpoint.model)(arrays), answers(module_of(algorithm), arrays))
    slots_are_carried(checkpoint, algorithm)
    algorithm.stop()


@pytest.mark.parametrize("name", ROWS)
def test_a_copy_that_changes_nothing_is_the_same_byte_for_byte(saved, tmp_path, name):
    surgery.save(surgery.load(saved[name]), tmp_path / "copy")
    before, after = (sorted(p.relative_to(f) for p in f.rglob("*")) for f in (saved[name], tmp_path / "copy"))
    assert before == after
    files = [str(path) for path in before if (saved[name] / path).is_file()]
    assert filecmp.cmpfiles(saved[name], tmp_path / "copy", files, shallow=False) == (files, [], [])


@pytest.mark.parametrize("name", ROWS)
def test_a_widened_algorithm_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    before, wide = surgery.load(saved[name]), tmp_path / "wide"
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(wide)
    after, old, new = surgery.load(wide), load(saved[name]), load(wide)
    arrays = ROWS[name].inputs(after)
    theirs = answers(module_of(new), arrays)
    agree(runtime(after.model)(arrays), theirs)
    if "lstm" not in name:  # its state is wider
        agree(theirs, answers(module_of(old), arrays))
        runner = new.get_module()  # the copy that acts
        assert sum(p.numel() for p in runner.parameters()) > sum(
            p.numel() for p in old.get_module().parameters()
        )
    old.stop()
    slots_are_carried(after, new)
    assert dict(after.optimizer.steps) == dict(before.optimizer.steps)
    learn_on(new, after, tmp_path)
    if name.startswith("ppo"):  # others make their targets when they train
        agree(answers(RLModule.from_checkpoint(str(wide / PLACE)), arrays), theirs)


def learn_on(algorithm: object, before: surgery.Checkpoint, folder: Path) -> None:
    """Train, save, and see every step count higher."""
    for _ in range(3):
        learn(algorithm)
    algorithm.save_to_path(str(folder / "later"))
    algorithm.stop()
    later = surgery.load(folder / "later").optimizer.steps
    assert all(later[parameter] > step for parameter, step in before.optimizer.steps.items())


DEEPER = {
    "ppo": ["pi.net.mlp.0", "vf.net.mlp.0"],
    "ppo settings": ["encoder.actor_encoder.net.mlp.0", "encoder.critic_encoder.net.mlp.0"],
    "dqn": ["af.net.mlp.0", "vf.net.mlp.0"],
    "sac": ["pi.net.mlp.0", "qf.net.mlp.0", "qf_twin.net.mlp.0"],
    "ppo image": ["encoder.encoder.net.0.cnn.1", "encoder.encoder.net.0.cnn.3"],
    "dqn image": ["encoder.net.0.cnn.3"],
}
"""Layers behind which others are put: all that one setting sizes, each with a ReLU."""


@pytest.mark.parametrize("name", DEEPER)
def test_a_deepened_algorithm_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    before, deep = surgery.load(saved[name]), tmp_path / "deep"
    plan = surgery.deepen(before, DEEPER[name], kind="identity", count=2)
    surgery.apply(plan, before).save(deep)
    after, old, new = surgery.load(deep), load(saved[name]), load(deep)
    arrays = ROWS[name].inputs(after)
    theirs = answers(module_of(new), arrays)
    agree(runtime(after.model)(arrays), theirs)
    agree(theirs, answers(module_of(old), arrays))
    layers, fewer = (len(list(algorithm.get_module().parameters())) for algorithm in (new, old))
    assert layers > fewer  # the copy that acts
    old.stop()
    held = {parameter: n for parameter, n in after.optimizer.steps.items() if n}
    assert sorted(held.values()) == sorted(before.optimizer.steps.values())
    assert {n for n in after.optimizer.steps.values() if n not in held.values()} == {0.0}
    learn_on(new, after, tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("ppo", "rmsprop"), ("sac", "sgd"), ("appo", "adamw")])
def test_an_algorithm_with_another_optimizer_loads_with_its_state_and_learns_on(saved, tmp_path, name, kind):
    before = surgery.load(saved[name])
    swapped = surgery.swap_optimizer(before, kind, match="all").checkpoint
    surgery.save(swapped, tmp_path / "new")
    after, algorithm = surgery.load(tmp_path / "new"), load(tmp_path / "new")
    names = {"rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    made = dict(algorithm.learner_group._learner._named_optimizers)
    assert {type(made[n]) for n in made if not n.endswith("alpha")} == {names[kind]}
    rates = {group["lr"] for o in made.values() for group in o.param_groups}
    assert {group.hyper["lr"] for group in after.optimizer.groups} <= rates
    slots_are_carried(after, algorithm)
    algorithm.train()
    assert rates == {group["lr"] for o in made.values() for group in o.param_groups}  # the schedules' too
    learn(algorithm)
    algorithm.save_to_path(str(tmp_path / "later"))
    algorithm.stop()
    assert surgery.load(tmp_path / "later").optimizer.kind == kind


def extended(row: Row, checkpoint: surgery.Checkpoint) -> surgery.Plan:
    """One more feature in second place and one more action, in every network that has them."""
    seen = [NewObservation(f"observation{'[3]' if row.image else ''}", 1, 1)]
    names = [port.name for port in checkpoint.interface.outputs if not port.name.endswith("_target")]
    if "critic_action" in {port.name for port in checkpoint.interface.inputs}:
        seen.append(NewObservation("critic_action", 1))
    judged = ["qf0", "qf1"] if row.discrete else []
    heads = [name for name in names if name in ("q_values", "logits", "mean", "action_log_std", *judged)]
    return surgery.extend(checkpoint, seen, [NewAction(head, 1, "mean") for head in heads])


@pytest.mark.parametrize(
    "name", [name for name in ROWS if name not in ("ppo default", "ppo settings", "sac image")]
)
def test_an_algorithm_takes_one_more_observation_and_action_and_learns_on(saved, tmp_path, name):
    row, before = ROWS[name], surgery.load(saved[name])
    surgery.apply(extended(row, before), before).save(tmp_path / "more")
    after, old = surgery.load(tmp_path / "more"), load(saved[name])
    arrays = row.inputs(after)
    fewer = {**arrays, "observation": np.delete(arrays["observation"], 1, axis=-1)}
    if "critic_action" in arrays:
        fewer["critic_action"] = arrays["critic_action"][:, :-1]
    wanted = answers(module_of(old), fewer)
    old.stop()
    new = load(tmp_path / "more", features=1, actions=1)
    had = answers(module_of(new), arrays)
    for key, theirs in wanted.items():
        ours = had[key][:, : theirs.shape[1]]
        np.testing.assert_allclose(
            ours, theirs, atol=LIMIT * max(1.0, float(np.abs(theirs).max())), err_msg=key
        )
    slots_are_carried(after, new)
    learn_on(new, after, tmp_path)


def test_only_what_the_plan_touched_differs(saved, tmp_path):
    before = surgery.load(saved["ppo"])
    plan = surgery.widen(before, widths={"encoder.encoder.net.mlp.0": 9})
    surgery.apply(plan, before).save(tmp_path / "wide")
    after = surgery.load(tmp_path / "wide")
    changed = {entry.name for entry in surgery.diff(before, after).entries if entry.what == "tensor"}
    assert changed == {tensor.name for tensor in plan.tensors}
    algorithm = load(tmp_path / "wide")
    assert algorithm.config.model_config["fcnet_hiddens"] == [9, 5]
    assert algorithm.config.model_config["head_fcnet_hiddens"] == [4]
    algorithm.stop()


def test_widths_that_one_setting_cannot_express_are_refused_and_nothing_is_written(saved, tmp_path):
    before = surgery.load(saved["sac"])
    result = surgery.apply(surgery.widen(before, widths={"pi_encoder.net.mlp.0": 9}), before)
    with pytest.raises(Refused, match="one 'fcnet_hiddens' for all"):
        result.save(tmp_path / "wide")
    assert not list(tmp_path.iterdir())


def test_an_old_folder_is_replaced_with_force_and_only_by_its_kind(saved, tmp_path):
    before, target = surgery.load(saved["ppo"]), tmp_path / "run"
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(target)
    with pytest.raises(FileError, match="it exists"):
        result.save(target)
    with pytest.raises(FileError, match="it is the input"):
        result.save(saved["ppo"], force=True)
    result.save(target, force=True)
    (tmp_path / "letters").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        result.save(tmp_path / "letters", force=True)
    assert surgery.load(target).digest() == result.checkpoint.digest()
