"""``python -m bench NAME [flags]``: run one of the benchmarks; ``--help`` after the name lists its flags."""

from __future__ import annotations

import sys
from importlib import import_module

from fastinfogan.commands import run_command
from fastinfogan.errors import UserError

BENCHES = {
    "claims": "bench.claims.command",
    "data": "bench.data",
    "kernels": "bench.kernels",
    "render": "bench.render",
    "speedrun": "bench.speedrun",
    "step": "bench.step",
}


def main() -> None:
    """Hand over to the module that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        raise UserError(f"there is no benchmark {name!r}: choose one of {', '.join(BENCHES)}")
    sys.argv[:2] = [f"python -m bench {name}"]
    import_module(BENCHES[name]).main()


if __name__ == "__main__":
    run_command(main)
