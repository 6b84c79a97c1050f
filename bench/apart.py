"""A contestant of ``step`` in a process of its own, as its user would have it.

In one process contestants share what each does to it. fastinfogan keeps freed memory (``native.keep_freed_memory``),
which others then need not fault in anew, page by page: the eager opponent took 133 ms an iteration of Lin et al.'s
networks beside it and 211 alone (two cores of a Zen 5). So each has a process that stays and waits while others take
their turn.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from bench.contestants import Contestant
from bench.field import field
from bench.measure import wait
from bench.ours import Ours
from bench.stopwatch import Stopwatch
from fastinfogan.capture import WARM_UP
from fastinfogan.errors import UserError

PATIENCE = 5  # seconds in which a process may end by itself; in the middle of a turn it is not waited for any longer


class Timed(Protocol):
    """One whose turns are timed."""

    def takes_part(self) -> bool:
        """False for one whose capture was refused, as it has said: it runs op by op, and that has a row of its own."""

    def has_phases(self) -> bool:
        """Whether an iteration is more than one launch, in which there are none to see."""

    def turn(self, times: int) -> None:
        """So many iterations; waits for the device."""

    def phases(self) -> dict[str, float]:
        """Seconds in each phase of one more iteration; its calls stay watched."""


class Near:
    """``contestant`` in this process."""

    def __init__(self, contestant: Contestant, device: torch.device) -> None:
        self.contestant = contestant
        self.device = device
        self._stopwatch: Stopwatch | None = None
        if device.type == "cuda":  # ours captures its iteration after some eager ones, and what is timed are replays
            self.turn(WARM_UP + 1)

    def takes_part(self) -> bool:
        return not (isinstance(self.contestant, Ours) and self.contestant.capture_refused)

    def has_phases(self) -> bool:
        return not (isinstance(self.contestant, Ours) and self.contestant.captured)

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.contestant.advance()
        wait(self.device)

    def phases(self) -> dict[str, float]:
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(self.device)
            self.contestant.watch(self._stopwatch)
        self.contestant.advance()
        return self._stopwatch.read()


class Apart(contextlib.AbstractContextManager["Apart"]):
    """The contestant ``name`` of :func:`bench.field.field` in a process of its own, which ends with the context.

    Raises:
        UserError: of every method, where that process has ended, for want of memory for instance.
    """

    def __init__(self, preset: str, batch: int, name: str, device: torch.device) -> None:
        self._what = f"{name} on {preset} at batch {batch}"
        spawning = multiprocessing.get_context("spawn")  # OpenMP's threads do not survive a fork
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs, preset, batch, name, str(device)), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # is inherited: Ctrl-C is for the process that asks
        self._process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(PATIENCE)
        self._process.terminate()
        self._process.join()

    def takes_part(self) -> bool:
        return bool(self._ask("takes_part"))

    def has_phases(self) -> bool:
        return bool(self._ask("has_phases"))

    def turn(self, times: int) -> None:
        self._ask("turn", times)

    def phases(self) -> dict[str, float]:
        found: dict[str, float] = self._ask("phases")
        return found

    def _ask(self, method: str, *arguments: int) -> Any:
        try:
            self._pipe.send((method, arguments))
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise UserError(
                f"{self._what} ended with status {self._process.exitcode}: choose smaller --batches"
            ) from None


def _serve(pipe: Connection, preset: str, batch: int, name: str, device: str) -> None:
    """What the process does: call the methods of a :class:`Near` that it is asked for, until the pipe is closed."""
    near = Near(field(preset, batch, torch.device(device))[name](), torch.device(device))
    with contextlib.suppress(EOFError, BrokenPipeError):  # whoever asked is gone
        while True:
            method, arguments = pipe.recv()
            pipe.send(getattr(near, method)(*arguments))
