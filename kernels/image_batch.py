"""Gather rows of a resident uint8 store, mirror some, normalise, cast and write channels-last, in one launch.

Reads ``n * h * w * c`` bytes of images and ``8 n`` of indices, writes ``n * h * w * c * b`` bytes for a storage type of
b bytes; nothing is kept between.

Derivation:

1. byte -> low + byte * (high - low) / 255, one multiplication and one addition in fp32, each rounded (no fused
   multiply-add, so the bits are the reference's), then one rounding to the storage type.
2. The store is [n, h, w, c] and the result channels-last: the same order, so an image is one run of h * w * c values.
3. A row is mirrored if the top bit of word 0 of its Philox call is set. Value e of an image lies at
   x = (e mod wc) div c, and its mirror image at e + c * (w - 1 - 2 x).

An index outside 0 .. n-1 reads nothing and makes its image NaN.
"""

import torch
import triton
import triton.language as tl
from fastinfogan.kernels.philox import words_of


@triton.jit(do_not_specialize=["n_images", "row_offset", "stream"])
def _image_batch_kernel(
    batch_ptr, images_ptr, index_ptr, flip_seed_ptr, step_ptr, n_images, row_offset, stream, slope, low,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    index = tl.load(index_ptr + row)
    valid = (index >= 0) & (index < n_images)
    source_ptr = images_ptr + tl.where(valid, index, 0) * SIZE
    vector = tl.program_id(1) * VECTORS + tl.arange(0, VECTORS)[:, None]
    value = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    mask = value < SIZE
    if flip_seed_ptr is not None:
        word, _, _, _ = words_of(tl.to_tensor(0), row_offset + row, flip_seed_ptr, step_ptr, stream)
        # The whole program takes one side: only mirrored images are read byte by byte, and those in full sectors too.
        if (word >> 31) == 1:
            x = (value % (WIDTH * CHANNELS)) // CHANNELS
            pixels = tl.load(source_ptr + value + CHANNELS * (WIDTH - 1 - 2 * x), mask=mask & valid, other=0)
        else:
            pixels = tl.load(source_ptr + value, mask=mask & valid, other=0)
    else:
        pixels = tl.load(source_ptr + value, mask=mask & valid, other=0)
    slope = tl.where(valid, slope, float("nan"))
    tl.store(batch_ptr + row.to(tl.int64) * SIZE + value, pixels.to(tl.float32) * slope + low, mask=mask)


# Settings. One program an image, so that gather and mirroring are uniform in it; 16 bytes a lane (128 bits), fewer
# where the image's size is no multiple of 16, and as many warps as that takes, at most 8. Images over 8,192 values are
# cut into parts.
_VECTOR = 16
_MAX_VALUES = 8192
_MAX_WARPS = 8
_STREAM_OF_FLIPS = 2


def image_batch(
    images_u8: torch.Tensor,
    index: torch.Tensor,
    low: float,
    high: float,
    flip_seed: torch.Tensor | None,
    step: torch.Tensor,
    row_offset: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One launch of the kernel; arguments and result are those of ``fastinfogan.ops.image_batch._reference``."""
    n_images, height, width, channels = images_u8.shape
    size = height * width * channels
    batch = images_u8.new_empty((len(index), height, width, channels), dtype=dtype)
    if batch.numel():
        index = index.contiguous()
        vector = _VECTOR
        while size % vector:
            vector //= 2
        vectors = triton.next_power_of_2(triton.cdiv(min(size, _MAX_VALUES), vector))
        with torch.cuda.device_of(images_u8):
            _image_batch_kernel[(len(index), triton.cdiv(size, vectors * vector))](
                batch, images_u8, index, flip_seed, step, n_images, (row_offset + (1 << 31)) % (1 << 32) - (1 << 31),
                _STREAM_OF_FLIPS, (high - low) / 255.0, low,
                SIZE=size, WIDTH=width, CHANNELS=channels, VECTORS=vectors, VECTOR=vector,
                num_warps=min(_MAX_WARPS, max(1, vectors // 32)), enable_fp_fusion=False,
            )  # fmt: skip
    return batch.permute(0, 3, 1, 2)
