"""The prior of the categorical codes, learnt along with the networks: for data whose classes are not equally frequent.

With c ~ Cat(K) uniform, G must make as many images of a rare class as of a frequent one, or split the frequent one
over several values; the second is what happens. A prior that can move (Ojha et al. 2020, Elastic-InfoGAN) needs a
signal that says where to. Theirs is the gradient of G's loss through a Gumbel-Softmax sample of c (Jang et al. 2017).
It was tried here and did not find the frequencies, also where the categories were right already (bench/NOTES.md): it
follows how well G happens to draw a value. What does find them is Q on real images:

1. G is a mixture, p(x) = sum over k of p_k G_k(x), and Q, learnt on its samples, estimates the posterior Q(k|x) of the
   component. With all else held, the likelihood of real images rises with the step of expectation maximisation,
   p_k <- mean over real x of Q(k|x), and stands still where p is that mean already.
2. Images come in batches, so that p goes RATE of the way to the batch's mean at each iteration. No gradient and no
   optimiser moves it: L_I = H(c) + E[log Q(c|x)] would pull it away from the data, H(c) towards equal frequencies and
   E[log Q(c|x)] towards a single value. The bound that is reported counts the H(c) that p has.
3. Q's answers on real images are worth asking only where real images take part in deciding them, so the option needs
   the invariance term. Its answers lean towards p (:func:`fastinfogan.invariance.leaning`): with exact shares of p
   their mean hardly differs from p, whatever p is. And p is slow, for a category that is rare in p is also rare among
   the answers: it stays nearly equal until the categories have found their images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.distributed import Average
from fastinfogan.ops import sample_latents
from fastinfogan.ops.philox import LATENTS, PRIORS, as_word64

RATE = 0.003  # 300 iterations to come two thirds of the way: a prior three times as fast lost half of the categories


class LearnedPrior(nn.Module):
    """How often each value of each categorical code of ``spec`` occurs; all equally often at first.

    frequencies: float32 ``[sum of all k]``, the codes' probabilities one after the other, as their one-hot columns lie.
    """

    frequencies: torch.Tensor

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec
        # One column a categorical code. The sampler of latents draws them, in one launch on a GPU.
        self.draws = LatentSpec(noise=len(spec.categorical), codes=())
        self.register_buffer("frequencies", torch.cat([torch.full((k,), 1.0 / k) for k in spec.categorical]))

    def probabilities(self) -> tuple[torch.Tensor, ...]:
        """float32 ``[k]`` of each code."""
        return self.frequencies.split(self.spec.categorical)

    def entropies(self) -> torch.Tensor:
        """H(c) of each categorical code in nats: float32 ``[n_categorical]``."""
        return torch.stack([torch.special.entr(of_code).sum() for of_code in self.probabilities()])

    def corrected(self, information: torch.Tensor) -> torch.Tensor:
        """``information`` ``[n_codes]`` of :func:`fastinfogan.ops.head_loss`, which counts H(c) = ln K, with ours."""
        surplus = [own - math.log(k) for own, k in zip(self.entropies(), self.spec.categorical, strict=True)]
        return information + F.pad(torch.stack(surplus), (0, len(self.spec.continuous)))

    @torch.no_grad()
    def follow(self, answers: torch.Tensor, average: Average | None = None, rate: float = RATE) -> None:
        """Go ``rate`` of the way to the mean posterior of Q's ``answers`` ``[n, spec.head_dim]`` on real images.

        ``average``: where several processes train together, replaces tensors by their means over all of them.
        """
        logits = answers[:, : len(self.frequencies)].float().split(self.spec.categorical, 1)
        seen = torch.cat([torch.softmax(of_code, 1).mean(0) for of_code in logits])
        if average:
            average([seen])
        self.frequencies.lerp_(seen, rate)

    def redraw(
        self, latents: Latents, *, seed: torch.Tensor, step: torch.Tensor, stream: int, row_offset: int
    ) -> Latents:
        """``latents`` with categories of this prior; see :func:`draw_latents`."""
        spec, rows = self.spec, len(latents.z)
        # Halving and shifting is exact.
        drawn = sample_latents(
            self.draws, rows, seed=seed, step=step, stream=PRIORS + stream, row_offset=row_offset, device=seed.device
        )
        uniform = (drawn.z + 1.0) / 2.0
        one_hots, categories = [], []
        for code, probabilities in enumerate(self.probabilities()):
            # The inverse of the distribution function; its last value is 1 but for rounding, and no draw is beyond it.
            category = (uniform[:, code : code + 1] >= probabilities.cumsum(0)[:-1]).sum(1)
            one_hots.append(category[:, None] == torch.arange(len(probabilities), device=category.device))
            categories.append(category)
        z = torch.cat([latents.z[:, : spec.noise], *one_hots, latents.z[:, spec.continuous_columns]], 1)
        return Latents(z, torch.stack(categories, 1), latents.continuous)


def draw_latents(
    spec: LatentSpec,
    rows: int,
    prior: LearnedPrior | None,
    *,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    stream: int = LATENTS,
    row_offset: int = 0,
    device: torch.device,
) -> Latents:
    """:func:`fastinfogan.ops.sample_latents` in float32, with categories of ``prior`` where there is one.

    They are drawn on the device, from a stream of their own: a function of the prior, seed, step and global row.
    """
    latents = sample_latents(
        spec, rows, seed=seed, step=step, stream=stream, row_offset=row_offset, device=device, dtype=torch.float32
    )
    if prior is None:
        return latents
    seed, step = as_word64(seed, device), as_word64(step, device)
    return prior.redraw(latents, seed=seed, step=step, stream=stream, row_offset=row_offset)
