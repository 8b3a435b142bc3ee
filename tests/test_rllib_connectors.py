"""Connectors that RLlib wrote (tests/fixtures/rllib/make.py): their statistics are read, followed and written back."""

from __future__ import annotations

import base64
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import surgery
from surgery.cli import main
from surgery.envs.normaliser import Normaliser
from surgery.errors import CorruptFile, Refused
from surgery.ops.extend import NewObservation
from surgery_adapters.containers.pickle_tree import Name, Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.rllib.connectors import Connectors, statistics
from surgery_adapters.rllib.folder import RllibFolder

FIXTURES = Path(__file__).parent / "fixtures" / "rllib"
PIPELINE = "env_runner/env_to_module_connector"
STATE = f"{PIPELINE}/MeanStdFilter/state.pkl"


@pytest.fixture
def run(tmp_path) -> Path:
    """The connectors of an algorithm with a filter, in a folder of one whose networks see the same."""
    for name in ("ppo", "connectors"):
        with zipfile.ZipFile(FIXTURES / f"{name}.zip") as archive:
            archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def recorded() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FIXTURES / "answers.npz") as held:
        return held["connectors/in/observation"], held["connectors/out/observation"]


def change(path: Path, edit: Callable[[Any], object]) -> None:
    tree = parse(path.read_bytes())
    edit(tree.root)
    path.write_bytes(dump(Tree(tree.root, tree.protocol)))


def test_the_contract_normalises_as_the_filter_did(run):
    observation, wanted = recorded()
    found = Normaliser.whole(surgery.load(run).environment)(observation)
    assert np.abs(wanted).max() == 1.5  # it clips
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_an_unchanged_copy_has_the_same_bytes(run, tmp_path):
    surgery.save(surgery.load(run), tmp_path / "copy")
    names = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert all((tmp_path / "copy" / name).read_bytes() == (run / name).read_bytes() for name in names)
    assert len(names) == sum(path.is_file() for path in (tmp_path / "copy").rglob("*"))


def test_statistics_follow_new_features_which_come_out_as_they_are(run, tmp_path):
    before = surgery.load(run)
    plan = surgery.extend(before, [NewObservation("observation", 2, 1)], [])
    result = surgery.apply(plan, before)
    result.save(tmp_path / "more")
    observation, wanted = recorded()
    shown = np.insert(observation, [1, 1], 0.625, axis=1)
    for checkpoint in (result.checkpoint, surgery.load(tmp_path / "more")):
        found = Normaliser.whole(checkpoint.environment)(shown)
        np.testing.assert_allclose(np.delete(found, [1, 2], axis=1), wanted, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found[:, 1:3], 0.625, rtol=1e-6)
    folder = RllibFolder.open(tmp_path / "more")
    assert Connectors.read(folder).shown.shape == (6,)
    back = surgery.load(tmp_path / "more")
    surgery.apply(surgery.invert(plan, back), back).save(tmp_path / "back")
    (agent,) = RllibFolder.open(tmp_path / "back").tree(STATE).root.values()
    (first,) = RllibFolder.open(run).tree(STATE).root.values()
    assert agent["running_stats"] == first["running_stats"]


def test_statistics_that_training_changed_win_over_what_was_noted(run, tmp_path):
    before = surgery.load(run)
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide")
    change(tmp_path / "wide" / STATE, lambda root: root[None].update(clip_by_value=0.5))
    assert Normaliser.whole(surgery.load(tmp_path / "wide").environment).clip == 0.5


def test_evaluation_runners_have_statistics_too(run, tmp_path):
    (run / "eval_env_runner").mkdir()
    (run / PIPELINE).rename(run / "env_to_module_connector")
    with zipfile.ZipFile(FIXTURES / "connectors.zip") as archive:
        archive.extractall(run)
    (run / "env_to_module_connector").rename(run / "eval_env_runner/env_to_module_connector")
    assert statistics(RllibFolder.open(run)) == [STATE, f"eval_{STATE}"]
    assert main(["extend", str(run), "--observation", "observation+1", "-o", str(tmp_path / "more")]) == 0
    folder = RllibFolder.open(tmp_path / "more")
    one, other = (folder.tree(name).root[None]["running_stats"] for name in statistics(folder))
    assert one == other


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FrameStacking", {"num_frames": 4}),
        ("PrevActionsPrevRewards", {"n_prev_actions": 1}),
        ("FlattenObservations", {}),
    ],
)
def test_what_other_connectors_make_of_observations_does_not_follow(run, tmp_path, capsys, name, arguments):
    """The environment shows eight of which a connector makes four: new ones among the four have no place there."""

    def between(root: Any) -> None:
        spaces, keywords = root["ctor_args_and_kwargs"]
        spaces[0].state["_shape"] = (8,)
        keywords["connectors"][0] = (Name("ray.rllib.connectors", name), (), arguments)

    change(run / PIPELINE / "class_and_ctor_args.pkl", between)
    assert not surgery.load(run).environment.settings
    words = ["extend", str(run), "--observation", "observation+1", "-o", str(tmp_path / "more")]
    assert main(words) == Refused.exit_code
    assert f"'{name}'" in capsys.readouterr().err
    more = ["extend", str(run), "--action", "logits+1", "-o", str(tmp_path / "act")]
    assert main(more) == (Refused.exit_code if name.startswith("Prev") else 0)


def test_actions_with_the_space_of_what_is_seen_are_not_taken_for_it(run, tmp_path, capsys):
    """Extending the one would change the other too."""

    def alike(root: Any) -> None:
        spaces, _ = root["ctor_args_and_kwargs"]
        root["ctor_args_and_kwargs"] = ((spaces[1], spaces[1]), root["ctor_args_and_kwargs"][1])

    change(run / PIPELINE / "class_and_ctor_args.pkl", alike)
    assert main(["extend", str(run), "--action", "logits+1", "-o", str(tmp_path / "act")]) == 1
    assert "the same space" in capsys.readouterr().err


BOMB = base64.b64encode(zlib.compress(b"\x93NUMPY" + bytes(1 << 27))).decode()


@pytest.mark.parametrize("array", [BOMB, "not base 64!", base64.b64encode(b"no zlib").decode(), 7])
def test_damaged_statistics_are_one_clear_error(run, array):
    change(run / STATE, lambda root: root[None]["running_stats"][0].update(mean_array=array))
    with pytest.raises(CorruptFile, match="statistics"):
        surgery.load(run)
