"""Evaluations while training goes on: of copies of the networks, in a thread of their own.

Training pays for the copies, which on a GPU is one pass over the weights in its stream, and does not wait for a result
unless the next evaluation is due before the last one is done. On a GPU the thread has a stream of its own; on a CPU it
takes its share of the cores. What is found is logged and changes nothing: no step and no checkpoint depends on it, and
none waits for it once the run is asked to stop.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import torch

from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError, first_line
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.run_directory import RunDirectory

if TYPE_CHECKING:
    from fastinfogan.metrics.evaluation import Evaluation

Say = Callable[[str], None]
_EXPECTED = (UserError, OSError, RuntimeError, MemoryError)  # torch's want of memory is a RuntimeError


class Evaluations:
    """The evaluations of one run, logged to its folder with the step that they belong to; one at a time.

    One that fails, because its data set is gone or memory is full, is reported, and training goes on; so it does where
    the evaluation has a bug, which comes with its traceback.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        self.config = config
        self.run = run
        self._thread = ThreadPoolExecutor(1, "evaluation")
        self.last: tuple[int, Evaluation] | None = None  # that was made, and its step
        self._running: tuple[int, Future[Evaluation]] | None = None  # and the step that is evaluated
        self._stream: torch.cuda.Stream | None = None  # one for all: each would keep memory of its own

    def start(
        self, step: int, generator: Generator, discriminator: Discriminator, say: Say, stopping: Callable[[], bool]
    ) -> None:
        """Evaluate both networks as they are now; they may be trained on at once.

        Where the one before it is not done it is waited for, or until ``stopping()``: then this one is not made.
        """
        from fastinfogan.metrics.evaluation import evaluate  # a second of imports that most runs need at their end only

        self.finish(say, stopping)
        if stopping():
            return
        device = next(generator.parameters()).device
        try:
            networks = copy.deepcopy((generator, discriminator))
        except Exception as error:
            _tell(say, step, error)
            return
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def work() -> Evaluation:
            if copied is None:
                return evaluate(self.config, *networks, step)
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)
            self._stream.wait_event(copied)
            with torch.cuda.stream(self._stream):
                return evaluate(self.config, *networks, step)

        self._running = step, self._thread.submit(work)

    def log_finished(self, say: Say) -> None:
        """Log an evaluation that is done; waits for none."""
        if self._running is None or not self._running[1].done():
            return
        (step, done), self._running = self._running, None
        try:
            found = done.result()
        except Exception as error:
            _tell(say, step, error)
            return
        self.last = step, found
        values = {f"eval/mi/{name}": nats for name, nats in found.information.items()}
        for name, clustering in found.clusterings.items():
            values |= {f"eval/error/{name}": clustering.error, f"eval/nmi/{name}": clustering.nmi}
        self.run.log(step, values)

    def finish(self, say: Say, stopping: Callable[[], bool] = lambda: False) -> None:
        """Wait for the evaluation under way, or until ``stopping()``, and log it if it is done."""
        while self._running is not None and not self._running[1].done() and not stopping():
            wait([self._running[1]], timeout=0.2)
        self.log_finished(say)


def _tell(say: Say, step: int, error: Exception) -> None:
    reason = first_line(error) if isinstance(error, _EXPECTED) else "".join(traceback.format_exception(error)).strip()
    say(f"step {step} could not be evaluated, training goes on: {reason}")
