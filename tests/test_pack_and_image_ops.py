"""Packing codes into the generator's input, and making batches out of bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.ops import image_batch, pack_codes, sample_latents, traversal, unpack_codes
from fastinfogan.ops.philox import FLIPS, as_word64, random_words
from tests.strategies import specs

SPEC = LatentSpec(3, (Categorical(4), Uniform(2), Categorical(2)))


@given(specs(max_noise=16), st.integers(0, 5), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(deadline=None, max_examples=40)
def test_packing_and_unpacking_are_inverse(spec: LatentSpec, rows: int, dtype: torch.dtype) -> None:
    latents = sample_latents(spec, rows, seed=1, step=0, dtype=dtype)
    noise, categories, continuous = unpack_codes(spec, latents.z)
    assert torch.equal(categories, latents.categories)
    assert torch.equal(continuous.float(), latents.continuous)
    assert torch.equal(pack_codes(spec, noise, categories, continuous, dtype), latents.z)


def test_packing_passes_gradients_to_noise_and_continuous_codes() -> None:
    noise, continuous = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    categories = torch.tensor([[1, 0], [3, 1]])
    assert torch.autograd.gradcheck(lambda n, c: pack_codes(SPEC, n, categories, c, torch.float64), (noise, continuous))


@pytest.mark.parametrize(("row", "code", "value"), [(0, 0, 4), (2, 1, 2), (1, 0, -1)])
def test_a_category_out_of_range_is_named_with_its_row(row: int, code: int, value: int) -> None:
    categories = torch.zeros(3, 2, dtype=torch.int64)
    categories[row, code] = value
    with pytest.raises(UserError, match=f"row {row} asks for category {value} of c{code + 1}, which has 0 to"):
        pack_codes(SPEC, torch.zeros(3, 3), categories, torch.zeros(3, 2))


@pytest.mark.parametrize(("name", "shape"), [("noise", (2, 4)), ("categories", (2, 1)), ("continuous", (1, 2))])
def test_a_part_of_the_wrong_shape_is_named(name: str, shape: tuple[int, int]) -> None:
    parts = {"noise": torch.zeros(2, 3), "categories": torch.zeros(2, 2).long(), "continuous": torch.zeros(2, 2)}
    parts[name] = torch.zeros(shape).to(parts[name].dtype)
    with pytest.raises(UserError, match=f"expected {name} of shape"):
        pack_codes(SPEC, **parts)


PARTS = {"noise": torch.zeros(2, 3), "categories": torch.zeros(2, 2).long(), "continuous": torch.zeros(2, 2)}


@pytest.mark.parametrize("op", ["pack_codes", "traversal"])
@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("categories", PARTS["categories"].int(), "categories of int64 indices, got torch.int32"),
        ("noise", PARTS["noise"].long(), "floating point noise, got torch.int64"),
        ("continuous", PARTS["continuous"].to("meta"), "continuous on meta and works on cpu: move one of them"),
    ],
)
def test_a_part_that_no_kernel_could_read_is_named(op: str, name: str, wrong: torch.Tensor, message: str) -> None:
    parts = PARTS | {name: wrong}
    with pytest.raises(UserError, match=f"{op} (expected|got) {message}"):
        if op == "pack_codes":
            pack_codes(SPEC, **parts)
        else:
            traversal(SPEC, **parts, code=0, values=torch.arange(2))


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (torch.tensor(3, dtype=torch.int32), "a seed or step of int64 indices, got torch.int32"),
        (torch.tensor([3]), r"a seed or step of shape \(\), got \(1,\)"),
        (torch.tensor(3, device="meta"), "a seed or step on meta and works on cpu"),
    ],
)
def test_a_seed_that_is_no_word_on_the_device_is_refused(seed: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_latents(SPEC, 4, seed=seed, step=0)
    with pytest.raises(UserError, match=message):
        sample_latents(SPEC, 4, seed=0, step=seed)


def test_an_index_on_another_device_than_the_images_is_refused() -> None:
    store = torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    with pytest.raises(UserError, match="image_batch got index on meta and works on cpu"):
        image_batch(store, torch.zeros(1, dtype=torch.int64, device="meta"), low=0.0, high=1.0)


def test_unpacking_another_layout_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected z of shape \(n, 11\), got \(2, 12\)"):
        unpack_codes(SPEC, torch.zeros(2, 12))


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3])),
    st.lists(st.integers(0, 5), max_size=8),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_image_batch_gathers_mirrors_and_normalises(
    shape: tuple[int, int, int, int],
    rows: list[int],
    bounds: tuple[float, float],
    dtype: torch.dtype,
    flip: bool,
) -> None:
    low, high = bounds
    store = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([row % shape[0] for row in rows], dtype=torch.int64)
    images = image_batch(store, index, low=low, high=high, flip_seed=5 if flip else None, step=7, dtype=dtype)
    assert images.shape == (len(rows), shape[3], shape[1], shape[2]) and images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    words = random_words(
        len(rows), 1, seed=as_word64(5, store.device), step=as_word64(7, store.device), stream=FLIPS, row_offset=0
    )
    for row, image in enumerate(images):
        expected = store[index[row]].numpy().astype(np.float64)
        if flip and words[row, 0] >= 2**31:
            expected = expected[:, ::-1]
        expected = low + (high - low) * expected / 255
        np.testing.assert_allclose(
            image.float().permute(1, 2, 0).numpy(), expected, atol=1e-6 if dtype == torch.float32 else 4e-3
        )


def test_about_half_of_the_rows_are_mirrored_anew_at_each_step() -> None:
    store = torch.tensor([[[[0], [255]]]], dtype=torch.uint8)
    index = torch.zeros(1000, dtype=torch.int64)
    one, two = (image_batch(store, index, low=0.0, high=1.0, flip_seed=1, step=step)[:, 0, 0, 0] for step in (0, 1))
    assert 400 < one.sum() < 600
    assert 400 < (one != two).sum() < 600


def test_mirroring_does_not_depend_on_the_split_over_ranks() -> None:
    store = torch.randint(0, 256, (8, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(8)
    whole = image_batch(store, index, low=0.0, high=1.0, flip_seed=1)
    second = image_batch(store, index[4:], low=0.0, high=1.0, flip_seed=1, row_offset=4)
    assert torch.equal(whole[4:], second)


@pytest.mark.parametrize(
    ("store", "index", "message"),
    [
        (torch.zeros(2, 4, 4, 1), torch.zeros(1).long(), "contiguous uint8 store"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), "contiguous uint8 store"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8).permute(0, 2, 3, 1)[:, ::2], torch.zeros(1).long(), "contiguous"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(1), "int64 indices"),
    ],
)
def test_what_is_no_store_or_no_index_is_refused(store: torch.Tensor, index: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_batch(store, index, low=0.0, high=1.0)
