"""When a kernel's result counts as the reference's, and how often hypothesis asks."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

assert os.environ.get("TRITON_INTERPRET") == "1", "run these through tests/test_triton_interpreted.py"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def examples(count: int) -> settings:
    """``count`` examples, the same each time, without a deadline: a program takes milliseconds to interpret."""
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One unit in the last place of ``dtype`` at each value."""
    info = torch.finfo(dtype)
    return (values.double().abs() * info.eps).clamp(min=info.tiny)


def rounding(values: torch.Tensor) -> torch.Tensor:
    """What the interpreter may be off by for its own reasons: it cuts fp32 to bfloat16, where a GPU rounds."""
    if values.dtype == torch.bfloat16:
        return ulp(values, torch.bfloat16)
    return torch.zeros_like(values, dtype=torch.double)


def assert_same_but_for_rounding(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in shape, dtype and strides, and bit for bit but for :func:`rounding`."""
    assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())
    difference = (actual.double() - expected.double()).abs()
    assert bool((difference <= rounding(expected)).all()), f"off by {float(difference.max())}"


def unaligned(values: torch.Tensor) -> torch.Tensor:
    """The same values as a view that begins one element into its memory, with gaps between its rows."""
    wide = torch.full((*values.shape[:-1], values.shape[-1] + 3), float("nan") if values.is_floating_point() else -7)
    wide = wide.to(values.dtype)
    wide[..., 1:-2] = values
    return wide[..., 1:-2]
