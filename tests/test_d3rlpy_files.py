"""Files that d3rlpy wrote (tests/fixtures/d3rlpy/make.py): read, changed and written back, without d3rlpy."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import surgery
from surgery.cli import main
from surgery.errors import CorruptFile, FileError, Refused, SurgeryError, UnknownFormat
from surgery.tensors import equal
from surgery.verify.outputs import runtime

FOLDER = Path(__file__).parent / "fixtures" / "d3rlpy"
NAMES = sorted(path.stem for path in FOLDER.glob("*.d3"))
RECORDED = np.load(FOLDER / "answers.npz")


def recorded(name: str, side: str) -> dict[str, np.ndarray]:
    prefix = f"{name}/{side}/"
    return {key.removeprefix(prefix): RECORDED[key] for key in RECORDED.files if key.startswith(prefix)}


def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and the state dicts as PyTorch reads them."""
    outer = pickle.loads(path.read_bytes())
    return json.loads(outer["config"]), torch.load(io.BytesIO(outer["torch"]), weights_only=True)


def agree(checkpoint: surgery.Checkpoint, name: str) -> None:
    found = runtime(checkpoint.model)(recorded(name, "in"))
    wanted = recorded(name, "out")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        had = found[key]
        if key == "logits":  # recorded with their log-sum-exp subtracted, as the distribution has them
            had = had - np.log(np.exp(had).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(had, value, atol=1e-5 * max(1.0, float(np.abs(value).max())), err_msg=key)
        if key in ("q_values", "logits"):
            assert (had.argmax(1) == value.argmax(1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_answers_as_d3rlpy_did(name):
    agree(surgery.load(FOLDER / f"{name}.d3"), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_slot_of_every_optimizer_is_bound_to_its_parameter(name):
    checkpoint = surgery.load(FOLDER / f"{name}.d3")
    _, states = content(FOLDER / f"{name}.d3")
    trained = {
        "optim": ["q_funcs", "imitator"],
        "actor_optim": ["policy"],
        "critic_optim": ["q_funcs", "value_func"],
    }
    count = 0
    for optimizer, modules in trained.items():
        names = [
            f"{module}.{key}"
            for module in modules
            for key in states.get(module, {})
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ]
        state = states.get(optimizer, {"optim": {"state": {}}})["optim"]["state"]
        assert len(state) in (0, len(names))
        for number, slots in state.items():
            assert checkpoint.optimizer.steps[names[number]] == float(slots.pop("step"))
            for slot, tensor in slots.items():
                assert (
                    checkpoint.optimizer.slots[slot][names[number]].numpy().tobytes()
                    == tensor.numpy().tobytes()
                )
                count += 1
    assert count == sum(map(len, checkpoint.optimizer.slots.values())) > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_copy_is_the_same_bytes_and_a_wide_one_the_same_function(tmp_path, name):
    path, wide = FOLDER / f"{name}.d3", tmp_path / "wide.d3"
    before = surgery.load(path)
    surgery.save(before, tmp_path / "copy.d3")
    assert (tmp_path / "copy.d3").read_bytes() == path.read_bytes()
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(wide)
    after = surgery.load(wide)
    assert after.digest() == result.checkpoint.digest()
    agree(after, name)
    (old, states), (new, wider) = content(path), content(wide)
    assert list(states) == list(wider)
    for module, state in wider.items():
        if not module.endswith("optim"):
            assert list(state) == list(states[module])
            continue
        # every slot has the shape of its parameter, and what is no tensor is as it was
        assert state["optim"]["param_groups"] == states[module]["optim"]["param_groups"]
        assert state["lr_scheduler"] == states[module]["lr_scheduler"]
    for key in set(old["config"]["params"]) - {"encoder_factory", *_ENCODERS}:
        assert new["config"]["params"][key] == old["config"]["params"][key]
    for key in {"encoder_factory", *_ENCODERS} & set(old["config"]["params"]):
        had, has = (config["config"]["params"][key]["params"] for config in (old, new))
        sizes = "hidden_units" if "hidden_units" in had else "filters"
        assert [np.ravel(n)[0] for n in has[sizes]] == [2 * np.ravel(n)[0] for n in had[sizes]]
        assert {k: v for k, v in has.items() if k not in (sizes, "feature_size")} == {
            k: v for k, v in had.items() if k not in (sizes, "feature_size")
        }


_ENCODERS = ("actor_encoder_factory", "critic_encoder_factory", "value_encoder_factory")


def test_a_second_edit_goes_on_from_the_first_and_the_lineage_is_kept(tmp_path):
    words = ["extend", str(FOLDER / "dqn.d3"), "--observation", "observation+1@2", "--action", "q_values+1"]
    once, twice = tmp_path / "once.d3", tmp_path / "twice.d3"
    assert main([*words, "-o", str(once)]) == 0
    assert main(["extend", str(once), "--observation", "observation+2", "-o", str(twice)]) == 0
    after = surgery.load(twice)
    assert [step.operation for step in after.lineage] == ["extend", "extend"]
    config, states = content(twice)
    assert (config["observation_shape"], config["action_size"]) == ([8], 4)
    assert states["targ_q_funcs"]["0._encoder._layers.0.weight"].shape == (6, 8)


def test_statistics_of_a_scaler_are_in_the_contract_and_new_features_pass_it_unchanged(tmp_path):
    path = FOLDER / "sac.d3"
    before, (config, _) = surgery.load(path), content(path)
    low, high = (
        np.array(config["config"]["params"]["observation_scaler"]["params"][k])
        for k in ("minimum", "maximum")
    )
    noted = before.environment.settings["normaliser"]["observation"]
    x = np.linspace(low, high, 7)
    normalised = (x - np.array(noted["mean"])) / np.sqrt(np.array(noted["variance"]))
    np.testing.assert_allclose(normalised, (x - low) / (high - low) * 2 - 1, atol=1e-12)
    words = "--observation observation+1@1 --observation critic_action+1 --action mean+1 --action action_log_std+1"
    assert main(["extend", str(path), *words.split(), "-o", str(tmp_path / "more.d3")]) == 0
    params = content(tmp_path / "more.d3")[0]["config"]["params"]
    assert params["observation_scaler"]["params"]["minimum"] == [low[0], -1.0, *low[1:]]
    assert params["action_scaler"]["params"] == {"minimum": [-2.0, -3.0, -1.0], "maximum": [2.0, 3.0, 1.0]}
    after = surgery.load(tmp_path / "more.d3").environment.settings["normaliser"]["observation"]
    assert (after["mean"][1], after["variance"][1]) == (0.0, 1.0)


def test_the_command_line_takes_and_writes_the_frameworks_files(tmp_path, capsys):
    source, wide, graph = str(FOLDER / "td3.d3"), str(tmp_path / "wide.d3"), str(tmp_path / "agent.onnx")
    assert main(["inspect", source]) == 0
    assert "targ_policy.* is edited as policy.* is" in capsys.readouterr().out
    assert main(["widen", source, "--factor", "2", "-o", wide]) == 0
    assert main(["verify", source, wide]) == 0
    assert main(["diff", source, wide]) == 0
    assert main(["convert", source, "-o", graph]) == 0
    assert main(["widen", graph, "--factor", "2", "-o", str(tmp_path / "wide.onnx")]) == 0
    back = str(tmp_path / "back.d3")
    assert main(["convert", str(tmp_path / "wide.onnx"), "--like", source, "-o", back]) == 0
    assert surgery.load(wide).digest() == surgery.load(back).digest()
    assert (
        main(["convert", source, "--no-optimizer", "-o", str(tmp_path / "x.d3")]) == 1
    )  # its state would be lost
    assert not (tmp_path / "x.d3").exists()


@pytest.mark.parametrize("name", ["dqn", "iql"])
def test_step_counts_that_went_on_are_written_back(tmp_path, name):
    before = surgery.load(FOLDER / f"{name}.d3")
    steps = {parameter: count + 3 for parameter, count in before.optimizer.steps.items()}
    surgery.save(before.replace(optimizer=before.optimizer.replace(steps=steps)), tmp_path / "later.d3")
    assert dict(surgery.load(tmp_path / "later.d3").optimizer.steps) == steps


FACTORIES = {"adamw": "adam_w", "rmsprop": "rmsprop", "sgd": "sgd"}


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(("name", "prefixes"), [("dqn", [""]), ("sac", ["actor_", "critic_"])])
def test_another_optimizer_has_its_factory_its_rate_and_its_state(tmp_path, name, prefixes, kind):
    before = surgery.load(FOLDER / f"{name}.d3")
    swapped = surgery.swap_optimizer(before, kind, match="none", lr=0.002).checkpoint
    surgery.save(swapped, tmp_path / "other.d3")
    (config, states), (old, _) = content(tmp_path / "other.d3"), content(FOLDER / f"{name}.d3")
    params = config["config"]["params"]
    for prefix in prefixes:
        assert params[f"{prefix}optim_factory"]["type"] == FACTORIES[kind]
        assert (
            params[f"{prefix}learning_rate"]
            == states[f"{prefix}optim"]["optim"]["param_groups"][0]["lr"]
            == 0.002
        )
    others = [
        key
        for key in params
        if not key.endswith(("optim_factory", "learning_rate")) or key.startswith("temp")
    ]
    assert all(params[key] == old["config"]["params"][key] for key in others)
    after = surgery.load(tmp_path / "other.d3").optimizer
    assert after.kind == kind
    for slot, members in swapped.optimizer.slots.items():
        assert all(equal(after.slots[slot][key], tensor) for key, tensor in members.items())


def test_one_factory_gives_all_parameters_the_same_rate(tmp_path):
    before = surgery.load(FOLDER / "dqn.d3")
    swapped = surgery.swap_optimizer(before, "rmsprop", match="tensor").checkpoint
    with pytest.raises(Refused, match="one setting for all its parameters"):
        surgery.save(swapped, tmp_path / "other.d3")
    assert not list(tmp_path.iterdir())


def test_attach_binds_all_optimizers_of_the_file(tmp_path):
    source, graph, whole = str(FOLDER / "iql.d3"), str(tmp_path / "agent.onnx"), str(tmp_path / "whole.onnx")
    assert main(["convert", source, "--no-optimizer", "-o", graph]) == 0
    assert main(["attach", graph, source, "-o", whole]) == 0
    attached, read = surgery.load(whole).optimizer, surgery.load(source).optimizer
    assert dict(attached.steps) == dict(read.steps)
    assert attached.parameters == read.parameters


def _made(edit: Callable[[dict[str, Any]], object] = lambda _: None, **changed: object) -> bytes:
    outer = pickle.loads((FOLDER / "dqn.d3").read_bytes())
    settings = json.loads(outer["config"])
    edit(settings)
    return pickle.dumps({**outer, "config": json.dumps(settings), **changed})


class _Call:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def _torch_of(name: str) -> bytes:
    return bytes(pickle.loads((FOLDER / f"{name}.d3").read_bytes())["torch"])


def _units(*widths: int) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["config"]["params"]["encoder_factory"]["params"].update(hidden_units=widths)


def _q_function(**params: object) -> Callable[[dict[str, Any]], object]:
    factory = {"type": params.pop("type"), "params": params}
    return lambda config: config["config"]["params"].update(q_func_factory=factory)


HOSTILE: Mapping[str, tuple[bytes, type[SurgeryError]]] = {
    "a call": (_made(version=_Call()), CorruptFile),
    "a call inside": (_made(torch=b"", config=_Call()), CorruptFile),
    "another pickle": (pickle.dumps({"model": 1}), UnknownFormat),
    "a list": (pickle.dumps([1, 2]), UnknownFormat),
    "no archive": (_made(torch=b"PK\x03\x04 and no more"), CorruptFile),
    "text for the archive": (_made(torch="archive"), CorruptFile),
    "parameters of another algorithm": (_made(torch=_torch_of("td3")), SurgeryError),
    "no configuration": (_made(config="{}"), CorruptFile),
    "a configuration that is no JSON": (_made(config="{" * 100_000), CorruptFile),
    "wider than it says": (_made(_units(6, 7)), CorruptFile),
    "deeper than it says": (_made(_units(6)), SurgeryError),
    "a layer that is not there": (_made(_units(6, 5, 5)), SurgeryError),
    "other actions": (_made(lambda config: config.update(action_size=4)), CorruptFile),
    "other observations": (_made(lambda config: config.update(observation_shape=[6])), CorruptFile),
    "observations that are none": (_made(lambda config: config.update(observation_shape=["x"])), CorruptFile),
    "quantiles without end": (_made(_q_function(type="iqn", n_greedy_quantiles=1 << 60)), CorruptFile),
    "an unknown head": (_made(_q_function(type="mine")), Refused),
    "an unknown algorithm": (_made(lambda config: config["config"].update(type="bcq")), Refused),
    "a factory that is none": (
        _made(lambda config: config["config"]["params"].update(encoder_factory=3)), CorruptFile
    ),
    "statistics that are none": (
        _made(lambda config: config["config"]["params"].update(
            observation_scaler={"type": "standard", "params": {"mean": "x", "std": [1]}})), CorruptFile
    ),
    "empty": (b"", FileError),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_errors_and_nothing_in_them_is_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, kind = HOSTILE[name]
    (tmp_path / "x.d3").write_bytes(data)
    with pytest.raises(kind) as caught:
        surgery.load(tmp_path / "x.d3")
    assert "\n" not in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["x.d3"]


def test_damaged_files_are_errors(tmp_path):
    whole = (FOLDER / "dqn.d3").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(80):
        broken = bytearray(whole)
        if rng.random() < 0.5:
            broken = broken[: int(rng.integers(2, len(whole)))]
        else:
            for place in rng.integers(2, len(whole), 3):
                broken[place] = rng.integers(256)
        (tmp_path / "x.d3").write_bytes(broken)
        try:
            surgery.load(tmp_path / "x.d3")
        except SurgeryError as error:
            assert "\n" not in error.message
