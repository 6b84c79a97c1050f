"""``python -m tests.ptx``: break the compiled kernels in every way of the list and print what caught each fault."""

from __future__ import annotations

import sys

import torch

from tests.ptx.faults import FAULTS, try_fault


def main() -> int:
    """Print one line per fault; status 1 if one was not caught by its name."""
    torch.set_num_threads(1)
    survived = 0
    for fault in FAULTS:
        verdict = try_fault(fault)
        names = ", ".join(f"{name} x {count}" for name, count in verdict.names.most_common())
        idle = f", {verdict.idle} of no effect" if verdict.idle else ""
        said = "caught" if verdict.caught else "MISSED"
        print(f"{said}  {fault.kernel}: {fault.name} ({verdict.sites} sites{idle}): {names}")
        for line in verdict.missed:
            print(f"        not noticed: {line}")
        sys.stdout.flush()
        survived += not verdict.caught
    print(f"{len(FAULTS) - survived} of {len(FAULTS)} faults caught by name")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
