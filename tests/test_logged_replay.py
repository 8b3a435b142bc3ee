"""Replays that Dopamine logged (tests/fixtures/dopamine_replay/make.py): the transitions that it samples itself."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from surgery.errors import SurgeryError
from surgery.replay import Layout, Replay, fill, read_transitions
from surgery.replay.logged import read_logged

FOLDER = Path(__file__).parent / "fixtures" / "dopamine_replay"


def column(name: str, number: int, folder: Path = FOLDER) -> Path:
    return folder / f"$store$_{name}_ckpt.{number}.gz"


@pytest.mark.parametrize("number", [0, 1], ids=["not full", "overwritten"])
def test_the_transitions_are_those_that_dopamine_samples(number):
    found = read_transitions(column("observation", number))
    with np.load(FOLDER / "sampled.npz") as recorded:
        wanted = {
            key: recorded[f"{number}/{key}"] for key in ("state", "action", "reward", "after", "terminal")
        }
    ours = {found.observation[k].tobytes() + bytes([found.action[k]]): k for k in range(len(found))}
    assert len(ours) == len(found) > 15
    padding = 0
    for k in range(len(wanted["action"])):
        state, after = (np.moveaxis(wanted[key][k], -1, 0) for key in ("state", "after"))
        if not state[-1].any():
            # behind an episode that was cut off Dopamine samples the padding too, and stacks across the cut
            padding += 1
            continue
        place = ours.pop(state.tobytes() + bytes([wanted["action"][k]]))
        assert found.reward[place] == wanted["reward"][k]
        assert found.terminated[place] == bool(wanted["terminal"][k])
        if not found.terminated[place]:
            np.testing.assert_array_equal(found.next_observation[place], after)
    assert padding in (6, 9)
    # beside the newest ones, whose successors are known, but which Dopamine leaves out around its cursor
    assert len(ours) <= 5


def logged(folder: Path, added: int, capacity: int, stack: int) -> list[tuple]:
    """A ring as Dopamine writes it, of episodes of seven steps, every third one cut off; and its whole transitions in
    order: number of the observation, whether it was the last, whether the first of an episode."""
    rows: list[tuple[int, bool, bool, bool]] = []  # number (0: padding), terminal, cut off, first
    while len(rows) < added:
        number = sum(row[0] > 0 for row in rows) + 1
        cut = number // 7 % 3 == 2
        rows += [(0, False, False, False)] * (stack - 1)
        rows += [(number + k, k == 6 and not cut, k == 6 and cut, k == 0) for k in range(7)]
    ring = np.zeros((capacity, 4), int)
    for k, row in enumerate(rows[:added]):
        ring[k % capacity] = row
    frames = np.repeat(ring[:, 0].astype(np.uint8), 6).reshape(capacity, 2, 3)
    columns = {
        "observation": frames,
        "action": ring[:, 0] % 5,
        "reward": ring[:, 0] / 2,
        "terminal": ring[:, 1],
    }
    for name, values in columns.items():
        with gzip.open(column(name, 7, folder), "wb") as file:
            np.save(file, values)
    with gzip.open(folder / "add_count_ckpt.7.gz", "wb") as file:
        np.save(file, np.array(added))
    with gzip.open(folder / "episode_end_indices_ckpt.7.gz", "wb") as file:
        pickle.dump({int(k) for k in np.flatnonzero(ring[:, 1] | ring[:, 2])}, file)
    oldest = max(0, added - capacity)
    return [
        row[:2] + row[3:]
        for k, row in enumerate(rows[:added])
        if row[0] and k - stack + 1 >= oldest and not row[2] and (row[1] or k + 1 < added)
    ]


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("added", [30, 57, 58, 64, 190])
def test_every_transition_that_is_whole_is_read_in_order(added: int, stack: int, tmp_path: Path):
    wanted = logged(tmp_path, added, 60, stack)
    found = read_logged(column("reward", 7, tmp_path), stack)
    assert found.observation[np.arange(3)].shape == (3, *found.observation.shape[1:])
    assert found.observation.shape[1:] == ((stack, 2, 3) if stack > 1 else (2, 3))
    seen = found.observation[np.arange(len(found))].reshape(len(found), stack, 6)
    after = found.next_observation[np.arange(len(found))].reshape(seen.shape)
    numbers = seen[:, -1, 0].astype(int)
    told = [
        (int(n), bool(a), bool(b)) for n, a, b in zip(numbers, found.terminated, found.begins, strict=True)
    ]
    assert told == [(*wanted[0][:2], True), *wanted[1:]]  # before the oldest one nothing is known
    assert (found.action == numbers % 5).all() and (found.reward == numbers / 2).all()
    goes_on = ~found.terminated
    assert (after[goes_on, -1, 0] == numbers[goes_on] + 1).all()
    age = (numbers - 1) % 7  # in its episode; older frames of the stack are padding
    for back in range(stack):
        np.testing.assert_array_equal(seen[:, -1 - back, 0], np.where(back <= age, numbers - back, 0))


def test_stacks_do_not_reach_into_another_episode():
    found = read_transitions(column("action", 0))
    # the first stack of an episode begins with frames of zeros, as Dopamine's agents see it
    fresh = [k for k in range(len(found)) if not found.observation[k][:3].any()]
    assert len(fresh) >= 3
    assert found.observation.shape == (len(found), 4, 3, 3) and found.observation[fresh[0]][3].any()


def test_a_log_fills_a_replay():
    found = read_transitions(column("reward", 1))
    replay = Replay(Layout(1, (3, 3), "uint8", 4), 200, n_step=2)
    fill(replay, found, actions=4)
    assert len(replay) == len(found)
    batch = replay.sample(8, np.random.default_rng(0))
    known = {found.observation[k].tobytes() for k in range(len(found))}
    assert all(observation.tobytes() in known for observation in batch.observation)


def test_a_log_without_a_list_of_cut_episodes_is_read(tmp_path):
    for path in FOLDER.glob("*ckpt.0.gz"):
        if "episode" not in path.name and "add_count" not in path.name:
            shutil.copy(path, tmp_path)
    assert len(read_logged(column("action", 0, tmp_path)).action) > 0


@pytest.fixture
def copied(tmp_path):
    for path in FOLDER.glob("*ckpt.0.gz"):
        shutil.copy(path, tmp_path)
    return tmp_path


def saved(array: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return gzip.compress(file.getvalue())


def header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return gzip.compress(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


COLUMNS = {
    "no gzip": b"nothing",
    "an empty archive": gzip.compress(b""),
    "objects": saved(np.array([{}], dtype=object), allow_pickle=True),
    "more than any memory": header("(1 << 50, 84, 84)".replace("1 << 50", str(1 << 50))),
    "less than it says": header("(60, 3, 3)"),
    "a negative shape": header("(-1, 3, 3)"),
    "of another length": saved(np.zeros((7, 3, 3), np.uint8)),
}


@pytest.mark.parametrize("content", COLUMNS.values(), ids=COLUMNS)
def test_damaged_and_hostile_columns_are_errors(copied, content):
    column("observation", 0, copied).write_bytes(content)
    with pytest.raises(SurgeryError) as caught:
        read_transitions(column("action", 0, copied))
    assert "\n" not in caught.value.message


def test_a_missing_column_is_named(copied):
    column("terminal", 0, copied).unlink()
    with pytest.raises(SurgeryError, match="terminal"):
        read_transitions(column("action", 0, copied))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize(
    "ends", ["bomb", {10_000}, {np.int64(70)}, b"x"], ids=["bomb", "far", "numpy", "no pickle"]
)
def test_a_list_of_ends_is_not_executed_and_names_no_row_that_is_not_there(copied, ends):
    trap = copied / "trap"
    content = ends if isinstance(ends, bytes) else pickle.dumps(Bomb(trap) if ends == "bomb" else ends)
    (copied / "episode_end_indices_ckpt.0.gz").write_bytes(gzip.compress(content))
    if ends == "bomb":
        read_transitions(column("action", 0, copied))
    else:
        with pytest.raises(SurgeryError):
            read_transitions(column("action", 0, copied))
    assert not trap.exists()
