"""Small random affine warps of a batch: what a category should not depend on.

For the invariance term of the D phase, which is no part of the paper (see :mod:`fastinfogan.invariance`). Drawn from
the Philox stream like everything else, so a resumed run warps as the unbroken one did.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fastinfogan.codes import LatentSpec
from fastinfogan.ops import sample_latents
from fastinfogan.ops.philox import WARPS

# Half as strong again, 4 and 9 stay mixed on some seeds (bench/NOTES.md).
ROTATION = math.radians(10.0)
SCALE = 0.1
SHIFT = 0.07  # of the image's side
SHEAR = 0.15
# One column a draw. The sampler of latents draws them, in one launch on a GPU.
_DRAWS = LatentSpec(noise=6, codes=())


def random_affine(images: torch.Tensor, *, seed: torch.Tensor, step: torch.Tensor, row_offset: int = 0) -> torch.Tensor:
    """``images`` ``[n, c, h, w]``, each rotated by up to 10 degrees, scaled by up to 10 %, shifted by up to 7 % of its
    side and sheared by up to 0.15, all uniform and independent; what comes in from outside repeats the border.

    ``seed`` and ``step`` are int64 scalars on the device; ``row_offset`` is the first global row.
    """
    drawn = sample_latents(
        _DRAWS, len(images), seed=seed, step=step, stream=WARPS, row_offset=row_offset, device=images.device
    )
    draws = drawn.z.unbind(1)
    angle, shear = ROTATION * draws[0], SHEAR * draws[1]
    scale_x, scale_y = 1.0 + SCALE * draws[2], 1.0 + SCALE * draws[3]
    # affine_grid's coordinates span 2 from border to border.
    shift_x, shift_y = 2.0 * SHIFT * draws[4], 2.0 * SHIFT * draws[5]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # Rotation times shear times scale, as the map from places in the result to places in the image.
    rows = [
        torch.stack([cosine * scale_x, (cosine * shear - sine) * scale_y, shift_x], 1),
        torch.stack([sine * scale_x, (sine * shear + cosine) * scale_y, shift_y], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)
