"""λ, the weight of the teacher: how much is still imitated, from how much of the teacher's score is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from surgery.errors import CorruptFile
from surgery.json_values import Json


@dataclass(frozen=True)
class Weaning:
    """The schedule of QDagger (Agarwal et al. 2022, arXiv:2206.01626, §4.1), as a value that steps forward.

        λ_t = 1[t < t₀] · max(1 − G/G_T, 0),   G and G_T returns above the random policy's

    As the paper's code does and its much-used renditions do not: the random policy's score is taken off first, so that
    negative returns mean what they should; and once the teacher is beaten λ stays 0. Ours alone: λ is never above 1 (a
    student below random play would else be told to imitate harder than one that knows nothing); the random score is
    measured in the environment at hand, not looked up; and beaten is by two standard errors. Where evaluations are
    long, as the paper's of 1 M frames, that is as soon as λ is 0; one of a few games is no reason to send the teacher
    away for good, and λ is 0 until the next one. With a floor above 0 nobody is sent away for being beaten: λ stays
    there until the cut-off.

    Attributes:
      random: mean return of the random policy.
      teacher: mean return of the teacher.
      cutoff: t₀ in agent steps; None: no cut-off.
      floor: what λ does not fall below before it, 0 in the paper.
      value: λ now.
      over: it is 0 for good.
      score: normalised score that it was last computed from, 0 random play, 1 the teacher; None before the first.
    """

    random: float
    teacher: float
    cutoff: int | None
    floor: float = 0.0
    value: float = 1.0
    over: bool = False
    score: float | None = None

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Json]) -> Weaning:
        """Raises: CorruptFile."""
        if set(record) != {field.name for field in fields(Weaning)}:
            raise CorruptFile("the checkpoint's λ schedule is not that of this version")
        return Weaning(**record)  # type: ignore[arg-type]

    def step(self, mean_return: float, agent_steps: int, *, error: float = 0.0) -> Weaning:
        """The schedule after an evaluation.

        Args:
          mean_return: of the student.
          agent_steps: taken online so far.
          error: standard error of the difference between its mean and the teacher's.
        """
        score = (mean_return - self.random) / (self.teacher - self.random)
        beaten = self.floor == 0 and score >= 1 and mean_return - self.teacher >= 2 * error
        over = self.over or beaten or self._cut_off(agent_steps)
        value = 0.0 if over else min(1.0, max(self.floor, 1.0 - score))
        return replace(self, score=score, over=over, value=value)

    def past_cutoff(self, agent_steps: int) -> Weaning:
        """The schedule at a time between evaluations: only the cut-off acts."""
        return replace(self, value=0.0, over=True) if self._cut_off(agent_steps) else self

    def silenced_by(self, agent_steps: int) -> str:
        """What has made λ 0: `cut-off`, `teacher beaten` (both for good), or `teacher reached`."""
        if self._cut_off(agent_steps):
            return "cut-off"
        return "teacher beaten" if self.over else "teacher reached"

    def _cut_off(self, agent_steps: int) -> bool:
        return self.cutoff is not None and agent_steps >= self.cutoff
