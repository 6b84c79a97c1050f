"""From a resident uint8 store to a normalised batch: gather, flip, normalise, cast, channels-last.

Images that fit in memory are kept as they were decoded, one byte per value, and become floats only in the batch: a
quarter of the memory and of the traffic of a float store.
"""

from __future__ import annotations

import torch

from fastinfogan.errors import UserError
from fastinfogan.ops.arguments import DTYPES, require_on
from fastinfogan.ops.backend import choose, implementation, register_op
from fastinfogan.ops.philox import FLIPS, as_word64, random_words


def image_batch(
    images_u8: torch.Tensor,
    index: torch.Tensor,
    *,
    low: float,
    high: float,
    flip_seed: int | torch.Tensor | None = None,
    step: int | torch.Tensor = 0,
    row_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> torch.Tensor:
    """Rows ``index`` of ``images_u8`` as ``[batch, channels, height, width]`` in ``dtype``, channels-last in memory.

    Args:
        images_u8: uint8 ``[n, height, width, channels]``, contiguous.
        index: int64 ``[batch]``, each in 0 .. n-1.
        low, high: what byte 0 and byte 255 become: the range of the generator's output.
        flip_seed: mirror each row with probability 1/2 by the Philox stream of this seed, ``step`` and global row
            (``row_offset`` + row); None never mirrors.

    Raises:
        UserError: a store that is not contiguous uint8 ``[n, h, w, c]``, an index that is not int64 ``[batch]``,
            an unsupported dtype, or tensors on two devices.
    """
    if images_u8.dtype != torch.uint8 or images_u8.dim() != 4 or not images_u8.is_contiguous():
        raise UserError(
            f"image_batch expected a contiguous uint8 store [n, h, w, c], "
            f"got {images_u8.dtype} {tuple(images_u8.shape)}"
        )
    if index.dtype != torch.int64 or index.dim() != 1:
        raise UserError(f"image_batch expected int64 indices [batch], got {index.dtype} {tuple(index.shape)}")
    require_on("image_batch", "index", index, images_u8.device)
    if dtype not in DTYPES:
        raise UserError(f"images can be float32, bfloat16 or float16, not {dtype}")
    device = images_u8.device
    return _image_batch(
        images_u8,
        index,
        low,
        high,
        None if flip_seed is None else as_word64(flip_seed, device),
        as_word64(step, device),
        row_offset,
        dtype,
        choose(backend, device.type),
    )


def _reference(
    images_u8: torch.Tensor,
    index: torch.Tensor,
    low: float,
    high: float,
    flip_seed: torch.Tensor | None,
    step: torch.Tensor,
    row_offset: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    images = images_u8.index_select(0, index)
    if flip_seed is not None:
        words = random_words(len(index), 1, seed=flip_seed, step=step, stream=FLIPS, row_offset=row_offset)
        mirrored = (words[:, 0] >> 31).bool()[:, None, None, None]
        images = torch.where(mirrored, images.flip(2), images)
    # One multiplication and one addition in fp32, as a kernel would do it, and one rounding to the storage type.
    return (images.float() * ((high - low) / 255.0) + low).to(dtype).permute(0, 3, 1, 2)


@register_op
def _image_batch(
    images_u8: torch.Tensor,
    index: torch.Tensor,
    low: float,
    high: float,
    flip_seed: torch.Tensor | None,
    step: torch.Tensor,
    row_offset: int,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    run = implementation("image_batch", backend, _reference)
    return run(images_u8, index, low, high, flip_seed, step, row_offset, dtype)


@torch.library.register_fake("fastinfogan::image_batch")
def _(images_u8, index, low, high, flip_seed, step, row_offset, dtype, backend):  # type: ignore[no-untyped-def]
    _, height, width, channels = images_u8.shape
    return images_u8.new_empty((len(index), height, width, channels), dtype=dtype).permute(0, 3, 1, 2)
