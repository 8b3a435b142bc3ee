"""A replay that keeps every frame once: one ring of rows per environment, stacks and n-step returns made on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgery.arrays import Array
from surgery.errors import ArgumentError
from surgery.replay.batch import Batch, Layout, Stretch
from surgery.replay.frames import Frames, make_frames, some
from surgery.replay.priorities import Priorities
from surgery.replay.rows import CLOSING, CONTEXT, TRANSITION, Rows
from surgery.replay.sequences import Window

if TYPE_CHECKING:
    import torch

NOWHERE = -1
"""A row of a batch that was put there from elsewhere: it has no priority to set."""
_TRIES = 1000


class Replay:
    """A ring of rows per environment, and a way to draw n-step transitions from them.

    An episode's first stack is kept frame by frame, so that any padding is given back as it was. A loss of life that
    terminates a transition does not break the stack. An episode begins where the one who plays says so, and where an
    observation is another than the one that the last step led to.

    Args:
      layout: the shape of experience.
      capacity: rows in all; each environment has an equal share.
      n_step: steps that a return sums.
      gamma: discount per step.
      clip: rewards are cut to ±clip when drawn, and kept whole; None leaves them.
      prioritised: draw in proportion to priority (`set_priorities`); else uniformly.
      device: where the frames lie: `cpu` is the host's memory.
      scores: actions for each of which a teacher's score is kept with every transition; 0: none are.
      window: draw stretches of that length, not single transitions; not `prioritised`.

    Raises:
      ArgumentError: a share is too small for one stack and n steps.
      MemoryError: the frames cannot be reserved; ask `check_memory` first.
    """

    def __init__(
        self,
        layout: Layout,
        capacity: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        clip: float | None = None,
        prioritised: bool = False,
        device: str = "cpu",
        scores: int = 0,
        window: Window | None = None,
    ) -> None:
        self.layout, self.n_step, self.gamma, self.clip = layout, n_step, gamma, clip
        self.window = window
        self.length = capacity // layout.envs
        least = 2 * (layout.stack + n_step) if window is None else 2 * window.length(n_step) + layout.stack
        if self.length < least:
            raise ArgumentError(
                f"a replay of {capacity:,} rows leaves {self.length} for each of {layout.envs} environments: "
                f"at least {least} are needed"
            )
        self._stride = 1 if window is None else window.stride
        self.length -= self.length % self._stride
        rows = self.length * layout.envs
        self._frames: Frames = make_frames(rows, layout.frame, np.dtype(layout.dtype), device)
        self._scores = make_frames(rows, (scores,), np.dtype(np.float32), device) if scores else None
        self._states: Frames | None = None
        if window is not None and window.state:
            self._states = make_frames(rows // self._stride, (window.state,), np.dtype(np.float32), device)
        self._rows = Rows(rows)
        self.written = np.zeros(layout.envs, np.int64)
        self._expected: Array | None = None
        self._open = np.zeros(layout.envs, np.bool_)
        self._priorities = Priorities(rows) if prioritised else None
        self._transitions = 0

    def __len__(self) -> int:
        """Transitions held."""
        return self._transitions

    @property
    def scores(self) -> int:
        """Actions for each of which a teacher's score is kept; 0: none are."""
        return 0 if self._scores is None else self._scores.shape[0]

    @property
    def prioritised(self) -> bool:
        """Whether draws follow priorities."""
        return self._priorities is not None

    def add(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        valid: Array | None = None,
        scores: Array | torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        begins: Array | None = None,
    ) -> None:
        """Append what one step of every environment gave.

        Args:
          observation: (envs, *observation) that was acted on.
          action: (envs,) whole numbers.
          reward: (envs,) as the environment gave it.
          terminated: (envs,) no value is taken from beyond.
          truncated: (envs,) the episode was cut off; values are taken from `next_observation`.
          next_observation: (envs, *observation) the true successor, never one of the next episode.
          valid: (envs,) false where no transition happened; all true if None.
          scores: (envs, A) of the teacher at `observation`, where they are kept; zeros if None.
          state: (envs, S) of the student before it saw `observation`, where that is kept; zeros if None.
          begins: (envs,) whether `observation` is the first one of an episode. It need not say so where the observation
            is not the last `next_observation`; where the two are equal nothing else tells.
        """
        used = np.arange(self.layout.envs) if valid is None else np.flatnonzero(valid)
        current, after = self._frames_of(observation), self._frames_of(next_observation)
        apart = ~self._continues(used, current)
        fresh = used[apart if begins is None else apart | begins[used]]
        self._close(fresh[self._open[fresh]])
        for age in range(self.layout.stack - 1):
            self._append(fresh, current[fresh, age], CONTEXT)
        self._append(
            used, current[used, -1], TRANSITION, np.asarray(action)[used], np.asarray(reward)[used],
            np.asarray(terminated)[used], np.isin(used, fresh),
        )  # fmt: skip
        self._write(self._scores, used, scores)
        self._write(self._states, used, state)
        if self._expected is None:
            self._expected = np.zeros_like(after)
        self._expected[used] = after[used]
        self._open[used] = ~np.asarray(terminated, np.bool_)[used]
        self._close(used[(np.asarray(truncated)[used] != 0) & self._open[used]])

    def _write(self, column: Frames | None, used: Array, given: Array | torch.Tensor | None) -> None:
        """What belongs to the transitions that were appended last; of states those at which a stretch may begin."""
        if column is None:
            return
        rows = self._row(used, self.written[used] - 1)
        if column is self._states:
            used, rows = used[rows % self._stride == 0], self._state_rows(rows)
        if not len(used):
            return
        if given is None:
            given = np.zeros((self.layout.envs, *column.shape), np.float32)
        column.write(rows, given if len(used) == self.layout.envs else some(given, used))

    def cut(self) -> None:
        """Cut off every open episode: what is added next is of another one (an environment was made anew)."""
        self._close(np.flatnonzero(self._open))
        self._expected = None

    def _frames_of(self, observation: Array) -> Array:
        """Observations with their frames on axis 1: (envs, stack, *frame)."""
        return np.asarray(observation).reshape(-1, self.layout.stack, *self.layout.frame)

    def _continues(self, used: Array, current: Array) -> Array:
        """Whether each observation is the one that the last step of its stream led to."""
        if self._expected is None:
            return np.zeros(len(used), np.bool_)
        same = current[used] == self._expected[used]
        found: Array = same.all(axis=tuple(range(1, same.ndim)))
        return found

    def _close(self, streams: Array) -> None:
        if len(streams) and self._expected is not None:
            self._append(streams, self._expected[streams, -1], CLOSING)
            self._open[streams] = False

    def _append(
        self,
        streams: Array,
        frames: Array,
        kind: int,
        action: Array | int = 0,
        reward: Array | float = 0.0,
        terminated: Array | bool = False,
        first: Array | bool = False,
    ) -> None:
        """One row for each of some streams."""
        if not len(streams):
            return
        rows = self._row(streams, self.written[streams])
        if kind == CLOSING:
            self._rows.cut[self._row(streams, self.written[streams] - 1)] = True
        self._frames.write(rows, frames)
        self._transitions += self._rows.write(
            rows, {"kind": kind, "action": action, "reward": reward, "terminated": terminated, "first": first}
        )
        self.written[streams] += 1
        if self._priorities is not None:
            self._priorities.begin(rows, np.full(len(rows), kind == TRANSITION))

    def _row(self, streams: Array, count: Array) -> Array:
        """The row of the `count`-th entry of each stream."""
        rows: Array = streams * self.length + count % self.length
        return rows

    def sample(self, size: int, generator: np.random.Generator) -> Batch:
        """Draw transitions whose stack and whose n steps are whole, with replacement; or so many stretches of them.

        Raises:
          ArgumentError: there are none, or next to none.
        """
        if self.window is not None:
            return self._stretches(self.window, size, generator)
        rows = self._draw(size, generator)
        streams, position = np.divmod(rows, self.length)
        returns, discount, steps = self._look_ahead(streams, position)
        back = np.arange(1 - self.layout.stack, 1)
        ends = np.concatenate([position, position + steps])
        stacks = self._row(np.tile(streams, 2)[:, None], ends[:, None] + back)
        places = self._frames.placed(np.concatenate([rows, stacks.ravel()]))
        both = self._frames.gather(places[size:]).reshape(2 * size, *self.layout.observation)
        return Batch(
            rows, both[:size], self._rows.action[rows], returns, discount, both[size:], self._weight(rows),
            None if self._scores is None else self._scores.gather(places[:size]),
        )  # fmt: skip

    def _stretches(self, window: Window, size: int, generator: np.random.Generator) -> Batch:
        streams, begin = window.draw(
            self.written, self._held, stack=self.layout.stack, n_step=self.n_step, size=size, generator=generator
        )  # fmt: skip
        if not len(streams):
            raise self._too_little(window.length(self.n_step))
        entries = begin[:, None] + np.arange(window.length(self.n_step))
        rows = self._row(streams[:, None], entries)
        stacks = self._row(streams[:, None, None], entries[..., None] + np.arange(1 - self.layout.stack, 1))
        observation = self._frames.gather(stacks.transpose(1, 0, 2).ravel())
        learned, stream = window.learned(entries).T.ravel(), np.tile(streams, window.unroll)
        drawn = self._row(stream, learned)
        returns, discount, steps = self._look_ahead(stream, learned % self.length)
        counts = self._rows.kind[drawn] == TRANSITION
        weight = counts * (counts.size / max(1, int(counts.sum())))
        since = np.repeat(np.arange(window.unroll), size) + window.burn_in
        after = (since + np.where(counts, steps, 0)) * size + np.tile(np.arange(size), window.unroll)
        place = self._row(streams, begin) // self._stride
        state = np.zeros((size, 0), np.float32) if self._states is None else self._states.gather(place)
        return Batch(
            drawn, observation.reshape(-1, size, *self.layout.observation), self._rows.action[drawn], returns, discount,
            np.zeros((0, *self.layout.observation), self.layout.dtype), weight.astype(np.float32),
            None if self._scores is None else self._scores.gather(drawn),
            Stretch(self._rows.first[rows].T.copy(), state, after),
        )  # fmt: skip

    @property
    def _held(self) -> Array:
        """Entries of each stream that have not been overwritten."""
        return np.minimum(self.written, self.length)

    def _draw(self, size: int, generator: np.random.Generator) -> Array:
        rows = np.zeros(size, np.int64)
        missing = np.ones(size, np.bool_)
        for _ in range(_TRIES):
            count = int(missing.sum())
            drawn = (self._priorities.draw if self._priorities else self._uniform)(count, generator)
            rows[missing] = drawn
            missing[missing] = ~self._whole(drawn)
            if not missing.any():
                return rows
        raise self._too_little(self.n_step)

    def _too_little(self, steps: int) -> ArgumentError:
        return ArgumentError(
            f"of {len(self):,} transitions in the replay, almost none has {steps} steps after it",
            hint="collect more before learning",
        )

    def _uniform(self, count: int, generator: np.random.Generator) -> Array:
        """Rows in use, each as likely as the other."""
        ends = np.cumsum(self._held)
        if not ends[-1]:
            return np.zeros(count, np.int64)
        number = generator.integers(ends[-1], size=count)
        stream = np.searchsorted(ends, number, side="right")
        return self._row(stream, number - (ends - self._held)[stream])

    def _whole(self, rows: Array) -> Array:
        """Whether a transition's stack has not been overwritten, and its n steps or its end are known."""
        streams, position = np.divmod(rows, self.length)
        behind = (self.written[streams] - 1 - position) % self.length
        whole: Array = (
            (self._rows.kind[rows] == TRANSITION)
            & (behind + self.layout.stack - 1 < self._held[streams])
            & (behind >= self._rows.needed(self._path(streams, position)))
        )
        return whole

    def _path(self, streams: Array, position: Array) -> Array:
        """The rows of the next n steps, (B, n)."""
        return self._row(streams[:, None], position[:, None] + np.arange(self.n_step))

    def _look_ahead(self, streams: Array, position: Array) -> tuple[Array, Array, Array]:
        """n-step returns, discounts of what follows, and steps taken."""
        return self._rows.look_ahead(self._path(streams, position), self.gamma, self.clip)

    def _weight(self, rows: Array) -> Array:
        return np.ones(len(rows), np.float32) if self._priorities is None else self._priorities.weight(rows)

    def set_priorities(self, rows: Array, loss: Array) -> None:
        """Make the rows of a batch as likely as the root of their loss (Dopamine's exponent of one half).

        Args:
          rows: (B,) of the batch; those that are `NOWHERE` are left out.
          loss: (B,) the temporal-difference loss of each, at least 0.
        """
        if self._priorities is not None:
            own = rows != NOWHERE
            self._priorities.learned(rows[own], loss[own])

    @property
    def priorities(self) -> Array | None:
        """The priority of every row, and the highest that there was, float32; None without priorities."""
        return None if self._priorities is None else self._priorities.values

    def restore_priorities(self, priority: Array) -> None:
        """Take over what `priorities` gave, once the rows are back."""
        if self._priorities is not None:
            rows = np.flatnonzero((self._rows.kind == TRANSITION) & (priority[:-1] > 0))
            self._priorities.restore(rows, priority)

    def pending(self) -> dict[str, Array]:
        """The observations that open episodes have led to, and which episodes are open, for `segments`."""
        expected = np.zeros(0) if self._expected is None else self._expected
        return {"expected": expected, "open": self._open}

    def resume(self, expected: Array, still_open: Array) -> None:
        """Take over what `pending` gave."""
        self._expected = expected if expected.size else None
        self._open = still_open.astype(np.bool_)

    def export(self, streams: Array, counts: Array) -> dict[str, Array]:
        """The rows that some entries of some streams lie in: frames and columns, for `segments`."""
        rows = self._row(streams, counts)
        columns = {"frames": self._frames.read(rows), **self._rows.read(rows)}
        if self._scores is not None:
            columns["scores"] = self._scores.read(rows)
        if self._states is not None:
            columns["states"] = self._states.read(self._state_rows(rows))
        return columns

    def append_rows(self, stream: int, columns: dict[str, Array]) -> None:
        """Append rows that `export` gave to one stream, as they were; the stream is left as if it had been cut."""
        count, states = len(columns["kind"]), columns.pop("states", None)
        for start in range(0, count, self.length):
            part = {name: column[start : start + self.length] for name, column in columns.items()}
            begins = self._append_part(stream, part)
            if self._states is not None and states is not None:
                self._states.write(begins, states[: len(begins)])
                states = states[len(begins) :]

    def _append_part(self, stream: int, columns: dict[str, Array]) -> Array:
        """Append rows that fit into the ring; where the states among them are to lie."""
        kind = columns["kind"]
        counts = self.written[stream] + np.arange(len(kind))
        rows = self._row(np.full(len(kind), stream), counts)
        closing = self._row(np.full(len(kind), stream), counts - 1)[kind == CLOSING]
        self._frames.write(rows, columns["frames"])
        if self._scores is not None:
            self._scores.write(rows, columns["scores"])
        self._transitions += self._rows.write(rows, columns)
        self._rows.cut[closing] = True
        self.written[stream] += len(kind)
        if self._priorities is not None:
            self._priorities.begin(rows, kind == TRANSITION)
        return self._state_rows(rows)

    def beginnings(self, begin: int, end: int) -> int:
        """At how many entries of a stream, from one up to another, a stretch may begin."""
        return -(-end // self._stride) - -(-begin // self._stride)

    def _state_rows(self, rows: Array) -> Array:
        """Where the states of some rows lie: of those at which a stretch may begin."""
        found: Array = rows[rows % self._stride == 0] // self._stride
        return found
