"""Q's head and its rivals: which of several heads on the same trunk is Q's, judged without a label.

The invariance term (:mod:`fastinfogan.invariance`) makes categories of real images, and where a head has settled it
mostly stays. Whether it settles well is chance: it may have two kinds in one category and a third in two, and no small
step leads from there. So Q's head can have rivals, which start elsewhere and learn as it does. Several times the one
that tells most of an image becomes Q, and the worse half of the others variants of it that differ by the large step:
two categories merged that warps take for each other, and one split that may hold two kinds (Ueda et al. 2000, SMEM, for
mixtures). When another head becomes Q, its values are renumbered one to one to fit the codes that G has learnt.

What a head tells is bounded as the paper bounds I(c; G(z, c)) (its equation 4): by the entropy of how often it uses its
values minus the term, which is what it does not know of its answers on the warped image. The term alone prefers what is
easily told apart: two kinds that look alike in one value, and two values for the two ways of writing a third.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.distributed import Average
from fastinfogan.networks import Block, Discriminator
from fastinfogan.ops.philox import seed32

# Of the iterations, after which the best head is Q's; but for the last, variants of it take the worse ones' places.
ROUNDS = (0.15, 0.25, 0.35, 0.45, 0.55)
CLEARLY = 0.97  # times what Q's own head lacks: above it another is not worth what G has to learn anew
APART = 1.0  # of a value's weights' spread, how far from them both halves of it start
LATELY = 50  # iterations over which is averaged how heads stand, what they read, and what they confuse


class Rivalry:
    """How the heads of ``discriminator`` do, and what is done about it between two iterations.

    What is known of them lies in the discriminator's buffers ``standing``, ``readings`` and ``confusions``, so that a
    checkpoint has it. optimiser: whose moments of a head's parameters go where the head goes.
    """

    def __init__(self, discriminator: Discriminator, spec: LatentSpec, optimiser: torch.optim.Optimizer) -> None:
        self.discriminator = discriminator
        self.spec = spec
        self.optimiser = optimiser
        self.heads = discriminator.recognition_heads

    def follow(
        self, terms: torch.Tensor, answers: tuple[torch.Tensor, ...], latents: Latents, average: Average | None
    ) -> None:
        """Count an iteration: the ``terms`` ``[n_heads]`` of the heads, and their ``answers``.

        answers: ``[n_heads, n, spec.head_dim]`` on real images, on those generated of ``latents``, and on warps.
        """
        on_images, on_fakes, on_warped = map(self._probabilities, answers)
        columns = [self.spec.one_hot_columns(code) for code in range(len(self.spec.categorical))]
        given = torch.cat([latents.z[:, of_code] for of_code in columns], 1).float()
        readings, confusions = given.T @ on_fakes / len(given), on_images.mT @ on_warped / on_images.shape[1]
        of_late = [terms.clone(), readings, confusions]
        if average:
            average(of_late)
        for kept, now in zip(self._of_late(), of_late, strict=True):
            kept.lerp_(now, 1 / LATELY)

    def _probabilities(self, answers: torch.Tensor) -> torch.Tensor:
        """``[n_heads, n, k]`` over the values of all categorical codes, from heads' outputs."""
        columns = map(self.spec.logit_columns, range(len(self.spec.categorical)))
        return torch.cat([answers[..., of_code].float().softmax(-1) for of_code in columns], -1)

    def _of_late(self) -> list[torch.Tensor]:
        discriminator = self.discriminator
        return [discriminator.standing, discriminator.readings, discriminator.confusions]

    @torch.no_grad()
    def choose(self) -> tuple[int, list[float]]:
        """Swap Q's head with the best one, if that is clearly better. Waits for the device.

        Statistics and optimiser moments move with a head. Returns the index of the head that became Q (0: no swap), and
        of every head what it lacked before, in nats (:meth:`_lacking`).
        """
        lacking = self._lacking()
        best = lacking.index(min(lacking))
        if lacking[best] >= CLEARLY * lacking[0]:
            return 0, lacking
        for own, taken in zip(self._state(0), self._state(best), strict=True):
            before = own.clone()
            own.copy_(taken)
            taken.copy_(before)
        self._rename()
        return best, lacking

    def _lacking(self) -> list[float]:
        """Nats that each head is short of ln k for each code, the most that its answers can tell of those on a warp.

        The term, plus for each code ln k minus the entropy of how often its k values are answered.
        """
        lacking = self.discriminator.standing.clone()
        for code, k in enumerate(self.spec.categorical):
            columns = self.spec.logit_columns(code)
            used = self.discriminator.confusions[:, columns, columns].sum(-1)
            shares = used / used.sum(-1, keepdim=True)
            lacking += math.log(k) + torch.xlogy(shares, shares).sum(-1)
        found: list[float] = lacking.tolist()
        return found

    def _rename(self) -> None:
        """Have Q's head name each value of a code as G was given it, as far as one name each allows."""
        readings = self.discriminator.readings[0]
        outputs = torch.arange(self.spec.head_dim)
        for code in range(len(self.spec.categorical)):
            columns = self.spec.logit_columns(code)
            _, answered = linear_sum_assignment(readings[columns, columns].cpu(), maximize=True)
            outputs[columns] = columns.start + torch.from_numpy(answered)
        outputs = outputs.to(readings.device)
        values, confusions = outputs[: len(readings)], self.discriminator.confusions[0]
        readings.copy_(readings[:, values])
        confusions.copy_(confusions[values][:, values])
        last = cast(Block, self.heads[0][-1])
        for tensor in (*self._spectral_vectors(last)[:1], *self._learnt(last.linear)):
            if tensor.dim():  # not Adam's count of steps
                tensor.copy_(tensor[outputs])

    @torch.no_grad()
    def vary(self, seed: int) -> None:
        """Make the worse half of the heads, never Q's, variants of Q's, each another one.

        ``seed`` draws what is random in them. Waits for the device.
        """
        lacking = self._lacking()
        worst_first = sorted(range(1, len(self.heads)), key=lambda index: -lacking[index])
        generator = torch.Generator().manual_seed(seed32(seed))
        for number, index in enumerate(worst_first[: len(self.heads) // 2]):
            for own, taken in zip(self._state(index), self._state(0), strict=True):
                own.copy_(taken)
            for code in range(len(self.spec.categorical)):
                self._merge_and_split(index, code, number, generator)

    def _merge_and_split(self, index: int, code: int, number: int, generator: torch.Generator) -> None:
        """Merge two values of a head, and split one: the ``number``-th of those that may hold two kinds.

        1. One kind in two values: the border between them runs through it, and warps cross it. Of all pairs of values
           i, j the merged ones have the largest C_ij / sqrt(C_ii C_jj), with C the confusions of images and warps.
        2. Two kinds in one value: it is used more. First in line is the merged value itself, to be split otherwise, as
           two kinds may also lie across two values; then the others, the most used ones first.
        3. Both halves start from the value's weights, ``APART`` from them on either side in a random direction. Targets
           that are surer than answers let them grow apart, along what warps leave alone.
        """
        columns = self.spec.logit_columns(code)
        confusions = self.discriminator.confusions[index][columns, columns].cpu()
        confusions = confusions + confusions.T
        own = confusions.diag().clamp_min(1e-12).sqrt()
        merged, free = divmod(int((confusions / own / own[:, None]).fill_diagonal_(-1.0).argmax()), len(own))
        most_used = confusions.sum(1).argsort(descending=True, stable=True).tolist()
        in_line = [merged, *(value for value in most_used if value not in (merged, free))]
        merged, free, split = (columns.start + value for value in (merged, free, in_line[number % len(in_line)]))
        bias, weight = sorted(cast(Block, self.heads[index][-1]).linear.parameters(), key=torch.Tensor.dim)
        for parameter in (bias, weight):
            parameter[merged] = (parameter[merged] + parameter[free]) / 2
            parameter[free] = parameter[split]
            if moments := self.optimiser.state.get(parameter):
                moments["exp_avg"][[merged, free, split]] = 0.0
        direction = torch.randn(weight.shape[1], generator=generator).to(weight.device)
        step = APART * weight[split].std() * direction
        weight[free] += step
        weight[split] -= step

    @property
    def retired(self) -> bool:
        """Whether :meth:`retire` was called, in this run or in the one whose checkpoint was loaded. Waits."""
        return bool(self.discriminator.standing[0] < 0)

    @torch.no_grad()
    def retire(self) -> None:
        """Mark the rivals as retired by a standing of -1, which no loss can have, so that a resumed run knows."""
        self.discriminator.standing.fill_(-1.0)

    def _state(self, index: int) -> list[torch.Tensor]:
        """Everything that moves with head ``index``: statistics, buffers, parameters, optimiser moments."""
        head = self.heads[index]
        vectors = [vector for block in head for vector in self._spectral_vectors(cast(Block, block))]
        return [*(kept[index] for kept in self._of_late()), *head.buffers(), *vectors, *self._learnt(head)]

    def _spectral_vectors(self, block: Block) -> tuple[torch.Tensor, ...]:
        """u and v of a weight of spectral norm 1, u first; none of any other."""
        spectral = self.discriminator.spectral
        return () if spectral is None else spectral.vectors_of(block.linear)

    def _learnt(self, module: nn.Module) -> list[torch.Tensor]:
        """The parameters of ``module``, and what the optimiser keeps of them."""
        moments = [self.optimiser.state.get(parameter, {}) for parameter in module.parameters()]
        return [*module.parameters(), *(value for state in moments for value in state.values())]
