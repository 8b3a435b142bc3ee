"""Hostile, damaged and mixed files of frameworks: one clear error each, nothing executed, nothing written."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.adapters import Reading
from surgery.errors import CorruptFile, Refused, SurgeryError
from surgery_adapters.containers.pickle_tree import parse
from surgery_adapters.containers.pickle_writer import dump
from tests.sb3_models import ROWS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Mapping[str, bytes]:
    """The members of a small model of the real framework."""
    path = tmp_path_factory.mktemp("bad") / "dqn.zip"
    ROWS["dqn"].train(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def serialized(value: object) -> dict[str, str]:
    return {":type:": "<class 'object'>", ":serialized:": base64.b64encode(pickle.dumps(value)).decode()}


def settings(members: Mapping[str, bytes], **changed: object) -> dict[str, bytes]:
    """The members, with some settings changed."""
    return {**members, "data": json.dumps({**json.loads(members["data"]), **changed}).encode()}


def test_what_the_settings_would_execute_is_carried_and_never_executed(tmp_path, members):
    trap = tmp_path / "trap"
    path = pack(
        tmp_path / "x.zip",
        settings(members, lr_schedule=serialized(Bomb(trap)), callback=serialized(Bomb(trap))),
    )
    before = surgery.load(path)
    surgery.apply(surgery.widen(before, factor=2), before).save(tmp_path / "wide.zip")
    with zipfile.ZipFile(tmp_path / "wide.zip") as wide:
        assert json.loads(wide.read("data"))["lr_schedule"] == serialized(Bomb(trap))
    assert not trap.exists()


@pytest.mark.parametrize("key", ["observation_space", "action_space", "policy_kwargs", "policy_class"])
def test_a_bomb_where_something_is_read_is_an_error_and_not_executed(tmp_path, members, key):
    trap = tmp_path / "trap"
    path = pack(tmp_path / "x.zip", settings(members, **{key: serialized(Bomb(trap))}))
    if key == "policy_class":  # its name is of no consequence here
        surgery.load(path)
    else:
        with pytest.raises(SurgeryError):
            surgery.load(path)
    assert not trap.exists()


def _deep(members: Mapping[str, bytes]) -> dict[str, bytes]:
    nested = "[" * 100_000 + "]" * 100_000
    return {**members, "data": b'{"policy_kwargs": ' + nested.encode() + b"}"}


HOSTILE: Mapping[str, Callable[[Mapping[str, bytes]], Mapping[str, bytes]]] = {
    "no settings": lambda m: {**m, "data": b""},
    "settings that are no object": lambda m: {**m, "data": b"[1]"},
    "settings that are no text": lambda m: {**m, "data": b"\xff\xfe{}"},
    "settings without end": _deep,
    "no spaces": lambda m: {**m, "data": b"{}"},
    "a space in broken base64": lambda m: settings(m, observation_space={":serialized:": "a$$"}),
    "a space that is no pickle": lambda m: settings(m, observation_space={":serialized:": "bm8="}),
    "a space that is a number": lambda m: settings(m, observation_space=serialized(3)),
    "arguments that are a number": lambda m: settings(m, policy_kwargs=7),
    "arguments that are a list": lambda m: settings(m, policy_kwargs=serialized([1])),
    "an activation that nobody knows": lambda m: settings(m, policy_kwargs=serialized({"activation_fn": np.sin})),
    "weights that execute": lambda m: {**m, "policy.pth": saved(Bomb(Path("never")))},
    "weights that are no tensors": lambda m: {**m, "policy.pth": saved({"q_net.q_net.0.weight": 3})},
    "weights of another network": lambda m: {**m, "policy.pth": saved({"a.weight": torch.ones(2, 2)})},
    "weights without a layer": lambda m: {**m, "policy.pth": saved({"q_net.q_net.0.weight": torch.ones(2, 9)})},
    "weights with a layer of five axes": lambda m: {
        **m, "policy.pth": saved({"q_net.q_net.0.weight": torch.ones(2, 1, 1, 1, 1)})},
    "an optimizer of another network": lambda m: {
        **m, "policy.optimizer.pth": saved(torch.optim.Adam([torch.ones(3)]).state_dict())},
    "an optimizer that is a tensor": lambda m: {**m, "policy.optimizer.pth": saved(torch.ones(3))},
    "weights that are no archive": lambda m: {**m, "policy.pth": b"PK\x03\x04 no archive"},
    "notes that are no JSON": lambda m: {**m, "surgery.json": b"{"},
    "notes of a later version": lambda m: {**m, "surgery.json": b'{"schema": 99}'},
    "a name that climbs": lambda m: {**m, "../../etc/passwd": b"x"},
    "an absolute name": lambda m: {**m, "/etc/passwd": b"x"},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_model_is_one_clear_error(tmp_path, members, what):
    path = pack(tmp_path / "x.zip", HOSTILE[what](members))
    with pytest.raises(SurgeryError) as caught:
        surgery.load(path)
    assert caught.value.message and "\n" not in caught.value.message
    assert caught.value.where["file"] == str(path)


def test_a_compressed_model_is_refused_before_anything_expands(tmp_path, members):
    bomb = {**members, "policy.pth": bytes(1 << 26)}
    path = pack(tmp_path / "x.zip", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(CorruptFile, match="compressed") as caught:
        surgery.load(path)
    assert "zip -0" in caught.value.hint


def test_every_truncation_of_a_model_is_an_error(tmp_path, members):
    whole = pack(tmp_path / "whole.zip", members).read_bytes()
    for length in np.linspace(1, len(whole) - 1, 25).astype(int):
        (tmp_path / "x.zip").write_bytes(whole[:length])
        with pytest.raises(SurgeryError):
            surgery.load(tmp_path / "x.zip")


@pytest.mark.parametrize("member", ["data", "policy.pth", "policy.optimizer.pth"])
def test_flipped_bytes_are_an_error_or_harmless_and_never_a_traceback(tmp_path, members, member):
    rng = np.random.default_rng(0)
    content = members[member]
    # the pickle, not the numbers: any number is a valid weight
    end = len(content) if member == "data" else content.index(b"data/0")
    for _ in range(60):
        broken = bytearray(content)
        for place in rng.integers(0, end, 1 + int(rng.integers(3))):
            broken[place] = rng.integers(256)
        path = pack(tmp_path / "x.zip", {**members, member: bytes(broken)})
        try:
            surgery.load(path)
        except SurgeryError as error:
            assert "\n" not in error.message


def test_settings_and_weights_of_two_models_are_told_apart(tmp_path, members):
    """The settings say five features and three actions; the weights are made for others."""
    wider = torch.load(io.BytesIO(members["policy.pth"]), weights_only=True)
    wider["q_net.q_net.0.weight"] = torch.ones(12, 9)
    path = pack(tmp_path / "x.zip", {**members, "policy.pth": saved(wider)})
    with pytest.raises(CorruptFile, match="do not fit each other"):
        surgery.load(path, optimizer=False)


def test_a_network_of_which_a_part_is_not_known_is_no_network(tmp_path, members):
    """What it does there would be left out."""
    more = torch.load(io.BytesIO(members["policy.pth"]), weights_only=True)
    more["q_net.attention.weight"] = torch.ones(3, 3)
    path = pack(tmp_path / "x.zip", {**members, "policy.pth": saved(more)})
    with pytest.raises(Refused, match=r"'q_net\.attention\.weight' belongs to no network"):
        surgery.load(path, optimizer=False)


def test_a_refused_model_leaves_no_file_behind(tmp_path, members):
    before = surgery.load(pack(tmp_path / "x.zip", members), optimizer=False)
    result = surgery.apply(surgery.widen(before, factor=2), before)
    with pytest.raises(SurgeryError, match="optimizer"):
        result.save(tmp_path / "wide.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_the_input_is_never_written_over(tmp_path, members):
    path = pack(tmp_path / "x.zip", members)
    with pytest.raises(SurgeryError, match="it is the input"):
        surgery.save(surgery.load(path), path, force=True)


VALUES: Mapping[str, object] = {
    "data": {
        "a": [1, (2, (3,)), {4}],
        "b": frozenset("x"),
        7: -1,
        "big": 1 << 80,
        "f": -0.5,
        "n": None,
        "t": True,
    },
    "bytes": [b"x", bytearray(b"yz"), "é\ud800", -(1 << 40), 255, 65535, -1],
    "array": {"a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.eye(3)), "s": np.float32(2.5)},
    "shared": [["twice"]] * 2,
    "generator": np.random.default_rng(3),
    "many": [str(k) for k in range(300)] * 2,
    "long": [1 << 2000, -(1 << 2100), 1 << 2031],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", VALUES)
def test_a_tree_that_was_not_changed_makes_equal_objects(what, protocol):
    data = pickle.dumps(VALUES[what], protocol)
    again = dump(parse(data))
    assert pickle.dumps(pickle.loads(again), protocol) == pickle.dumps(pickle.loads(data), protocol)


def test_what_a_person_knows_does_not_open_a_file_that_asks_for_code(tmp_path):
    torch.save({"model": {"a.weight": torch.ones(2, 2)}, "hook": Bomb(tmp_path / "trap")}, tmp_path / "x.pt")
    with pytest.raises(CorruptFile, match="which is not data"):
        surgery.load(tmp_path / "x.pt", reading=Reading(activation="relu"))
    assert not (tmp_path / "trap").exists()
