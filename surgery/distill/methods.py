"""The methods of reincarnation, as data: what each one changes about one common loop.

Numbers are those of the papers at their own budget, 10 M frames = 2.5 M agent steps of Atari; `settings` scales them
to any other. Where the paper, its released code and renditions differ, the method says which is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from surgery.errors import UnknownName

OFFLINE = 0.4
"""Gradient steps on the teacher's data per agent step of the online budget: 1 M at 2.5 M."""
CUTOFF = 0.6
"""t₀ as a fraction of the budget: 6 M of 10 M frames."""
Auxiliary = Literal["none", "imitate", "conservative", "margin"]
"""What is learned beside temporal differences."""


@dataclass(frozen=True)
class RollIn:
    """Acting by the teacher in part of an episode (JSRL).

    Attributes:
      length: α, the largest length of a roll-in in agent steps, see `longest`; each episode draws its own from 1 … α.
      shrink: β, what α is multiplied with after every tenth of the budget.
      guide: `first`: the teacher acts in the roll-in, the student after it; `after`: the student acts in the roll-in,
        then the teacher with a probability that falls linearly from 1 to 0 over the budget.
    """

    length: int
    shrink: float
    guide: str

    def longest(self, episode: float) -> int:
        """α where the teacher's episodes have a mean length in agent steps.

        A teacher who opens an episode for longer than it lasts leaves the student nothing to act in: α then is that
        length, the horizon of arXiv:2204.02372.
        """
        return min(self.length, max(1, round(episode))) if self.guide == "first" else self.length


@dataclass(frozen=True)
class Method:
    """What a method changes about the loop.

    Attributes:
      name: as on the command line.
      summary: one line for lists.
      paper: where it is from.
      note: which form is followed, where there are several.
      teacher: whether it needs one.
      temporal: whether it learns by temporal differences.
      offline: gradient steps on the teacher's data before the online phase, per agent step of the budget.
      offline_loss: auxiliary loss of that phase.
      online_loss: auxiliary loss of the online phase.
      coefficient: what the auxiliary loss is multiplied with, besides λ.
      weaned: whether λ follows the student's score; else it stays 1.
      cutoff: t₀ as a fraction of the budget; None: no cut-off.
      floor: what λ does not fall below before it.
      n_step: steps of a return.
      rate: learning rate at λ = 1 (and offline).
      final_rate: learning rate at λ = 0; the rate is λ·rate + (1 − λ)·final_rate, and λ is 0 online for methods without
        an auxiliary loss there.
      rehearsal: fraction of each online batch drawn from the teacher's data.
      fresh_optimizer: whether the optimizer forgets at the switch from offline to online.
      explores: whether ε begins at 1 online; else it is at its end from the first step.
      roll_in: how the teacher acts along; None: it does not.
    """

    name: str
    summary: str
    paper: str
    note: str = ""
    teacher: bool = True
    temporal: bool = True
    offline: float = 0.0
    offline_loss: Auxiliary = "none"
    online_loss: Auxiliary = "none"
    coefficient: float = 1.0
    weaned: bool = False
    cutoff: float | None = None
    floor: float = 0.0
    n_step: int = 3
    rate: float = 1e-4
    final_rate: float = 1e-5
    rehearsal: float = 0.0
    fresh_optimizer: bool = False
    explores: bool = True
    roll_in: RollIn | None = None

    @property
    def collects(self) -> bool:
        """Whether it needs transitions of the teacher."""
        return self.offline > 0 or self.rehearsal > 0


_RRL = "Agarwal et al. 2022, arXiv:2206.01626"

_ALL = (
    Method(
        "qdagger",
        "n-step Q-learning plus imitation, offline then online; λ falls as the score rises",
        _RRL,
        "The paper and the configuration of the released code: cross-entropy at temperature 0.1, coefficient 3, mean "
        "over the batch; the learning rate follows λ; the optimizer is kept when the online phase begins. The latest "
        "released code does no offline training.",
        offline=OFFLINE,
        offline_loss="imitate",
        online_loss="imitate",
        coefficient=3.0,
        weaned=True,
        cutoff=CUTOFF,
        explores=False,
    ),
    Method(
        "qdagger-kept",
        "QDagger that keeps its teacher: λ never falls below 0.1, and there is no cut-off",
        _RRL,
        "Ours, for budgets far below the paper's, at which a student forgets once the teacher is gone: see "
        "docs/distill.md.",
        offline=OFFLINE,
        offline_loss="imitate",
        online_loss="imitate",
        coefficient=3.0,
        weaned=True,
        floor=0.1,
        explores=False,
    ),
    Method(
        "constant",
        "QDagger with λ held at 1",
        _RRL,
        "QL_PLUS_DAGGER in the released code.",
        offline=OFFLINE,
        offline_loss="imitate",
        online_loss="imitate",
        coefficient=3.0,
        explores=False,
    ),
    Method(
        "dagger",
        "imitation only, on the states that the student visits",
        "Ross et al. 2011, arXiv:1011.0686",
        "DAGGER in QDagger's released code: no temporal differences, λ = 1.",
        temporal=False,
        offline=OFFLINE,
        offline_loss="imitate",
        online_loss="imitate",
        coefficient=3.0,
        explores=False,
    ),
    Method(
        "kickstarting",
        "QDagger without the offline phase",
        "Schmitt et al. 2018, arXiv:1803.03835",
        "As compared in arXiv:2206.01626: Q-learning with QDagger's λ; the original is an actor-critic.",
        online_loss="imitate",
        coefficient=3.0,
        weaned=True,
        cutoff=CUTOFF,
    ),
    Method(
        "pretraining",
        "conservative Q-learning offline, then plain Q-learning",
        f"Kumar et al. 2020, arXiv:2006.04779; {_RRL}",
        "Coefficient 1 and temperature 0.1 as released, n = 3 as in the paper's best; the online phase starts with a "
        "fresh optimizer and the lowered learning rate.",
        offline=OFFLINE,
        offline_loss="conservative",
        final_rate=1e-5,
        fresh_optimizer=True,
        explores=False,
    ),
    Method(
        "rehearsal",
        "plain Q-learning with 1/16 of every batch from the teacher's data",
        _RRL,
        "The paper's best ratio; each transition is drawn independently, as in the released code.",
        rehearsal=1 / 16,
        final_rate=1e-4,
    ),
    Method(
        "dqfd",
        "Q-learning plus a large margin for the teacher's action, offline then online",
        "Hester et al. 2018, arXiv:1704.03732",
        "Margin 1 with the paper's maximum over actions (QDagger's released code takes the mean over actions and, "
        "online, applies λ twice). The expert's action is the teacher's greedy one. Constant rate, as released.",
        offline=OFFLINE,
        offline_loss="margin",
        online_loss="margin",
        weaned=True,
        cutoff=CUTOFF,
        final_rate=1e-4,
        explores=False,
    ),
    Method(
        "jsrl",
        "the teacher plays the start of each episode, for fewer and fewer steps",
        "Uchendu et al. 2022, arXiv:2204.02372",
        "JSRL-Random with the shrinking length of arXiv:2206.01626: U{1…α}, where α is 1000 or the mean length of the "
        "teacher's episodes, whichever is less, × 0.8 per tenth of the budget.",
        final_rate=1e-4,
        roll_in=RollIn(1000, 0.8, "first"),
    ),
    Method(
        "jsrl-released",
        "JSRL as in QDagger's released configuration: the teacher plays the end of each episode",
        _RRL,
        "roll_in_guide = False, roll_out_guide_prob = 1, α = 100, n = 1, learning rate 6.25e-5; "
        "not what the paper describes.",
        n_step=1,
        rate=6.25e-5,
        final_rate=6.25e-5,
        roll_in=RollIn(100, 0.8, "after"),
    ),
    Method(
        "scratch",
        "plain Q-learning without a teacher (tabula rasa)",
        "Mnih et al. 2015, doi:10.1038/nature14236",
        "n = 3 and Adam at 1e-4: the paper's tabula-rasa baseline.",
        teacher=False,
        final_rate=1e-4,
    ),
    Method(
        "finetune",
        "continue training a model at a lowered learning rate",
        _RRL,
        "Weights, target network and optimizer state carry over if present; learning rate 1e-5 and n = 1 as released: "
        "lowering the rate matters more than the optimizer.",
        teacher=False,
        n_step=1,
        rate=1e-5,
        final_rate=1e-5,
        explores=False,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """Raises: UnknownName."""
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    return METHODS[name]
