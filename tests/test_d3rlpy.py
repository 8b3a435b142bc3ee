"""The real package is the judge: what d3rlpy saved is read, changed and written, and it loads and trains on.

It runs where d3rlpy is installed (`nox -s d3rlpy`); `test_d3rlpy_files.py` runs everywhere, on files that it wrote.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("d3rlpy")

import torch

import surgery
from surgery.errors import Refused
from surgery.ops.actions import NewAction
from surgery.ops.extend import NewObservation
from surgery.verify.outputs import runtime
from tests.d3rlpy_models import ROWS, Row, answers, load, optimizers, parameters, scaled

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
LIMIT = 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    """A trained algorithm of every kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("d3rlpy")
    torch.set_num_threads(1)

    class Saved(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = folder / f"{name.replace(' ', '-')}.d3"
            ROWS[name].train(self[name])
            return self[name]

    return Saved()


def inputs(row: Row, count: int = 24, more: int = 0) -> dict[str, np.ndarray]:
    """Observations, and an action for critics to judge."""
    action = np.random.default_rng(1).uniform(-1, 1, (count, 2 + more)).astype(np.float32)
    found = {"observation": row.observations(count, more, seed=5)}
    return found if row.discrete else {**found, "critic_action": action}


def ours(checkpoint: surgery.Checkpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our graph computes."""
    names = {port.name for port in checkpoint.interface.inputs}
    return runtime(checkpoint.model)({k: a.astype(np.float32) for k, a in arrays.items() if k in names})


def agree(had: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Every answer of the framework is ours, and the greedy action never differs."""
    assert had.keys() == wanted.keys()
    for name, theirs in wanted.items():
        found = had[name]
        if name == "logits":  # its distribution holds them with their log-sum-exp subtracted
            found = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(
            found, theirs, atol=LIMIT * max(1.0, float(np.abs(theirs).max())), err_msg=name
        )
        if name in ("q_values", "logits"):
            assert (found.argmax(1) == theirs.argmax(1)).all()


def slots_are_carried(checkpoint: surgery.Checkpoint, algorithm: object) -> None:
    """The framework's optimizers hold exactly our slots and steps, for all parameters that are in the graph."""
    names = {parameter: name for name, parameter in parameters(algorithm)}
    state, seen = checkpoint.optimizer, 0
    for optimizer in optimizers(algorithm):
        for parameter, held in optimizer.state.items():
            name = names[parameter]
            for slot, value in held.items() if name in checkpoint.tensors else ():
                if slot == "step":
                    assert state.steps[name] == float(value)
                else:
                    assert state.slots[slot][name].numpy().tobytes() == value.numpy().tobytes(), (slot, name)
                    seen += 1
    assert seen == sum(map(len, state.slots.values())) > 0
    assert state.kind == "sgd" or max(state.steps.values()) > 0


@pytest.mark.parametrize("name", ROWS)
def test_the_graph_computes_what_the_framework_computes(saved, name):
    row, algorithm = ROWS[name], load(saved[name])
    arrays = inputs(row)
    agree(ours(surgery.load(saved[name]), scaled(algorithm, arrays)), answers(algorithm, arrays))


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_optimizer_state_have_the_frameworks_names(saved, name):
    checkpoint, algorithm = surgery.load(saved[name]), load(saved[name])
    held = dict(parameters(algorithm))
    trained = {name for name in held if not name.startswith(("log_temp", "log_alpha"))}
    assert trained <= set(checkpoint.tensors)
    for parameter in trained:
        found = held[parameter].detach().numpy().tobytes()
        assert checkpoint.tensors[parameter].numpy().tobytes() == found
    slots_are_carried(checkpoint, algorithm)


@pytest.mark.parametrize("name", ROWS)
def test_a_copy_that_changes_nothing_is_the_same_byte_for_byte(saved, tmp_path, name):
    surgery.save(surgery.load(saved[name]), tmp_path / "copy.d3")
    assert (tmp_path / "copy.d3").read_bytes() == saved[name].read_bytes()


def acted(algorithm: object, observation: np.ndarray) -> np.ndarray:
    """The framework's actions; CRR draws them."""
    torch.manual_seed(0)
    return algorithm.predict(observation)


@pytest.mark.parametrize("name", ROWS)
def test_a_widened_algorithm_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    row, before = ROWS[name], surgery.load(saved[name])
    surgery.apply(surgery.widen(before, factor=2, seed=1), before).save(tmp_path / "wide.d3")
    old, new, after = load(saved[name]), load(tmp_path / "wide.d3"), surgery.load(tmp_path / "wide.d3")
    arrays = inputs(row)
    agree(ours(after, scaled(new, arrays)), answers(new, arrays))
    agree({k: v for k, v in answers(new, arrays).items() if k != "logits"},
          {k: v for k, v in answers(old, arrays).items() if k != "logits"})  # fmt: skip
    greedy, wanted = (acted(algorithm, arrays["observation"]) for algorithm in (new, old))
    np.testing.assert_allclose(greedy, wanted, atol=LIMIT)
    grown = [sum(p.numel() for _, p in parameters(algorithm)) for algorithm in (old, new)]
    assert grown[1] > 1.5 * grown[0]
    slots_are_carried(after, new)
    assert dict(after.optimizer.steps) == dict(before.optimizer.steps)
    row.learn(new)
    new.save(str(tmp_path / "later.d3"))
    later = surgery.load(tmp_path / "later.d3").optimizer.steps
    assert all(later[parameter] > step for parameter, step in after.optimizer.steps.items())


DEEPER = {
    "dqn": ["q_funcs.0._encoder._layers.2"],
    "td3": ["q_funcs.0._encoder._layers.0", "q_funcs.1._encoder._layers.0"],
    "iql": ["policy._encoder._layers.2"],
}


@pytest.mark.parametrize("name", DEEPER)
def test_a_deepened_algorithm_loads_does_the_same_and_learns_on(saved, tmp_path, name):
    row, before = ROWS[name], surgery.load(saved[name])
    surgery.apply(surgery.deepen(before, DEEPER[name], kind="identity"), before).save(tmp_path / "deep.d3")
    old, new, after = load(saved[name]), load(tmp_path / "deep.d3"), surgery.load(tmp_path / "deep.d3")
    arrays = inputs(row)
    agree(ours(after, scaled(new, arrays)), answers(new, arrays))
    agree(answers(new, arrays), answers(old, arrays))
    assert len(list(parameters(new))) > len(list(parameters(old)))
    slots_are_carried(after, new)
    row.learn(new)
    new.save(str(tmp_path / "later.d3"))
    later = surgery.load(tmp_path / "later.d3").optimizer.steps
    assert all(later[parameter] > step for parameter, step in after.optimizer.steps.items())


@pytest.mark.parametrize(("name", "kind"), [("dqn", "rmsprop"), ("sac", "adamw"), ("td3", "sgd")])
def test_an_algorithm_goes_on_with_another_optimizer(saved, tmp_path, name, kind):
    row, before = ROWS[name], surgery.load(saved[name])
    swapped = surgery.swap_optimizer(before, kind, match="all").checkpoint
    surgery.save(swapped, tmp_path / "other.d3")
    new, after = load(tmp_path / "other.d3"), surgery.load(tmp_path / "other.d3")
    assert after.optimizer.kind == kind
    arrays = inputs(row)
    agree(answers(new, arrays), answers(load(saved[name]), arrays))
    slots_are_carried(after, new)
    row.learn(new)
    new.save(str(tmp_path / "later.d3"))
    assert surgery.load(tmp_path / "later.d3").optimizer.kind == kind


def extended(row: Row, checkpoint: surgery.Checkpoint) -> surgery.Plan:
    """One more feature in second place and one more action, in every network that has them."""
    seen = [NewObservation(f"observation{'[1]' if row.image else ''}", 1, 1)]
    names = [port.name for port in checkpoint.interface.outputs if not port.name.endswith("_target")]
    if row.discrete:
        heads = [name for name in names if name in ("q_values", "logits", "qf0", "qf1")]
        return surgery.extend(checkpoint, seen, [NewAction(head, 1, "mean") for head in heads])
    return surgery.extend(checkpoint, seen, [NewAction("mean" if "mean" in names else "action", 1, "mean")])


@pytest.mark.parametrize("name", ROWS)
def test_an_algorithm_takes_one_more_observation_and_action_and_learns_on(saved, tmp_path, name):
    row, before = ROWS[name], surgery.load(saved[name])
    surgery.apply(extended(row, before), before).save(tmp_path / "more.d3")
    old, new = load(saved[name]), load(tmp_path / "more.d3")
    assert new.observation_shape[0] == old.observation_shape[0] + 1
    assert new.action_size == old.action_size + 1
    x = inputs(row, more=1)["observation"]
    if name != "crr":  # which draws more numbers for more actions
        greedy, wanted = acted(new, x), acted(old, np.delete(x, 1, axis=1))
        np.testing.assert_allclose(greedy if row.discrete else greedy[:, :2], wanted, atol=LIMIT)
    slots_are_carried(surgery.load(tmp_path / "more.d3"), new)
    row.learn(new, more=1)
    new.save(str(tmp_path / "later.d3"))
    steps, later = before.optimizer.steps, surgery.load(tmp_path / "later.d3").optimizer.steps
    assert all(later[parameter] > step for parameter, step in steps.items())


@pytest.mark.parametrize("name", ["dqn", "td3"])
def test_only_what_the_plan_touched_differs(saved, tmp_path, name):
    before = surgery.load(saved[name])
    space = next(s for s in surgery.analyse(before.model, before.interface).spaces if s.widenable)
    plan = surgery.widen(before, widths={space.name: space.size + 3})
    surgery.apply(plan, before).save(tmp_path / "wide.d3")
    after = surgery.load(tmp_path / "wide.d3")
    changed = {entry.name for entry in surgery.diff(before, after).entries if entry.what == "tensor"}
    assert changed == {tensor.name for tensor in plan.tensors}
    old, new = (pickle.loads(path.read_bytes()) for path in (saved[name], tmp_path / "wide.d3"))
    settings = [json.loads(content["config"]) for content in (old, new)]
    params = [setting["config"].pop("params") for setting in settings]
    factory = "encoder_factory" if name == "dqn" else "actor_encoder_factory"
    assert settings[0] == settings[1]
    assert {key for key in params[0] if params[0][key] != params[1][key]} == {factory}
    assert params[1][factory]["params"]["hidden_units"] == [9, 5]


def test_widths_that_one_factory_cannot_express_are_refused_and_nothing_is_written(saved, tmp_path):
    before = surgery.load(saved["cql"])
    result = surgery.apply(surgery.widen(before, widths={"q_funcs.0._encoder._layers.0": 9}), before)
    with pytest.raises(Refused, match="one 'critic_encoder_factory' for both"):
        result.save(tmp_path / "wide.d3")
    assert not list(tmp_path.iterdir())
