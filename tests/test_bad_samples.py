"""Files of every framework, damaged in every place that they have: an error, or a checkpoint; never anything else."""

from __future__ import annotations

import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from surgery.adapters import Reading
from surgery.errors import SurgeryError
from tests import torch_models
from tests.round_trips import SAMPLES, Sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def script(folder: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.save(torch.jit.trace(torch_models.Sequence().network, torch.zeros(2, 5)), folder / "file.pt")
    return folder / "file.pt"


EVERY: Mapping[str, Sample] = {
    **SAMPLES,
    "torch_exported": Sample(SAMPLES["torch_exported"].write, "2", Reading(activation="relu")),
    "torchscript": Sample(script, "2", Reading(activation="relu")),
}
"""Programs as data: what they compute would be PyTorch's to load."""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Mapping[str, Path]:
    """The sample of each framework alone in a folder, made when it is first asked for."""

    class Written(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = EVERY[name].write(tmp_path_factory.mktemp(name))
            return self[name]

    return Written()


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whatever waits for ever is a failure."""

    def late(*_: object) -> None:
        raise AssertionError("this takes for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def tried(name: str, path: Path, target: Path) -> str | None:
    """Read a file whole and write a copy of it; the message of the error, or None."""
    try:
        found = surgery.load(path, reading=EVERY[name].reading)
        slots = [] if found.optimizer is None else found.optimizer.slots.values()
        for tensors in (found.tensors, *slots):
            for tensor in tensors.values():
                tensor.numpy()
        surgery.save(found, target)
    except SurgeryError as error:
        assert error.message and "\n" not in error.message
        return error.message
    return None


def places(path: Path, most: int) -> list[Path]:
    """Some of the files that a sample consists of, relative to the folder that it lies in."""
    found = [file.relative_to(path.parent) for file in sorted(path.parent.rglob("*")) if file.is_file()]
    return (
        found if len(found) <= most else [found[k] for k in np.linspace(0, len(found) - 1, most).astype(int)]
    )


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwritten or shifted somewhere."""
    data, at, length = bytearray(content), int(rng.integers(max(1, len(content)))), int(rng.integers(1, 64))
    match int(rng.integers(4)):
        case 0:
            del data[at:]
        case 1:
            data[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        case 2:
            data[at : at + length] = b"\xff" * length
        case _:
            del data[at : at + length]
    return bytes(data)


@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_file_is_an_error_or_a_checkpoint(written, tmp_path, name):
    path, rng, refused = written[name], np.random.default_rng(7), 0
    for number in range(10):
        copy = Path(shutil.copytree(path.parent, tmp_path / f"in{number}"))
        place = copy / places(path, 99)[int(rng.integers(len(places(path, 99))))]
        place.write_bytes(broken(place.read_bytes(), rng))
        target = tmp_path / f"out{number}" / path.name
        target.parent.mkdir()
        refused += tried(name, copy / path.name, target) is not None
    assert refused > 0


def pipe(file: Path) -> None:
    os.mkfifo(file)


def to_itself(file: Path) -> None:
    file.symlink_to(file)


def to_nowhere(file: Path) -> None:
    file.symlink_to(file.with_name("nowhere"))


INSTEAD: Mapping[str, Callable[[Path], object]] = {
    "a pipe": pipe,
    "a folder": Path.mkdir,
    "a link to itself": to_itself,
    "a link to nowhere": to_nowhere,
    "nothing in it": Path.touch,
    "nothing": lambda file: None,
}


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("name", EVERY)
def test_something_else_in_the_place_of_a_file_is_an_error_or_of_no_consequence(
    written, tmp_path, name, what
):
    path = written[name]
    for number, place in enumerate(places(path, 3)):
        copy = Path(shutil.copytree(path.parent, tmp_path / f"in{number}"))
        (copy / place).unlink()
        INSTEAD[what](copy / place)
        said = tried(name, copy / path.name, tmp_path / f"out{number}{path.suffix}")
        assert said or place.name != path.name


@pytest.mark.parametrize("name", ["keras", "torchscript", "torch_exported", "pytorch", "sb3", "cleanrl"])
def test_members_that_expand_are_refused_before_they_do(written, tmp_path, name):
    path = written[name]
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    for number, bomb in enumerate([min(members), max(members)]):
        copy = tmp_path / str(number) / path.name
        copy.parent.mkdir()
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for member, content in members.items():
                archive.writestr(member, bytes(1 << 25) if member == bomb else content)
        said = tried(name, copy, copy.with_name(f"out{path.suffix}"))
        assert said and "compressed" in said


@pytest.mark.parametrize("name", ["rllib", "sample_factory"])
def test_what_a_link_leads_to_is_not_copied(written, tmp_path, name):
    copy = Path(shutil.copytree(written[name], tmp_path / "in" / written[name].name))
    (tmp_path / "secret").write_text("secret")
    (copy / "link").symlink_to(tmp_path / "secret")
    said = tried(name, copy, tmp_path / "out")
    assert said == "'link' is neither a file nor a folder"
    assert not (tmp_path / "out").exists()
