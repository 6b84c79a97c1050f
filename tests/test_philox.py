"""The stream of random bits: known answers, and the independence that the rest of the project relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan.ops.philox import as_word64, epoch_order, fractions, philox, random_words, signed64

CPU = torch.device("cpu")


def words_of(key: int, counter: tuple[int, int, int, int]) -> list[int]:
    answer = philox(as_word64(key, CPU), tuple(torch.tensor(word) for word in counter))  # type: ignore[arg-type]
    return [int(word) for word in answer]


# The known-answer tests that Random123 (Salmon et al.) ships for philox4x32-10.
@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        (0, (0, 0, 0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            0xFFFFFFFFFFFFFFFF,
            (0xFFFFFFFF,) * 4,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(key: int, counter: tuple[int, int, int, int], answer: list[int]) -> None:
    assert words_of(key, counter) == answer


def test_a_fraction_is_the_upper_24_bits_of_a_word_and_never_1() -> None:
    words = torch.tensor([0, 255, 256, 1 << 31, (1 << 32) - 1])
    assert fractions(words).tolist() == [0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24]
    assert fractions(words).dtype == torch.float32


def draw(rows: int, draws: int, seed: int = 1, step: int = 0, stream: int = 0, row_offset: int = 0) -> torch.Tensor:
    return random_words(
        rows, draws, seed=as_word64(seed, CPU), step=as_word64(step, CPU), stream=stream, row_offset=row_offset
    )


@given(
    group=st.integers(0, 70),
    row=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**56 - 1),
    stream=st.integers(0, 255),
    seed=st.integers(0, 2**64 - 1),
)
@settings(deadline=None, max_examples=50)
def test_counter_words_are_where_the_contract_puts_them(
    group: int, row: int, step: int, stream: int, seed: int
) -> None:
    found = draw(1, 4 * group + 4, seed, step, stream, row)[0, 4 * group :].tolist()
    assert found == words_of(seed, (group, row, step & 0xFFFFFFFF, (stream << 24) | (step >> 32)))


@pytest.mark.parametrize(
    "other", [{"step": 1}, {"step": 2**32}, {"stream": 1}, {"seed": 2}, {"seed": 1 + 2**32}, {"row_offset": 64}]
)
def test_streams_steps_seeds_and_rows_do_not_overlap(other: dict[str, int]) -> None:
    ours, theirs = draw(64, 64), draw(64, 64, **other)
    shared = np.intersect1d(ours.numpy(), theirs.numpy())
    # Two sets of 4,096 words out of 2**32 share 0.004 on average.
    assert len(shared) <= 1


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_64_bit_seed_keeps_its_bits(value: int) -> None:
    assert signed64(value) % 2**64 == value


@given(n=st.integers(0, 500), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**20))
@settings(deadline=None, max_examples=40)
def test_an_epoch_visits_every_image_once(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch, device="cpu")
    assert order.sort().values.tolist() == list(range(n))


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [epoch_order(1000, seed=s, epoch=e, device="cpu") for s in (0, 1) for e in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).float().mean() < 0.02


def test_every_image_is_equally_likely_in_every_place() -> None:
    # 4 images, 6,000 epochs: each of the 24 orders is expected 250 times; chi-square with 23 degrees of freedom
    # exceeds 60 with a probability below 1e-4, and the draw is fixed.
    orders = [tuple(epoch_order(4, seed=3, epoch=epoch, device="cpu").tolist()) for epoch in range(6000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 250.0) ** 2 / 250.0).sum() < 60
