"""What a caller may hand to an op: kernels read memory by address, so a tensor that does not fit is refused before."""

from __future__ import annotations

from typing import Literal

import torch

from fastinfogan.errors import UserError

Kind = Literal["floating", "index", "any"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what the fused kernels read and write


def require(
    op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...], device: torch.device, kind: Kind = "floating"
) -> None:
    """Raise a UserError unless ``tensor`` has that shape, lies on ``device`` and is of that ``kind``.

    ``kind``: floating is every dtype of floats, index int64, any every dtype.
    """
    if tensor.shape != shape:
        raise UserError(f"{op} expected {name} of shape {shape}, got {tuple(tensor.shape)}")
    require_on(op, name, tensor, device)
    if kind == "index" and tensor.dtype != torch.int64:
        raise UserError(f"{op} expected {name} of int64 indices, got {tensor.dtype}")
    if kind == "floating" and not tensor.is_floating_point():
        raise UserError(f"{op} expected floating point {name}, got {tensor.dtype}")


def require_on(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raise a UserError unless ``tensor`` lies on ``device``; one without an index is any of its type."""
    if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
        raise UserError(f"{op} got {name} on {tensor.device} and works on {device}: move one of them")
