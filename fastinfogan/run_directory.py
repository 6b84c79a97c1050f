"""A run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoints/ and figures/.

The folder is made, and found writable, before any work starts. A run that was cut off may have logged past its last
checkpoint; on resume those lines are dropped, so that metrics.jsonl reads as if the run had never stopped.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fastinfogan import checkpoint
from fastinfogan.config import TrainConfig, to_json
from fastinfogan.errors import UserError


def new_folder(config: TrainConfig) -> Path:
    """``config.run_dir``, or an unused name below ``runs/`` made of the data set and the time."""
    if config.run_dir is not None:
        return config.run_dir
    base = Path("runs") / f"{config.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 1000)))  # runs that start in one second
    return next(name for name in names if not name.exists())


class RunDirectory:
    """The open folder of a run that starts at ``step`` (0: a new one); of several processes one writes it."""

    def __init__(self, path: Path, config: TrainConfig, step: int, *, writes: bool = True) -> None:
        """Raises UserError: not writable, or a new run where another one has saved checkpoints."""
        self.path = path
        self.figures = path / "figures"
        self._metrics = path / "metrics.jsonl"
        self._events: SummaryWriter | None = None
        if not writes:
            return
        if step == 0 and checkpoint.newest(path):
            raise UserError(f"{path} holds a run already: go on with --resume {path}, or choose another --run-dir")
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(to_json(config))
            kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
            self._metrics.write_text("".join(kept))
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {path} ({error.strerror}): choose another --run-dir"
            ) from None
        self._events = SummaryWriter(str(path), purge_step=step + 1)

    def _lines(self) -> list[str]:
        """Whole lines of metrics.jsonl: the last one may have been cut off in the middle."""
        if not self._metrics.exists():
            return []
        return [line for line in self._metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one TensorBoard scalar per value, by the process that writes."""
        if self._events is None:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    @property
    def metrics(self) -> Path:
        """The path of metrics.jsonl."""
        return self._metrics

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
