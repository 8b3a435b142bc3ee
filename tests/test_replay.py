"""The replay gives back what was put in: against a plain list of transitions, over many kinds of experience."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from surgery.errors import ArgumentError, CorruptFile, FileError
from surgery.replay import (
    Batch,
    Layout,
    Replay,
    Segment,
    SumTree,
    Window,
    fill,
    read_transitions,
    restore,
    write_segment,
)
from surgery.replay.frames import make_frames
from surgery.replay.transitions import Transitions


@dataclass(frozen=True)
class Step:
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observation: np.ndarray
    valid: np.ndarray


class World:
    """Environments whose frames are all different, so that a frame says which moment it is of.

    Episodes terminate, are truncated, lose lives (terminated, and the stack goes on), and now and then a step is no
    transition at all.
    """

    def __init__(self, layout: Layout, seed: int, *, padding: str = "zero") -> None:
        self.layout, self.padding = layout, padding
        self.generator = np.random.default_rng(seed)
        self.count = 0
        self.stacks = np.stack([self._first() for _ in range(layout.envs)])

    def _frame(self) -> np.ndarray:
        self.count += 1
        bits = [(self.count >> shift) & 1 for shift in range(int(np.prod(self.layout.frame)))]
        if self.layout.dtype == "uint8":
            bits = [(self.count // 251**k) % 251 for k in range(int(np.prod(self.layout.frame)))]
        if self.layout.dtype == "float32":
            bits = [self.count / 7 + k for k in range(int(np.prod(self.layout.frame)))]
        return np.array(bits, self.layout.dtype).reshape(self.layout.frame)

    def _first(self) -> np.ndarray:
        k = self.layout.stack
        frames = [self._frame() for _ in range(k if self.padding == "own" else 1)]
        blank = np.zeros_like(frames[0]) if self.padding == "zero" else frames[0]
        return np.stack([blank] * (k - len(frames)) + frames)

    def observation(self, stacks: np.ndarray) -> np.ndarray:
        return stacks[:, 0] if self.layout.stack == 1 else stacks

    def steps(self, count: int) -> Iterator[Step]:
        n = self.layout.envs
        for _ in range(count):
            draw = self.generator.random(n)
            over, life, cut, skip = (
                draw < 0.08,
                (draw > 0.9),
                (draw > 0.8) & (draw <= 0.86),
                (draw > 0.5) & (draw < 0.53),
            )
            successor = np.stack([np.concatenate([s[1:], self._frame()[None]]) for s in self.stacks])
            yield Step(
                self.observation(self.stacks),
                self.generator.integers(0, 4, n),
                self.generator.normal(size=n).astype(np.float32) * 2,
                over | life,
                cut,
                self.observation(successor.copy()),
                ~skip,
            )
            for i in range(n):
                successor[i] = (
                    self._first() if over[i] or cut[i] else self.stacks[i] if skip[i] else successor[i]
                )
            self.stacks = successor


class Listed:
    """The textbook replay: one list of whole transitions per environment."""

    def __init__(self, layout: Layout, n_step: int, gamma: float, clip: float | None) -> None:
        self.streams: list[list[tuple]] = [[] for _ in range(layout.envs)]
        self.n_step, self.gamma, self.clip = n_step, gamma, clip

    def add(self, step: Step) -> None:
        for i, stream in enumerate(self.streams):
            if step.valid[i]:
                stream.append(tuple(getattr(step, name)[i] for name in (
                    "observation", "action", "reward", "terminated", "truncated", "next_observation")))  # fmt: skip

    def samples(self) -> dict[bytes, tuple]:
        """observation bytes -> action, n-step return, discount, next observation (None if terminated)."""
        found = {}
        for stream in self.streams:
            for t, (observation, action, *_) in enumerate(stream):
                total, discount, last = 0.0, 1.0, None
                for j in range(t, t + self.n_step):
                    if j >= len(stream):
                        last = "unknown"
                        break
                    _, _, reward, terminated, truncated, after = stream[j]
                    total += discount * float(np.clip(reward, -self.clip, self.clip) if self.clip else reward)
                    discount *= self.gamma
                    last = after
                    if terminated:
                        discount, last = 0.0, None
                        break
                    if truncated:
                        break
                if not isinstance(last, str):
                    found[np.ascontiguousarray(observation).tobytes()] = (action, total, discount, last)
        return found


LAYOUTS = {
    "atari": (Layout(3, (2, 3), "uint8", 4), "zero"),
    "atari, own first stack": (Layout(2, (2, 3), "uint8", 4), "own"),
    "stack of 2, repeated": (Layout(4, (4,), "uint8", 2), "repeat"),
    "vectors": (Layout(3, (5,), "float32"), "zero"),
    "bits": (Layout(2, (4, 4), "bool"), "zero"),
}


def add(replay: Replay, step: Step) -> None:
    replay.add(
        step.observation, step.action, step.reward, step.terminated, step.truncated, step.next_observation,
        step.valid,
    )  # fmt: skip


def check(replay: Replay, listed: Listed, *, draws: int = 20, size: int = 128, all_seen: bool = True) -> None:
    known, seen = listed.samples(), set()
    generator = np.random.default_rng(5)
    for _ in range(draws):
        batch = replay.sample(size, generator)
        keys = [row.tobytes() for row in np.asarray(batch.observation)]
        action, returns, discount, after = zip(*(known[key] for key in keys), strict=True)
        np.testing.assert_array_equal(batch.action, action)
        np.testing.assert_allclose(batch.returns, returns, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch.discount, discount, rtol=1e-6)
        alive = np.flatnonzero(discount)
        np.testing.assert_array_equal(
            np.asarray(batch.next_observation)[alive], np.array([after[b] for b in alive])
        )
        seen.update(keys)
    if all_seen:
        assert len(seen) > 0.9 * len(known), (len(seen), len(known))


@pytest.mark.parametrize("device", ["cpu", "torch"])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_sample_is_a_transition_of_the_textbook_replay(name: str, n_step: int, device: str):
    layout, padding = LAYOUTS[name]
    world, listed = World(layout, 1, padding=padding), Listed(layout, n_step, 0.9, 1.0)
    replay = Replay(
        layout, 3000, n_step=n_step, gamma=0.9, clip=1.0, device="cpu:0" if device == "torch" else "cpu"
    )
    for step in world.steps(100):
        add(replay, step)
        listed.add(step)
    assert len(replay) == sum(len(stream) for stream in listed.streams)
    check(replay, listed)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_the_teacher_said_stays_with_its_observation(name: str, device: str, tmp_path: Path):
    layout, padding = LAYOUTS[name]
    replay = Replay(layout, 300, device=device, scores=3)
    for step in World(layout, 3, padding=padding).steps(250):
        replay.add(
            step.observation, step.action, step.reward, step.terminated, step.truncated, step.next_observation,
            step.valid, said(step.observation),
        )  # fmt: skip
    again = Replay(layout, 300, device=device, scores=3)
    restore(again, tmp_path, write_segment(replay, tmp_path, ()))
    for held in (replay, again):
        batch = held.sample(200, np.random.default_rng(0))
        np.testing.assert_array_equal(np.asarray(batch.scores), said(np.asarray(batch.observation)))
    with pytest.raises(CorruptFile, match="scores"):
        restore(Replay(layout, 300, scores=4), tmp_path, write_segment(replay, tmp_path, ()))


def said(observation: np.ndarray) -> np.ndarray:
    """Scores of three actions that depend on all of an observation."""
    flat = observation.reshape(len(observation), -1).astype(np.float32)
    return np.stack([flat.sum(1), flat[:, 0], -flat.max(1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_full_ring_gives_only_what_it_still_holds(prioritised: bool):
    layout = Layout(2, (2, 3), "uint8", 4)
    world, listed = World(layout, 2), Listed(layout, 3, 0.99, None)
    replay = Replay(layout, 160, n_step=3, prioritised=prioritised)
    oldest = []
    for number, step in enumerate(world.steps(400)):
        add(replay, step)
        listed.add(step)
        oldest.append(world.count)
        if number > 20 and number % 40 == 0:
            check(replay, listed, draws=4, all_seen=False)
    newest = max(
        int(f[-1].astype(int).ravel() @ 251 ** np.arange(6))
        for f in replay.sample(400, np.random.default_rng(0)).observation
    )
    assert newest > oldest[-20]
    assert len(replay) < 160


def test_uniform_draws_are_uniform(rng: np.random.Generator):
    layout = Layout(1, (1,), "float32")
    replay = Replay(layout, 50)
    for i in range(30):
        add(replay, Step(*(np.array(x) for x in ([[i]], [0], [0.0], [False], [False], [[i + 1]], [True]))))
    counts = np.bincount(replay.sample(30_000, rng).rows, minlength=29)
    assert counts[:29].min() > 850
    assert counts[29:].sum() == 0  # the newest has no successor yet


def test_draws_follow_priorities_and_weights_undo_them(rng: np.random.Generator):
    layout = Layout(1, (1,), "float32")
    replay = Replay(layout, 50, prioritised=True)
    for i in range(30):
        add(replay, Step(*(np.array(x) for x in ([[i]], [0], [0.0], [False], [False], [[i + 1]], [True]))))
    rows = np.arange(29)
    replay.set_priorities(rows, (1.0 + rows) ** 2)  # priority = root of the loss
    batch = replay.sample(60_000, rng)
    counts = np.bincount(batch.rows, minlength=30)[:29]
    np.testing.assert_allclose(counts / counts.sum(), (1 + rows) / (1 + rows).sum(), rtol=0.15)
    assert batch.weight.max() == 1
    np.testing.assert_allclose(
        batch.weight / batch.weight.max(),
        np.sqrt(batch.weight.size * 0 + (1 + batch.rows.min()) / (1 + batch.rows)),
        rtol=1e-4,
    )


def test_what_is_new_is_as_likely_as_the_likeliest_that_there_was_also_after_a_restart(tmp_path: Path):
    layout = Layout(1, (1,), "float32")
    replay, again = (Replay(layout, 50, prioritised=True) for _ in range(2))

    def played(replay: Replay, number: int) -> float:
        """The priority of one more transition."""
        add(
            replay,
            Step(*(np.array(x) for x in ([[number]], [0], [0.0], [False], [False], [[number + 1]], [True]))),
        )
        return float(replay.priorities[replay.written[0] - 1])

    assert played(replay, 0) == played(replay, 1) == 1
    replay.set_priorities(np.array([0, 1]), np.array([25.0, 0.25]))  # priority = root of the loss
    replay.set_priorities(np.array([0]), np.array([9.0]))
    np.testing.assert_allclose(replay.priorities[:2], [3, 0.5])
    assert played(replay, 2) == pytest.approx(5)
    restore(again, tmp_path, write_segment(replay, tmp_path, ()))
    again.restore_priorities(replay.priorities)
    np.testing.assert_allclose(again.priorities[:4], [3, 0.5, 5, 0])  # the last row closes the open episode
    again.set_priorities(np.array([2]), np.array([1.0]))
    third = Replay(layout, 50, prioritised=True)
    restore(third, tmp_path, write_segment(again, tmp_path, ()))
    third.restore_priorities(again.priorities)
    assert played(third, 7) == pytest.approx(5)  # though no row has that any longer


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 1000])
def test_sum_tree_agrees_with_cumulative_sums(capacity: int, rng: np.random.Generator):
    tree, plain = SumTree(capacity), np.zeros(capacity)
    for _ in range(20):
        index = rng.integers(0, capacity, 9)
        priority = rng.random(9) * (rng.random(9) > 0.3)
        tree.set(index, priority)
        for i, p in zip(index, priority, strict=True):
            plain[i] = p
        np.testing.assert_allclose(tree.total, plain.sum())
        np.testing.assert_array_equal(tree.priorities, plain)
        if plain.sum() > 0:
            mass = rng.random(200) * plain.sum() * (1 - 1e-9)
            found = tree.find(mass)
            np.testing.assert_array_equal(found, np.searchsorted(np.cumsum(plain), mass, side="right"))
            assert (plain[tree.draw(500, rng)] > 0).all()
            assert plain[tree.find(np.array([tree.total]))] > 0  # a slice can round up to all of it


@pytest.mark.parametrize("name", LAYOUTS)
def test_segments_give_the_replay_back_after_any_number_of_crashes(name: str, tmp_path: Path):
    layout, padding = LAYOUTS[name]
    world, listed = World(layout, 3, padding=padding), Listed(layout, 3, 0.9, None)
    replay = Replay(layout, 600, n_step=3, gamma=0.9)
    known: tuple[Segment, ...] = ()
    for number, step in enumerate(world.steps(410)):
        add(replay, step)
        listed.add(step)
        if number % 60 == 30:
            known = write_segment(replay, tmp_path, known)
            kept = [len(stream) for stream in listed.streams]
        if number % 150 == 100:  # killed and started again: what no segment holds is gone
            known = tuple(Segment.from_json(segment.to_json()) for segment in known)
            replay = Replay(layout, 600, n_step=3, gamma=0.9)
            restore(replay, tmp_path, known)
            assert len(replay) <= sum(kept)
            for stream, length in zip(listed.streams, kept, strict=True):
                del stream[length:]
                row = list(stream[-1])
                row[4] = row[4] or not row[3]  # open episodes are cut off there
                stream[-1] = tuple(row)
            world.stacks = np.stack([world._first() for _ in range(layout.envs)])
            check(replay, listed, draws=3, all_seen=False)
    check(replay, listed, draws=8, all_seen=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"file": "../other/000000.npz"}, "not in the replay's own folder"),
        ({"end": [3, -1]}, "not a whole number: -1"),
        ({"begin": [0, True]}, "not a whole number: True"),
        ({"end": [3.5, 2]}, r"not a whole number: 3\.5"),
        ({"more": 1}, "more"),
    ],
)
def test_a_list_of_segments_that_no_replay_wrote_is_an_error(change: dict, says: str):
    record = {"file": "000000.npz", "begin": [0, 0], "end": [3, 2]}
    assert Segment.from_json(record).to_json() == Segment("000000.npz", (0, 0), (3, 2)).to_json()
    with pytest.raises(CorruptFile, match=says):
        Segment.from_json({**record, **change})


def test_segments_of_overwritten_rows_are_let_go(tmp_path: Path):
    layout = Layout(2, (4,), "float32")
    world, replay = World(layout, 0), Replay(layout, 100)
    known: tuple[Segment, ...] = ()
    for number, step in enumerate(world.steps(300)):
        add(replay, step)
        if number % 25 == 0:
            known = write_segment(replay, tmp_path, known)
    assert len(known) < len(list(tmp_path.iterdir()))
    replay.cut()
    again = Replay(layout, 100)
    restore(again, tmp_path, write_segment(replay, tmp_path, known))
    assert len(again) == len(replay)


def test_atari_like_frames_take_a_hundred_bytes_each(tmp_path: Path):
    layout = Layout(1, (84, 84), "uint8", 4)
    replay, frame = Replay(layout, 1200), np.zeros((84, 84), np.uint8)
    frame[::7] = 90
    stack = np.stack([frame] * 4)
    for i in range(1000):
        after = np.roll(stack, -1, axis=0)
        after[-1] = frame
        after[-1, 10 + i % 60 : 14 + i % 60, 5 + i % 70 : 7 + i % 70] = 200  # a ball
        replay.add(stack[None], np.zeros(1), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), after[None])
        stack = after
    [segment] = write_segment(replay, tmp_path, ())
    assert (tmp_path / segment.file).stat().st_size < 120 * 1000


BREAK = {
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]
    ),
    "empty": lambda data: b"",
    "text": lambda data: b"not a segment",
}


@pytest.mark.parametrize("how", BREAK)
def test_a_damaged_segment_is_an_error_and_never_experience(how: str, tmp_path: Path):
    layout = Layout(2, (6, 6), "uint8", 2)
    world, replay = World(layout, 0), Replay(layout, 400)
    for step in world.steps(50):
        add(replay, step)
    [segment] = write_segment(replay, tmp_path, ())
    path = tmp_path / segment.file
    path.write_bytes(BREAK[how](path.read_bytes()))
    with pytest.raises(CorruptFile):
        restore(Replay(layout, 400), tmp_path, [segment])


def test_a_missing_segment_and_one_of_another_game_are_errors(tmp_path: Path):
    world, replay = World(Layout(1, (4,), "float32"), 0), Replay(Layout(1, (4,), "float32"), 100)
    for step in world.steps(10):
        add(replay, step)
    [segment] = write_segment(replay, tmp_path, ())
    with pytest.raises(CorruptFile, match=r"its frames are \[4\] float32"):
        restore(Replay(Layout(1, (6,), "float32"), 100), tmp_path, [segment])
    (tmp_path / segment.file).unlink()
    with pytest.raises(FileError, match="does not exist"):
        restore(Replay(Layout(1, (4,), "float32"), 100), tmp_path, [segment])


def recorded(rng: np.random.Generator, tmp_path: Path, *, packed: bool) -> tuple[Path, Transitions]:
    """A ring in storage order: episodes, one cut without a flag, and the ring's own seam in the middle."""
    count, shape = 60, (3, 4)
    observation = rng.integers(0, 2, (count + 1, *shape)).astype(np.uint8)
    terminated = np.zeros(count, np.float32)
    terminated[[7, 20, 41]] = 1
    after = observation[1:].copy()
    after[[30, 50]] = 1 - after[[30, 50]]  # two seams that no flag tells of
    data = Transitions(
        observation[:-1],
        rng.integers(0, 3, count),
        rng.normal(size=count).astype(np.float32),
        terminated != 0,
        after,
    )
    form = np.packbits if packed else np.asarray
    np.savez(
        tmp_path / "replay.npz", obs=form(data.observation), next_obs=form(data.next_observation), packed=packed,
        obs_shape=data.observation.shape, action=data.action, reward=data.reward, terminated=terminated,
    )  # fmt: skip
    return tmp_path / "replay.npz", data


@pytest.mark.parametrize("envs", [2, 7])
def test_a_recorded_ring_is_shared_out_to_several_streams(
    envs: int, rng: np.random.Generator, tmp_path: Path
):
    found = read_transitions(recorded(rng, tmp_path, packed=True)[0])
    replay = Replay(Layout(envs, (3, 4), "uint8"), 400)
    fill(replay, found, actions=3)
    assert len(replay) == len(found)
    batch = replay.sample(2000, rng)
    drawn = {(a.tobytes(), int(b), c.tobytes()) for a, b, c in zip(*_columns(batch), strict=True)}
    held = zip(found.observation, found.action, found.next_observation, strict=True)
    whole = {(a.tobytes(), int(b), c.tobytes()) for a, b, c in held}
    ends = sum(found.terminated)
    assert len(drawn) >= len(whole) - 1
    assert len(drawn - whole) <= ends  # what follows an end is arbitrary


def _columns(batch: Batch) -> tuple[np.ndarray, ...]:
    return batch.observation, batch.action, batch.next_observation


@pytest.mark.parametrize("packed", [True, False])
def test_a_recorded_ring_is_read_and_no_return_crosses_a_seam(
    packed: bool, rng: np.random.Generator, tmp_path: Path
):
    path, data = recorded(rng, tmp_path, packed=packed)
    found = read_transitions(path)
    np.testing.assert_array_equal(found.observation, data.observation)
    np.testing.assert_array_equal(found.next_observation, data.next_observation)
    replay = Replay(Layout(1, (3, 4), "uint8"), 200, n_step=3, gamma=0.9)
    fill(replay, found, actions=3)
    ends = set(np.flatnonzero(data.terminated)) | {30, 50, 59}
    batch = replay.sample(3000, rng)
    for b in range(3000):
        [first] = [
            t
            for t in range(60)
            if (data.observation[t] == batch.observation[b]).all() and data.action[t] == batch.action[b]
        ][:1]
        path_ = [first]
        while len(path_) < 3 and path_[-1] not in ends:
            path_.append(path_[-1] + 1)
        wanted = sum(0.9**k * data.reward[t] for k, t in enumerate(path_))
        np.testing.assert_allclose(batch.returns[b], wanted, rtol=1e-5, atol=1e-6)
        if not data.terminated[path_[-1]]:
            np.testing.assert_array_equal(batch.next_observation[b], data.next_observation[path_[-1]])


def test_a_recorded_replay_of_another_game_is_refused(rng: np.random.Generator, tmp_path: Path):
    found = read_transitions(recorded(rng, tmp_path, packed=True)[0])
    with pytest.raises(ArgumentError, match="observations are 3×4, the environment's 5"):
        fill(Replay(Layout(1, (5,), "float32"), 100), found, actions=3)
    with pytest.raises(ArgumentError, match="holds action 2, the environment has 2 actions"):
        fill(Replay(Layout(1, (3, 4), "uint8"), 100), found, actions=2)


@pytest.mark.parametrize("missing", ["obs", "action", "terminated"])
def test_a_file_that_is_no_recorded_replay_is_an_error(
    missing: str, rng: np.random.Generator, tmp_path: Path
):
    path, _ = recorded(rng, tmp_path, packed=False)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != missing}
    np.savez(path, **arrays)
    with pytest.raises(CorruptFile, match="not a recorded replay"):
        read_transitions(path)
    np.savez(path, **arrays, **{missing: np.full(len(arrays["reward"]), None)})
    with pytest.raises(CorruptFile, match="Object arrays cannot be loaded"):  # which are pickles
        read_transitions(path)
    path.write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(CorruptFile, match="not a recorded replay"):
        read_transitions(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CorruptFile, match=r"not a recorded replay: it is not an \.npz file"):
        read_transitions(path)


def test_a_stack_of_one_frame_keeps_its_axis():
    kind = np.dtype("uint8")
    assert Layout.of((1, 5, 6), kind, envs=2, stacked=True) == Layout(2, (1, 5, 6), "uint8")
    assert Layout.of((4, 5, 6), kind, envs=2, stacked=True) == Layout(2, (5, 6), "uint8", 4)
    assert Layout.of((4, 5, 6), kind, envs=2, stacked=False) == Layout(2, (4, 5, 6), "uint8")


def test_an_empty_replay_and_one_too_small_are_errors(rng: np.random.Generator):
    for window, steps in ((None, 1), (Window(2, 4, 0), 7)):
        with pytest.raises(ArgumentError, match=f"almost none has {steps} steps after it"):
            Replay(Layout(1, (4,), "float32"), 100, window=window).sample(4, rng)
    with pytest.raises(ArgumentError, match="at least 14 are needed"):
        Replay(Layout(8, (84, 84), "uint8", 4), 100, n_step=3)


@pytest.mark.parametrize("at_once", [1, 30, 1 << 20])
@pytest.mark.parametrize(
    ("frame", "kind"),
    [((84, 84), "uint8"), ((4,), "float32"), ((2, 4), "bool"), ((3, 3), "bool"), ((5,), "int16")],
)
def test_frames_come_from_a_device_as_they_were_written_in_whole_words_or_not_in_pieces_or_not(
    frame, kind, at_once, monkeypatch
):
    monkeypatch.setattr("surgery.replay.frames.AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    given = generator.integers(0, 2 if kind == "bool" else 120, (6, *frame)).astype(kind)
    frames = make_frames(9, frame, np.dtype(kind), "cpu:0")
    rows = np.array([7, 1, 3, 0, 8, 4])
    frames.write(rows, given)
    found = frames.gather(rows[::-1].copy())
    assert found.dtype == torch.from_numpy(given).dtype
    np.testing.assert_array_equal(found.numpy(), given[::-1])
    np.testing.assert_array_equal(frames.read(rows), given)
    assert not frames.read(np.array([2, 5, 6])).any()
    assert frames.read(rows[:0]).shape == (0, *frame)
