"""The tests of adapters against the real frameworks, each in an environment of its own: their pins conflict.

    nox -s d3rlpy

Sessions install exact versions, those that wrote the files in tests/fixtures. A framework is a row and a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
TORCH = "torch==2.13.0"
GAMES = ("gymnasium==1.4.0", "ale-py==0.12.1", "opencv-python-headless==5.0.0.93")
"""Environments that are played."""


@dataclass(frozen=True)
class Framework:
    """What a session installs and runs.

    Attributes:
      pins: the framework and what it needs beside what it asks for itself; PyTorch first, where it is needed.
      tests: of its adapter.
    """

    pins: Sequence[str]
    tests: Sequence[str]


FRAMEWORKS = {
    "d3rlpy": Framework(
        [TORCH, "d3rlpy==2.8.1", "ale-py==0.10.2", GAMES[-1]],
        ["tests/test_d3rlpy.py", "tests/test_d3rlpy_files.py", "tests/test_d3rlpy_playing.py"],
    ),
    "flax": Framework(
        ["jax==0.10.2", "flax==0.12.8", "optax==0.2.8", "orbax-checkpoint==0.11.36", "jax2onnx==0.17.1"],
        ["tests/test_flax_states.py"],
    ),
    "rllib": Framework(
        [TORCH, "ray[rllib]==2.60.0", *GAMES[1:]],
        ["tests/test_rllib.py", "tests/test_rllib_files.py", "tests/test_rllib_playing.py"],
    ),
    "keras": Framework(
        [TORCH, "keras==3.15.1", "h5py==3.14.0", *GAMES],
        ["tests/test_keras_package.py", "tests/test_keras.py", "tests/test_keras_playing.py"],
    ),
    "tensorflow": Framework(
        ["tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0", "h5py==3.14.0", *GAMES],
        ["tests/test_saved_model.py", "tests/test_keras_package.py", "tests/test_keras_playing.py"],
    ),
    "sb3": Framework(
        [TORCH, "stable-baselines3==2.9.2", "sb3-contrib==2.9.2", *GAMES],
        ["tests/test_sb3.py", "tests/test_policy_sb3.py", "tests/test_sb3_playing.py"],
    ),
}

DOPAMINE = (
    "jax==0.4.35", "jaxlib==0.4.35", "flax==0.10.2", "optax==0.2.4", "orbax-checkpoint==0.10.3",
    "tensorflow-cpu==2.18.1", "tf_keras==2.18.0", "tensorflow-probability==0.25.0",
    "gin-config", "gym", "gymnasium", "ale-py", "python-snappy", "msgpack", "opencv-python-headless", "etils",
    "tf2onnx==1.16.1", "onnx==1.16.2",
)  # fmt: skip
"""What Dopamine's agents need, in versions that work together."""

AGENTS = (
    "rsl-rl-lib==5.5.1",
    "skrl==2.1.1",
    "tianshou==2.0.1",
    "torchrl==0.14.1",
    "tensordict==0.14.3",
    "rl-games==1.6.5",
)
"""Frameworks whose checkpoints are PyTorch's."""
AGENTS_NEED = (
    "cachebox", "cloudpickle", "deepdiff", "docstring_parser", "gym", "gymnasium==1.4.0", "h5py", "matplotlib", "numba",
    "orderly-set", "overrides", "packaging", "pandas<3", "pettingzoo", "pyvers", "psutil", "pyyaml",
    "sensai-utils", "setproctitle", "tensorboard", "tensorboardX", "tqdm",
)  # fmt: skip
"""What their networks and optimizers import, of all that they ask for."""


@nox.session
def torch_agents(session: nox.Session) -> None:
    """rsl_rl, skrl, Tianshou, TorchRL and rl_games, side by side: of each only what makes, saves and loads agents."""
    session.install(TORCH)
    session.install(*AGENTS_NEED)
    session.install("--no-deps", *AGENTS)
    session.install("pytest>=8", "-e", ".[torch]")
    session.run("pytest", "-q", "tests/test_torch_layouts.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def d3rlpy(session: nox.Session) -> None:
    """d3rlpy (pins gymnasium 1.0.0)."""
    run(session, "d3rlpy")


@nox.session
def dopamine(session: nox.Session) -> None:
    """Dopamine and TensorFlow: their pins and ours do not go together, so they have a process of their own."""
    folder = Path(session.create_tmp()).absolute() / "dopamine"
    session.run("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", *DOPAMINE, external=True)
    # it asks for more than its agents need, and for a gym that is gone
    session.run(python, "-m", "pip", "install", "-q", "--no-deps", "dopamine-rl==4.1.2", external=True)
    session.install("pytest>=8", "hypothesis", "-e", ".")
    session.run(
        "pytest", "-q", "tests/test_dopamine.py", "tests/test_dopamine_actors.py", "tests/test_tf_checkpoint.py",
        *session.posargs,
        env={"OMP_NUM_THREADS": "1", "SURGERY_DOPAMINE_PYTHON": python, "SURGERY_TENSORFLOW_PYTHON": python},
    )  # fmt: skip


@nox.session
def flax(session: nox.Session) -> None:
    """Flax, optax, Orbax and jax2onnx."""
    run(session, "flax")


@nox.session
def rllib(session: nox.Session) -> None:
    """Ray RLlib, new API stack (pins gymnasium 1.2.2)."""
    run(session, "rllib")


@nox.session
def tensorflow(session: nox.Session) -> None:
    """TensorFlow and tf2onnx."""
    run(session, "tensorflow")


@nox.session
def keras(session: nox.Session) -> None:
    """Keras 3 on PyTorch."""
    run(session, "keras")


PUFFERLIB_NEEDS = (
    "numpy", "setuptools", "wheel", "Cython", "gymnasium==1.4.0", "pettingzoo", "gym==0.23.0", "psutil", "rich",
    "rich_argparse", "tqdm",
)  # fmt: skip
"""What its trainer imports."""


@nox.session
def pufferlib(session: nox.Session) -> None:
    """PufferLib's trainer and policies (it asks for numpy below 2), without its own games, in an environment beside."""
    other = Path(session.create_tmp()).absolute() / "framework"
    session.run("python", "-m", "venv", str(other))
    python = str(other / "bin" / "python")
    for pins in ((TORCH,), PUFFERLIB_NEEDS, ("--no-deps", "pyro-ppl", "opt-einsum", "pyro-api")):
        session.run(python, "-m", "pip", "install", "-q", *pins, external=True)
    # without its games its setup.py knows no paths of theirs
    (other / "sitecustomize.py").write_text("import builtins\nbuiltins.c_extension_paths = []\n")
    # and where there is an nvcc, it asks for all of CUDA; a wheel that was built elsewhere may lack the kernel
    session.run(
        python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir", "pufferlib==3.0.0",
        external=True, env={"NO_OCEAN": "1", "PYTHONPATH": str(other), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    session.install(TORCH, "pytest>=8", "-e", ".")
    session.run(
        "pytest", "-q", "tests/test_pufferlib.py", *session.posargs,
        env={"OMP_NUM_THREADS": "1", "PUFFERLIB_PYTHON": python},
    )  # fmt: skip


@nox.session
def sample_factory(session: nox.Session) -> None:
    """Sample Factory (pins numpy below 2, which this project cannot have): in an environment beside ours."""
    other = Path(session.create_tmp()).absolute() / "framework"
    session.run("python", "-m", "venv", str(other))
    for pin in (TORCH, "numpy<2", "setuptools<81", "sample-factory==2.1.1"):
        session.run(str(other / "bin" / "python"), "-m", "pip", "install", "-q", pin, external=True)
    session.install(TORCH, "pytest>=8", "-e", ".")
    session.run(
        "pytest", "-q", "tests/test_sample_factory.py", *session.posargs,
        env={"OMP_NUM_THREADS": "1", "SAMPLE_FACTORY_PYTHON": str(other / "bin" / "python")},
    )  # fmt: skip


@nox.session
def sb3(session: nox.Session) -> None:
    """Stable-Baselines3 and sb3-contrib."""
    run(session, "sb3")


def run(session: nox.Session, name: str) -> None:
    """Install a framework, then this project with what it needs itself, and run the tests of its adapter."""
    framework = FRAMEWORKS[name]
    for pin in framework.pins:
        session.install(pin)
    session.install("pytest>=8", "hypothesis", "-e", ".")
    session.run("python", "-m", "pip", "check", success_codes=[0, 1])
    # frameworks warn while they are imported, before a test could say which warnings it expects
    session.run(
        "pytest", "-q", "-W", "default", *framework.tests, *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )
