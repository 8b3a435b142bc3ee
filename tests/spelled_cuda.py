"""A pytest plugin: what is written for CUDA runs on the CPU, word for word.

    SURGERY_ALL_DEVICE_ROWS=1 pytest -q tests/test_elsewhere.py   # runs tests/test_cuda.py with it

`cuda` as a device is the CPU, pinned memory is memory, events and streams do nothing, and a graph is the kernels that
ran while it was captured, undone at its end as a GPU would not have run them (`tests.recording.Tape`). What a GPU does
otherwise is not seen; that a line cannot run at all is: a name that PyTorch does not have, a tensor that is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.recording import Tape


def _place(given: Any) -> Any:
    """The CPU, where CUDA is meant."""
    meant = given.type if isinstance(given, torch.device) else given if isinstance(given, str) else ""
    return torch.device("cpu") if meant.startswith("cuda") else given


class _Spelled(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _place(one) for name, one in (kwargs or {}).items() if name != "pin_memory"}
        if function is Tensor.pin_memory:
            return args[0].clone()
        if function is Tensor.cuda:
            return args[0]
        return function(*map(_place, args), **kwargs)


class _Undone(Tape):
    """A tape that can put back what its kernels have overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self._was: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for at, argument in enumerate(kernel._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[at] if at < len(args) else (kwargs or {}).get(argument.name)
                for one in tree_leaves(given):
                    if isinstance(one, Tensor):
                        self._was.setdefault(id(one), (one, one.detach().clone()))
        return super().__torch_dispatch__(kernel, types, args, kwargs)

    def undo(self) -> None:
        with torch.no_grad():
            for one, was in self._was.values():
                one.detach().copy_(was)


class _Graph:
    tape: _Undone

    def replay(self) -> None:
        self.tape.replay()


class _Captures:
    def __init__(self, graph: _Graph, pool: object = None) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        self._random, self._graph.tape = torch.get_rng_state(), _Undone()
        self._graph.tape.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._graph.tape.__exit__(*raised)
        self._graph.tape.undo()
        torch.set_rng_state(self._random)


class _Stream:
    def wait_stream(self, other: _Stream) -> None: ...

    def synchronize(self) -> None: ...


class _Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _Generator:
    def __init__(self) -> None:
        self._state = torch.get_rng_state()

    def clone_state(self) -> _Generator:
        return _Generator()

    def graphsafe_set_state(self, other: _Generator) -> None:
        torch.set_rng_state(other._state)


_STREAMS = [_Stream()]


@contextlib.contextmanager
def _stream(given: _Stream) -> Iterator[None]:
    depth = len(_STREAMS)
    _STREAMS.append(given)
    try:
        yield
    finally:
        del _STREAMS[depth:]


def _replace() -> None:
    free = 8 << 30
    for name, one in {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "Stream": _Stream, "current_stream": lambda _=None: _STREAMS[-1], "stream": _stream, "Event": _Event,
        "CUDAGraph": _Graph, "graph": _Captures, "graph_pool_handle": lambda: (0, 1),
        "default_generators": (_Generator(),), "manual_seed": torch.manual_seed,
        "get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state,
        "mem_get_info": lambda: (free, free), "memory_reserved": lambda: 0, "memory_allocated": lambda: 0,
        "synchronize": lambda: None, "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda _: None, "_sleep": lambda _: None,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, one)
    autocast, moved = torch.autocast, nn.Module.to
    torch.autocast = lambda device, **given: autocast("cpu", **given)
    nn.Module.to = lambda self, *args, **given: moved(
        self, *map(_place, args), **{name: _place(one) for name, one in given.items()}
    )
    _Spelled().__enter__()


_replace()
