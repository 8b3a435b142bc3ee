"""The environment contract: which environment an id means, and what its settings are where none is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from surgery.errors import ArgumentError, MissingDependency, UnknownName, missing
from surgery.interface import Environment
from surgery.json_values import Json

MAX_STEPS = 27_000
"""Half an hour of Atari, 108,000 frames: the limit of every `ALE/…-v5`; also ours for MinAtar, which has none."""

OF_THE_MODEL = ("scores", "action_mask")
"""Settings of a contract that are about one model, not about the environment."""

_ATARI = re.compile(r"(?:ALE/)?([A-Z]\w*?)(?:NoFrameskip|Deterministic)?-v([045])")
_MINATAR = re.compile(r"MinAtar/(\w+)-v([01])")


@dataclass(frozen=True)
class Game:
    """An environment id, taken apart.

    Attributes:
      family: `atari`, `minatar` or `gymnasium`.
      name: the ROM, the MinAtar game, or the gymnasium id.
      defaults: what the id itself says about settings.
    """

    family: str
    name: str
    defaults: Mapping[str, Json]


def game(environment: Environment) -> Game:
    """Which environment a contract means.

    Raises:
      ArgumentError: no id, or one that would import a module.
      UnknownName: a game that does not exist; lists the nearest.
      MissingDependency: the package that has the environment is not installed.
    """
    name = environment.id
    if name is None:
        raise ArgumentError(
            "nothing says which environment is played",
            hint="name it: --env CartPole-v1, say, or --env ALE/Breakout-v5",
        )
    if ":" in name:
        raise ArgumentError(
            f"the environment id '{name}' names a module to import, which a model file may not do",
            hint=f"give it by hand: --env {name}",
        )
    if match := _MINATAR.fullmatch(name):
        return _minatar(name, match)
    if match := _ATARI.fullmatch(name):
        found = _atari(name, match)
        if found is not None:
            return found
    return Game("gymnasium", name, {})


def atari_title(name: str) -> str | None:
    """`Breakout` of `ALE/Breakout-v5` or `BreakoutNoFrameskip-v4`, if that is how Atari games are called."""
    match = _ATARI.fullmatch(name)
    return None if match is None else match[1]


def complete(environment: Environment) -> Environment:
    """A contract with every setting stated, so that nobody has to know our defaults to repeat a run.

    What is left open is what `gymnasium.make_vec` would use for the id: sticky actions 0.25 for `-v5` and `-v0`, 0 for
    `-v4`; 4 frames skipped, the last two of them max-pooled, 4 stacked; up to 30 no-ops; fire at reset; the minimal
    action set; rewards clipped for learning (never in what is reported); a lost life does not end an episode. What is
    said about one model (its scores, its forbidden actions) is left out.

    Raises:
      As `game`; ArgumentError: a setting that this environment cannot honour.
    """
    found = game(environment)
    own = {name: value for name, value in environment.settings.items() if name not in OF_THE_MODEL}
    settings = {**found.defaults, **own}
    if found.family == "atari":
        settings["preprocessing"] = {
            "height": 84,
            "width": 84,
            "grayscale": True,
            **preprocessing(environment),
        }
    done = Environment(environment.id, settings)
    _CHECKS[found.family](done)
    return done


def adjusted(environment: Environment, name: str | None, settings: Mapping[str, Json]) -> Environment:
    """A contract for another environment, or with other settings.

    Args:
      environment: what is known. For another id of the same kind (another Atari game), or where there was none, its
        settings hold on; for one of another kind only `action_mask` does, which is about the model.
      name: the other id; None: the same.
      settings: what is to be otherwise.

    Raises:
      As `game`.
    """
    known = dict(environment.settings)
    if name is not None and name != environment.id:
        # settings without an id are the model's own, whatever it plays
        other = environment.id is not None and game(Environment(name)).family != game(environment).family
        known = {
            key: value
            for key, value in known.items()
            if key == "action_mask" or not (other or key == "scores")
        }
    return Environment(name or environment.id, {**known, **settings})


def preprocessing(environment: Environment) -> Mapping[str, Json]:
    return cast("Mapping[str, Json]", environment.settings.get("preprocessing", {}))


def number(environment: Environment, name: str) -> float:
    """A setting of a completed contract that is a number."""
    return float(cast(float, environment.settings[name]))


def flag(environment: Environment, name: str) -> bool:
    return bool(environment.settings.get(name, False))


def action_set(environment: Environment) -> tuple[int, ...] | None:
    """The environment's own number of the action behind each output; None: all of them, in order."""
    numbers = cast("tuple[int, ...] | None", environment.settings.get("action_set"))
    if numbers is not None and len(set(numbers)) < len(numbers):
        raise ArgumentError(f"the environment's action_set has an action twice: {list(numbers)}")
    return None if numbers is None else tuple(numbers)


def chosen(environment: Environment, available: tuple[int, ...]) -> tuple[int, ...]:
    """`action_set`, checked against the actions that the environment has.

    Raises:
      ArgumentError: an action that it does not have.
    """
    numbers = action_set(environment)
    if numbers is None:
        return available
    unknown = sorted(set(numbers) - set(available))
    if unknown:
        raise ArgumentError(
            f"the action_set of {environment.id} has {unknown}, the environment has {list(available)}",
            hint="surgery annotate MODEL --env-setting 'action_set=[…]' -o OUT",
        )
    return numbers


@contextmanager
def made_by_gymnasium(contract: Environment) -> Iterator[None]:
    """Translate gymnasium's errors in making an environment into ours.

    Raises:
      UnknownName, ArgumentError, MissingDependency.
    """
    from gymnasium import error as refusals
    from gymnasium import registry

    own = f"one of your own: --env MODULE:{contract.id}, where MODULE registers it"
    try:
        yield
    except refusals.DependencyNotInstalled as error:
        raise MissingDependency(
            f"{contract.id} needs a package that is not installed", hint=str(error)
        ) from error
    except refusals.NamespaceNotFound as error:
        raise ArgumentError(
            f"unknown environment '{contract.id}': no imported package registers such environments",
            hint=own,
        ) from error
    except refusals.UnregisteredEnv as error:
        raise UnknownName("environment", str(contract.id), registry, otherwise=own) from error
    except refusals.Error as error:
        if type(error) is refusals.Error and contract.id not in registry:  # a name without its version
            raise UnknownName("environment", str(contract.id), registry, otherwise=own) from error
        raise ArgumentError(f"gymnasium cannot make {contract.id}: {error}") from error


def _minatar(name: str, match: re.Match[str]) -> Game:
    games = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    titles = {_title(one): one for one in games}
    if match[1] not in titles:
        raise UnknownName("environment", name, [f"MinAtar/{title}-v1" for title in titles])
    defaults: dict[str, Json] = {"sticky_actions": 0.1, "difficulty_ramping": True}
    full = match[2] == "0"
    return Game(
        "minatar", titles[match[1]], {**defaults, "full_action_space": full, "max_episode_steps": MAX_STEPS}
    )


def _atari(name: str, match: re.Match[str]) -> Game | None:
    """None: an id that only looks like one of Atari (`CartPole-v0`)."""
    try:
        from ale_py import roms
    except ImportError as error:
        if name.startswith("ALE/"):
            raise missing("ale-py", "rl") from error
        return None
    titles = {_title(rom): rom for rom in roms.get_all_rom_ids()}
    if match[1] not in titles:
        if name.startswith("ALE/"):
            raise UnknownName("environment", name, [f"ALE/{title}-v5" for title in titles])
        return None
    defaults: dict[str, Json] = {
        "sticky_actions": 0.0 if match[2] == "4" else 0.25,
        "frame_skip": 4,
        "frame_stack": 4,
        "max_pool": True,
        "noop_max": 30,
        "fire_reset": True,
        "full_action_space": False,
        "max_episode_steps": MAX_STEPS,
        "terminal_on_life_loss": False,
        "reward_clip": True,
    }
    return Game("atari", titles[match[1]], defaults)


def _title(snake: str) -> str:
    return snake.title().replace("_", "")


def _check_unnormalised(environment: Environment) -> None:
    if environment.settings.get("normaliser"):
        raise ArgumentError(
            f"{environment.id} cannot honour a normaliser: its statistics are for vectors",
            hint="play it in its own framework (surgery convert --check ENV); if observations need none: surgery "
            "annotate MODEL --env-setting normaliser=null -o OUT",
        )


def _check_atari(environment: Environment) -> None:
    _check_unnormalised(environment)
    known = {"height", "width", "grayscale", "layout", "scale"}
    given = preprocessing(environment)
    if unknown := sorted(set(given) - known):
        raise ArgumentError(
            f"{environment.id} cannot be preprocessed by {', '.join(unknown)}",
            hint=f"preprocessing holds: {', '.join(sorted(known))}",
        )
    for side in ("height", "width"):
        size = given[side]
        if not isinstance(size, int) or not 0 < size <= 1024:
            raise ArgumentError(f"the {side} of the frames of {environment.id} cannot be {size!r}")
    if not isinstance(given["grayscale"], bool):
        raise ArgumentError(f"grayscale is true or false, got {given['grayscale']!r}")


def _check_others(environment: Environment) -> None:
    """Settings that only Atari knows must be off elsewhere: none is ignored."""
    off: Mapping[str, tuple[Json, ...]] = {
        "frame_skip": (1,),
        "noop_max": (0,),
        "max_pool": (False,),
        "fire_reset": (False,),
        "terminal_on_life_loss": (False,),
    }
    for name, allowed in off.items():
        value = environment.settings.get(name, allowed[0])
        if value not in allowed:
            raise ArgumentError(f"{environment.id} cannot honour {name} {value}: only Atari games have it")


def _check_minatar(environment: Environment) -> None:
    _check_others(environment)
    _check_unnormalised(environment)
    if environment.settings.get("frame_stack", 1) != 1:
        raise ArgumentError(
            f"{environment.id} cannot honour frame_stack: its observations hold their history"
        )


_CHECKS: Mapping[str, Callable[[Environment], None]] = {
    "atari": _check_atari,
    "minatar": _check_minatar,
    "gymnasium": _check_others,
}
