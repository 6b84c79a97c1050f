"""In which number format the networks compute, and the scaling that float16 needs.

bfloat16 wherever the device multiplies it in hardware: it has float32's range and needs no scaling. float16 with a
gradient scale on GPUs that lack it. float32 otherwise: emulated low precision is slower, not faster. And float32 is
float32, in convolutions on a GPU too, where PyTorch would have cuDNN round to TF32 unasked: ``--amp`` asks for less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastinfogan.errors import UserError


@dataclass(frozen=True)
class Precision:
    """dtype: of the matrix products; reason: one clause that says why this one."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Scales gradients for float16; does nothing for the other two."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``. From then on no product is in TF32.

    Raises:
        UserError: a device that torch does not know or that is not here.
    """
    torch.backends.cudnn.allow_tf32 = False  # of other products PyTorch's default is float32 already
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise UserError(
                f"--device {name} asks for a GPU that is not here (torch sees {found}): choose --device cpu"
            )
    elif name != "cpu":
        raise UserError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    return device


def choose_precision(device: torch.device, amp: bool) -> Precision:
    """float32 without ``amp``; with it, the fastest format that ``device`` has in hardware."""
    if not amp:
        return Precision(device, torch.float32, "--amp was not given")
    if device.type == "cuda":
        if torch.cuda.get_device_properties(device).major >= 8:  # of this GPU, which need not be the current one
            return Precision(device, torch.bfloat16, "this GPU has bfloat16 tensor cores")
        return Precision(device, torch.float16, "this GPU has no bfloat16 tensor cores")
    if torch.cpu._is_amx_tile_supported():
        return Precision(device, torch.bfloat16, "this CPU has AMX tiles")
    if torch.cpu._is_avx512_bf16_supported():
        return Precision(device, torch.bfloat16, "this CPU has AVX-512 BF16")
    return Precision(device, torch.float32, "this CPU has no bfloat16 in hardware")
