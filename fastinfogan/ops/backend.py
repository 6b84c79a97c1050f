"""Which implementation serves an op: a request, the environment, or the device's best.

Kept apart from the ops so that ``FASTINFOGAN_BACKEND`` and the messages mean the same for all of them.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch

from fastinfogan.errors import UserError

Backend = Literal["reference", "native", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
VARIABLE = "FASTINFOGAN_BACKEND"


def choose(requested: str | None, device: torch.device, available: tuple[Backend, ...]) -> Backend:
    """The backend to run on ``device``: ``requested``, else ``$FASTINFOGAN_BACKEND``, else the first of ``available``.

    ``available`` lists what serves the op there, fastest first, and always ends in ``"reference"``.

    Raises:
        UserError: an unknown name, or a backend that does not serve this op on this device.
    """
    wanted = requested or os.environ.get(VARIABLE)
    if not wanted:
        return available[0]
    for backend in BACKENDS:
        if backend == wanted:
            if backend not in available:
                raise UserError(
                    f"the {backend} backend cannot run on {device.type} here: available are {', '.join(available)}"
                )
            return backend
    raise UserError(f"unknown backend {wanted!r}: choose one of {', '.join(BACKENDS)}")
