"""Checkpoints that Dopamine's own agents wrote (tests/fixtures/dopamine/make.py): read, operated on, written back."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.errors import Refused, SurgeryError
from surgery.interface import Environment
from surgery.ops.extend import NewObservation
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from surgery_adapters.containers.pickle_tree import Made, Name, Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.dopamine.file import DopamineFile
from surgery_adapters.dopamine.networks import split_width

FOLDER = Path(__file__).parent / "fixtures" / "dopamine"
AGENTS = ("dqn", "dqn_rmsprop", "c51", "quantile", "implicit", "full_rainbow")
CLASSIC = ("classic_dqn", "classic_rainbow")
"""Agents for classic control, on vectors."""
KINDS = {
    "c51": "atom_logits",
    "classic_rainbow": "atom_logits",
    "full_rainbow": "atom_logits",
    "quantile": "quantiles",
    "implicit": "quantiles",
}
PYTHON = os.environ.get("SURGERY_DOPAMINE_PYTHON")
"""Of an environment with Dopamine, whose pins and ours do not go together (noxfile.py makes one)."""


@pytest.fixture
def checkpoint(tmp_path):
    """Puts an agent's checkpoint and its sentinel into a folder."""

    def unpack(name: str) -> Path:
        folder = tmp_path / "checkpoints"
        folder.mkdir(exist_ok=True)
        (folder / "ckpt.3").write_bytes(gzip.decompress((FOLDER / f"{name}.ckpt.3.gz").read_bytes()))
        (folder / "sentinel_checkpoint_complete.3").write_bytes(b"done")
        return folder / "ckpt.3"

    return unpack


@pytest.fixture(scope="module")
def answers():
    with np.load(FOLDER / "answers.npz") as found:
        return dict(found)


def outputs(checkpoint: surgery.Checkpoint, answers) -> dict[str, np.ndarray]:
    seen = answers["observations" if len(checkpoint.model.graph.inputs[0].shape) == 4 else "vectors"]
    return runtime(checkpoint.model)({"observation": seen.astype(np.float32)})


def values(name: str, array: np.ndarray) -> np.ndarray:
    """Q values, (n, actions)."""
    if KINDS.get(name) == "atom_logits":
        weight = np.exp(array - array.max(-1, keepdims=True))
        return (weight / weight.sum(-1, keepdims=True)) @ np.linspace(-10, 10, array.shape[-1])
    return array.mean(-1) if name in KINDS else array


@pytest.mark.parametrize("name", [*AGENTS, *CLASSIC])
def test_the_graph_answers_as_the_agent_did(checkpoint, answers, name):
    found = outputs(surgery.load(checkpoint(name)), answers)
    kind = KINDS.get(name, "q_values")
    for output, network in ((kind, "online"), (f"{kind}_target", "target")):
        wanted = answers[f"{name}/{network}"]
        np.testing.assert_allclose(found[output], wanted, atol=1e-5)
        assert (values(name, found[output]).argmax(1) == values(name, wanted).argmax(1)).all()


@pytest.mark.parametrize("name", [*AGENTS, *CLASSIC])
def test_an_unchanged_copy_is_the_same_bytes(tmp_path, checkpoint, name):
    path = checkpoint(name)
    written = surgery.save(surgery.load(path), tmp_path / "ckpt.4")
    assert (tmp_path / "ckpt.4").read_bytes() == path.read_bytes()
    assert [file.name for file in written] == ["ckpt.4", "sentinel_checkpoint_complete.4"]
    assert written[1].read_bytes() == b"done"


@pytest.mark.parametrize("name", [*AGENTS, *CLASSIC])
def test_a_wide_agent_is_the_same_function_and_only_what_the_plan_touched_differs(tmp_path, checkpoint, name):
    path = checkpoint(name)
    before = surgery.load(path)
    plan = surgery.widen(before, factor=2)
    result = surgery.apply(plan, before)
    result.save(tmp_path / "ckpt.4")
    after = surgery.load(tmp_path / "ckpt.4")
    assert after.digest() == result.checkpoint.digest()
    assert surgery.verify(before, after).ok
    assert after.lineage[-1].operation == "widen"
    assert after.optimizer.steps == before.optimizer.steps
    for slot, members in result.checkpoint.optimizer.slots.items():
        assert all(equal(tensor, after.optimizer.slots[slot][key]) for key, tensor in members.items())
    old, new = DopamineFile.open(path), DopamineFile.open(tmp_path / "ckpt.4")
    touched = {tensor.name for tensor in plan.tensors}
    assert {key for key in old.tensors if not equal(old.tensors[key], new.tensors[key])} <= touched
    assert touched <= set(old.tensors) and old.training_steps == new.training_steps
    for key in ("state", "current_iteration", "logs"):
        assert dump(Tree(old.root[key], 4)) == dump(Tree(new.root[key], 4))


def test_of_classic_control_the_file_says_neither_the_support_nor_how_observations_are_scaled(
    tmp_path, checkpoint
):
    before = surgery.load(checkpoint("classic_rainbow"))
    assert (before.interface.outputs[0].low, before.environment) == (None, Environment())
    plan = surgery.extend(before, [NewObservation("observation", 1)], [])
    surgery.apply(plan, before).save(tmp_path / "ckpt.4")
    assert DopamineFile.open(tmp_path / "ckpt.4").observation == (5, 1, 1)


def test_agents_for_classic_control_take_new_layers_and_one_width(tmp_path, checkpoint, answers):
    path = checkpoint("classic_dqn")
    before = surgery.load(path)
    deep = surgery.apply(surgery.deepen(before, "online_params.params.layers_0"), before)
    deep.save(tmp_path / "ckpt.4")
    after = surgery.load(tmp_path / "ckpt.4")
    assert {name.split(".")[2] for name in after.tensors} == {
        "layers_0",
        "layers_1",
        "layers_2",
        "final_layer",
    }
    np.testing.assert_allclose(outputs(after, answers)["q_values"], answers["classic_dqn/online"], atol=1e-5)
    uneven = surgery.apply(surgery.widen(before, widths={"online_params.params.layers_0": 9}), before)
    with pytest.raises(Refused, match="hidden_units"):
        uneven.save(tmp_path / "ckpt.5")


def test_noise_of_noisy_layers_follows_their_means(tmp_path, checkpoint):
    path = checkpoint("full_rainbow")
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "ckpt.4")
    new = DopamineFile.open(tmp_path / "ckpt.4").tensors
    for name in (name for name in new if name.endswith("_sigma")):
        assert new[name].shape == new[name.replace("_sigma", "_mu")].shape


def test_target_networks_are_edited_as_their_originals(checkpoint):
    before = surgery.load(checkpoint("dqn"))
    assert before.copies == {"target_params.": "online_params."}
    after = surgery.apply(surgery.widen(before, factor=2, seed=5), before).checkpoint
    online, target = (
        after.tensors[f"{network}_params.params.Conv_0.kernel"].numpy()[..., 2:].ravel()
        for network in ("online", "target")
    )
    # the same numbers, each at the scale of its own tensor
    np.testing.assert_allclose(online / target, online[0] / target[0], rtol=1e-3)


def test_more_frames_and_actions_come_with_a_last_observation_of_that_shape(tmp_path, checkpoint):
    before = surgery.load(checkpoint("dqn"))
    plan = surgery.extend(
        before, [surgery.NewObservation("observation", 1)], [surgery.NewAction("q_values", 1, "mean")]
    )
    surgery.apply(plan, before).save(tmp_path / "ckpt.4")
    after = surgery.load(tmp_path / "ckpt.4")
    assert tuple(after.model.graph.inputs[0].shape[1:]) == (84, 84, 5)
    assert DopamineFile.open(tmp_path / "ckpt.4").observation == (84, 84, 5)
    assert after.tensors["online_params.params.Dense_1.bias"].shape == (3,)


def test_the_contract_is_that_of_dopamine_and_what_is_declared_survives(tmp_path, checkpoint):
    before = surgery.load(checkpoint("dqn"))
    settings = before.environment.settings
    assert settings["preprocessing"]["layout"] == "HWC" and settings["sticky_actions"] == 0.25
    assert settings["noop_max"] == 0 and settings["fire_reset"] is False
    named = surgery.annotate(before, environment="ALE/Pong-v5")
    surgery.save(named, tmp_path / "ckpt.4")
    assert surgery.load(tmp_path / "ckpt.4").environment == named.environment


def test_optimizers_are_named_and_their_conventions_known(checkpoint):
    adam, rmsprop = (surgery.load(checkpoint(name)).optimizer for name in ("dqn", "dqn_rmsprop"))
    assert adam.kind == "adam" and set(adam.slots) == {"exp_avg", "exp_avg_sq"}
    assert set(adam.steps.values()) == {7.0}
    assert rmsprop.kind == "rmsprop" and set(rmsprop.slots) == {"square_avg", "grad_avg"}
    assert rmsprop.groups[0].hyper["eps_inside_root"] is True
    assert not any(tensor.numpy().min() < 0 for tensor in rmsprop.slots["square_avg"].values())


def test_settings_that_no_file_says_are_given_as_factors(checkpoint):
    before = surgery.load(checkpoint("dqn"))
    result = surgery.apply(surgery.widen(before, factor=2, init="net2net"), before)
    assert "lr × 0.5" in surgery.recipe(result.plan, before.optimizer).describe()


@pytest.mark.parametrize(
    ("width", "head", "wanted"),
    [
        (6, None, (6, 1)),
        (18, None, (18, 1)),
        (51 * 18, None, (18, 51)),
        (600, None, (3, 200)),
        (102, "q", (102, 1)),
    ],
)
def test_what_a_head_is_its_width_tells(width, head, wanted):
    assert split_width(width, head) == wanted


@pytest.mark.parametrize(("width", "head"), [(19, None), (6, "c51"), (6, "gaussian")])
def test_a_head_that_cannot_be_told_is_asked_for(width, head):
    with pytest.raises(SurgeryError) as caught:
        split_width(width, head)
    assert "--head" in caught.value.hint


# ---- the pickles of other versions ---------------------------------------------------------------------------------


def renamed(content: bytes, names: dict[str, Name]) -> bytes:
    """A pickle in which some globals have other names."""
    tree = parse(content, 1 << 31)

    def step(node: object, seen: set[int]) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, Made):
            node.maker = names.get(str(node.maker), node.maker)
            node.arguments = tuple(names.get(str(a), a) if isinstance(a, Name) else a for a in node.arguments)
            for inner in (*node.arguments, node.state, *node.keyed.values()):
                step(inner, seen)
        elif isinstance(node, dict | list | tuple):
            for inner in node.values() if isinstance(node, dict) else node:
                step(inner, seen)

    step(tree.root, set())
    return dump(tree)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_older_versions_are_read(tmp_path, checkpoint, answers, protocol):
    path = checkpoint("c51")
    old = Name("jax._src.device_array", "reconstruct_device_array")
    numpy = Name("numpy.core.multiarray", "_reconstruct")
    tree = parse(renamed(path.read_bytes(), {
        "jax._src.array._reconstruct_array": old,
        "numpy._core.multiarray._reconstruct": numpy,
    }), 1 << 31)  # fmt: skip
    if protocol == 2:  # bytes are text there
        tree = Tree(latin(tree.root), 2)
    path.write_bytes(dump(Tree(tree.root, protocol)))
    found = outputs(surgery.load(path), answers)
    np.testing.assert_allclose(found["atom_logits"], answers["c51/online"], atol=1e-5)


def latin(node: object) -> object:
    if isinstance(node, bytes):
        return Made(Name("_codecs", "encode"), (node.decode("latin1"), "latin1"))
    if isinstance(node, Made):
        node.arguments, node.state = latin(node.arguments), latin(node.state)
    elif isinstance(node, tuple):
        return tuple(map(latin, node))
    elif isinstance(node, dict):
        return {key: latin(value) for key, value in node.items()}
    return node


def test_parameters_of_plain_arrays_without_an_optimizer_are_read(tmp_path, checkpoint, answers):
    found = surgery.load(checkpoint("dqn"))
    params: dict = {}
    for name, tensor in found.tensors.items():
        if name.startswith("online_params."):
            module, leaf = name.split(".")[-2:]
            params.setdefault(module, {})[leaf] = tensor.numpy()
    (tmp_path / "ckpt.199").write_bytes(pickle.dumps({"online_params": params}, protocol=5))
    bare = surgery.load(tmp_path / "ckpt.199")
    assert bare.optimizer is None and not bare.copies
    np.testing.assert_allclose(outputs(bare, answers)["q_values"], answers["dqn/online"], atol=1e-5)


# ---- hostile files ---------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def deep(levels: int) -> dict:
    inner: dict = {}
    for _ in range(levels):
        inner = {"a": inner, "b": inner}
    return inner


def endless() -> dict:
    inner: dict = {}
    inner["a"] = inner
    return inner


HOSTILE = {
    "nothing": {"online_params": {}},
    "a number": {"online_params": 3},
    "text where arrays are": {"online_params": {"params": {"Conv_0": {"kernel": "x"}}}},
    "a dense layer alone": {"online_params": {"params": {"Dense_0": {"kernel": np.ones((2, 2))}}}},
    "an unknown layer": {"online_params": {"params": {"GRU_0": {"kernel": np.ones((2, 2))}}}},
    "a kernel without axes": {
        "online_params": {"params": {"Conv_0": {"kernel": np.float32(1) * np.ones(())}}}
    },
    "an actor alone": {
        "network_params": {"_actor": {"Dense_0": {"kernel": np.ones((2, 2))}}},
        "optimizer_state": 0,
    },
    "an actor without axes": {
        "network_params": {
            "_actor": {f"Dense_{k}": {"kernel": np.ones(()), "bias": np.ones(())} for k in (0, 1)},
            "_critic": {"Dense_0": {"kernel": np.ones(()), "bias": np.ones(())}},
        },
        "optimizer_state": 0,
    },
    "a critic of three": {
        "network_params": {
            f"_{part}": {"Dense_0": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
            for part in ("actor", "critic1", "critic2")
        },
        "optimizer_state": 0,
    },
    "an array of objects": {"online_params": {"Conv_0": {"kernel": np.array([{}], dtype=object)}}},
    "a tree of two to the fortieth": {"online_params": deep(40)},
    "a tree that holds itself": {"online_params": endless()},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_one_error(tmp_path, content):
    (tmp_path / "ckpt.1").write_bytes(pickle.dumps(content))
    with pytest.raises(SurgeryError) as caught:
        surgery.load(tmp_path / "ckpt.1")
    assert "\n" not in caught.value.message


def test_what_a_file_would_execute_is_not_executed(tmp_path, checkpoint):
    path, trap = checkpoint("dqn"), tmp_path / "trap"
    root = parse(path.read_bytes(), 1 << 31)
    bomb = parse(pickle.dumps(Bomb(trap))).root
    path.write_bytes(dump(Tree({**root.root, "logs": bomb}, root.protocol)))
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "ckpt.4")
    assert b"write_text" in (tmp_path / "ckpt.4").read_bytes()
    path.write_bytes(dump(Tree({**root.root, "online_params": bomb}, root.protocol)))
    with pytest.raises(SurgeryError):
        surgery.load(path)
    assert not trap.exists()


def test_damaged_files_are_errors(tmp_path, checkpoint):
    content = checkpoint("dqn").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(25):
        broken = bytearray(content)
        if rng.random() < 0.4:
            broken = broken[: int(rng.integers(10, len(content)))]
        else:
            for place in rng.integers(0, 4000, 3):
                broken[-int(place) - 1] = rng.integers(256)
        (tmp_path / "ckpt.1").write_bytes(broken)
        try:
            surgery.load(tmp_path / "ckpt.1")
        except SurgeryError as error:
            assert "\n" not in error.message


def test_an_optimizer_of_another_network_is_refused_and_can_be_left_out(tmp_path, checkpoint):
    tree, other = (parse(checkpoint(name).read_bytes(), 1 << 31) for name in ("dqn", "c51"))
    path = tmp_path / "ckpt.3"
    path.write_bytes(dump(Tree({**tree.root, "optimizer_state": other.root["optimizer_state"]}, 4)))
    with pytest.raises(SurgeryError, match="fits no network"):
        surgery.load(path)
    bare = surgery.load(path, optimizer=False)
    with pytest.raises(SurgeryError):
        surgery.apply(surgery.widen(bare, factor=2), bare).save(tmp_path / "ckpt.4")
    assert not (tmp_path / "ckpt.4").exists()


# ---- the real package ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(PYTHON is None, reason="SURGERY_DOPAMINE_PYTHON names no environment with Dopamine")
@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_goes_on_with_wider_networks_and_the_carried_optimizer(tmp_path, checkpoint, answers, name):
    before = surgery.load(checkpoint(name))
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(tmp_path / "ckpt.4")
    made = subprocess.run(
        [PYTHON, FOLDER / "make.py", "--go-on", name, tmp_path, "4", "4,6,4", "8"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    with np.load(tmp_path / "gone_on.npz") as found:
        np.testing.assert_allclose(found["before"], answers[f"{name}/online"], atol=1e-5)
        assert not np.allclose(found["after"], found["before"])
        carried = [found[key] for key in found.files if re.fullmatch(r"slot\d+", key) and found[key].ndim]
        moved = [found[key] for key in found.files if re.fullmatch(r"moved\d+", key) and found[key].ndim]
    ours = sorted(
        (tensor.numpy() for slot in result.checkpoint.optimizer.slots.values() for tensor in slot.values()),
        key=lambda a: (a.shape, a.tobytes()),
    )
    theirs = sorted(carried, key=lambda a: (a.shape, a.tobytes()))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(carried, moved, strict=True))
