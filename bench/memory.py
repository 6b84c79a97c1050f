"""``python -m bench.memory PRESET BATCH CONTESTANT DEVICE``: the peak memory of a few iterations, in a fresh process.

On a CPU the high-water mark of the process's resident memory, interpreter and what all contestants import included, so
that small batches hardly show; on a GPU the most that PyTorch had reserved. ``bench/step.py`` starts one such process
per contestant: in one process, what the first had used would count for all that follow, and those that take turns
(``bench/apart.py``) hold thousands of images each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from bench.field import field
from bench.measure import ROOT, wait
from fastinfogan.capture import WARM_UP
from fastinfogan.errors import UserError
from fastinfogan.precision import choose_device

ITERATIONS = WARM_UP + 2  # ours replays the last one on a GPU


def peak_mib(preset: str, batch: int, contestant: str, device: torch.device) -> float:
    """Started fresh: MiB.

    Raises:
        UserError: the process did not end well, for want of memory for instance.
    """
    command = [sys.executable, "-m", "bench.memory", preset, str(batch), contestant, str(device)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(
            f"{ITERATIONS} iterations of {contestant} on {preset} at batch {batch} ended with status "
            f"{done.returncode}: choose smaller --batches, or --no-memory"
        )
    return float(done.stdout.split()[-1])


def high_water_mib(device: torch.device) -> float:
    """Of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20  # a graph's pool is reserved, and not allocated
    # Not getrusage: its mark is inherited from the process that started this one.
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    preset, batch, name, device = sys.argv[1], int(sys.argv[2]), sys.argv[3], choose_device(sys.argv[4])
    contestant = field(preset, batch, device, images=batch)[name]()  # the set is whatever it is, and not asked about
    for _ in range(ITERATIONS):
        contestant.advance()
    wait(device)
    print(high_water_mib(device))


if __name__ == "__main__":
    main()
