"""Why a policy may be worse than it was: what differs between how it is played now and what its contract says."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.checkpoint import Checkpoint
from surgery.evaluate.episodes import Episodes
from surgery.evaluate.scores import Score
from surgery.interface import Environment
from surgery.json_values import Json, dumps, thaw
from surgery.policy.heads import find

_MATTERS = (
    "sticky_actions", "action_set", "frame_skip", "frame_stack", "max_pool", "noop_max", "fire_reset", "preprocessing",
)  # fmt: skip


def changed(own: Environment, played: Environment) -> dict[str, Json]:
    """What a contract that was played says otherwise than the checkpoint's own; `id` where that is another one."""
    differ: dict[str, Json] = {} if own.id in (None, played.id) else {"id": played.id}
    for name, value in played.settings.items():
        if name in own.settings and thaw(own.settings[name]) != thaw(value):
            differ[name] = value
    return differ


def likely_causes(
    checkpoint: Checkpoint, played: Environment, known: Score, mode: str, episodes: Episodes
) -> tuple[str, ...]:
    """The likely causes of a score below the recorded one, those that are certain first.

    Args:
      checkpoint: with its own contract.
      played: the contract that was played, completed.
      known: the score that was not reached.
      mode: how actions were chosen.
      episodes: what was played.
    """
    return (
        *_edited(checkpoint, known),
        *_scale(checkpoint, episodes),
        *_left_open(checkpoint.environment, played),
        *_cut(episodes),
        *_range(checkpoint),
        *_unseen(checkpoint, mode),
    )


def _edited(checkpoint: Checkpoint, known: Score) -> list[str]:
    if known.model is None or known.model == checkpoint.digest():
        return []
    since = [step.operation for step in checkpoint.lineage]
    done = f" ({', '.join(since)})" if since else ""
    return [f"the model is not the one whose score was recorded: it was edited since{done}"]


def _scale(checkpoint: Checkpoint, episodes: Episodes) -> list[str]:
    found = []
    for port in checkpoint.interface.inputs:
        if port.kind != "observation" or not port.declared:
            continue
        if isinstance(port.high, float) and episodes.high > port.high * 1.01 and port.high != 1:
            found.append(
                f"scale: '{port.name}' is declared up to {port.high:g}, observations reach {episodes.high:g}"
            )
        if isinstance(port.high, float) and port.high > 2 and 0 < episodes.high <= 1:
            found.append(f"scale: '{port.name}' is declared up to {port.high:g}, observations end at 1")
    return found


def _left_open(own: Environment, played: Environment) -> list[str]:
    """Settings that the contract does not state, with what was assumed."""
    assumed: Mapping[str, Json] = {
        name: played.settings[name]
        for name in _MATTERS
        if name in played.settings and name not in own.settings
    }
    if not assumed:
        return []
    words = ", ".join(f"{name}={dumps(value)}" for name, value in assumed.items())
    return [f"wrappers: the contract does not say what it was trained with; assumed: {words}"]


def _cut(episodes: Episodes) -> list[str]:
    if not episodes.truncated:
        return []
    return [f"time limit: {episodes.truncated} of {len(episodes.returns)} episodes were cut off"]


def _range(checkpoint: Checkpoint) -> list[str]:
    head = find(checkpoint)
    if head.scored:
        return []
    port = checkpoint.interface.output(head.output)
    units = (
        "the environment's own units"
        if port.low is None
        else f"mapped from {port.low} … {port.high} to its bounds"
    )
    return [f"range of actions: '{port.name}' is taken to be {units}"]


def _unseen(checkpoint: Checkpoint, mode: str) -> list[str]:
    """What the contract may state wrongly, and nothing here can tell."""
    settings = checkpoint.environment.settings
    causes = []
    if "sticky_actions" in settings:
        causes.append(
            f"sticky actions: {dumps(settings['sticky_actions'])} may not be what it was trained with"
        )
    if "action_set" in settings:
        causes.append(f"action set: output k is taken to be action {dumps(settings['action_set'])}[k]")
    if settings.get("frame_stack", 1) != 1:
        causes.append("stack order: frames are given oldest first, the newest last")
    if "preprocessing" in settings:
        causes.append(
            f"preprocessing: {dumps(settings['preprocessing'])}, without any scaling but the graph's own"
        )
    causes.append(f"action selection: {mode} may not be how the recorded score was reached")
    return causes
