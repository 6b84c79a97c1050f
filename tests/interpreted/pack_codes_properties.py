"""Packing: the reference's bits, over layouts, strides and dtypes."""

from __future__ import annotations

import importlib

import pytest
import torch
from fastinfogan.kernels.pack_codes import _with_near_columns, pack_codes
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan import LatentSpec
from tests.interpreted.agreement import DTYPES, assert_same_but_for_rounding, examples, unaligned
from tests.strategies import specs

reference = importlib.import_module("fastinfogan.ops.pack_codes")._reference


@examples(60)
@given(
    spec=specs(),
    rows=st.sampled_from([0, 1, 7, 8, 64, 130]),
    given_dtype=st.sampled_from(DTYPES),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["contiguous", "unaligned", "transposed", "one row repeated"]),
    ends=st.booleans(),
)
def test_agrees_with_the_reference(
    spec: LatentSpec, rows: int, given_dtype: torch.dtype, dtype: torch.dtype, layout: str, ends: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    noise = torch.randn(rows, spec.noise, generator=generator).to(given_dtype)
    continuous = torch.randn(rows, len(spec.continuous), generator=generator).to(given_dtype)
    drawn = [torch.randint(0, k, (rows,), generator=generator) for k in spec.categorical]
    if ends:
        drawn = [torch.where(c * 2 < k, 0, k - 1) for c, k in zip(drawn, spec.categorical, strict=True)]
    categories = torch.stack(drawn, 1) if drawn else torch.empty(rows, 0, dtype=torch.int64)
    arranged = {
        "contiguous": lambda t: t,
        "unaligned": unaligned,
        "transposed": lambda t: t.t().contiguous().t(),
        "one row repeated": lambda t: t[:1].expand(rows, -1),
    }[layout]
    arguments = (arranged(noise), arranged(categories), arranged(continuous), spec.categorical, dtype)
    assert_same_but_for_rounding(pack_codes(*arguments), reference(*arguments))


def test_columns_too_far_apart_for_32_bits_are_brought_together() -> None:
    far = torch.empty(1, device="meta").as_strided((2, 65), (1, 2**25))
    assert _with_near_columns(far).stride() == (65, 1)
    near = torch.empty(2, 64).t().contiguous().t()
    assert _with_near_columns(near) is near


@pytest.mark.parametrize("wrong", [-1, 10, 12])
def test_a_category_out_of_range_leaves_its_columns_zero(wrong: int) -> None:
    categories = torch.tensor([[3], [wrong], [9]])
    z = pack_codes(torch.ones(3, 2), categories, torch.ones(3, 2), (10,), torch.float32)
    assert not z[1, 2:12].any()
    assert z.sum(1).tolist() == [5.0, 4.0, 5.0]
