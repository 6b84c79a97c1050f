"""The variational lower bound of the mutual information I(c; G(z, c)), per code, in nats (paper, Eq. 4).

H(c) + E[log Q(c|x)]: at most ln K for a categorical code, and less where the learnt prior that it is drawn from is not
uniform. For a continuous code Q's density is at most 1 (see :mod:`fastinfogan.ops.head_loss`), so that its bound is at
most H(c) as well: ln 2 on U(-1, 1).
"""

from __future__ import annotations

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.metrics.batchnorm import recalibrated
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.ops import head_loss
from fastinfogan.ops.philox import EVALUATION
from fastinfogan.prior import draw_latents

BATCH = 500


@torch.inference_mode()
def information_bound(
    generator: Generator, discriminator: Discriminator, spec: LatentSpec, *, seed: int, fixed_std: bool, samples: int
) -> dict[str, float]:
    """The bound of each of ``spec.names`` and their ``total`` in nats, on fresh generated images.

    samples: how many, in whole batches of 500 and at least one. Protocol: G in eval mode; D and Q with batch-norm
    statistics of the first quarter of them; latents from the evaluation stream, which training never draws.
    """
    device = next(generator.parameters()).device
    was_training = generator.training
    generator.eval()
    n_batches = max(1, samples // BATCH)
    draws = [
        draw_latents(spec, BATCH, generator.prior, seed=seed, step=i, stream=EVALUATION, device=device)
        for i in range(n_batches)
    ]
    judge = recalibrated(discriminator, (generator(latents.z) for latents in draws[: max(1, n_batches // 4)]))
    total = torch.zeros(len(spec.names), device=device, dtype=torch.float64)
    for latents in draws:
        logits, recognition = judge(generator(latents.z))
        loss = head_loss(
            spec,
            logits,
            recognition=recognition,
            categories=latents.categories,
            continuous=latents.continuous,
            fixed_std=fixed_std,
        )
        total += loss.information
    generator.train(was_training)
    means = total / n_batches
    if generator.prior is not None:
        means = generator.prior.corrected(means)
    bounds = means.tolist()
    return {**dict(zip(spec.names, bounds, strict=True)), "total": sum(bounds)}
