"""An environment's spaces are compared by name and shape, and become a plan, or a refusal that names the part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import surgery
from surgery.architectures import new
from surgery.builder import GraphBuilder
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.description import Actions, Observed, SpaceDescription
from surgery.envs import AnnealActions, describe
from surgery.errors import ArgumentError, CorruptFile, MissingDependency, Refused, SurgeryError, UnknownName
from surgery.interface import Environment, PortPatch
from surgery.numeric import run
from surgery.port_kinds import infer

FEATURES = ("x", "y", "wind")


class Game(gymnasium.Env[Any, Any]):
    """An environment with given spaces and names; it never moves."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], **names: Any) -> None:
        self.observation_space, self.action_space = observation, action
        for name, value in names.items():
            setattr(self, name, value)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {"taken": action}


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1, 1, shape)


def agent(head: str = "q", labels: tuple[str, ...] | None = FEATURES, **options: Any) -> Checkpoint:
    """Three features, three actions, all of them named."""
    found = new("mlp-16-16", observation=(3,), actions=3, head=head, seed=1, **options)
    output = found.interface.outputs[0].name
    return surgery.annotate(
        found,
        inputs={"observation": PortPatch(labels=labels)},
        outputs={output: PortPatch(labels=("a", "b", "c"))},
    )


def wanted(
    features: tuple[str, ...] = FEATURES, actions: tuple[str, ...] = ("a", "b", "c")
) -> SpaceDescription:
    return SpaceDescription(
        (Observed("", (len(features),), features),), Actions("discrete", len(actions), actions)
    )


def outputs(checkpoint: Checkpoint, features: Mapping[str, np.ndarray]) -> np.ndarray:
    labels = checkpoint.interface.input("observation").labels
    x = np.stack([features[label] for label in labels or ()], 1).astype(np.float32)
    return run(checkpoint.model, {"observation": x})[checkpoint.interface.outputs[0].name]


@pytest.mark.parametrize("head", ["q", "dueling", "actor-critic"])
def test_the_policy_is_the_same_function_of_the_named_features_and_actions(head: str) -> None:
    """Inserted, reordered and retired at once, in observations and actions."""
    before = agent(head)
    plan = surgery.adapt(
        before,
        wanted(("fuel", "y", "gate", "x"), ("c", "leap", "a", "b")),
        constants={"observation.wind": 0.25},
    )
    result = surgery.apply(plan, before)
    assert result.report is not None and result.report.ok
    after = result.checkpoint
    assert after.interface.input("observation").labels == ("fuel", "y", "gate", "x")
    assert after.interface.outputs[0].labels == ("c", "leap", "a", "b")
    mask = after.environment.settings["action_mask"][after.interface.outputs[0].name]
    assert list(mask) == [True, False, True, True]
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(9) for name in ("x", "y", "fuel", "gate")} | {"wind": np.full(9, 0.25)}
    old, fresh = outputs(before, given), outputs(after, given)
    np.testing.assert_allclose(fresh[:, [2, 3, 0]], old, atol=1e-6)
    np.testing.assert_allclose(fresh[:, 1], old.mean(1), atol=1e-6)


def test_what_was_forbidden_before_stays_so_in_either_form_of_a_mask() -> None:
    for mask in ([True, False, True], {"q_values": [True, False, True]}):
        before = agent("q")
        before = before.replace(environment=Environment("x", {"action_mask": mask}))
        plan = surgery.adapt(before, wanted(actions=("b", "jump", "a", "c")))
        after = surgery.apply(plan, before).checkpoint
        assert after.environment.action_mask("q_values") == (False, False, True, True)


def test_every_head_of_a_distribution_and_of_a_gaussian_policy_follows() -> None:
    for head in ("c51", "qr"):
        before = agent(head)
        plan = surgery.adapt(before, wanted(actions=("a", "jump", "b", "c")))
        after = surgery.apply(plan, before).checkpoint
        x = {"observation": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
        name = before.interface.outputs[0].name
        np.testing.assert_allclose(
            run(after.model, x)[name][:, [0, 2, 3]], run(before.model, x)[name], atol=1e-6
        )
    before = agent("gaussian")
    asked = SpaceDescription((Observed("", (3,), FEATURES),), Actions("continuous", 5))
    plan = surgery.adapt(before, asked, unnamed="append")
    after = surgery.apply(plan, before).checkpoint
    x = {"observation": np.zeros((2, 3), np.float32)}
    for port in before.interface.outputs:
        old, fresh = (run(c.model, x)[port.name] for c in (before, after))
        assert fresh.shape[-1] == (5 if port.kind in ("mean", "log_std") else old.shape[-1])
        np.testing.assert_allclose(fresh[..., : old.shape[-1]], old, atol=1e-6)


def test_a_constant_in_the_declared_range_needs_no_word() -> None:
    before = surgery.annotate(
        agent(), inputs={"observation": PortPatch(low=(-1.0, -1.0, 0.5), high=(1.0, 1.0, 0.5))}
    )
    plan = surgery.adapt(before, wanted(("x", "y")))
    assert plan.spaces[0].folded == ((2, 0.5),) and "observation.wind = 0.5" in plan.notes[0]


def test_channels_of_images_are_matched_by_name_too() -> None:
    before = new("minatar", observation=(4, 10, 10), actions=3, seed=0)
    before = surgery.annotate(
        before, inputs={"observation": PortPatch(labels=("paddle", "ball", "trail", "brick"))}
    )
    after = SpaceDescription((Observed("", (5, 10, 10), ("ball", "bonus", "paddle", "trail", "brick")),))
    plan = surgery.adapt(before, after)
    assert plan.spaces[0].source[0] == 1 and plan.spaces[0].fresh == frozenset({1})
    report = surgery.apply(plan, before).report
    assert report is not None and report.ok


def two_inputs() -> Checkpoint:
    """A network with two inputs, as a dictionary of observations would feed it."""
    rng, graph = np.random.default_rng(0), GraphBuilder("two")
    x, y = graph.input("obs_map", (6,)), graph.input("obs_self", (2,))
    joined = graph.op("Concat", x, y, axis=1)
    h = graph.op(
        "Relu", graph.linear(joined, "body", rng.standard_normal((8, 8)).astype("f4"), np.zeros(8, "f4"))
    )
    h = graph.linear(h, "head", rng.standard_normal((3, 8)).astype("f4"), np.zeros(3, "f4"))
    graph.output(h, "q_values", (3,))
    model = graph.model()
    return Checkpoint(model, infer(model))


def test_dictionaries_meet_inputs_by_key_and_one_input_flattened() -> None:
    grown = Game(spaces.Dict({"obs_map": box(7), "obs_self": box(2)}), spaces.Discrete(3))
    plan = surgery.adapt(two_inputs(), describe(grown), unnamed="append")
    assert [(p.name, plan.sizes) for p in plan.ports] == [("obs_map", {"obs_map[1]": 7})]
    more = Game(spaces.Dict({"obs_map": box(6), "obs_self": box(2), "obs_goal": box(1)}), spaces.Discrete(3))
    with pytest.raises(Refused, match=r"'obs_goal'.*no plan adds an input"):
        surgery.adapt(two_inputs(), describe(more))
    with pytest.raises(Refused, match="no longer shows 'obs_self'"):
        surgery.adapt(
            two_inputs(), SpaceDescription((Observed("obs_map", (6,)), Observed("obs_more", (1,)))[:1])
        )
    old = describe(Game(spaces.Dict({"body": box(2), "zone": spaces.Discrete(1)}), spaces.Discrete(3)))
    fresh = describe(
        Game(spaces.Dict({"arm": box(2), "body": box(2), "zone": spaces.Discrete(1)}), spaces.Discrete(3))
    )
    plan = surgery.adapt(agent(labels=None), fresh, current=old)
    assert plan.spaces[0].source[2:] == (0, 1, 2) and plan.spaces[0].fresh == frozenset({0, 1})


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        pytest.param(wanted(("x", "y")), ArgumentError, "no longer shows 'wind'", id="a constant is missing"),
        pytest.param(wanted(), ArgumentError, "nothing to adapt", id="nothing to do"),
        pytest.param(wanted(actions=("a", "b")), Refused, "no longer takes c", id="an action is gone"),
        pytest.param(
            SpaceDescription((Observed("", (5,)),)), ArgumentError, "which ones are new", id="no names"
        ),
        pytest.param(
            SpaceDescription((Observed("", (3, 4)),)), Refused, "number of axes", id="another rank"
        ),
        pytest.param(
            SpaceDescription((Observed("", (3,)),), Actions("continuous", 3)),
            Refused, "discrete and the environment's continuous", id="discrete to continuous",
        ),
    ],
)  # fmt: skip
def test_what_no_plan_can_express_is_refused_with_the_part_that_asks_for_it(
    asked: SpaceDescription, error: type[SurgeryError], said: str
) -> None:
    with pytest.raises(error, match=said) as refusal:
        surgery.adapt(agent(), asked)
    assert refusal.value.hint or "nothing" in said


def test_rows_and_columns_stay_and_continuous_does_not_become_discrete() -> None:
    pixels = new("nature", observation=(4, 84, 84), actions=3, seed=0)
    with pytest.raises(Refused, match="not rows and columns"):
        surgery.adapt(pixels, SpaceDescription((Observed("", (4, 96, 96)),)))
    with pytest.raises(Refused, match="continuous and the environment's discrete"):
        surgery.adapt(agent("gaussian"), wanted())
    with pytest.raises(ArgumentError, match="not gone"):
        surgery.adapt(agent(), wanted(("y", "x", "wind")), constants={"observation.x": 0.0})


# ---- descriptions -----------------------------------------------------------------------------------------------


def test_descriptions_come_back_from_json_and_damage_is_named() -> None:
    found = describe(
        Game(
            box(2),
            spaces.Discrete(2),
            observation_labels=["x", "y"],
            get_action_meanings=lambda: ["NOOP", "FIRE"],
        )
    )
    assert found.observations == (Observed("", (2,), ("x", "y"), -1.0, 1.0),)
    assert found.actions == Actions("discrete", 2, ("NOOP", "FIRE"))
    data = json.loads(json.dumps(found.to_json()))
    assert SpaceDescription.from_json(data) == found
    for damage in (
        {"schema": 9}, {"observations": []}, {"observations": [{"name": "x", "shape": "3", "labels": None}]},
        {"actions": {"kind": "some", "count": 2, "labels": None}}, {"environment": 3}, {"more": 1},
        {"actions": {"kind": "discrete", "count": 2, "labels": ["a"]}},
    ):  # fmt: skip
        with pytest.raises((CorruptFile, SurgeryError)):
            SpaceDescription.from_json({**data, **damage})


def test_registered_environments_are_described_by_their_id() -> None:
    found = describe("CartPole-v1")
    (shown,) = found.observations
    assert (shown.name, shown.shape, shown.labels) == ("", (4,), None)
    assert shown.low is not None and shown.low[1] is None  # an unbounded velocity
    assert (found.actions, found.environment) == (Actions("discrete", 2), "CartPole-v1")
    assert describe("Pendulum-v1").actions == Actions("continuous", 1)
    with pytest.raises((UnknownName, ArgumentError, MissingDependency)):
        describe("CartPool-v1")
    with pytest.raises(Refused, match="Text"):
        describe(Game(spaces.Text(3), spaces.Discrete(2)))
    with pytest.raises(Refused, match="MultiDiscrete"):
        describe(Game(box(2), spaces.MultiDiscrete([2, 2])))


def test_atari_is_described_as_its_contract_shows_it_and_adapted_to_all_actions() -> None:
    minimal = describe(Environment("ALE/Breakout-v5", {"full_action_space": False}))
    assert minimal.actions == Actions("discrete", 4, ("NOOP", "FIRE", "RIGHT", "LEFT"))
    assert minimal.observations[0].shape == (4, 84, 84)
    full = describe(Environment("ALE/Breakout-v5", {"full_action_space": True}))
    before = surgery.annotate(
        new("nature", observation=(4, 84, 84), actions=4, seed=0),
        outputs={"q_values": PortPatch(labels=minimal.actions.labels)},
    )
    plan = surgery.adapt(before, full)
    (edit,) = plan.spaces
    assert edit.after == 18 and [k for k, new_ in enumerate(edit.added) if not new_] == [0, 1, 3, 4]


# ---- the verb ---------------------------------------------------------------------------------------------------


def test_the_verb_adapts_to_files_and_environments(tmp_path, capsys) -> None:
    surgery.save(agent(), tmp_path / "agent.onnx")
    (tmp_path / "new.json").write_text(json.dumps(wanted(("x", "new", "y", "wind")).to_json()))
    words = ["adapt", str(tmp_path / "agent.onnx"), "--after", str(tmp_path / "new.json")]
    assert main([*words, "-o", str(tmp_path / "fit.onnx")]) == 0
    assert "observation[1] 3→4" in capsys.readouterr().out
    labels = surgery.load(tmp_path / "fit.onnx").interface.input("observation").labels
    assert labels == ("x", "new", "y", "wind")
    env = ["adapt", str(tmp_path / "agent.onnx"), "--env", "CartPole-v1", "--unnamed", "append"]
    assert main([*env, "--dry-run"]) == 2
    assert "which ones are gone" in capsys.readouterr().err  # of the three actions
    assert main(["adapt", str(tmp_path / "agent.onnx"), "-o", str(tmp_path / "x.onnx")]) == 2
    (tmp_path / "bad.json").write_text("{")
    assert main(["adapt", str(tmp_path / "agent.onnx"), "--after", str(tmp_path / "bad.json"), "-n"]) == 2


# ---- annealing --------------------------------------------------------------------------------------------------


def test_the_share_of_episodes_with_new_actions_goes_from_none_to_all() -> None:
    mask = [True, True, False]
    contract = Environment("x", {"action_mask": {"q_values": mask}})
    env = AnnealActions(Game(box(1), spaces.Discrete(3)), contract, episodes=200, seed=3)
    assert env.action_masks().tolist() == mask  # before the first episode
    free = []
    for _ in range(300):
        _, info = env.reset()
        assert (info["action_mask"] == env.action_masks()).all() and info["action_mask"][:2].all()
        free.append(bool(info["action_mask"][2]))
    assert not free[0] and all(free[200:]) and env.share == 1
    assert sum(free[:100]) < sum(free[100:200]) and 60 < sum(free[:200]) < 140
    for same in (mask, Environment("x", {"action_mask": mask})):
        again = AnnealActions(Game(box(1), spaces.Discrete(3)), same, episodes=200, seed=3)
        assert [bool(again.reset()[1]["action_mask"][2]) for _ in range(300)] == free


def test_a_forbidden_action_is_refused_or_replaced() -> None:
    env = AnnealActions(Game(box(1), spaces.Discrete(3)), [True, True, False], episodes=10, seed=0)
    env.reset()
    with pytest.raises(ArgumentError, match="may not be taken"):
        env.step(2)
    env = AnnealActions(Game(box(1), spaces.Discrete(3)), [True, True, False], episodes=10, seed=0, instead=1)
    env.reset()
    assert env.step(2)[-1]["taken"] == 1 and env.step(0)[-1]["taken"] == 0
    for arguments in ({"episodes": -1}, {"episodes": 1, "instead": 2}):
        with pytest.raises(ArgumentError):
            AnnealActions(Game(box(1), spaces.Discrete(3)), [True, True, False], seed=0, **arguments)
    two = Environment("x", {"action_mask": {"a": [True, True, False], "b": [True, True, False]}})
    for mask in ([True, False], [False] * 3, Environment("x"), two):
        with pytest.raises(ArgumentError):
            AnnealActions(Game(box(1), spaces.Discrete(3)), mask, episodes=1, seed=0)
    with pytest.raises(ArgumentError, match="discrete"):
        AnnealActions(Game(box(1), box(3)), [True] * 3, episodes=1, seed=0)
