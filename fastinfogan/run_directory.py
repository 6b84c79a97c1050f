"""A run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoints/ and figures/.

The folder is made, and found writable, before any work starts. A run that was cut off may have logged past its last
checkpoint, and one that goes on from an earlier checkpoint leaves later ones behind; both are dropped once the state to
go on from has been taken up, so that the folder reads as if the run had never stopped, but for an evaluation that was
under way and is not made again. A lock on the file ``lock`` keeps a second process out for as long as one writes, and a
process that chose its checkpoint before it got the lock goes on only if that is still the newest. In it stands which
launch of torchrun began the run last: what that launch starts again goes on from there.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from torch.utils.tensorboard import SummaryWriter

from fastinfogan import checkpoint, distributed
from fastinfogan.config import TrainConfig, to_json
from fastinfogan.errors import UserError
from fastinfogan.files import write_whole

LOCK = "lock"


def begun_by_this_launch(folder: Path) -> bool:
    """Whether this launch of torchrun began the run in ``folder``, before something failed and it started again."""
    lock = folder / LOCK
    return lock.exists() and lock.read_text() == distributed.launch()


def new_folder(config: TrainConfig) -> Path:
    """``config.run_dir``, or a folder made below ``runs/`` and named after the data set and the time.

    Raises:
        UserError: no folder can be made there.
    """
    if config.run_dir is not None:
        return config.run_dir
    base = Path("runs") / f"{config.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 1000)))  # runs that start in one second
    try:
        base.parent.mkdir(exist_ok=True)
        return next(name for name in names if _create(name))
    except OSError as error:
        raise UserError(f"cannot write to the run folder {base} ({error.strerror}): choose another --run-dir") from None


def _create(folder: Path) -> bool:
    """Create ``folder``; False where it exists. Atomic: of two runs that ask at once only one gets it."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


class RunDirectory:
    """The open folder of a run that starts at ``step`` (0: a new one); of several processes one writes it.

    newest: the checkpoint that was the newest when the run chose to go on from it; None where one was named.
    wait: seconds to wait for another process that writes here.
    """

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        step: int,
        *,
        newest: Path | None = None,
        writes: bool = True,
        wait: float = 0,
    ) -> None:
        """Raises UserError: not writable, another process at it or there before, or a new run where one has saved."""
        self.path, self.config, self.step, self.writes = path, config, step, writes
        self.figures = path / "figures"
        self.metrics = path / "metrics.jsonl"
        self._events: SummaryWriter | None = None
        self._lock: TextIO | None = None
        if not writes:
            return
        with self._told():
            self.figures.mkdir(parents=True, exist_ok=True)
            self._keep_others_out(wait)
            if step == 0 and checkpoint.newest(path):
                raise UserError(f"{path} holds a run already: go on with --resume {path}, or choose another --run-dir")
            if newest is not None and (now := checkpoint.newest(path)) != newest:
                raise UserError(
                    f"the newest checkpoint of {path} changed from {newest.name} to {now and now.name} while this run "
                    f"was starting: start the same command again"
                )
            if step == 0:
                self._write_config()

    def begin(self) -> None:
        """Make the folder this run's: what is of later steps goes, and a resumed run writes config.json anew.

        To be called when nothing of what it goes on from can turn out to be damaged any more.

        Raises:
            UserError: not writable; a disk that is full takes nothing from the history.
        """
        if not self.writes:
            return
        with self._told():
            if self.step:
                self._write_config()
            self._forget_later()  # of a new run too: one that died here before its first save may have left lines
            assert self._lock is not None
            self._lock.truncate(0)
            self._lock.write(distributed.launch())
            self._lock.flush()
        self._events = SummaryWriter(str(self.path), purge_step=self.step + 1)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be written is told in a sentence."""
        try:
            yield
        except OSError as error:
            remedy = "make it writable or free some space, then run the same command again"
            raise UserError(
                f"cannot write to the run folder {self.path} ({error.strerror}): "
                f"{remedy if self.step else 'choose another --run-dir'}"
            ) from None

    def _keep_others_out(self, wait: float) -> None:
        self._lock = (self.path / LOCK).open("a")
        until = time.monotonic() + wait
        while True:
            try:
                # Not flock: a child forked meanwhile would share it, and hold it after this process has died.
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):  # which of them is up to the system
                if time.monotonic() >= until:
                    raise UserError(
                        f"another process is writing the run in {self.path}: wait for it, stop it, or choose another "
                        f"--run-dir"
                    ) from None
                time.sleep(1)
            except OSError:
                return  # some network file systems have no locks, and runs do without there

    def _write_config(self) -> None:
        write_whole(self.path / "config.json", to_json(self.config).encode())

    def _forget_later(self) -> None:
        """Drop later lines of metrics.jsonl, what a crash has left half-written or full of NULs, later checkpoints."""
        if self.metrics.exists():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= self.step]
            if kept != lines:
                write_whole(self.metrics, b"".join(kept))
        checkpoint.remove_later(self.path, self.step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one TensorBoard scalar per value, by the process that writes."""
        if self._events is None:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._lock is not None:
            self._lock.close()


def _step(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity for what is no whole line."""
    try:
        step: int = json.loads(line)["step"]
    except ValueError:
        return math.inf
    return step if line.endswith(b"\n") else math.inf
