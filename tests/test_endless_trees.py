"""Pickles that are small in a file and without end for whoever walks them: refused where they are read."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

import surgery
from surgery.adapters import Reading
from surgery.errors import CorruptFile, SurgeryError
from surgery_adapters.containers.pickle_tree import parse
from surgery_adapters.containers.pickle_writer import dump
from surgery_adapters.containers.spaces import read_space
from tests.round_trips import SAMPLES

FIXTURES = Path(__file__).parent / "fixtures"
LEARNER = "learner_group/learner"


class Held:
    """An object with something in it."""

    def __init__(self, inside: object = None) -> None:
        self.inside = inside


def pickled(value: object) -> bytes:
    """A pickle of something that Python's own pickler has not enough stack for."""
    made: list[bytes] = []

    def work() -> None:
        sys.setrecursionlimit(1_000_000)
        file = io.BytesIO()
        pickle._Pickler(file, 4).dump(value)
        made.append(file.getvalue())

    before, size = sys.getrecursionlimit(), threading.stack_size(1 << 28)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(before)
        threading.stack_size(size)
    return made[0]


def twice(times: int, pair: Callable[[Any], Any], value: object) -> Any:
    """Something that holds something twice, that holds something twice …"""
    for _ in range(times):
        value = pair(value)
    return value


def holds_itself(value: Any, put: Callable[[Any], object]) -> Any:
    put(value)
    return value


def space_of(**inner: spaces.Space) -> spaces.Dict:
    """A space of spaces, which gymnasium itself would walk."""
    made = spaces.Dict.__new__(spaces.Dict)
    made.__dict__.update(spaces=inner, _shape=None, dtype=None, _np_random=None)
    return made


ENDLESS: Mapping[str, Callable[[], object]] = {
    "lists of two to the fortieth": lambda: twice(40, lambda x: [x, x], "ha"),
    "dicts of two to the fortieth": lambda: twice(40, lambda x: {"a": x, "b": x}, "ha"),
    "tuples of two to the fortieth": lambda: twice(40, lambda x: (x, x), ("ha",)),
    "a list that holds itself": lambda: holds_itself([1], lambda x: x.append(x)),
    "a dict that holds itself": lambda: holds_itself({}, lambda x: x.update(a=x)),
    "a list that holds itself by way of a dict": lambda: holds_itself([{}], lambda x: x[0].update(a=x)),
    "ten thousand lists deep": lambda: twice(10_000, lambda x: [x], []),
    "within an object": lambda: Held(twice(40, lambda x: [x, x], "ha")),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_lists_without_end_are_refused_where_they_are_read(what):
    with pytest.raises(CorruptFile, match=r"without end|within itself"):
        parse(pickled(ENDLESS[what]()))


FINITE: Mapping[str, Callable[[], object]] = {
    "shared": lambda: [["shared"]] * 1000,
    "objects that hold each other": lambda: holds_itself(Held(), lambda x: setattr(x, "inside", [x])),
    "a hundred lists deep": lambda: twice(100, lambda x: [x], []),
    "many": lambda: [[k, {"k": k}] for k in range(3_000)],
}


@pytest.mark.parametrize("what", FINITE)
def test_lists_that_are_large_or_shared_are_read(what):
    tree = parse(pickled(FINITE[what]()))
    assert parse(dump(tree)).protocol == tree.protocol


SPACES: Mapping[str, Callable[[], spaces.Space]] = {
    "two to the fortieth": lambda: twice(40, lambda x: space_of(a=x, b=x), spaces.Discrete(2)),
    "five thousand deep": lambda: twice(5000, lambda x: space_of(a=x), spaces.Discrete(2)),
    "itself": lambda: holds_itself(space_of(), lambda x: x.spaces.update(a=x)),
}


@pytest.mark.parametrize("what", SPACES)
def test_spaces_within_spaces_without_end_are_refused(what):
    with pytest.raises(CorruptFile, match="within each other"):
        read_space(parse(pickled(SPACES[what]())).root)


def test_objects_too_deep_to_be_written_are_an_error_and_print_in_short():
    tree = parse(pickled(twice(5000, Held, None)))
    assert str(tree.root) == f"<{Held.__module__}.Held>"
    with pytest.raises(CorruptFile, match="too deeply to be written"):
        dump(tree)


def rllib(folder: Path, value: bytes) -> Path:
    with zipfile.ZipFile(FIXTURES / "rllib" / "dqn.zip") as archive:
        archive.extractall(folder / "run")
    (folder / "run" / LEARNER / "state.pkl").write_bytes(value)
    return folder / "run"


def dopamine(folder: Path, value: bytes) -> Path:
    (folder / "ckpt.3").write_bytes(value)
    return folder / "ckpt.3"


def sb3(folder: Path, value: bytes) -> Path:
    path = SAMPLES["sb3"].write(folder)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stored = {":type:": "<class 'dict'>", ":serialized:": base64.b64encode(value).decode()}
    members["data"] = json.dumps({**json.loads(members["data"]), "policy_kwargs": stored}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("write", [rllib, dopamine, sb3])
@pytest.mark.parametrize("what", ["dicts of two to the fortieth", "a dict that holds itself"])
def test_a_file_with_lists_without_end_is_one_clear_error(tmp_path, write, what):
    with pytest.raises(SurgeryError) as caught:
        surgery.load(write(tmp_path, pickled(ENDLESS[what]())))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("step", [float("nan"), float("inf")])
def test_a_step_count_that_is_no_number_is_refused(tmp_path, step):
    path = SAMPLES["pytorch"].write(tmp_path)
    content = torch.load(path, weights_only=True)
    content["optimizer"]["state"][2]["step"] = torch.tensor(step)
    torch.save(content, path)
    with pytest.raises(CorruptFile, match=f"step count of 'network.2.weight' is {step}"):
        surgery.load(path, reading=Reading(activation="relu"))


def test_a_layer_of_flax_without_a_bias_is_refused(tmp_path):
    path = tmp_path / "dqn.cleanrl_model"
    shutil.copy(FIXTURES / "flax" / "dqn.cleanrl_model", path)
    path.write_bytes(path.read_bytes().replace(b"\xa4bias", b"\xa4bios", 1))
    with pytest.raises(SurgeryError, match="is not a layer of a known script"):
        surgery.load(path)
