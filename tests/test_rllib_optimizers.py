"""Other optimizers in a folder that RLlib wrote, and who makes them there."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.cli import main
from surgery.errors import Refused
from surgery_adapters.containers.pickle_tree import Name, Tree, parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.rllib.folder import RllibFolder

FIXTURES = Path(__file__).parent / "fixtures" / "rllib"
WORDS = ("--to", "rmsprop", "-o")


@pytest.fixture
def run(tmp_path) -> Path:
    with zipfile.ZipFile(FIXTURES / "dqn.zip") as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def configure(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = run / "class_and_ctor_args.pkl"
    tree = parse(path.read_bytes())
    edit(tree.root["ctor_args_and_kwargs"][0][0])
    path.write_bytes(dump(Tree(tree.root, tree.protocol)))


@pytest.mark.parametrize("own", [False, True])
def test_a_learner_of_ours_makes_the_optimizer_where_the_user_has_none(run, tmp_path, own):
    """RLlib's make Adam in their code; what a user's own makes is the user's to say."""
    if own:
        configure(run, lambda config: config.update(_learner_class=Name("mine", "Learner")))
    assert main(["optimizer", str(run), "--match", "all", *WORDS, str(tmp_path / "new")]) == 0
    state, config = surgery.load(tmp_path / "new").optimizer, RllibFolder.open(tmp_path / "new").algorithm
    assert state.kind == "rmsprop"
    assert config["lr"] == state.groups[0].hyper["lr"] != 0.0005
    wanted = Name("mine", "Learner") if own else Name("surgery_adapters.rllib.learners", "DQN")
    assert config["_learner_class"] == wanted
    assert config["learner_config_dict"].keys() == (set() if own else {"surgery_optimizer"})


def test_an_algorithm_without_a_learner_of_ours_is_refused_with_what_to_write(run, tmp_path, capsys):
    path = run / "class_and_ctor_args.pkl"
    tree = parse(path.read_bytes())
    tree.root["class"] = Name("mine", "Algorithm")
    path.write_bytes(dump(tree))
    assert main(["optimizer", str(run), *WORDS, str(tmp_path / "new")]) == Refused.exit_code
    assert "config.learners(learner_class=…)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_schedule_of_the_learning_rate_is_kept_or_refused(run, tmp_path, capsys):
    schedule = [[0, 0.001], [1000, 0.0001]]
    configure(run, lambda config: config.update(lr=schedule))
    assert main(["optimizer", str(run), "--match", "all", *WORDS, str(tmp_path / "x")]) == Refused.exit_code
    assert "--match none" in capsys.readouterr().err
    assert main(["optimizer", str(run), "--match", "none", *WORDS, str(tmp_path / "new")]) == 0
    assert RllibFolder.open(tmp_path / "new").algorithm["lr"] == schedule
