"""Break each Triton kernel in five ways and show that a property fails for each: ``python -m tests.mutations``.

A mutation is one textual substitution in a copy of the package: a sign, a column off by one, a weight left out, a wrong
mask, a wrong mean (or, where an op has none, the constant that plays its part). The properties of ``tests/interpreted``
run on the copy. The command ends with status 1 if a mutation survives, or if the unbroken copy fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase, settings

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """``old``, which occurs once in ``kernels/<kernel>.py``, becomes ``new``."""

    kernel: str
    what: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "head_loss",
        "sign: gradient of a logit",
        "gradient = exponential *",
        "gradient = -exponential *",
    ),
    Mutation(
        "head_loss",
        "sign: bound on the log-std",
        "low = raw < _LOG_STD_MIN",
        "low = raw < -_LOG_STD_MIN",
    ),
    Mutation(
        "head_loss",
        "column: log-stds",
        "raw = tl.load(here + N_CODES",
        "raw = tl.load(here + N_CODES - 1",
    ),
    Mutation(
        "head_loss",
        "weight: missing in the gradients of continuous codes",
        "factor = factor * tl.load(weights_ptr + N_CATEGORICAL + code).to(tl.float32)",
        "factor = factor * 1.0",
    ),
    Mutation(
        "head_loss",
        "mask: rows past the end count in the adversarial term",
        "return tl.where(live, softplus, 0.0)",
        "return softplus",
    ),
    Mutation(
        "head_loss",
        "mean: over one row too many",
        "inverse_fake = 1.0 / tl.maximum(n_fake, 1)",
        "inverse_fake = 1.0 / (tl.maximum(n_fake, 1) + 1)",
    ),
    Mutation(
        "head_loss",
        "combine: the counter is not left at zero",
        "tl.store(arrivals_ptr, 0)",
        "pass",
    ),
    Mutation(
        "sample_latents",
        "sign: noise",
        "values, mask=mask)",
        "-values, mask=mask)",
    ),
    Mutation(
        "sample_latents",
        "column: one-hots",
        "+ look_up(code, STARTS, N_CATEGORICAL)",
        "+ look_up(code, STARTS, N_CATEGORICAL) + 1",
    ),
    Mutation(
        "sample_latents",
        "weight: normal prior ignored",
        "look_up(number, NORMAL, N_CONTINUOUS) == 1",
        "number < 0",
    ),
    Mutation(
        "sample_latents",
        "mask: rows past the end of a program's share",
        "live_rows = tl.minimum(n_rows - start, ROWS)",
        "live_rows = tl.minimum(n_rows - start, ROWS) - 1",
    ),
    Mutation(
        "sample_latents",
        "mean: targets before rounding",
        "values = values.to(z_ptr.dtype.element_ty).to(tl.float32)",
        "values = values * 1.0",
    ),
    Mutation(
        "sample_latents",
        "rows: the rank's offset left out",
        "row_offset + start + row, seed_ptr",
        "start + row, seed_ptr",
    ),
    Mutation(
        "image_batch",
        "sign: slope",
        "pixels.to(tl.float32) * slope + low",
        "low - pixels.to(tl.float32) * slope",
    ),
    Mutation(
        "image_batch",
        "column: mirror image",
        "WIDTH - 1 - 2 * x",
        "WIDTH - 2 * x",
    ),
    Mutation(
        "image_batch",
        "weight: slope left out",
        "pixels.to(tl.float32) * slope + low",
        "pixels.to(tl.float32) + low",
    ),
    Mutation(
        "image_batch",
        "mask: indices past the end",
        "& (index < n_images)",
        "",
    ),
    Mutation(
        "image_batch",
        "mean: lower limit left out",
        "* slope + low,",
        "* slope,",
    ),
    Mutation(
        "pack_codes",
        "sign: noise",
        "value = tl.load(source, mask=live & (column < NOISE), other=0.0)",
        "value = -tl.load(source, mask=live & (column < NOISE), other=0.0)",
    ),
    Mutation(
        "pack_codes",
        "column: continuous values",
        "number = column - (NOISE + N_ONE_HOT)",
        "number = column - (NOISE + N_ONE_HOT) - 1",
    ),
    Mutation(
        "pack_codes",
        "weight: the value of a hot column",
        "(category == k).to(tl.float32)",
        "0.5 * (category == k).to(tl.float32)",
    ),
    Mutation(
        "pack_codes",
        "mask: last row of a part tile",
        "mask=place < n_live)",
        "mask=place < n_live - 1)",
    ),
    Mutation(
        "pack_codes",
        "mean: continuous rows",
        "continuous_ptr + row * continuous_row_stride",
        "continuous_ptr + 0 * row * continuous_row_stride",
    ),
    Mutation(
        "unpack_codes",
        "sign: what stands past the columns",
        'other=-float("inf")',
        'other=float("inf")',
    ),
    Mutation(
        "unpack_codes",
        "column: one-hots",
        "(NOISE + start)",
        "(NOISE + start + 1)",
    ),
    Mutation(
        "unpack_codes",
        "weight: codes not told apart in the output",
        "code, row = line % N_CATEGORICAL,",
        "code, row = line * 0,",
    ),
    Mutation(
        "unpack_codes",
        "mask: last column",
        "k[None, :] < size[:, None]",
        "k[None, :] < size[:, None] - 1",
    ),
    Mutation(
        "unpack_codes",
        "mean: index off by one",
        "category.to(tl.int64)",
        "(category + 1).to(tl.int64)",
    ),
)


def pytest_configure() -> None:
    """As a plugin of the runs on broken copies: that an example fails is enough, the least one is of no interest."""
    settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")


def failing_test(copy: Path, kernel: str) -> str | None:
    """The first property of ``kernel`` that fails on ``copy``; None if all hold."""
    properties = f"tests/interpreted/{kernel}_properties.py"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "tests.mutations", "-p", "no:cacheprovider", "-rf", properties],
        cwd=copy,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode == 0:
        return None
    found = re.search(r"^FAILED \S+?::(\S+)", finished.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no property ran:\n{finished.stdout}{finished.stderr}")
    return found[1]


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        skip = shutil.ignore_patterns("__pycache__")
        for name in ("fastinfogan", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=skip)
        shutil.copy(ROOT / "pyproject.toml", copy)
        kernels = copy / "fastinfogan" / "kernels"
        shutil.copytree(ROOT / "kernels", kernels, ignore=skip)
        for kernel in dict.fromkeys(mutation.kernel for mutation in MUTATIONS):
            failed = failing_test(copy, kernel)
            print(
                f"{kernel}: unbroken: {'all properties hold' if failed is None else 'FAILS in ' + failed}", flush=True
            )
            survivors += failed is not None
        for mutation in MUTATIONS:
            file = kernels / f"{mutation.kernel}.py"
            source = file.read_text()
            if source.count(mutation.old) != 1:
                raise RuntimeError(f"{mutation.kernel}: {mutation.old!r} occurs {source.count(mutation.old)} times")
            file.write_text(source.replace(mutation.old, mutation.new))
            failed = failing_test(copy, mutation.kernel)
            file.write_text(source)
            print(
                f"{mutation.kernel}: {mutation.what}: {'SURVIVES' if failed is None else 'caught by ' + failed}",
                flush=True,
            )
            survivors += failed is None
    print(f"{len(MUTATIONS)} mutations, {survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
