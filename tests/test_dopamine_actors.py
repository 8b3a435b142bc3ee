"""PPO's and SAC's checkpoints that Dopamine's own agents wrote (tests/fixtures/dopamine/actors.py)."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.adapters import Reading
from surgery.errors import Refused
from surgery.interface import Environment
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from surgery_adapters import dopamine
from surgery_adapters.containers.pickle_tree import Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.dopamine.file import DopamineFile

FOLDER = Path(__file__).parent / "fixtures" / "dopamine"
AGENTS = {"sac": None, "ppo": None, "sac_frames": None, "ppo_relu": "relu"}
"""Name -> what a person must say of its activation."""
PYTHON = os.environ.get("SURGERY_DOPAMINE_PYTHON")


@pytest.fixture(scope="module")
def answers():
    with np.load(FOLDER / "actors.npz") as found:
        return dict(found)


def unpack(name: str, folder: Path) -> Path:
    path = folder / "ckpt.3"
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.ckpt.3.gz").read_bytes()))
    return path


def check(checkpoint: surgery.Checkpoint, wanted: dict[str, np.ndarray]) -> None:
    """Every output is what the agent said."""
    inputs = {port.name: wanted[port.name] for port in checkpoint.interface.inputs}
    shape = checkpoint.model.graph.inputs[0].shape
    inputs["observation"] = inputs["observation"].reshape(3, *list(shape)[1:])
    found = runtime(checkpoint.model)(inputs)
    assert set(found) == set(wanted) - {"observation", "critic_action"} or "action" not in found
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5, err_msg=name)


def of(name: str, answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): v for key, v in answers.items() if key.startswith(f"{name}/")}


def load(path: Path, name: str) -> surgery.Checkpoint:
    return surgery.load(path, reading=Reading(activation=AGENTS.get(name)))


@pytest.mark.parametrize("name", AGENTS)
def test_the_graph_answers_as_the_agent_did_and_an_unchanged_copy_is_the_same_bytes(tmp_path, answers, name):
    path = unpack(name, tmp_path)
    checkpoint = load(path, name)
    check(checkpoint, of(name, answers))
    assert checkpoint.environment == Environment() and checkpoint.optimizer.kind == "adam"
    surgery.save(checkpoint, tmp_path / "ckpt.4")
    assert (tmp_path / "ckpt.4").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", AGENTS)
def test_a_wide_agent_is_the_same_and_the_temperature_is_untouched(tmp_path, answers, name):
    before = load(unpack(name, tmp_path), name)
    result = surgery.apply(surgery.widen(before, factor=2, init="net2net"), before)
    result.save(tmp_path / "ckpt.4")
    after = load(tmp_path / "ckpt.4", name)
    check(after, of(name, answers))
    assert after.digest() == result.checkpoint.digest()
    for slot, members in result.checkpoint.optimizer.slots.items():
        assert all(equal(tensor, after.optimizer.slots[slot][key]) for key, tensor in members.items())
    old, new = (DopamineFile.open(tmp_path / f"ckpt.{k}").root for k in (3, 4))
    assert {key for key in old if str(old[key]) != str(new[key])} <= set(old) - {
        "log_alpha",
        "alpha_optimizer_state",
    }


@pytest.mark.parametrize(
    ("name", "parts"), [("sac", ("_actor", "_critic1", "_critic2")), ("ppo_relu", ("_actor", "_critic"))]
)
def test_new_layers_are_numbered_as_flax_does_it_beside_the_count_of_the_file(tmp_path, answers, name, parts):
    before = load(unpack(name, tmp_path), name)
    layers = [f"network_params.params.{part}.Dense_0" for part in parts]
    plan = surgery.deepen(before, layers)
    result = surgery.apply(plan, before)
    result.save(tmp_path / "ckpt.4")
    after = load(tmp_path / "ckpt.4", name)
    check(after, of(name, answers))
    for old, new in ((0, 0), (1, 2), (2, 3)):
        assert equal(
            before.tensors[f"{layers[0][:-1]}{old}.kernel"], after.tensors[f"{layers[0][:-1]}{new}.kernel"]
        )
    kernel = f"{layers[1][:-1]}1.kernel"
    assert set(after.optimizer.steps.values()) == set(before.optimizer.steps.values())
    assert not any(after.optimizer.slots[slot][kernel].numpy().any() for slot in ("exp_avg", "exp_avg_sq"))
    inverse = surgery.apply(surgery.widen(after, factor=1.5), after)
    inverse.save(tmp_path / "ckpt.5")
    check(load(tmp_path / "ckpt.5", name), of(name, answers))


def test_a_file_without_an_optimizer_takes_new_layers_too(tmp_path, answers):
    path = unpack("ppo_relu", tmp_path)
    tree = parse(path.read_bytes(), 1 << 31)
    path.write_bytes(dump(Tree({**tree.root, "optimizer_state": ()}, tree.protocol)))
    before = load(path, "ppo_relu")
    deep = surgery.deepen(before, [f"network_params.params._{part}.Dense_1" for part in ("actor", "critic")])
    surgery.apply(deep, before).save(tmp_path / "ckpt.4")
    check(load(tmp_path / "ckpt.4", "ppo_relu"), of("ppo_relu", answers))


def test_actions_and_observations_are_added_where_actor_and_critics_read_them(tmp_path, answers):
    before = load(unpack("sac_frames", tmp_path), "sac_frames")
    seen = [surgery.NewObservation("observation", 2), surgery.NewObservation("critic_action", 1)]
    acts = [surgery.NewAction(name, 1, "zero") for name in ("mean", "action_log_std")]
    plan = surgery.extend(before, seen, acts)
    result = surgery.apply(plan, before)
    result.save(tmp_path / "ckpt.4")
    assert DopamineFile.open(tmp_path / "ckpt.4").observation == (4, 2)
    odd = surgery.apply(surgery.extend(before, [surgery.NewObservation("observation", 1)], []), before)
    with pytest.raises(Refused, match="frames"):
        odd.save(tmp_path / "ckpt.5")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: surgery.widen(c, widths={"network_params.params._actor.Dense_0": 9}), "hidden_units"),
        (lambda c: surgery.deepen(c, "network_params.params._actor.Dense_1"), "num_layers"),
    ],
)
def test_what_one_setting_of_gin_cannot_say_is_refused_before_anything_is_computed(tmp_path, edit, said):
    path = unpack("sac", tmp_path)
    before = surgery.load(path)
    after = surgery.apply(edit(before), before).checkpoint
    for write in (lambda: surgery.save(after, tmp_path / "ckpt.4"), lambda: dopamine.check(after, like=path)):
        with pytest.raises(Refused, match=said):
            write()
    assert not (tmp_path / "ckpt.4").exists()


# ---- the real package ------------------------------------------------------------------------------------------------


def run(*arguments: object) -> None:
    made = subprocess.run(
        [PYTHON, FOLDER / "actors.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]


@pytest.mark.skipif(PYTHON is None, reason="SURGERY_DOPAMINE_PYTHON names no environment with Dopamine")
@pytest.mark.parametrize("name", [*AGENTS, "sac_pixels", "sac_cale", "ppo_cale"])
def test_the_agent_goes_on_with_wider_and_deeper_networks_and_the_carried_optimizer(tmp_path, name):
    run("--make", name, tmp_path)
    with np.load(tmp_path / "answers.npz") as found:
        wanted = dict(found)
    before = load(tmp_path / "ckpt.3", name)
    check(before, wanted)
    own = [
        path
        for path in dict.fromkeys(name.rpartition(".")[0] for name in before.tensors)
        if re.fullmatch(r"network_params\..*_(actor|critic\d?)\.Dense_[01]", path)
    ]
    result = surgery.apply(surgery.widen(before, widths=dict.fromkeys(own, 12)), before)
    layers = 2
    if name not in ("ppo", "ppo_cale"):  # behind tanh no linear layer is an identity
        deep = [path for path in own if path.endswith("Dense_1")]
        result = surgery.apply(surgery.deepen(result.checkpoint, deep), result.checkpoint)
        layers = 3
    result.save(tmp_path / "ckpt.4")
    run("--go-on", name, tmp_path, 4, 12, layers)
    with np.load(tmp_path / "gone_on.npz") as found:
        gone = dict(found)
    for key, value in wanted.items():
        np.testing.assert_allclose(gone[key], value, atol=1e-5, err_msg=key)
    assert not np.allclose(gone["after/mean"], gone["mean"])
    carried = sorted((v for k, v in gone.items() if re.fullmatch(r"slot\d+", k) and v.ndim), key=_key)
    state = surgery.load(tmp_path / "ckpt.4").optimizer
    ours = sorted((t.numpy() for slot in state.slots.values() for t in slot.values()), key=_key)
    assert all(np.array_equal(a, b) for a, b in zip(ours, carried, strict=True))


def _key(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()
