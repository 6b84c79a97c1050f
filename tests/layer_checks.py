"""Shared by the tests of the CPU's layers: who computes them, and how far from the truth a result may be."""

from __future__ import annotations

import pytest
import torch

from fastinfogan.ops import native

NATIVE = pytest.mark.skipif(not native.available(), reason=str(native.why_not))
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]


def assert_as_accurate(
    found: torch.Tensor, stock: torch.Tensor, exact: torch.Tensor, terms: int, scale: float = 0.0, given: float = 0.0
) -> None:
    """``found`` errs at most twice as far from ``exact`` as PyTorch's own ``stock`` does in the same precision.

    One rounding of the largest value, or of ``scale``, the largest of what cancels in it, and in fp32 one per doubling
    of the number of summed terms, is always allowed; so is what follows from the rounding of an intermediate result
    that the op's contract gives in fp32, ``given``.
    """
    assert found.dtype == stock.dtype and found.shape == exact.shape
    if not exact.numel():
        return
    unit = torch.finfo(found.dtype).eps * max(scale, exact.abs().max().item())
    roundings = max(1, terms).bit_length() if found.dtype == torch.float32 else 1
    allowed = 2 * (stock.double() - exact).abs().max().item() + unit * roundings / 2 + given
    assert (found.double() - exact).abs().max().item() <= allowed


def what_cancels(a: torch.Tensor, b: torch.Tensor) -> float:
    """How large the sums in ``a @ b`` are on the way: those of as many terms with random signs.

    The value that is left can be much smaller, and by chance stock's error of a single one is nearly 0.
    """
    return (a.double().square() @ b.double().square()).max().sqrt().item() if a.numel() and b.numel() else 0.0
