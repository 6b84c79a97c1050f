"""The one stream of random bits: Philox4x32-10 (Salmon et al., SC 2011), in plain PyTorch.

Every random draw of a run (latents, shuffling, flips, warps) is a pure function of the seed and of where it is used, so
a resumed run, a run split over eight devices and a replayed CUDA graph see the same numbers, and there is no generator
state to save. Words are held in int64 tensors, whose wrapping product has the right low 64 bits.
"""

from __future__ import annotations

import torch

from fastinfogan.ops.arguments import require

# The stream is the top byte of the fourth counter word: one for each thing that draws.
LATENTS, SHUFFLE, FLIPS, EVALUATION, FIGURES, WARPS, WEIGHTS = range(7)
PRIORS = 128  # is added to the stream of the latents whose categories a learnt prior draws

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def signed64(value: int) -> int:
    """The int64 with the bits of ``value`` modulo 2**64: how a 64-bit seed is put into a tensor."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def seed32(seed: int) -> int:
    """Of a 64-bit ``seed`` one for torch's generator on the CPU, which reads 32 bits; below 2**32 ``seed`` itself."""
    if seed < 1 << 32:
        return seed
    key, zero = (torch.tensor(signed64(value)) for value in (seed, 0))
    return int(philox(key, (zero, zero, zero, torch.tensor(WEIGHTS << 24)))[0])


def as_word64(value: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A seed or step as an int64 scalar on ``device``; a tensor that is there already is not touched.

    Raises:
        UserError: a tensor that is no int64 scalar, or lies elsewhere.
    """
    if isinstance(value, torch.Tensor):
        require("the random stream", "a seed or step", value, (), device, "index")
        return value
    return torch.full((), signed64(value), dtype=torch.int64, device=device)


def philox(key: torch.Tensor, counter: Words) -> Words:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words, broadcast together.

    ``key`` is an int64 scalar, the 64-bit seed. Known answer: key 0, counter 0 gives
    6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    """
    key0, key1 = key & _MASK, (key >> 32) & _MASK
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) & _MASK) ^ c1 ^ key0, ((product0 >> 32) & _MASK) ^ c3 ^ key1
        c1, c3 = product1 & _MASK, product0 & _MASK
        key0, key1 = (key0 + _KEY_STEPS[0]) & _MASK, (key1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def random_words(
    rows: int, draws: int, *, seed: torch.Tensor, step: torch.Tensor, stream: int, row_offset: int
) -> torch.Tensor:
    """32-bit words of draws 0 .. draws - 1 for global rows from ``row_offset``: int64 ``[rows, 4 * groups]``.

    Counter: (group of four draws, global row, low word of the step, stream << 24 | bits 32..55 of the step); draw d is
    word ``d % 4`` of group ``d // 4``, so the columns past ``draws`` complete the last group. ``seed`` and ``step`` are
    int64 scalars on the device.
    """
    groups = -(-draws // 4)
    device = seed.device
    group = torch.arange(groups, device=device)[None, :]
    row = (torch.arange(rows, device=device)[:, None] + row_offset) & _MASK
    high = ((step >> 32) & 0xFFFFFF) | (stream << 24)
    words = philox(seed, (group, row, step & _MASK, high))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).reshape(rows, 4 * groups)


def fractions(words: torch.Tensor) -> torch.Tensor:
    """32-bit words as float32 in [0, 1), in steps of 2**-24: their upper 24 bits, all that a float32 can hold."""
    return (words >> 8).float() * 2.0**-24


def epoch_order(n: int, *, seed: int, epoch: int, device: torch.device | str) -> torch.Tensor:
    """The order in which epoch number ``epoch`` visits ``n`` images: int64 ``[n]``, a permutation.

    Sorting one 62-bit Philox key per image is uniform over all orders, unlike a shuffle buffer, and the same on every
    device and for any number of ranks.
    """
    device = torch.device(device)
    words = random_words(
        n, 2, seed=as_word64(seed, device), step=as_word64(epoch, device), stream=SHUFFLE, row_offset=0
    )
    return torch.argsort((words[:, 0] >> 2 << 32) | words[:, 1], stable=True)
