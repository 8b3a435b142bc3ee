"""The spaces of a gymnasium environment as data, with every name that it gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery.description import Actions, Observed, SpaceDescription
from surgery.envs.contract import game, made_by_gymnasium
from surgery.envs.parts import below, members
from surgery.errors import Refused, SurgeryError, missing
from surgery.interface import Environment

if TYPE_CHECKING:
    import gymnasium


def describe(environment: str | Environment | gymnasium.Env[Any, Any]) -> SpaceDescription:
    """What an environment shows and takes.

    Names come from the keys of dictionaries, from `get_action_meanings()`, and from attributes `observation_labels`
    (a list, or key -> list) and `action_labels` of the environment or of a wrapper around it.

    Args:
      environment: an id or a contract, of which one environment is made and closed again; or an environment.

    Returns:
      One `Observed` per array: Box, MultiBinary, and Discrete as one-hot vector; dictionaries and tuples of them.

    Raises:
      ArgumentError, UnknownName: no such environment. MissingDependency: gymnasium is not installed.
      Refused: a space that no array of fixed shape can show.
    """
    if isinstance(environment, str | Environment):
        contract = Environment(environment) if isinstance(environment, str) else environment
        return _by_contract(contract)
    name = environment.spec.id if environment.spec is not None else None
    labels, names = _attribute(environment, "observation_labels"), _action_names(environment)
    observations = tuple(_observed(environment.observation_space, "", labels))
    return SpaceDescription(observations, _actions(environment.action_space, names), name)


def _by_contract(contract: Environment) -> SpaceDescription:
    """Atari and MinAtar as their contract preprocesses them, everything else as gymnasium makes it."""
    if game(contract).family != "gymnasium":
        from surgery.envs.make import make

        envs = make(contract, 1, seed=0, training=False)
        try:
            shown = Observed("", tuple(envs.observation_shape))
            return SpaceDescription(
                (shown,), Actions("discrete", envs.actions, envs.action_meanings), contract.id
            )
        finally:
            envs.close()
    try:
        import gymnasium
    except ImportError as error:
        raise missing("gymnasium", "rl") from error
    with made_by_gymnasium(contract):
        env = gymnasium.make(str(contract.id))
    try:
        found = describe(env)
    except SurgeryError as error:
        raise error.within(environment=contract.id) from None
    finally:
        env.close()
    return SpaceDescription(found.observations, found.actions, contract.id)


def _attribute(env: gymnasium.Env[Any, Any], name: str) -> Any:  # noqa: ANN401
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def _action_names(env: gymnasium.Env[Any, Any]) -> tuple[str, ...] | None:
    labels = _attribute(env, "action_labels")
    meanings = _attribute(env, "get_action_meanings")
    found = labels if labels is not None else meanings() if callable(meanings) else None
    return None if found is None else tuple(str(name) for name in found)


def _observed(space: gymnasium.Space[Any], name: str, labels: Any) -> Iterator[Observed]:  # noqa: ANN401
    from gymnasium import spaces

    inner = members(space)
    if inner is not None:
        for key, member in inner.items():
            known = labels.get(key) if isinstance(labels, Mapping) else None
            yield from _observed(member, below(name, key), known)
        return
    match space:
        case spaces.Box():
            shape, names = tuple(int(n) for n in space.shape), _names(labels)
            yield Observed(name, shape, names, _bound(space.low), _bound(space.high))
        case spaces.MultiBinary():
            yield Observed(name, tuple(int(n) for n in space.shape or ()), _names(labels))
        case spaces.Discrete():
            yield Observed(name, (int(space.n),), _names(labels))
        case _:
            where = f"observation '{name}'" if name else "the observation"
            raise Refused(
                f"{where} is a {type(space).__name__}, which no array of fixed shape can show",
                hint="wrap the environment so that it shows a Box, or a Dict of them",
            )


def _bound(bound: Any) -> float | tuple[float | None, ...] | None:  # noqa: ANN401
    """The bound of a Box: one number where all are equal, else one per feature of a vector."""
    values = [float(value) if math.isfinite(value) else None for value in bound.reshape(-1).tolist()]
    if values and values[0] is not None and len(set(values)) == 1:
        return values[0]
    return tuple(values) if bound.ndim == 1 else None


def _names(labels: object) -> tuple[str, ...] | None:
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        return None
    return tuple(str(label) for label in labels)


def _actions(space: gymnasium.Space[Any], names: tuple[str, ...] | None) -> Actions:
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            found = Actions("discrete", int(space.n))
        case spaces.Box() if space.shape is not None and len(space.shape) == 1:
            found = Actions("continuous", int(space.shape[0]))
        case _:
            raise Refused(
                f"actions of {type(space).__name__} are neither one of several nor a vector of numbers",
                hint="wrap the environment so that they are Discrete, or a Box with one axis",
            )
    fits = names is not None and len(names) == found.count
    return Actions(found.kind, found.count, names if fits else None)
