"""Draw one batch of latents: noise, one-hots and continuous codes in the generator's layout, and Q's targets.

A step needs the generator's input and the targets that lie in it. Drawing both from one counter-based stream keeps
them equal by construction, and lets a captured graph draw anew at each replay: seed and step are read on the device.
Source: Chen et al. 2016, section 5 and appendix C (priors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES
from fastinfogan.ops.backend import choose, constant, implementation, register_op
from fastinfogan.ops.philox import LATENTS, as_word64, fractions, random_words

_MAX_ROW = 1 << 32


def sample_latents(
    spec: LatentSpec,
    batch: int,
    *,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    stream: int = LATENTS,
    row_offset: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Latents:
    """The latents of global rows ``row_offset .. row_offset + batch - 1`` at ``step``.

    Args:
        spec: the columns and their priors.
        batch: rows to draw; 0 is allowed.
        seed, step: 64-bit integers, or int64 scalars on ``device``, which are then read there (graph capture).
        stream: 0 to 255; one for each use, see :mod:`fastinfogan.ops.philox`.
        row_offset: this rank's first row, ``rank * batch``, so that ranks together draw what one process would.
        dtype: of ``z``: float32, bfloat16 or float16.

    Returns:
        ``Latents(z [batch, spec.dim] dtype, categories int64 [batch, n_categorical],
        continuous float32 [batch, n_continuous])``; the targets are what ``z`` holds after rounding.

    Raises:
        UserError: negative batch, unsupported dtype, stream or row out of range, unknown backend, or a seed or step
            that is a tensor of another kind or elsewhere.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        raise UserError(f"latents can be float32, bfloat16 or float16, not {dtype}")
    if batch < 0 or row_offset < 0 or row_offset + batch > _MAX_ROW:
        raise UserError(f"rows {row_offset} to {row_offset + batch} are outside 0 to 2**32: lower batch or row_offset")
    if not 0 <= stream <= 255:
        raise UserError(f"stream must be 0 to 255, got {stream}")
    return Latents(
        *_sample_latents(
            as_word64(seed, device),
            as_word64(step, device),
            batch,
            spec.noise,
            spec.noise_prior == "normal",
            spec.categorical,
            [prior == "normal" for prior in spec.continuous],
            stream,
            row_offset,
            dtype,
            choose(backend, device.type),
        )
    )


def _uniform(words: torch.Tensor) -> torch.Tensor:
    return 2.0 * fractions(words) - 1.0


def _normal(words: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Box-Muller on the pair of words that holds each draw: the even draw takes the cosine, the odd one the sine."""
    even = draws & ~1
    radius = torch.sqrt(-2.0 * torch.log(((words[:, even] >> 8) + 1).float() * 2.0**-24))
    angle = 2.0 * math.pi * fractions(words[:, even + 1])
    return radius * torch.where((draws & 1).bool(), torch.sin(angle), torch.cos(angle))


def _draw(words: torch.Tensor, draws: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    return torch.where(normal, _normal(words, draws), _uniform(words[:, draws]))


def _reference(
    seed: torch.Tensor,
    step: torch.Tensor,
    batch: int,
    noise: int,
    noise_normal: bool,
    categorical: Sequence[int],
    continuous_normal: Sequence[bool],
    stream: int,
    row_offset: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    device = seed.device
    draws = noise + len(categorical) + len(continuous_normal)
    words = random_words(batch, draws, seed=seed, step=step, stream=stream, row_offset=row_offset)
    number = torch.arange(draws, device=device)

    noise_values = _draw(words, number[:noise], torch.full((noise,), noise_normal, device=device)).to(dtype)

    sizes = constant(tuple(categorical), torch.int64, device)
    categories = (words[:, noise : noise + len(categorical)] * sizes) >> 32
    one_hots = [torch.nn.functional.one_hot(categories[:, i], k).to(dtype) for i, k in enumerate(categorical)]

    normal = constant(tuple(continuous_normal), torch.bool, device)
    continuous = _draw(words, number[noise + len(categorical) :], normal).to(dtype)
    return torch.cat([noise_values, *one_hots, continuous], dim=1), categories, continuous.float()


@register_op
def _sample_latents(
    seed: torch.Tensor,
    step: torch.Tensor,
    batch: int,
    noise: int,
    noise_normal: bool,
    categorical: Sequence[int],
    continuous_normal: Sequence[bool],
    stream: int,
    row_offset: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    run = implementation("sample_latents", backend, _reference)
    return run(seed, step, batch, noise, noise_normal, categorical, continuous_normal, stream, row_offset, dtype)


@torch.library.register_fake("fastinfogan::sample_latents")
def _(seed, step, batch, noise, noise_normal, categorical, continuous_normal, stream, row_offset, dtype, backend):  # type: ignore[no-untyped-def]
    dim = noise + sum(categorical) + len(continuous_normal)
    return (
        seed.new_empty((batch, dim), dtype=dtype),
        seed.new_empty((batch, len(categorical)), dtype=torch.int64),
        seed.new_empty((batch, len(continuous_normal)), dtype=torch.float32),
    )
