"""The image batch: the reference's bits, over sizes, mirroring, dtypes and indices."""

from __future__ import annotations

import importlib

import pytest
import torch
from fastinfogan.kernels.image_batch import image_batch
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan.ops.philox import signed64
from tests.interpreted.agreement import DTYPES, assert_same_but_for_rounding, examples

reference = importlib.import_module("fastinfogan.ops.image_batch")._reference


def store(n: int, height: int, width: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


@examples(60)
@given(
    shape=st.sampled_from([(28, 28, 1), (32, 32, 3), (64, 64, 1)])
    | st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
    index=st.lists(st.integers(0, 8), max_size=12),
    flip_seed=st.none() | st.integers(0, (1 << 64) - 1),
    step=st.sampled_from([0, 7, (1 << 40) + 1]),
    row_offset=st.sampled_from([0, 1, (1 << 32) - 20]),
    limits=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (0.5, -0.3)]),
    dtype=st.sampled_from(DTYPES),
)
def test_agrees_with_the_reference(
    shape: tuple[int, int, int], index: list[int], flip_seed: int | None, step: int, row_offset: int,
    limits: tuple[float, float], dtype: torch.dtype,
) -> None:  # fmt: skip
    seed = None if flip_seed is None else torch.tensor(signed64(flip_seed))
    arguments = (
        store(9, *shape), torch.tensor(index, dtype=torch.int64), *limits, seed, torch.tensor(step), row_offset, dtype
    )  # fmt: skip
    assert_same_but_for_rounding(image_batch(*arguments), reference(*arguments))


@pytest.mark.parametrize("flip_seed", [None, 3])
def test_images_larger_than_one_program_agree(flip_seed: int | None) -> None:
    seed = None if flip_seed is None else torch.tensor(flip_seed)
    arguments = (store(2, 70, 65, 3), torch.tensor([1, 0, 1]), -1.0, 1.0, seed, torch.tensor(0), 0, torch.float32)
    assert_same_but_for_rounding(image_batch(*arguments), reference(*arguments))


def test_both_mirrored_and_upright_rows_occur() -> None:
    images = store(1, 4, 4, 1)
    batch = image_batch(images, torch.zeros(64, dtype=torch.int64), 0.0, 255.0, torch.tensor(1), torch.tensor(0), 0,
                        torch.float32)  # fmt: skip
    upright = (batch == images.float().permute(0, 3, 1, 2)).flatten(1).all(1)
    mirrored = (batch == images.flip(2).float().permute(0, 3, 1, 2)).flatten(1).all(1)
    assert bool((upright ^ mirrored).all()) and 16 < int(upright.sum()) < 48


@pytest.mark.parametrize("wrong", [-1, 3, 1 << 40])
def test_an_index_out_of_range_reads_nothing_and_gives_nan(wrong: int) -> None:
    index = torch.tensor([0, wrong, 2])
    batch = image_batch(store(3, 5, 5, 1), index, 0.0, 1.0, torch.tensor(0), torch.tensor(0), 0, torch.float32)
    assert batch[1].isnan().all() and not batch[::2].isnan().any()


def test_an_index_with_gaps_between_its_elements_is_read_with_them() -> None:
    images, index = store(9, 4, 4, 1), torch.arange(8)[::2]
    arguments = (images, index, 0.0, 1.0, None, torch.tensor(0), 0, torch.float32)
    assert_same_but_for_rounding(image_batch(*arguments), reference(*arguments))
