"""A whole training iteration as one CUDA graph: captured once, then one launch a call.

An iteration of InfoGAN is some 120 to 300 small launches, each of which costs the host more than it costs a GPU (see
``python -m bench step --static``). A graph holds them all: data, latents, networks, both phases, both optimisers and
the metrics. It repeats the very same launches on the very same memory, so whatever differs from step to step must be
read on the device: the step is a tensor that the iteration itself moves on, and what the host prepares for a step lies
in buffers that never move (``static``).

The first iterations run eagerly on the stream of the capture: they compile kernels, choose cuDNN's algorithms and make
the optimisers' state, and they are iterations like all others. Capturing executes nothing. So the state after n calls
is that of n eager iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch

from fastinfogan.errors import first_line
from fastinfogan.precision import Precision

Capture = Literal["auto", "off"]
Body = Callable[[], None]
Address = tuple[int, torch.Size, tuple[int, ...], torch.dtype]

WARM_UP = 3  # cuDNN's choice is made in the first; the allocator's pool no longer grows after the second


class Graph(Protocol):
    """What the capture asks of a backend; the tests have one that replays recorded ops on a CPU."""

    def warm_up(self, body: Body) -> None:
        """Run ``body`` as an ordinary iteration where it will be captured."""

    def record(self, body: Body) -> None:
        """Keep what ``body`` launches, in place of what was kept before, and execute nothing of it.

        Raises:
            RuntimeError: it does what a graph cannot hold; the device's state is as before.
        """

    def replay(self) -> None:
        """Launch what was recorded."""

    def release(self) -> None:
        """Give back what was recorded, now."""


class CudaGraph:
    """The real one."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, body: Body) -> None:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            body()
        current.wait_stream(self.stream)

    def record(self, body: Body) -> None:
        self.graph = torch.cuda.CUDAGraph()  # an instance can be captured once; the memory of one before is given back
        # The outer context gives the stream back also where the end of a refused capture raises. Other threads may
        # use CUDA meanwhile: DALI decodes, NCCL's watchdog asks for events.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            body()

    def replay(self) -> None:
        self.graph.replay()

    def release(self) -> None:
        self.graph.reset()  # of a refused capture torch 2.13 keeps the memory all the same


def obstacle(wanted: Capture, precision: Precision) -> str | None:
    """Why iterations cannot be captured, in one clause; None where they can."""
    if wanted == "off":
        return "--capture is off"
    if precision.device.type != "cuda":
        return "only a GPU captures graphs"
    if precision.dtype == torch.float16:
        return "float16's gradient scaler keeps state on the host"
    return None


class Replayed:
    """``body`` as a callable that soon becomes a replay of itself.

    ``static``: the tensors that the host fills between two calls and ``body`` reads. If one of them has moved, or the
    capture is refused, ``body`` runs eagerly from then on, and ``say`` is told why in one line.
    """

    def __init__(
        self,
        body: Body,
        static: Callable[[], tuple[torch.Tensor, ...]],
        graph: Graph | None,
        say: Callable[[str], None],
    ) -> None:
        self.body = body
        self.static = static
        self.graph = graph
        self.say = say
        self.warm_ups_left = WARM_UP
        self.recorded: tuple[Address, ...] | None = None

    def __call__(self) -> None:
        """One iteration."""
        graph = self.graph
        if graph is not None and self.warm_ups_left:
            self.warm_ups_left -= 1
            graph.warm_up(self.body)
        elif graph is not None and self._is_ready(graph):
            graph.replay()
        else:
            self.body()

    def _is_ready(self, graph: Graph) -> bool:
        """Whether ``graph`` can be launched: it is recorded first, or given up."""
        addresses = tuple(map(_address, self.static()))
        if self.recorded is None:
            try:
                graph.record(self.body)
            except RuntimeError as error:
                # If the body failed, ending the capture fails too, with a less useful message.
                cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                graph.release()
                self._give_up(f"the capture was refused ({first_line(cause)})")
                return False
            self.recorded = addresses
        elif addresses != self.recorded:
            graph.release()
            moved = next(pair for pair in zip(self.recorded, addresses, strict=True) if pair[0] != pair[1])
            self._give_up(f"an input was {_describe(moved[0])} when it was captured and is {_describe(moved[1])} now")
            return False
        return True

    def _give_up(self, reason: str) -> None:
        self.graph = None
        self.say(f"iterations run op by op from here on: {reason}")


def _address(tensor: torch.Tensor) -> Address:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _describe(address: Address) -> str:
    pointer, shape, _, dtype = address
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)} at {pointer:#x}"
