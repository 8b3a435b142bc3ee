"""Folders that RLlib wrote (tests/fixtures/rllib/make.py): read, changed and written back, without Ray."""

from __future__ import annotations

import filecmp
import json
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import surgery
from surgery.cli import main
from surgery.errors import CorruptFile, FileError, Refused, SurgeryError, UnknownFormat
from surgery.verify.outputs import runtime
from surgery_adapters.containers.pickle_tree import Made, Name, Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.pickled_arrays import read_array
from surgery_adapters.containers.spaces import read_space
from surgery_adapters.rllib.folder import RllibFolder
from surgery_adapters.rllib.settings import walk

FIXTURES = Path(__file__).parent / "fixtures" / "rllib"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.zip") if path.stem != "connectors")
RECORDED = np.load(FIXTURES / "answers.npz")
LEARNER = "learner_group/learner"
MODULE = f"{LEARNER}/rl_module/default_policy"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Mapping[str, Path]:
    """Every folder, unpacked when it is first asked for."""
    place = tmp_path_factory.mktemp("rllib")

    class Saved(dict):
        def __missing__(self, name: str) -> Path:
            with zipfile.ZipFile(FIXTURES / f"{name}.zip") as archive:
                archive.extractall(place / name)
            self[name] = place / name
            return self[name]

    return Saved()


def recorded(name: str, side: str) -> dict[str, np.ndarray]:
    prefix = f"{name}/{side}/"
    return {key.removeprefix(prefix): RECORDED[key] for key in RECORDED.files if key.startswith(prefix)}


def agree(found: Mapping[str, np.ndarray], name: str) -> None:
    wanted = recorded(name, "out")
    assert wanted.keys() <= found.keys()
    for key, value in wanted.items():
        limit = 1e-5 * max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[key][:, : value.shape[1]], value, atol=limit, err_msg=key)
        if key in ("q_values", "logits"):
            assert (found[key].argmax(1) == value.argmax(1)).all()


def same_files(one: Path, other: Path) -> set[str]:
    """The files of two folders that have the same bytes; both have the same files."""
    files = [[p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()] for f in (one, other)]
    assert sorted(files[0]) == sorted(files[1])
    return set(filecmp.cmpfiles(one, other, files[0], shallow=False)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_answers_as_rllib_did(saved, name):
    agree(runtime(surgery.load(saved[name]).model)(recorded(name, "in")), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_slot_of_every_optimizer_is_bound_to_its_parameter(saved, name):
    checkpoint, folder = surgery.load(saved[name]), RllibFolder.open(saved[name])
    held = 0
    for optimizer, state in folder.optimizers.items():
        for slots in state["state"].values() if optimizer != "alpha" else ():
            held += sum(isinstance(value, Made) for value in slots.values())
            for slot in ("exp_avg", "exp_avg_sq"):
                data = read_array(slots[slot]).tobytes()
                bound = checkpoint.optimizer.slots[slot].values()
                assert data in [tensor.numpy().tobytes() for tensor in bound]
    assert held == sum(map(len, checkpoint.optimizer.slots.values())) > 0
    assert set(checkpoint.optimizer.steps.values()) != {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_copy_is_the_same_bytes_and_a_wide_one_the_same_function(saved, tmp_path, name):
    path, wide = saved[name], tmp_path / "wide"
    before = surgery.load(path)
    surgery.save(before, tmp_path / "copy")
    assert len(same_files(path, tmp_path / "copy")) == sum(p.is_file() for p in path.rglob("*"))
    result = surgery.apply(surgery.widen(before, factor=2), before)
    result.save(wide)
    after = surgery.load(wide)
    assert after.digest() == result.checkpoint.digest()
    assert after.lineage[-1].operation == "widen"
    given = recorded(name, "in")
    given |= {
        key: np.concatenate([array, np.zeros_like(array)], axis=1)
        for key, array in given.items()
        if "lstm" in key
    }
    agree(runtime(after.model)(given), name)
    (wide / "surgery.json").unlink()
    same = same_files(path, wide)
    assert "algorithm_state.pkl" in same
    assert f"{MODULE}/module_state.pkl" not in same


_HEADS, _CONV = ("head_fcnet_hiddens", [4, 4, 4]), "encoder.encoder.net.0.cnn"
DEEPER: Mapping[str, tuple[list[str], tuple[str, object]]] = {
    "ppo": (["pi.net.mlp.0", "vf.net.mlp.0"], _HEADS),
    "ppo-lstm": (["pi.net.mlp.0", "vf.net.mlp.0"], _HEADS),
    "ppo-image": (
        [f"{_CONV}.1", f"{_CONV}.3"],
        ("conv_filters", [[3, 4, 2], [3, 3, 1], [3, 3, 1], [4, 3, 1, "valid"], [4, 3, 1], [4, 3, 1]]),
    ),
    "dqn": (["af.net.mlp.0", "vf.net.mlp.0"], _HEADS),
    "sac": (["pi.net.mlp.0", "qf.net.mlp.0", "qf_twin.net.mlp.0"], _HEADS),
    "appo": (["pi.net.mlp.0", "vf.net.mlp.0"], _HEADS),
}
"""Layers behind which two others each are put, and the setting that follows."""


@pytest.mark.parametrize("name", DEEPER)
def test_a_deep_folder_is_the_same_function_with_longer_settings_and_fresh_slots(saved, tmp_path, name):
    before, deep = surgery.load(saved[name]), tmp_path / "deep"
    places, (setting, longer) = DEEPER[name]
    plan = surgery.deepen(before, places, kind="identity", count=2)
    surgery.apply(plan, before).save(deep)
    after, old, new = surgery.load(deep), RllibFolder.open(saved[name]), RllibFolder.open(deep)
    agree(runtime(after.model)(recorded(name, "in")), name)
    assert new.config == {**old.config, setting: longer}
    copies = [
        place for place in places for kind in ("_target_", "_old_", "target_") if _has(old, kind + place)
    ]
    assert len(new.tensors) - len(old.tensors) == 2 * 2 * len([*places, *copies])
    for optimizer, state in new.optimizers.items():
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        assert numbers == list(range(len(numbers))) == sorted(state["state"])
        had = [s["exp_avg"] for s in old.optimizers[optimizer]["state"].values()]
        fresh = [
            s for s in state["state"].values() if not np.any(read_array(s["exp_avg"])) and s["step"] == 0
        ]
        assert len(numbers) == len(had) + len(fresh)
        assert bool(fresh) == (optimizer != "alpha")


def _has(folder: RllibFolder, module: str) -> bool:
    return f"{module}.weight" in folder.tensors


def test_larger_kernels_are_followed_where_the_framework_pads_alike(saved, tmp_path, capsys):
    path, deep = str(saved["ppo-image"]), str(tmp_path / "deep")
    assert main(["kernel", path, "--size", f"{_CONV}.1=6", "-o", deep]) == 0
    assert RllibFolder.open(tmp_path / "deep").config["conv_filters"] == [[3, 6, 2], [4, 3, 1, "valid"]]
    agree(runtime(surgery.load(deep).model)(recorded("ppo-image", "in")), "ppo-image")
    capsys.readouterr()
    assert main(["kernel", path, "--size", f"{_CONV}.3=5", "-o", str(tmp_path / "x")]) == Refused.exit_code
    assert "which pads nothing there" in capsys.readouterr().err


def test_new_layers_that_one_setting_cannot_express_are_refused_before_anything_is_computed(
    saved, tmp_path, capsys
):
    path, target = str(saved["ppo"]), str(tmp_path / "deep")
    assert main(["deepen", path, "--after", "pi.net.mlp.0", "--dry-run", "-o", target]) == Refused.exit_code
    shown = capsys.readouterr().err
    assert "one 'head_fcnet_hiddens' for all" in shown
    assert "--after pi.net.mlp.0 --after vf.net.mlp.0" in shown


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_in_the_folder_follows(saved, tmp_path, name):
    before, wide = surgery.load(saved[name]), tmp_path / "wide"
    surgery.apply(surgery.widen(before, factor=2), before).save(wide)
    seen = 0
    for path in wide.rglob("class_and_ctor_args.pkl"):
        old, new = (
            [n for n in walk(parse(p.read_bytes()).root) if isinstance(n, dict) and "head_fcnet_hiddens" in n]
            for p in (saved[name] / path.relative_to(wide), path)
        )
        for had, has in zip(old, new, strict=True):
            if name == "ppo-image":
                assert [f[0] for f in has["conv_filters"]] == [2 * f[0] for f in had["conv_filters"]]
                assert [f[1:] for f in has["conv_filters"]] == [f[1:] for f in had["conv_filters"]]
            else:
                assert has["fcnet_hiddens"] == [2 * width for width in had["fcnet_hiddens"]]
            assert has["fcnet_activation"] == had["fcnet_activation"]
            seen += 1
    assert seen >= 6


def test_every_space_in_the_folder_follows_a_new_observation_and_action(saved, tmp_path):
    words = ["extend", str(saved["dqn"]), "--observation", "observation+1@2", "--action", "q_values+1"]
    assert main([*words, "-o", str(tmp_path / "more")]) == 0
    counts = {"Box": 0, "Discrete": 0}
    for path in (tmp_path / "more").rglob("*.pkl"):
        for node in walk(parse(path.read_bytes()).root):
            if isinstance(node, Made) and str(node.maker).startswith("gymnasium.spaces"):
                space = read_space(node)
                counts[space.kind] += 1
                assert space.shape == (5,) if space.kind == "Box" else space.counts == (4,)
    assert counts["Box"] == counts["Discrete"] >= 6


def test_a_new_action_of_sac_is_one_of_the_policy_its_critics_and_the_spaces(saved, tmp_path):
    words = ["extend", str(saved["sac"]), "--action", "mean+1", "-o", str(tmp_path / "more")]
    assert main(words) == 0
    graph = surgery.load(tmp_path / "more").model.graph
    shapes = {value.name: value.shape[-1] for value in (*graph.inputs, *graph.outputs)}
    assert shapes["critic_action"] == shapes["mean"] == shapes["action_log_std"] == 3
    spaces = [
        read_space(node).shape
        for path in (tmp_path / "more").rglob("*.pkl")
        for node in walk(parse(path.read_bytes()).root)
        if isinstance(node, Made) and str(node.maker).startswith("gymnasium.spaces")
    ]
    assert (3,) in spaces and (2,) not in spaces


def test_statistics_of_observations_are_not_left_behind(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved["dqn"], run)
    filtered = run / "env_runner" / "env_to_module_connector" / "mean_std_filter"
    filtered.mkdir()
    (filtered / "state.pkl").write_bytes(pickle.dumps({"mean": np.zeros(4, np.float32)}))
    assert main(["widen", str(run), "--factor", "2", "-o", str(tmp_path / "wide")]) == 0
    assert main(["extend", str(run), "--observation", "observation+1", "-o", str(tmp_path / "more")]) == 1
    assert not (tmp_path / "more").exists()


def test_the_command_line_takes_and_writes_folders(saved, tmp_path, capsys):
    source, wide, graph = str(saved["dqn"]), str(tmp_path / "wide"), str(tmp_path / "agent.onnx")
    assert main(["inspect", source]) == 0
    assert "_target_encoder.* is edited as encoder.* is" in capsys.readouterr().out
    assert main(["inspect", source, "--json"]) == 0
    held = sum(part.stat().st_size for part in saved["dqn"].rglob("*") if part.is_file())
    assert json.loads(capsys.readouterr().out)["bytes"] == held
    assert main(["widen", source, "--factor", "2", "-o", wide]) == 0
    assert main(["widen", source, "--factor", "2", "-o", wide]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["widen", source, "--factor", "2", "-o", wide, "--force"]) == 0
    assert main(["verify", source, wide]) == 0
    assert main(["diff", source, wide]) == 0
    assert main(["convert", source, "-o", graph]) == 0
    assert main(["widen", graph, "--factor", "2", "-o", str(tmp_path / "wide.onnx")]) == 0
    back = str(tmp_path / "back.v2")
    assert main(["convert", str(tmp_path / "wide.onnx"), "--like", source, "-o", back]) == 0
    assert surgery.load(wide).digest() == surgery.load(back).digest()
    assert main(["convert", source, "-o", str(tmp_path / "x.zip")]) == 2  # the name of another kind of file
    assert (
        main(["widen", source, "--factor", "2", "-o", str(tmp_path), "--force"]) == 2
    )  # not a folder of ours
    capsys.readouterr()
    assert main(["widen", source, "--factor", "2", "--dry-run", "--json"]) == 0
    plan = tmp_path / "plan.json"
    plan.write_text(capsys.readouterr().out)
    assert main(["apply", str(plan), source, "-o", str(tmp_path / "applied")]) == 0
    assert surgery.load(tmp_path / "applied").digest() == surgery.load(wide).digest()


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_step_counts_that_went_on_are_written_back(saved, tmp_path, name):
    before = surgery.load(saved[name])
    steps = {parameter: count + 3 for parameter, count in before.optimizer.steps.items()}
    surgery.save(before.replace(optimizer=before.optimizer.replace(steps=steps)), tmp_path / "later")
    assert dict(surgery.load(tmp_path / "later").optimizer.steps) == steps
    files = {p.relative_to(saved[name]).as_posix() for p in saved[name].rglob("*") if p.is_file()}
    assert files - same_files(saved[name], tmp_path / "later") == {f"{LEARNER}/state.pkl"}


def test_attach_binds_all_optimizers_of_the_folder(saved, tmp_path):
    source, graph, whole = str(saved["sac"]), str(tmp_path / "agent.onnx"), str(tmp_path / "whole.onnx")
    assert main(["convert", source, "--no-optimizer", "-o", graph]) == 0
    assert main(["attach", graph, source, "-o", whole]) == 0
    attached, read = surgery.load(whole).optimizer, surgery.load(source).optimizer
    assert dict(attached.steps) == dict(read.steps)
    assert attached.parameters == read.parameters


def test_a_pickle_that_cannot_be_read_is_carried_as_it_is(saved, tmp_path):
    shutil.copytree(saved["dqn"], tmp_path / "run")
    strange = tmp_path / "run" / "env_runner" / "state.pkl"
    strange.write_bytes(b"no pickle at all")
    before = surgery.load(tmp_path / "run")
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide")
    assert (tmp_path / "wide" / "env_runner" / "state.pkl").read_bytes() == b"no pickle at all"


KILLED = """
    import sys
    import surgery
    before = surgery.load(sys.argv[1])
    result = surgery.apply(surgery.widen(before, factor=2), before)
    print("ready", flush=True)
    while True:
        result.save(sys.argv[2], force=True)
"""


def test_a_killed_writer_leaves_one_whole_checkpoint(saved, tmp_path):
    target = tmp_path / "run"
    before = surgery.load(saved["dqn"])
    wide = surgery.apply(surgery.widen(before, factor=2), before)
    wide.save(target)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), saved["dqn"], target]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.3)  # several times over
        writer.send_signal(signal.SIGKILL)
    assert surgery.load(target).digest() == wide.checkpoint.digest()
    assert all(path == target or path.name.startswith(".surgery-") for path in tmp_path.iterdir())


def _edited(name: str, edit: Callable[[Any], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tree = parse((folder / name).read_bytes())
        found = edit(tree.root)
        root = tree.root if found is None else found
        (folder / name).write_bytes(dump(Tree(root, tree.protocol)))

    return change


def _config(**settings: object) -> Callable[[Path], object]:
    return _edited(
        f"{MODULE}/class_and_ctor_args.pkl",
        lambda root: root["ctor_args_and_kwargs"][1]["model_config"].update(settings),
    )


def _truncated(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def _drop(root: Any) -> None:
    root.keyed.pop("af.net.mlp.2.weight")


CALL = b"\x80\x04cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85R."

HOSTILE: Mapping[str, tuple[Callable[[Path], object], type[SurgeryError]]] = {
    "a call": (lambda f: (f / MODULE / "module_state.pkl").write_bytes(CALL), CorruptFile),
    "a call for the state": (lambda f: (f / LEARNER / "state.pkl").write_bytes(CALL), CorruptFile),
    "a call for the making": (lambda f: (f / MODULE / "class_and_ctor_args.pkl").write_bytes(CALL), CorruptFile),
    "truncated parameters": (_truncated(f"{MODULE}/module_state.pkl"), CorruptFile),
    "truncated state": (_truncated(f"{LEARNER}/state.pkl"), CorruptFile),
    "no parameters": (lambda f: (f / MODULE / "module_state.pkl").unlink(), FileError),
    "MessagePack": (
        lambda f: (f / MODULE / "module_state.pkl").rename(f / MODULE / "module_state.msgpack"), Refused
    ),
    "a parameter missing": (_edited(f"{MODULE}/module_state.pkl", _drop), SurgeryError),
    "parameters of another module": (
        lambda f: shutil.copy(f.parent / "other" / MODULE / "module_state.pkl", f / MODULE), SurgeryError
    ),
    "state of another module": (
        lambda f: shutil.copy(f.parent / "other" / LEARNER / "state.pkl", f / LEARNER), Refused
    ),
    "wider than it says": (_config(fcnet_hiddens=[7, 5]), CorruptFile),
    "deeper than it says": (_config(fcnet_hiddens=[6]), SurgeryError),
    "a width that is none": (_config(fcnet_hiddens=["x"]), CorruptFile),
    "no widths": (_config(fcnet_hiddens=None), CorruptFile),
    "an unknown activation": (_config(fcnet_activation="mine"), Refused),
    "atoms that are not there": (_config(num_atoms=51), CorruptFile),
    "atoms without end": (_config(num_atoms=1 << 40), CorruptFile),
    "an own module": (
        _edited(f"{MODULE}/class_and_ctor_args.pkl", lambda root: root.update({"class": Name("mine", "M")})), Refused
    ),
    "two modules": (lambda f: shutil.copytree(f / MODULE, f / MODULE / ".." / "second"), Refused),
    "the old stack": (
        lambda f: (f / "rllib_checkpoint.json").write_text(json.dumps({"checkpoint_version": "1.1"})), Refused
    ),
    "no version": (lambda f: (f / "rllib_checkpoint.json").write_text("{}"), CorruptFile),
    "no JSON": (lambda f: (f / "rllib_checkpoint.json").write_text("["), CorruptFile),
    "no learner": (lambda f: shutil.rmtree(f / "learner_group"), UnknownFormat),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_errors_and_nothing_in_them_is_executed(saved, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    edit, kind = HOSTILE[name]
    shutil.copytree(saved["dqn"], tmp_path / "run")
    shutil.copytree(saved["sac"], tmp_path / "other")
    edit(tmp_path / "run")
    with pytest.raises(kind) as caught:
        surgery.load(tmp_path / "run")
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


@pytest.mark.parametrize(
    "name", [f"{MODULE}/module_state.pkl", f"{MODULE}/class_and_ctor_args.pkl", f"{LEARNER}/state.pkl"]
)
def test_damaged_folders_are_errors(saved, tmp_path, name):
    shutil.copytree(saved["dqn"], tmp_path / "run")
    whole, rng = (tmp_path / "run" / name).read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(whole)
        if rng.random() < 0.4:
            broken = broken[: int(rng.integers(2, len(whole)))]
        else:
            for place in rng.integers(2, len(whole), 3):
                broken[place] = rng.integers(256)
        (tmp_path / "run" / name).write_bytes(broken)
        try:
            surgery.load(tmp_path / "run")
        except SurgeryError as error:
            assert "\n" not in error.message


def test_a_link_out_of_the_folder_is_not_copied(saved, tmp_path):
    shutil.copytree(saved["dqn"], tmp_path / "run")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run" / "env_runner" / "link.pkl").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptFile, match="neither a file nor a folder"):
        surgery.save(surgery.load(tmp_path / "run"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_folders_of_other_kinds_are_refused_with_what_they_are(tmp_path, capsys):
    (tmp_path / "saved_model.pb").touch()
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is a SavedModel, a program of TensorFlow" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        surgery.load(tmp_path / "empty")
