"""What the names of modules say: of which kind an output is, and which of an agent's networks a layer belongs to."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, frozenset[str]] = {
    "value": frozenset({"critic", "value", "vf", "v", "baseline"}),
    "log_std": frozenset({"logstd", "log", "std", "sigma"}),
    "mean": frozenset({"mean", "mu"}),
    "logits": frozenset({"actor", "policy", "pi", "logits"}),
    "q_values": frozenset({"q", "qf", "qnet", "qnetwork"}),
}
"""Kind of output -> words in the name of the group that makes it."""

ROLES: Mapping[str, frozenset[str]] = {
    "actor": frozenset({"action", "actions"}) | WORDS["logits"] | WORDS["mean"] | WORDS["log_std"],
    "critic": frozenset({"privileged"}) | WORDS["value"],
    "q": frozenset({"qvalue"}) | WORDS["q_values"],
    "advantage": frozenset({"advantage", "adv"}),
}
"""What a network of an agent is for -> words in its name."""

_LAST = WORDS["mean"] | WORDS["log_std"] - {"log"} | {"logits"}
"""Words of what an agent takes its actions from: no layer reads that."""


COPIES = ("target", "old", "ema", "avg")
"""Words of the names of networks that are copies of others."""


def words_of(name: str) -> set[str]:
    """The words that a name is made of."""
    return {word for part in name.lower().split(".") for word in (part, *part.split("_"))}


def roles_of(name: str) -> frozenset[str]:
    """Which of an agent's networks a name is of; a number behind a word is one of several."""
    words = {word.rstrip("0123456789") for word in words_of(name)}
    return frozenset(role for role, known in ROLES.items() if words & known)


def is_last(name: str) -> bool:
    """Whether a name is that of an output."""
    return bool(words_of(name) & _LAST)


def kinds_of(widths: Mapping[str, int], label: str, *, gaussian: bool = False) -> dict[str, str]:
    """The kind of each output of a network, by its name, else by that of the network, else by what is beside it.

    Args:
      widths: name -> how many numbers it is. label: of the network.
      gaussian: whether there is a deviation that does not depend on the observation.
    """
    told = {name: _kind(name, label, width, gaussian=gaussian) for name, width in widths.items()}
    usual = "logits" if "value" in told.values() else "q_values"
    if "mean" in told.values():  # what is beside a mean is no choice
        told = {name: "other" if kind == "logits" else kind for name, kind in told.items()}
    return {name: kind or usual for name, kind in told.items()}


def _kind(name: str, label: str, width: int, *, gaussian: bool) -> str | None:
    for own in (name, label):
        for kind, known in WORDS.items():
            if words_of(own) & known and (kind != "value" or width == 1):
                return "mean" if kind == "logits" and gaussian else kind
    return "value" if width == 1 else None
