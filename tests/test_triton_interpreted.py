"""The Triton kernels' own source, run under the interpreter against the reference: the properties of tests/interpreted.

``TRITON_INTERPRET`` must be set before triton is imported, and compiled tests need it unset, so each file of properties
runs in a process of its own and its report becomes this test's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which has no wheel here")

PROPERTIES = Path(__file__).parent / "interpreted"
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("subject", ["head_loss", "sample_latents", "image_batch", "pack_codes", "unpack_codes"])
def test_interpreted_kernel_agrees_with_the_reference(subject: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(PROPERTIES / f"{subject}_properties.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)
