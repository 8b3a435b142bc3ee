"""Making environments from their contract."""

from __future__ import annotations

from surgery.envs.contract import complete, game
from surgery.envs.step import Envs
from surgery.errors import ArgumentError
from surgery.interface import Environment


def make(environment: Environment, num_envs: int, *, seed: int, training: bool, threads: int = 0) -> Envs:
    """n environments that follow a contract.

    Args:
      environment: the contract; what it leaves open is filled in by `complete`.
      num_envs: n, at least 1.
      seed: of all that is random in them; the same seed and the same actions give the same episodes.
      training: whether the loss of a life is reported as `terminated` where the contract says so. Episodes are whole
        games and returns are true either way.
      threads: of Atari's emulators, which run in C++; 0 for one per core.

    Raises:
      ArgumentError: no id, a setting that the environment cannot honour, actions that nothing plays.
      UnknownName: an environment that does not exist; lists the nearest.
      MissingDependency: a package that is not installed.
    """
    if num_envs < 1:
        raise ArgumentError(f"at least one environment is needed, got {num_envs}")
    found, contract = game(environment), complete(environment)
    if found.family == "atari":
        from surgery.envs.atari import AtariEnvs

        return AtariEnvs(found.name, contract, num_envs, seed=seed, training=training, threads=threads)
    if found.family == "minatar":
        from surgery.envs.minatar import MinAtarEnvs

        return MinAtarEnvs(found.name, contract, num_envs, seed=seed)
    from surgery.envs.single import SingleEnvs

    return SingleEnvs(contract, num_envs, seed=seed)
