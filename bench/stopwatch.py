"""How long the phases of an iteration take, without touching the code that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.measure import wait

PHASES = ("data_latents", "g_forward", "d_phase", "g_phase")


class Stopwatch:
    """Seconds by phase: the calls of watched functions are timed, on a GPU by events, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._calls: list[tuple[str, Callable[[], float]]] = []  # phase, and how to know the seconds

    def watch(self, owner: object, name: str, phase: str) -> None:
        """Replace ``owner.name`` by itself with its calls timed."""
        plain: Callable[..., object] = getattr(owner, name)

        def timed(*arguments: object, **named: object) -> object:
            until = self._start()
            result = plain(*arguments, **named)
            self._calls.append((phase, until()))
            return result

        object.__setattr__(owner, name, timed)  # a module refuses a function where it holds a module

    def _start(self) -> Callable[[], Callable[[], float]]:
        """Call what this returns at the end of the call, and what that returns once the device is done."""
        if self.device.type != "cuda":
            began = time.perf_counter()

            def ended() -> Callable[[], float]:
                seconds = time.perf_counter() - began
                return lambda: seconds

            return ended
        first = self._event()

        def recorded() -> Callable[[], float]:
            last = self._event()
            return lambda: first.elapsed_time(last) / 1e3

        return recorded

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def read(self) -> dict[str, float]:
        """Seconds in each phase since the last reading. Waits for the device."""
        wait(self.device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for phase, took in self._calls:
            seconds[phase] += took()
        self._calls.clear()
        return seconds
