"""What a run refuses: agents and environments that nothing here learns from, teachers that are not worth imitating."""

from __future__ import annotations

from surgery.checkpoint import Checkpoint
from surgery.envs import Envs
from surgery.envs.actions import Discrete
from surgery.errors import Refused, number_text
from surgery.evaluate import Evaluation, Score
from surgery.policy.heads import find

_HINT = (
    "surgery evaluate plays such an agent; widen, extend and adapt change it, and its own framework continues "
    "training"
)


def check_environment(envs: Envs) -> None:
    """Refuse an environment that takes anything but one of several actions.

    Raises:
      Refused.
    """
    if not isinstance(envs.takes, Discrete):
        raise Refused(
            f"{envs.contract.id} takes {envs.takes} at once: so far, only a choice of one action can be learned",
            hint=_HINT,
        )


def check_model(checkpoint: Checkpoint) -> None:
    """Refuse a teacher, or a model to be trained on, that gives anything but one of several actions.

    Raises:
      Refused. As `find`.
    """
    head = find(checkpoint)
    if not head.scored:
        raise Refused(
            f"output '{head.output}' ({head.kind}) is not one of several actions: so far, only that can be learned",
            hint=_HINT,
        )


def standard_error(score: Score) -> float:
    """Of the mean of its returns; 0 for one episode."""
    return float(score.std / (score.episodes - 1) ** 0.5) if score.episodes > 1 else 0.0


def check_record(found: Evaluation) -> None:
    """Refuse a teacher who falls short of what its contract records.

    Raises:
      Refused: with the likely causes.
    """
    if found.confirmed is not False or found.known is None:
        return
    raise Refused(
        f"the teacher plays worse here than it is recorded to: {number_text(found.mean, 4)}, recorded "
        f"{number_text(found.known.mean, 4)} ({found.mode}, {found.known.episodes} episodes)",
        where={f"cause {number}": cause for number, cause in enumerate(found.causes, 1)},
        hint="find out why: surgery evaluate --diagnose; or record the present score: surgery evaluate --record",
    )


def check_teacher(teacher: float, teacher_error: float, random: float, random_error: float) -> None:
    """Refuse a teacher who does not play better than chance: λ would have no meaning, and imitation no use.

    Args:
      teacher: mean return of the teacher.
      teacher_error: standard error of that mean.
      random: mean return of the random policy.
      random_error: standard error of that mean.

    Raises:
      Refused: the difference is not above two standard errors of itself.
    """
    noise = 2 * (teacher_error**2 + random_error**2) ** 0.5
    if teacher - random > noise:
        return
    raise Refused(
        f"the teacher plays no better than chance: {number_text(teacher, 4)} ± {number_text(teacher_error, 2)}, "
        f"random play {number_text(random, 4)} ± {number_text(random_error, 2)}",
        hint="check its environment (sticky actions, action set, frame stack, scale) with surgery evaluate, "
        "or learn without it: --method scratch",
    )
