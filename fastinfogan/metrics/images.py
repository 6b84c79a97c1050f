"""Images for the metrics: real ones batched as the networks take them, generated ones as bytes like the real ones.

Generated images are rounded to the bytes that a file would hold before anything measures them: what is compared is
images with images, and no feature network can tell the two apart by their number format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.networks import Generator
from fastinfogan.ops import image_batch
from fastinfogan.ops.philox import EVALUATION
from fastinfogan.prior import draw_latents

BATCH = 500

Range = tuple[float, float]


class Generated(NamedTuple):
    """Generated images and the codes they were made from, on the CPU.

    pixels: uint8 ``[n, h, w, c]``; categories: int64 ``[n, n_categorical]``; continuous: float32 ``[n, n_continuous]``.
    """

    pixels: torch.Tensor
    categories: torch.Tensor
    continuous: torch.Tensor


def image_batches(pixels: torch.Tensor, image_range: Range, device: torch.device) -> Iterator[torch.Tensor]:
    """``pixels`` uint8 ``[n, h, w, c]`` as float32 images ``[<= 500, c, h, w]`` in ``image_range`` on ``device``.

    As few batches as that takes, all of a size but for one image: a rest of a few would count as much as 500 where
    statistics are averaged over batches, and batch norm has none of a single image.
    """
    low, high = image_range
    for part in pixels.tensor_split(max(1, -(-len(pixels) // BATCH))):
        on_device = part.to(device)
        yield image_batch(on_device, torch.arange(len(part), device=device), low=low, high=high)


def as_pixels(images: torch.Tensor, image_range: Range) -> torch.Tensor:
    """Images ``[n, c, h, w]`` in ``image_range`` as uint8 ``[n, h, w, c]``, rounded and clamped."""
    low, high = image_range
    scaled = (images.float() - low) * (255.0 / (high - low))
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.inference_mode()
def render(generator: Generator, z: torch.Tensor, image_range: Range) -> torch.Tensor:
    """What G in eval mode makes of latents ``[n, spec.dim]``: uint8 ``[n, h, w, c]`` on the CPU."""
    was_training = generator.training
    generator.eval()
    pixels = torch.cat([as_pixels(generator(part), image_range).cpu() for part in z.split(BATCH)])
    generator.train(was_training)
    return pixels


def generated(generator: Generator, spec: LatentSpec, n: int, *, seed: int, image_range: Range) -> Generated:
    """``n`` images of latents from the evaluation stream, which training never draws."""
    device = next(generator.parameters()).device
    latents = draw_latents(spec, n, generator.prior, seed=seed, step=0, stream=EVALUATION, device=device)
    pixels = render(generator, latents.z, image_range)
    return Generated(pixels, latents.categories.cpu(), latents.continuous.cpu())
