"""``python -m bench NAME [flags]``: run a benchmark; ``--help`` after its name lists its flags."""

from __future__ import annotations

import sys
from importlib import import_module

from fastinfogan.commands import run_command
from fastinfogan.errors import UserError

BENCHES = {
    "claims": ("bench.claims.command", "the paper's claims, and others, over seeds"),
    "data": ("bench.data", "from JPEG files to normalised batches"),
    "kernels": ("bench.kernels", "the fused ops, backend by backend"),
    "render": ("bench.render", "the renderers"),
    "speedrun": ("bench.speedrun", "seconds from a cold start to a stated quality"),
    "step": ("bench.step", "one training iteration against a popular-style trainer"),
}


def main() -> None:
    """Hand over to the module that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__, *(f"  {bench:<10}{what}" for bench, (_, what) in BENCHES.items()), sep="\n")
        return
    if name not in BENCHES:
        raise UserError(f"there is no benchmark {name!r}: choose one of {', '.join(BENCHES)}")
    sys.argv[:2] = [f"python -m bench {name}"]
    import_module(BENCHES[name][0]).main()


if __name__ == "__main__":
    run_command(main)
