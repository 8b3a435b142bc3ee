"""Sample Factory: experiments that it wrote are read, edited and written back; it plays and trains on with them.

The fixtures are files of Sample Factory 2.1.1 (tests/fixtures/sample_factory/make.py). It needs another numpy than this
package: the tests that run it take an interpreter that has it from SAMPLE_FACTORY_PYTHON, and talk to it by files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import surgery
from surgery.adapters import Reading, find
from surgery.cli import main
from surgery.errors import ArgumentError, FileError, MissingDependency, Refused, SurgeryError, UnknownFormat
from surgery.verify.outputs import runtime
from surgery_adapters.sample_factory import parity

FIXTURES = Path(__file__).parent / "fixtures" / "sample_factory"
EXPERIMENTS = ("lstm", "apart", "pictures")
READING = Reading(observation=(3, 24, 24))
PYTHON = os.environ.get("SAMPLE_FACTORY_PYTHON")
with_framework = pytest.mark.skipif(PYTHON is None, reason="SAMPLE_FACTORY_PYTHON names no interpreter")


def load(path: Path) -> surgery.Checkpoint:
    return surgery.load(path, reading=READING if "pictures" in str(path) else None)


def checkpoint_in(experiment: Path) -> Path:
    (found,) = (experiment / "checkpoint_p0").glob("checkpoint_*.pth")
    return found


def record(path: Path) -> Mapping[str, Any]:
    return torch.load(checkpoint_in(path) if path.is_dir() else path, weights_only=False)


def widened(checkpoint: surgery.Checkpoint, **more: Any) -> surgery.Checkpoint:
    """Everything that the framework can load wider, twice as wide."""
    spaces = surgery.analyse(checkpoint.model, checkpoint.interface).spaces
    widths = {s.name: 2 * s.size for s in spaces if s.widenable and "conv_head" not in s.name}
    return surgery.apply(surgery.widen(checkpoint, widths=widths, **more), checkpoint).checkpoint


@pytest.fixture(params=EXPERIMENTS)
def experiment(request, tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / "runs" / request.param))


def test_the_graph_says_what_the_framework_said(experiment):
    checkpoint = load(experiment)
    with np.load(experiment / "answers.npz") as held:
        answers = dict(held)
    feeds = {"observation": answers["observation"].astype(np.float32)}
    states, at = [port.name for port in checkpoint.interface.inputs if port.kind == "state"], 0
    for name in states:
        size = next(v.shape[1] for v in checkpoint.model.graph.inputs if v.name == name)
        feeds[name] = answers["states"][:, at : at + size]
        at += size
    said = runtime(checkpoint.model)(feeds)
    wanted = [said["logits"]] if "logits" in said else [said["mean"], said["action_log_std"]]
    np.testing.assert_allclose(np.hstack(wanted), answers["logits"], atol=1e-5)
    np.testing.assert_allclose(said["value"].reshape(-1), answers["value"], atol=1e-5)
    if states:
        after = np.hstack([said[f"{name}_next"] for name in states])
        np.testing.assert_allclose(after, answers["after"], atol=1e-5)


def test_optimizer_progress_and_environment_are_there(experiment):
    checkpoint, held = load(experiment), record(experiment)
    assert checkpoint.source["env_steps"] == held["env_steps"]
    assert checkpoint.environment.id == json.loads((experiment / "config.json").read_text())["env"]
    assert checkpoint.optimizer.kind == "adam"
    names = [name for name in held["model"] if "normalizer" not in name]
    for number, name in enumerate(names):
        wanted = held["optimizer"]["state"][number]["exp_avg_sq"]
        np.testing.assert_array_equal(checkpoint.optimizer.slots["exp_avg_sq"][name].numpy(), wanted)


def test_an_experiment_comes_back_wide_with_its_settings_and_nothing_else_changed(experiment, tmp_path):
    (experiment / "notes.txt").write_text("mine")
    before, settings = record(experiment), json.loads((experiment / "config.json").read_text())
    surgery.save(widened(load(experiment), init="net2net"), tmp_path / "wide")
    after, new = record(tmp_path / "wide"), json.loads((tmp_path / "wide" / "config.json").read_text())
    assert checkpoint_in(tmp_path / "wide").name == checkpoint_in(experiment).name
    assert (tmp_path / "wide" / "notes.txt").read_text() == "mine"
    doubled = {"encoder_mlp_layers", "encoder_conv_mlp_layers", "decoder_mlp_layers", "rnn_size"}
    changed = {key for key in settings if settings[key] != new[key]}
    assert changed and changed <= doubled
    for key in changed:
        old = settings[key] if isinstance(settings[key], list) else [settings[key]]
        assert (new[key] if isinstance(new[key], list) else [new[key]]) == [2 * size for size in old]
    assert list(after) == list(before) and list(after["model"]) == list(before["model"])
    assert {k: after[k] for k in ("train_step", "env_steps", "curr_lr")} == {
        k: before[k] for k in ("train_step", "env_steps", "curr_lr")
    }
    trained = [name for name in after["model"] if "normalizer" not in name]
    for number, name in enumerate(trained):
        assert after["optimizer"]["state"][number]["exp_avg"].shape == after["model"][name].shape
    for name in set(after["model"]) - set(trained):
        assert torch.equal(after["model"][name], before["model"][name])


@pytest.mark.parametrize(
    ("after", "setting"),
    [
        ("decoder.mlp.0", "decoder_mlp_layers"),
        ("encoder.encoders.obs.enc.mlp_layers.0", "encoder_conv_mlp_layers"),
    ],
)
def test_new_layers_are_in_the_configuration_and_are_trained(tmp_path, after, setting):
    before = load(FIXTURES / "pictures")
    deeper = surgery.apply(surgery.deepen(before, after, kind="identity"), before).checkpoint
    surgery.save(deeper, tmp_path / "deep", like=FIXTURES / "pictures")
    old, new = (
        json.loads((folder / "config.json").read_text())
        for folder in (FIXTURES / "pictures", tmp_path / "deep")
    )
    assert new[setting] == old[setting] * 2
    assert {key for key in old if old[key] != new[key]} == {setting}
    found = surgery.load(tmp_path / "deep", reading=READING)
    feeds = {
        value.name: np.random.default_rng(0).random((4, *list(value.shape)[1:])).astype(np.float32)
        for value in before.model.graph.inputs
    }
    for name, answer in runtime(before.model)(feeds).items():
        np.testing.assert_array_equal(runtime(found.model)(feeds)[name], answer)
    content = record(checkpoint_in(tmp_path / "deep"))
    trained = [name for name in content["model"] if "normalizer" not in name]
    for number, name in enumerate(trained):
        assert content["optimizer"]["state"][number]["exp_avg"].shape == content["model"][name].shape


def test_steps_of_new_layers_under_lamb_start_at_one(tmp_path):
    """Where its own count starts; it divides by 1 − βⁿ before it counts."""
    run = Path(shutil.copytree(FIXTURES / "pictures", tmp_path / "run"))
    file = checkpoint_in(run)
    content = dict(record(file))
    settings = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-4, "min_trust": 0.01}
    (group,) = content["optimizer"]["param_groups"]
    content["optimizer"]["param_groups"] = [{**settings, "params": group["params"]}]
    for state in content["optimizer"]["state"].values():
        state["step"] = int(state["step"])
    torch.save(content, file)
    configuration = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**configuration, "optimizer": "lamb"}))
    before = surgery.load(run, reading=READING)
    assert before.optimizer.kind == "lamb"
    deeper = surgery.apply(surgery.deepen(before, "decoder.mlp.0", kind="identity"), before).checkpoint
    surgery.save(deeper, tmp_path / "deep", like=run)
    states = record(checkpoint_in(tmp_path / "deep"))["optimizer"]["state"]
    assert len(states) == len(content["optimizer"]["state"]) + 2
    assert min(state["step"] for state in states.values()) == 1


def test_a_checkpoint_alone_is_read_and_written_with_the_configuration_above_it(tmp_path):
    shutil.copytree(FIXTURES / "lstm", tmp_path / "old")
    (tmp_path / "new" / "checkpoint_p0").mkdir(parents=True)
    source, target = (
        checkpoint_in(tmp_path / "old"),
        tmp_path / "new" / "checkpoint_p0" / "checkpoint_1_2.pth",
    )
    assert find(source)[0] == "sample_factory"
    assert main(["widen", str(source), "--factor", "2", "-o", str(target)]) == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["rnn_size"] == 24
    assert load(tmp_path / "new").source["env_steps"] == record(source)["env_steps"]
    with pytest.raises(FileError, match=r"config\.json"):
        surgery.save(load(source), tmp_path / "new" / "checkpoint_p0" / "checkpoint_3_4.pth")


def test_a_checkpoint_without_a_configuration_is_any_pytorch_file(tmp_path):
    shutil.copy(checkpoint_in(FIXTURES / "lstm"), tmp_path / "checkpoint_1_2.pth")
    assert find(tmp_path / "checkpoint_1_2.pth")[0] == "pytorch"


def test_new_observations_come_in_with_statistics_and_new_actions_with_the_head(tmp_path):
    before = load(FIXTURES / "lstm")
    plan = surgery.extend(
        before, [surgery.NewObservation("observation", 1)], [surgery.NewAction("logits", 1, "mean")]
    )
    surgery.save(surgery.apply(plan, before).checkpoint, tmp_path / "more", like=FIXTURES / "lstm")
    model = record(tmp_path / "more")["model"]
    assert model["obs_normalizer.running_mean_std.running_mean_std.obs.running_var"].shape == (5,)
    assert model["obs_normalizer.running_mean_std.running_mean_std.obs.running_var"].min() > 0
    assert model["action_parameterization.distribution_linear.weight"].shape[0] == 3


def test_what_the_frameworks_code_cannot_load_is_refused(tmp_path):
    before = load(FIXTURES / "pictures")
    wide = surgery.apply(surgery.widen(before, factor=2), before)
    with pytest.raises(Refused, match="channels of 'convnet_impala'"):
        surgery.save(wide.checkpoint, tmp_path / "wide", like=FIXTURES / "pictures")
    before = load(FIXTURES / "apart")
    space = next(
        s.name
        for s in surgery.analyse(before.model, before.interface).spaces
        if s.name.startswith("actor_encoder")
    )
    lopsided = surgery.apply(surgery.widen(before, widths={space: 11}), before)
    with pytest.raises(Refused, match="one 'encoder_mlp_layers'"):
        surgery.save(lopsided.checkpoint, tmp_path / "wide", like=FIXTURES / "apart")
    assert not list(tmp_path.iterdir())


def test_images_of_unknown_size_are_asked_for():
    with pytest.raises(ArgumentError, match="size of the images") as caught:
        surgery.load(FIXTURES / "pictures", reading=Reading(observation=None, activation="relu"))
    assert "--observation" in caught.value.hint


DAMAGE: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "no JSON": lambda s: "{",
    "a list": lambda s: [],
    "no sizes": lambda s: {key: s[key] for key in ("env", "algo")},
    "another activation": lambda s: {**s, "nonlinearity": "gelu"},
    "an activation that is a list": lambda s: {**s, "nonlinearity": ["elu"]},
    "another core": lambda s: {**s, "rnn_type": "mamba"},
    "a flag that is text": lambda s: {**s, "use_rnn": "yes"},
    "a scale that is text": lambda s: {**s, "obs_scale": "255"},
    "networks apart": lambda s: {**s, "actor_critic_share_weights": False},
    "no core": lambda s: {**s, "use_rnn": False},
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_foreign_configuration_is_one_clear_error(tmp_path, what):
    shutil.copytree(FIXTURES / "lstm", tmp_path / "x")
    settings = DAMAGE[what](json.loads((tmp_path / "x" / "config.json").read_text()))
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (tmp_path / "x" / "config.json").write_text(text)
    with pytest.raises(SurgeryError) as caught:
        surgery.load(tmp_path / "x")
    assert caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "content", [{"optimizer": {}}, {"model": {}}, {"model": {"a.weight": torch.ones(2, 2)}}]
)
def test_a_checkpoint_without_an_actor_critic_is_one_clear_error(tmp_path, content):
    shutil.copytree(FIXTURES / "lstm", tmp_path / "x")
    torch.save(content, checkpoint_in(tmp_path / "x"))
    with pytest.raises(UnknownFormat, match=r"no (network|actor-critic)"):
        surgery.load(tmp_path / "x")


def test_an_experiment_of_several_policies_is_not_torn_apart(tmp_path):
    shutil.copytree(FIXTURES / "lstm", tmp_path / "x")
    shutil.copytree(tmp_path / "x" / "checkpoint_p0", tmp_path / "x" / "checkpoint_p1")
    with pytest.raises(Refused, match="several policies"):
        surgery.save(load(tmp_path / "x"), tmp_path / "y")


def framework(verb: str, path: Path) -> Any:
    """What Sample Factory does with an experiment, in its own process."""
    assert PYTHON is not None
    words = [PYTHON, str(FIXTURES / "make.py"), verb, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=path.parent, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@with_framework
def test_the_framework_plays_the_same_actions_with_a_wide_experiment_and_trains_on(experiment, tmp_path):
    wide, init = (
        tmp_path / "runs" / f"wide-{experiment.name}",
        "auto" if experiment.name == "lstm" else "net2net",
    )
    surgery.save(widened(load(experiment), init=init), wide)
    assert framework("play", wide) == framework("play", experiment)
    trained = framework("train", wide)
    assert trained["status"] == 0
    assert trained["env_steps after"] > trained["env_steps before"]
    assert trained["optimizer after"] > trained["optimizer before"] > 0
    assert load(wide).optimizer is not None


PLAYED = {"lstm": "CartPole-v1", "apart": "Pendulum-v1", "pictures": "tests_pictures:Pictures-v0"}
PICTURES = """
import gymnasium, numpy as np
class Pictures(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (3, 24, 24), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}
    def look(self):
        return self.np_random.integers(0, 256, (3, 24, 24)).astype(np.uint8)
    def step(self, action):
        self.steps += 1
        return self.look(), float(action == 1), self.steps == 20, False, {}
class Parts(Pictures):
    action_space = gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(1)))
    def step(self, action):
        return super().step(action[0])
class Numbers(Pictures):
    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    def look(self):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)
for kind in (Pictures, Parts, Numbers):
    gymnasium.register(f"{kind.__name__}-v0", kind)
"""


@pytest.fixture
def played(tmp_path, monkeypatch) -> Callable[..., Any]:
    """Plays an experiment in the framework, whose interpreter finds a world of ours."""
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "tests_pictures.py").write_text(PICTURES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "worlds"))
    return lambda path, **more: parity(path, more.pop("checkpoint", None) or load(path), **more)


@with_framework
def test_the_graph_wants_the_actions_that_the_framework_takes(experiment, played):
    found = played(experiment, environment=PLAYED[experiment.name], episodes=2, seed=3)
    assert found.steps > 10
    assert (found.differing, len(found.returns)) == (0, 2)
    assert found.largest <= 1e-5
    alone = played(checkpoint_in(experiment), environment=PLAYED[experiment.name], episodes=1, seed=3)
    assert alone.returns == found.returns[:1]


@with_framework
def test_actions_of_several_choices_are_each_compared(played):
    found = played(FIXTURES / "pictures", environment="tests_pictures:Parts-v0", episodes=2)
    assert (found.steps, found.differing) == (40, 0)


@with_framework
def test_actions_that_are_numbers_need_a_word_where_deviations_come_from_the_network(played):
    """They look like logits in the file."""
    path, world = FIXTURES / "lstm", "tests_pictures:Numbers-v0"
    with pytest.raises(ArgumentError) as caught:
        played(path, environment=world)
    assert "--head gaussian" in caught.value.hint
    known = surgery.load(path, reading=Reading(head="gaussian"))
    assert played(path, checkpoint=known, environment=world, episodes=1).differing == 0


@with_framework
def test_a_widened_experiment_plays_as_its_graph_does_and_as_before(tmp_path, played):
    surgery.save(widened(load(FIXTURES / "lstm")), tmp_path / "wide", like=FIXTURES / "lstm")
    old, new = (
        played(path, environment="CartPole-v1", seed=5) for path in (FIXTURES / "lstm", tmp_path / "wide")
    )
    assert new.differing == 0
    assert new.returns == old.returns


@with_framework
def test_a_graph_that_is_another_does_not_pass(played):
    checkpoint, found = load(FIXTURES / "lstm"), []
    name = "action_parameterization.distribution_linear.bias"
    for bias in ([90.0, -90.0], [-90.0, 90.0]):
        model = checkpoint.model.clone()
        model.graph.initializers[name].const_value = ir.Tensor(np.array(bias, np.float32), name=name)
        other = checkpoint.replace(model=model)
        found.append(played(FIXTURES / "lstm", checkpoint=other, environment="CartPole-v1", seed=5))
    assert sum(one.differing for one in found) == found[0].steps
    with pytest.raises(Refused, match="chooses another action"):
        max(found, key=lambda one: one.differing).check()


@with_framework
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("Pendulum-v1", "does not fit"),
        ("Nowhere-v0", "no environment 'Nowhere-v0'"),
        ("atari_nowhere", "sf_examples has no 'atari_nowhere'"),
    ],
)
def test_environments_that_do_not_fit_or_do_not_exist_are_one_clear_error(played, environment, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        played(FIXTURES / "lstm", environment=environment)
    assert "\n" not in caught.value.message


def test_without_the_framework_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    """Not there, named where it is not, or an interpreter without it."""
    checkpoint = load(FIXTURES / "lstm")
    for python in ("", str(tmp_path / "nothing"), sys.executable):
        monkeypatch.setenv("SAMPLE_FACTORY_PYTHON", python)
        with pytest.raises(MissingDependency) as caught:
            parity(FIXTURES / "lstm", checkpoint, "CartPole-v1")
        assert "pip install 'numpy<2' 'setuptools<81' sample-factory==2.1.1" in caught.value.hint
