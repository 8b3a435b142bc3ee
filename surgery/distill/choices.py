"""Learning is about one of several actions; other agents are played, and not learned from yet."""

from __future__ import annotations

from surgery.checkpoint import Checkpoint
from surgery.envs import Envs
from surgery.envs.actions import Discrete
from surgery.errors import Refused
from surgery.policy.heads import find

_HINT = "surgery evaluate plays such an agent, and widen, extend or adapt change it for its own framework to train on"


def check_environment(envs: Envs) -> None:
    """Refuse an environment that takes anything but one of several actions.

    Raises:
      Refused.
    """
    if not isinstance(envs.takes, Discrete):
        raise Refused(
            f"{envs.contract.id} takes {envs.takes} at once: only one of several actions is learned, so far",
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
            f"output '{head.output}' ({head.kind}) is not one of several actions: only that is learned, so far",
            hint=_HINT,
        )
