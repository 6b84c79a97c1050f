"""Unpacking: the reference's categories, over layouts, strides, dtypes and soft one-hots with ties."""

from __future__ import annotations

import importlib

import torch
from fastinfogan.kernels.unpack_codes import unpack_codes
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan import LatentSpec
from tests.interpreted.agreement import DTYPES, examples, unaligned
from tests.strategies import specs

reference = importlib.import_module("fastinfogan.ops.pack_codes")._unpack_reference


@examples(40)
@given(
    spec=specs(max_codes=6, max_noise=64),
    rows=st.sampled_from([0, 1, 7, 64, 130]),
    dtype=st.sampled_from(DTYPES),
    arranged=st.sampled_from([lambda z: z, unaligned, lambda z: z.t().contiguous().t()]),
)
def test_agrees_with_the_reference(spec: LatentSpec, rows: int, dtype: torch.dtype, arranged) -> None:  # type: ignore[no-untyped-def]
    # Few distinct values, so that ties occur: the lowest column wins.
    z = torch.randint(-2, 3, (rows, spec.dim), generator=torch.Generator().manual_seed(rows)).to(dtype)
    arguments = (arranged(z), spec.noise, spec.categorical)
    assert torch.equal(unpack_codes(*arguments), reference(*arguments))
