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
    negative returns mean what they should; and once λ is 0 it stays 0. Ours alone: λ is never above 1 (a student
    below random play would else be told to imitate harder than one that knows nothing), and the random score is
    measured in the environment at hand, not looked up.

    Attributes:
      random: mean return of the random policy.
      teacher: mean return of the teacher.
      cutoff: t₀ in agent steps; None: no cut-off.
      value: λ now.
      score: normalised score that it was last computed from, 0 random play, 1 the teacher; None before the first.
    """

    random: float
    teacher: float
    cutoff: int | None
    value: float = 1.0
    score: float | None = None

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Json]) -> Weaning:
        """Raises: CorruptFile."""
        if set(record) != {field.name for field in fields(Weaning)}:
            raise CorruptFile("the checkpoint's λ schedule is not that of this version")
        return Weaning(**record)  # type: ignore[arg-type]

    def step(self, mean_return: float, agent_steps: int) -> Weaning:
        """The schedule after an evaluation.

        Args:
          mean_return: of the student.
          agent_steps: taken online so far.
        """
        score = normalised(mean_return, self.random, self.teacher)
        over = self.value == 0 or (self.cutoff is not None and agent_steps >= self.cutoff)
        return replace(self, score=score, value=0.0 if over else min(1.0, max(0.0, 1.0 - score)))

    def past_cutoff(self, agent_steps: int) -> Weaning:
        """The schedule at a time between evaluations: only the cut-off acts."""
        if self.cutoff is not None and agent_steps >= self.cutoff:
            return replace(self, value=0.0)
        return self


def normalised(mean_return: float, random: float, teacher: float) -> float:
    """(G − random) / (teacher − random): 0 for random play, 1 for the teacher."""
    return (mean_return - random) / (teacher - random)
