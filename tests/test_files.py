"""A reader sees the old file or the new one, whole; whatever goes wrong is an error that says what to do."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from surgery.errors import FileError
from surgery.files import check_readable, replacing, replacing_folder


def fill(paths: list[Path], text: str = "new") -> None:
    for path in paths:
        path.write_text(text)


def test_all_files_appear_together_and_nothing_is_left_behind(tmp_path):
    targets = [tmp_path / "a.safetensors", tmp_path / "a.onnx"]
    with replacing(targets) as temporary:
        assert [path.parent for path in temporary] == [tmp_path, tmp_path]
        assert all(path.name.startswith(".") for path in temporary)
        fill(temporary)
        assert not any(target.exists() for target in targets)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.safetensors"]


def test_files_are_renamed_in_the_order_given(tmp_path, monkeypatch):
    targets = [tmp_path / name for name in ("weights", "moments", "model.onnx")]
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: order.append(to) or replace(self, to))
    with replacing(targets) as temporary:
        fill(temporary)
    assert order == targets


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_old_file_survives_any_exception(tmp_path, error):
    target = tmp_path / "a.onnx"
    target.write_text("old")
    with pytest.raises(type(error)), replacing([target], force=True) as temporary:
        fill(temporary)
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_write_is_a_file_error(tmp_path, code, says):
    target = tmp_path / "a.onnx"
    with pytest.raises(FileError, match=says), replacing([target]):
        raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with (
        pytest.raises(FileError, match="1,000 bytes needed, 10 free"),
        replacing([tmp_path / "a"], needed=1000),
    ):
        pytest.fail("not reached")


def _existing(folder: Path) -> Path:
    (folder / "a.onnx").write_text("old")
    return folder / "a.onnx"


def _dangling(folder: Path) -> Path:
    (folder / "a.onnx").symlink_to(folder / "nowhere")
    return folder / "a.onnx"


def _beneath_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "a.onnx"


BAD_TARGETS = {
    "it exists": _existing,
    "it exists (a link)": _dangling,
    "it is a folder": lambda folder: folder,
    "does not exist": lambda folder: folder / "missing" / "a.onnx",
    "is not a folder": _beneath_a_file,
    "the name is too long": lambda folder: folder / ("a" * 300),
    "not a regular file": lambda folder: Path(os.devnull),
}


@pytest.mark.parametrize("says", BAD_TARGETS)
def test_bad_targets_are_refused_with_a_reason(tmp_path, says):
    target = BAD_TARGETS[says](tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileError) as caught, replacing([target]) as temporary:
        fill(temporary)
    assert says.partition(" (")[0] in caught.value.message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "hint"),
    [("~/x.onnx", f"write {Path.home()}/x.onnx"), ("no dir/x.onnx", "mkdir -p 'no dir'")],
)
def test_what_to_do_about_a_folder_that_is_missing_can_be_pasted(target, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as caught, replacing([Path(target)]):
        pytest.fail("not reached")
    assert (caught.value.hint or "").endswith(hint)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(FileError, match="permission denied"), replacing([tmp_path / "a.onnx"]):
            pytest.fail("not reached")
    finally:
        tmp_path.chmod(0o755)


def test_force_replaces_a_file_and_keeps_its_permissions(tmp_path):
    target = _existing(tmp_path)
    target.chmod(0o640)
    with replacing([target], force=True) as temporary:
        fill(temporary)
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_force_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    target = _existing(tmp_path)
    link = tmp_path / "latest.onnx"
    link.symlink_to(target)
    with replacing([link], force=True) as temporary:
        fill(temporary)
    assert (link.read_text(), target.read_text(), link.is_symlink()) == ("new", "old", False)


def test_an_input_is_never_an_output_where_the_caller_says_so(tmp_path):
    target = _existing(tmp_path)
    with pytest.raises(FileError, match="it is the input"), replacing([target], force=True, sources=[target]):
        pytest.fail("not reached")


def test_the_longest_name_can_be_written(tmp_path):
    target = tmp_path / ("a" * 250 + ".onnx")
    with replacing([target]) as temporary:
        fill(temporary)
    assert target.read_text() == "new"


KILLED = """
    import sys, time
    from pathlib import Path
    from surgery.files import replacing
    with replacing([Path(sys.argv[1])], force=True) as (path,):
        with path.open("wb") as file:
            file.write(bytes(1 << 20))
            print("half", flush=True)
            time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = _existing(tmp_path)
    script = textwrap.dedent(KILLED)
    with subprocess.Popen([sys.executable, "-c", script, target], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"
    assert all(path == target or path.name.startswith(".surgery-") for path in tmp_path.iterdir())


LIMITED = """
    import resource, sys
    from pathlib import Path
    from surgery.errors import FileError
    from surgery.files import replacing
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        with replacing([Path(sys.argv[1])], force=True) as (path,):
            path.write_bytes(bytes(1 << 20))
    except FileError as error:
        print(error.message)
"""


def test_a_write_that_the_system_stops_leaves_the_old_file(tmp_path):
    target = _existing(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def _missing(folder: Path) -> Path:
    (folder / "agent.onnx").write_text("")
    return folder / "agnt.onnx"


def _socket(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize(
    ("make", "says", "hint"),
    [
        (_missing, "does not exist", "agent.onnx"),
        (lambda folder: folder / "no" / "a.onnx", "does not exist", "folder"),
        (
            lambda folder: Path("~/surgery is not here/a.onnx"),
            "does not exist",
            f"'{Path.home()}/surgery is not",
        ),
        (lambda folder: _existing(folder).parent, "is a folder", "a.onnx"),
        (_socket, "not a regular file", ""),
        (lambda folder: folder / ("a" * 300), "too long", ""),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path, make, says, hint):
    with pytest.raises(FileError, match=says) as caught:
        check_readable(make(tmp_path))
    assert hint in (caught.value.hint or "")


def _run(folder: Path, text: str, name: str = "run") -> Path:
    (folder / name / "learner").mkdir(parents=True)
    fill([folder / name / "settings.json", folder / name / "learner" / "state.pkl"], text)
    return folder / name


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if not path.is_dir()
    }


def _ours(folder: Path) -> bool:
    return (folder / "settings.json").exists()


def _write(target: Path, text: str = "new", **options: object) -> None:
    with replacing_folder(target, **{"owned": _ours, "force": True, **options}) as folder:
        (folder / "learner").mkdir()
        fill([folder / "settings.json", folder / "learner" / "state.pkl"], text)


NEW = {"settings.json": "new", "learner/state.pkl": "new"}
OLD = {"settings.json": "old", "learner/state.pkl": "old"}


def test_a_folder_appears_whole_and_nothing_is_left_behind(tmp_path):
    _write(tmp_path / "run", force=False)
    assert _content(tmp_path / "run") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "moved aside"])
def test_force_replaces_a_whole_folder_and_keeps_its_permissions(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a system without an exchange
    target = _run(tmp_path, "old")
    (target / "only in the old").touch()
    target.chmod(0o750)
    _write(target)
    assert _content(target) == NEW
    assert target.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_old_folder_survives_any_exception(tmp_path, error):
    target = _run(tmp_path, "old")
    with pytest.raises(type(error)), replacing_folder(target, owned=_ours, force=True) as folder:
        (folder / "settings.json").write_text("half")
        raise error
    assert _content(tmp_path / "run") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _of_something_else(folder: Path) -> Path:
    (folder / "photographs").mkdir()
    return folder / "photographs"


def _link_to_a_folder(folder: Path) -> Path:
    (folder / "latest").symlink_to(_run(folder, "old", "other"))
    return folder / "latest"


REFUSED = {
    "it is a folder": _of_something_else,
    "it is a folder (a link)": _link_to_a_folder,
    "a file of that name": _existing,
    "does not exist": lambda folder: folder / "missing" / "run",
    "it is the input": lambda folder: folder / "source",
    "it contains the input": lambda folder: folder / "source" / "learner" / "run",
    "or lies inside it": lambda folder: folder,
}


@pytest.mark.parametrize("says", REFUSED)
def test_no_folder_but_an_old_one_of_the_kind_is_replaced(tmp_path, says):
    source = _run(tmp_path, "old", "source")
    (tmp_path / "settings.json").touch()
    target = REFUSED[says](tmp_path)
    before = _content(tmp_path)
    with pytest.raises(FileError) as caught:
        _write(target, sources=[source])
    assert says.partition(" (")[0] in caught.value.message
    assert _content(tmp_path) == before


def test_a_folder_that_exists_is_not_replaced_without_force(tmp_path):
    with pytest.raises(FileError, match="it exists"):
        _write(_run(tmp_path, "old"), force=False)
    assert _content(tmp_path / "run") == OLD


KILLED_FOLDER = """
    import sys
    from pathlib import Path
    from surgery.files import replacing_folder
    count = 0
    while True:
        with replacing_folder(Path(sys.argv[1]), owned=lambda folder: True, force=True) as folder:
            for name in "abcdefgh":
                (folder / name).write_text(str(count))
        print(count, flush=True)
        count += 1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an old folder is moved aside first")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03])
def test_a_killed_writer_leaves_one_whole_folder(tmp_path, delay):
    target = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(KILLED_FOLDER), target]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
    found = _content(target)
    assert sorted(found) == list("abcdefgh")
    assert len(set(found.values())) == 1
    assert all(path == target or path.name.startswith(".surgery-") for path in tmp_path.iterdir())
