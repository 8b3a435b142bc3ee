"""Every line of docs/adapters.toml is true: each verb on a real file of each framework, there and back."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import surgery
from docs.generate import ADAPTERS, FRAMEWORKS, adapter_page
from surgery.adapters import Checking, Reading, find
from surgery.cli import main
from surgery.errors import Refused, SurgeryError
from surgery.operate import preview
from surgery.storage import check_savable
from surgery.tensors import equal
from surgery.verify.outputs import runtime
from tests.round_trips import EDITS, SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Mapping[str, Path]:
    """The sample of each framework, made when it is first asked for."""

    class Written(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = SAMPLES[name].write(tmp_path_factory.mktemp(name))
            return self[name]

    return Written()


@pytest.fixture(scope="module")
def loaded(written) -> Mapping[str, surgery.Checkpoint]:
    """What was read of it."""

    class Loaded(dict):
        def __missing__(self, name: str) -> surgery.Checkpoint:
            self[name] = load(name, written[name])
            return self[name]

    return Loaded()


def load(name: str, path: Path, graph: Path | None = None) -> surgery.Checkpoint:
    reading = SAMPLES[name].reading
    if reading.graph is not None and graph is not None:
        reading = dataclasses.replace(reading, graph=graph)
    return surgery.load(path, reading=reading)


def members(path: Path) -> object:
    """What a file or a folder holds, byte by byte."""
    if path.is_dir():
        return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def answers(checkpoint: surgery.Checkpoint) -> dict[str, np.ndarray]:
    """What a graph computes of random inputs."""
    rng = np.random.default_rng(0)
    inputs = {
        v.name: rng.uniform(-1, 1, (16, *v.shape[1:])).astype(np.float32)
        for v in checkpoint.model.graph.inputs
    }
    return runtime(checkpoint.model)(inputs)


def test_the_page_on_adapters_is_up_to_date():
    text = ADAPTERS.read_text(encoding="utf-8")
    assert adapter_page(text) == text, "write it again: python docs/generate.py"


def test_every_framework_of_the_page_has_a_sample_and_tests_of_its_own():
    assert list(FRAMEWORKS) == list(SAMPLES)
    for row in FRAMEWORKS.values():
        assert set(row["written"]) <= set(EDITS)
        assert row["tests"]
        assert all((ROOT / test).is_file() for test in row["tests"])


@pytest.mark.parametrize("name", SAMPLES)
def test_optimizers_and_copies_come_in_and_an_unchanged_copy_is_the_same(written, loaded, tmp_path, name):
    row, path, before = FRAMEWORKS[name], written[name], loaded[name]
    assert (before.optimizer is not None) == row["optimizer"]
    assert bool(before.copies) == row["targets"]
    copy = tmp_path / path.name
    surgery.save(before, copy)
    after = load(name, copy)
    assert after.digest() == before.digest()
    assert (members(copy) == members(path)) or row["unchanged"] == "values"
    assert _same_state(before, after)


@pytest.mark.parametrize("verb", EDITS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_verb_writes_back_or_refuses(written, loaded, tmp_path, name, verb):
    before, target = loaded[name], tmp_path / written[name].name
    if verb not in FRAMEWORKS[name]["written"]:
        with pytest.raises(SurgeryError):
            surgery.save(EDITS[verb](before, SAMPLES[name]), target)
        assert not list(tmp_path.iterdir())
        return
    wanted = EDITS[verb](before, SAMPLES[name])
    check_savable(lambda: wanted, before, target)
    surgery.save(wanted, target)
    graph = surgery.save(wanted, tmp_path / "graph.onnx")[-1]
    found = load(name, target, graph)  # files of arrays alone are read with the graph that they belong to
    ours, theirs = answers(found), answers(wanted)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[output], theirs[output]) for output in ours)
    assert _same_state(wanted, found, names=verb != "deepen")


@pytest.mark.parametrize("name", SAMPLES)
def test_what_does_not_go_in_is_refused_by_shapes_alone(written, loaded, tmp_path, name):
    before = loaded[name]
    if before.origin is None:
        pytest.skip("a graph holds all")
    assert isinstance(find(before.origin)[1], Checking)
    plan = surgery.deepen(before, SAMPLES[name].after, kind="rezero")
    with pytest.raises(Refused) as caught:
        check_savable(lambda: preview(plan, before), before, tmp_path / written[name].name)
    assert "-o OUT.onnx" in caught.value.hint


ASKED = {name: sample for name, sample in SAMPLES.items() if sample.reading == Reading() and name != "onnx"}
"""Samples that a command needs to be told nothing about."""


def words(name: str, verb: str, path: Path) -> list[str]:
    """A command that wants a new layer, or another optimizer."""
    if verb == "deepen":
        after = ASKED[name].after
        places = [after] if isinstance(after, str) else after
        return ["deepen", str(path), *(word for place in places for word in ("--after", place))]
    state = load(name, path).optimizer
    other = "rmsprop" if state is not None and state.kind == "adam" else "adam"
    return ["optimizer", str(path), "--to", other, "--set", "lr=0.001", "--match", "none"]


def asked() -> list[tuple[str, str]]:
    return [
        (name, verb)
        for name in ASKED
        for verb in ("deepen", "optimizer")
        if verb == "deepen" or FRAMEWORKS[name]["optimizer"]
    ]


@pytest.mark.parametrize(("name", "verb"), asked())
def test_a_dry_run_says_whether_the_file_can_hold_the_result(written, tmp_path, capsys, name, verb):
    path = written[name]
    command, holds = [*words(name, verb, path), "--dry-run"], verb in FRAMEWORKS[name]["written"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert ("cannot hold the result" not in told) if holds else ("-o OUT.onnx can" in told)
    assert main([*command, "-o", str(tmp_path / path.name)]) == (0 if holds else Refused.exit_code)
    assert holds or "-o OUT.onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "verb"), [(name, verb) for name, verb in asked() if verb not in FRAMEWORKS[name]["written"]]
)
def test_what_does_not_go_in_is_refused_before_it_is_proved(
    written, tmp_path, capsys, monkeypatch, name, verb
):
    monkeypatch.setattr(surgery, "apply", lambda *_, **__: pytest.fail("it was applied"))
    path = written[name]
    assert main([*words(name, verb, path), "-o", str(tmp_path / path.name)]) == Refused.exit_code
    assert "-o OUT.onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _same_state(wanted: surgery.Checkpoint, found: surgery.Checkpoint, *, names: bool = True) -> bool:
    """Whether the optimizer holds the same: under the same names, or, of deeper networks, as often."""
    ours, theirs = found.optimizer, wanted.optimizer
    if ours is None or theirs is None:
        return ours is theirs
    if not names:
        return ours.kind == theirs.kind and {slot: len(held) for slot, held in ours.slots.items()} == {
            slot: len(held) for slot, held in theirs.slots.items()
        }
    return (
        (ours.kind, dict(ours.steps)) == (theirs.kind, dict(theirs.steps))
        and ours.slots.keys() == theirs.slots.keys()
        and all(
            equal(ours.slots[slot][name], tensor)
            for slot, held in theirs.slots.items()
            for name, tensor in held.items()
        )
    )
