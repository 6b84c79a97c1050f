"""A graph for the CPU: it keeps the ops that an iteration dispatches and executes them again on the same memory.

What a CUDA graph does to launches, done to ops: every tensor is the one that was recorded, an op's result is written
into the memory that the recorded result had, no Python of the iteration runs, and what a capturing stream refuses is
refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastinfogan.trainer import Trainer

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")
NO_LAUNCH = ("prim", "profiler")


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """Implements ``fastinfogan.capture.Graph``.

    calls: op, arguments and results. outside: by the address of its memory, each tensor that was read or written but
    not made by a recorded op, with the first op that touched it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.outside: dict[int, tuple[torch.Tensor, str]] = {}
        self.replays = 0

    def warm_up(self, body: Callable[[], None]) -> None:
        body()

    def record(self, body: Callable[[], None]) -> None:
        self.calls, self.outside = [], {}
        recording = _Recording(self)
        try:
            with recording:
                body()
        finally:  # a capture executes nothing
            for tensor, content in recording.before:
                tensor.untyped_storage().copy_(content)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for op, arguments, keywords, results in self.calls:
                again = op(*arguments, **keywords)
                for recorded, new in zip(tensors(results), tensors(again), strict=True):
                    if memory(recorded) != memory(new):  # else a view, or written in place
                        recorded.copy_(new)

    def release(self) -> None:
        self.calls, self.outside = [], {}


class _Recording(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.before: list[tuple[torch.Tensor, torch.UntypedStorage]] = []
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in NO_LAUNCH:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device while its stream is captured")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{name} draws from the host's generator, whose state a graph would repeat")
        if name == "lift_fresh":
            raise RuntimeError("a constant is made on the host and copied while a stream is captured")
        for tensor in tensors((args, kwargs)):
            address = memory(tensor)
            if address not in self.made and address not in self.recorder.outside:
                self.recorder.outside[address] = (tensor, name)
                self.before.append((tensor, tensor.untyped_storage().clone()))
        results = func(*args, **kwargs)
        self.made.update(
            address for tensor in tensors(results) if (address := memory(tensor)) not in self.recorder.outside
        )
        self.recorder.calls.append((func, args, kwargs, results))
        return results


def captured(made: Trainer) -> tuple[Trainer, Recorder]:
    """``made`` with its coming iterations in a recorder."""
    recorder = Recorder()
    made.capture_in(recorder)
    return made, recorder


def assert_same_state(one: Trainer, other: Trainer) -> None:
    """All that the next iteration depends on is the same, bit for bit."""
    others = other.state()
    for name, tensor in one.state().items():
        assert torch.equal(tensor, others[name]), name
