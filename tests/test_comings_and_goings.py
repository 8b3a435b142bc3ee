"""Features by name; plans for many models, resumed; recordings migrated; plans undone, or not any more."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery import NewAction, NewObservation, Retired
from surgery.architectures import new
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.edits.execute import execute
from surgery.edits.plan import Plan
from surgery.errors import ArgumentError, FileError, PlanMismatch, Refused, SurgeryError, UnknownName
from surgery.interface import PortPatch
from surgery.numeric import run
from surgery.rollouts import migrate
from tests.test_daily import with_state

LABELS = ("x", "speed", "angle", "wind")


def agent(seed: int = 0, head: str = "q") -> Checkpoint:
    found = new("mlp-16-16", observation=(4,), actions=3, head=head, seed=seed)
    port = PortPatch(labels=LABELS, low=(-4.0, -3.0, -2.0, -1.0), high=(4.0, 3.0, 2.0, 1.0))
    return with_state(surgery.annotate(found, inputs={"observation": port}))


def changed(checkpoint: Checkpoint, name: str, where: tuple[int, ...], value: float) -> Checkpoint:
    """As if training had moved one weight."""
    model = checkpoint.model.clone()
    array = model.graph.initializers[name].const_value.numpy().copy()
    array[where] = value
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return checkpoint.replace(model=model)


# ---- features ---------------------------------------------------------------------------------------------------


def test_names_and_ranges_follow_what_is_retired_and_reordered() -> None:
    before = agent()
    less = surgery.apply(surgery.retire(before, [Retired("observation", "speed", 0.5)]), before).checkpoint
    port = less.interface.input("observation")
    assert (
        port.labels == ("x", "angle", "wind")
        and port.low == (-4.0, -2.0, -1.0)
        and port.high == (4.0, 2.0, 1.0)
    )
    turned = surgery.apply(
        surgery.reorder(before, {"observation": ["wind", "x", "angle", "speed"]}), before
    ).checkpoint
    port = turned.interface.input("observation")
    assert port.labels == ("wind", "x", "angle", "speed") and port.low == (-1.0, -4.0, -2.0, -3.0)
    x = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    old, new_ = (
        run(c.model, {"observation": given})["q_values"]
        for c, given in ((before, x), (turned, x[:, [3, 0, 2, 1]]))
    )
    np.testing.assert_allclose(new_, old, rtol=1e-12)


def test_no_slot_of_what_stays_changes() -> None:
    before = agent()
    after = execute(
        surgery.retire(before, [Retired("observation", 1, 0.5), Retired("observation", 3, 0.0)]), before
    )
    assert before.optimizer is not None and after.optimizer is not None
    for slot, members in before.optimizer.slots.items():
        for name, tensor in members.items():
            old = tensor.numpy()
            old = old[:, [0, 2]] if old.shape == (16, 4) else old
            np.testing.assert_array_equal(after.optimizer.slots[slot][name].numpy(), old)


@pytest.mark.parametrize(
    ("gone", "error"),
    [
        pytest.param([], ArgumentError, id="nothing"),
        pytest.param([Retired("observatoin", 0, 0)], UnknownName, id="unknown input"),
        pytest.param([Retired("observation", "height", 0)], UnknownName, id="unknown feature"),
        pytest.param([Retired("observation", 4, 0)], UnknownName, id="no such number"),
        pytest.param(
            [Retired("observation", 0, 0), Retired("observation", "x", 0)], ArgumentError, id="twice"
        ),
        pytest.param([Retired("observation", k, 0) for k in range(4)], ArgumentError, id="all of them"),
    ],
)
def test_a_feature_that_cannot_go_is_refused(gone: list[Retired], error: type[SurgeryError]) -> None:
    with pytest.raises(error):
        surgery.retire(agent(), gone)


@pytest.mark.parametrize(
    "order", [["x", "speed"], ["x", "x", "angle", "wind"], ["a", "b", "c", "d"], [0, 1, 2, 7]]
)
def test_an_order_names_each_feature_once(order: list[str | int]) -> None:
    with pytest.raises(ArgumentError):
        surgery.reorder(agent(), {"observation": order})


def test_only_probabilities_can_be_split_and_the_report_says_what_happens() -> None:
    with pytest.raises(Refused, match="no logits"):
        surgery.extend(agent(), actions=[NewAction("q_values", 1, "split", of=0)])
    policy = agent(head="actor-critic")
    with pytest.raises(UnknownName):
        surgery.extend(policy, actions=[NewAction("logits", 1, "split", of="jump")])
    result = surgery.apply(surgery.extend(policy, actions=[NewAction("logits", 1, "split", of=2)]), policy)
    report = result.report
    assert report is not None and report.ok
    assert report.check("greedy actions of 'logits'").value == 0
    assert report.check("new actions of 'logits', greedy").value == 0
    assert 0 < report.check("new actions of 'logits', sampled").value < 0.5
    assert "keeps 1/2 of its probability" in result.plan.notes[0]


# ---- undoing ----------------------------------------------------------------------------------------------------


def grown(before: Checkpoint) -> list[tuple[Plan, str, tuple[int, ...]]]:
    """Plans, each with a weight through which its new part comes into use."""
    return [
        (surgery.widen(before, widths={"fc1": 20}), "fc2.weight", (3, 18)),
        (surgery.widen(before, factor=2, init="net2net"), "fc1.weight", (17, 1)),
        (surgery.extend(before, [NewObservation("observation", 2, 1)]), "fc1.weight", (0, 2)),
    ]


def test_what_is_in_use_is_not_undone_and_the_weight_is_named() -> None:
    before = agent()
    for plan, name, where in grown(before):
        after = execute(plan, before)
        assert name in after.tensors, list(after.tensors)
        assert execute(surgery.invert(plan, after), after).digest() == before.digest()
        with pytest.raises(Refused, match=name.replace(".", r"\.")):
            surgery.invert(plan, changed(after, name, where, 0.25))


def test_a_plan_that_undoes_one_checkpoint_is_refused_for_one_that_uses_the_new_parts() -> None:
    before = agent()
    for plan, name, where in grown(before):
        after = execute(plan, before)
        back = surgery.invert(plan, after)
        with pytest.raises(Refused):
            surgery.apply(back, changed(after, name, where, 0.25))


def test_a_plan_whose_constants_lead_nowhere_is_refused() -> None:
    before = agent()
    plan = surgery.retire(before, [Retired("observation", "wind", 0.5)])
    (place,) = plan.folds
    for wrong in (
        {"operand": 7},
        {"axis": 5},
        {"node": "nowhere"},
        {"bias": ["nowhere", 2]},
        {"bias": [place.node, 9]},
        {"bias": None},
        {"layout": [3]},
    ):
        data = plan.to_json()
        data["folds"] = [{**data["folds"][0], **wrong}]
        with pytest.raises((PlanMismatch, Refused)):
            surgery.apply(Plan.from_json(json.loads(json.dumps(data))), before)


def test_a_trained_action_under_a_mean_is_not_undone() -> None:
    before = agent(head="dueling")
    plan = surgery.extend(before, actions=[NewAction("q_values", 1)])
    after = execute(plan, before)
    assert surgery.invert(plan, after).claim == "changed"  # by rounding, and measured
    rows = next(t for t in plan.tensors if t.before[0] == 3 and len(t.before) == 2)
    with pytest.raises(Refused, match="in use"):
        surgery.invert(plan, changed(after, rows.name, (3, 0), 2.0))


def test_what_was_removed_cannot_come_back_and_other_plans_do_not_fit() -> None:
    before = agent()
    gone = surgery.retire(before, [Retired("observation", 0, 0.0)])
    with pytest.raises(Refused, match="cannot be inverted"):
        surgery.invert(gone, execute(gone, before))
    plan = surgery.widen(before, widths={"fc1": 20})
    with pytest.raises(PlanMismatch, match="20 units; in this checkpoint it has 16"):
        surgery.invert(plan, before)
    split = surgery.extend(agent(head="actor-critic"), actions=[NewAction("logits", 1, "split", of=0)])
    with pytest.raises(Refused, match="share the probability"):
        surgery.invert(split, execute(split, agent(head="actor-critic")))


# ---- many models ------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A folder of past opponents and a plan for all of them."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for seed in range(3):
        surgery.save(agent(seed), folder / f"step{seed}.onnx")
    plan = surgery.retire(agent(0), [Retired("observation", "wind", 0.5)])
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    (tmp_path / "out").mkdir()
    return tmp_path


def test_a_folder_of_opponents_goes_on_where_it_was_interrupted(pool: Path, capsys) -> None:
    words = [
        "apply",
        str(pool / "plan.json"),
        str(pool / "pool"),
        "--output-dir",
        str(pool / "out"),
        "--json",
    ]
    assert main([*words[:2], str(pool / "pool" / "step1.onnx"), *words[3:]]) == 0
    written = (pool / "out" / "step1.onnx").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 2  # a result is there already
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [bool(r.get("skipped")) for r in results] == [False, True, False]
    assert (pool / "out" / "step1.onnx").stat().st_mtime_ns == written
    for seed in range(3):  # each with constants of its own folded
        after, before = surgery.load(pool / "out" / f"step{seed}.onnx"), agent(seed)
        x = np.random.default_rng(0).uniform(-1, 1, (4, 4)).astype(np.float32)
        x[:, 3] = 0.5
        old = run(before.model, {"observation": x})["q_values"]
        np.testing.assert_allclose(
            run(after.model, {"observation": x[:, :3]})["q_values"], old, rtol=1e-5, atol=1e-6
        )


def test_a_result_of_another_plan_or_model_is_not_taken_for_done(pool: Path, capsys) -> None:
    surgery.save(agent(9), pool / "out" / "step0.onnx")
    words = [
        "apply",
        str(pool / "plan.json"),
        str(pool / "pool" / "step0.onnx"),
        "--output-dir",
        str(pool / "out"),
    ]
    assert main([*words, "--resume"]) == 2
    assert "not a verified result of this plan" in capsys.readouterr().err
    assert main([*words, "--resume", "--force"]) == 0
    assert main([*words[:2], str(pool / "nothing"), *words[3:]]) == 2


# ---- recordings -------------------------------------------------------------------------------------------------


def recording(path: Path, rows: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "obs": rng.standard_normal((rows, 4)).astype(np.float32),
        "next_obs": rng.standard_normal((rows, 4)).astype(np.float32),
        "action": rng.integers(0, 3, rows),
        "reward": rng.standard_normal(rows).astype(np.float32),
        **more,
    }
    np.savez_compressed(path, **arrays)
    return arrays


def test_a_recording_becomes_what_the_changed_model_sees(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("surgery.rollouts.BLOCK", 1000)  # several blocks
    old = recording(tmp_path / "a.npz", 1234)
    before = agent()
    plan = surgery.extend(before, [NewObservation("observation", 2, 1)])
    found = migrate(plan, tmp_path / "a.npz", tmp_path / "b.npz")
    assert dict(found.arrays) == {"obs": 1234, "next_obs": 1234} and found.lost == 0
    with np.load(tmp_path / "b.npz") as new_:
        assert sorted(new_.files) == sorted(old)
        for name in ("obs", "next_obs"):
            np.testing.assert_array_equal(new_[name][:, [0, 3, 4, 5]], old[name])
            assert not new_[name][:, 1:3].any() and new_[name].dtype == np.float32
        for name in ("action", "reward"):
            np.testing.assert_array_equal(new_[name], old[name])
        after = execute(plan, before)
        q = [
            run(c.model, {"observation": o})["q_values"]
            for c, o in ((before, old["obs"]), (after, new_["obs"]))
        ]
        np.testing.assert_allclose(q[1], q[0], rtol=1e-6, atol=1e-9)


def test_rows_that_did_not_hold_the_constant_are_counted(tmp_path: Path) -> None:
    obs = np.zeros((10, 4), np.float32)
    obs[3:5, 3] = 1
    np.savez(tmp_path / "a.npz", observation=obs)
    plan = surgery.retire(agent(), [Retired("observation", 3, 0.0)])
    found = migrate(plan, tmp_path / "a.npz", tmp_path / "b.npz")
    assert found.lost == 2 and dict(found.arrays) == {"observation": 10}


@pytest.mark.parametrize("rows", [1, 7, 8, 1001])
def test_observations_packed_to_bits_stay_packed(tmp_path: Path, rows: int, monkeypatch) -> None:
    monkeypatch.setattr("surgery.rollouts.BLOCK", 500)
    rng = np.random.default_rng(0)
    bits = rng.random((rows, 3, 5, 5)) < 0.3
    packed = {"obs": np.packbits(bits), "obs_shape": np.array(bits.shape), "packed": np.array(True)}
    np.savez(tmp_path / "a.npz", **packed)
    before = new("minatar", observation=(3, 10, 10), actions=3, seed=0)
    plan = surgery.extend(before, [NewObservation("observation[1]", 2, 0)])
    assert dict(migrate(plan, tmp_path / "a.npz", tmp_path / "b.npz").arrays) == {"obs": rows}
    with np.load(tmp_path / "b.npz") as new_:
        assert new_["obs_shape"].tolist() == [rows, 5, 5, 5] and bool(new_["packed"])
        found = np.unpackbits(new_["obs"])[: rows * 125].reshape(rows, 5, 5, 5)
    np.testing.assert_array_equal(found[:, 2:], bits)
    assert not found[:, :2].any()


def test_a_recording_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plan, source = surgery.extend(agent(), [NewObservation("observation", 1)]), tmp_path / "a.npz"
    np.savez(source, frames=np.zeros((3, 4)))
    with pytest.raises(ArgumentError, match="no array"):
        migrate(plan, source, tmp_path / "b.npz")
    np.savez(source, obs=np.zeros((3, 5)))
    with pytest.raises(ArgumentError, match="5 units"):
        migrate(plan, source, tmp_path / "b.npz")
    np.savez(source, obs=np.array([{}], object))
    with pytest.raises(SurgeryError, match="Python objects"):
        migrate(plan, source, tmp_path / "b.npz")
    source.write_bytes(b"no archive")
    with pytest.raises(SurgeryError, match=r"not an \.npz"):
        migrate(plan, source, tmp_path / "b.npz")
    recording(source, 100)
    data = source.read_bytes()
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("obs.npy", np.lib.format.magic(1, 0) + b"\x10\x00{'descr': '<f4'")
    with pytest.raises(SurgeryError):
        migrate(plan, tmp_path / "cut.npz", tmp_path / "b.npz")
    with pytest.raises(ArgumentError, match="changes no observation"):
        migrate(surgery.widen(agent(), factor=2), source, tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes(b"mine")
    with pytest.raises(FileError, match="exists"):
        migrate(plan, source, tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == b"mine" and source.read_bytes() == data
    assert not list(tmp_path.glob(".surgery-*"))


# ---- verbs ------------------------------------------------------------------------------------------------------


def test_the_verbs_retire_reorder_and_invert(tmp_path: Path, capsys) -> None:
    surgery.save(agent(), tmp_path / "a.onnx")
    a, b, c = (str(tmp_path / f"{name}.onnx") for name in "abc")
    assert main(["retire", a, "--observation", "observation.wind=0.5", "-o", b]) == 0
    assert "equal wherever observation.wind = 0.5" in capsys.readouterr().out
    unnamed = PortPatch(labels=[f"observation.{k}" for k in range(4)])  # as an extension calls the old ones
    surgery.save(surgery.annotate(agent(), inputs={"observation": unnamed}), tmp_path / "d.onnx")
    words = ["retire", str(tmp_path / "d.onnx"), "--observation", "observation.0=0.5", "-o", b, "--force"]
    assert main(words) == 0
    assert "equal wherever observation.0 = 0.5" in capsys.readouterr().out
    assert main(["reorder", a, "--observation", "observation=wind,x,angle,speed", "-o", b, "--force"]) == 0
    for words in (["wind=1"], ["observation.wind=much"], ["observation.height=0"], ["observation.x=nan"]):
        assert main(["retire", a, "--observation", *words, "-n"]) == 2
    assert main(["reorder", a, "--observation", "observation", "-n"]) == 2
    capsys.readouterr()
    assert main(["widen", a, "--factor", "2", "-n", "--json"]) == 0
    (tmp_path / "plan.json").write_text(capsys.readouterr().out)
    assert main(["apply", str(tmp_path / "plan.json"), a, "-o", b, "--force"]) == 0
    assert main(["invert", str(tmp_path / "plan.json"), b, "-o", c]) == 0
    assert main(["diff", a, c]) == 0
    assert surgery.load(c).digest() == surgery.load(a).digest()
    assert main(["invert", str(tmp_path / "plan.json"), a, "-o", c, "--force"]) == 2
