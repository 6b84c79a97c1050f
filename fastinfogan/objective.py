"""What is minimised, by whom: the D phase and the G/Q phase of InfoGAN as objects.

Chen et al. 2016, Eq. 6: min over G and Q, max over D, of V(D, G) - lambda L_I(G, Q). Each phase owns the parameters
it moves and touches no others. Q is learnt once per iteration, and the switch ``trunk_mi`` says where: in the D phase
on the generated images, with the trunk, as the official code does; or in the G/Q phase on a trunk that stays as it is,
as most ports do. In both, G gets the gradient of L_I through the trunk. ``generator_mi=False`` is the plain GAN of
Figure 1: Q watches, on features that it cannot change.

One term is not the paper's and is off unless asked for. Nothing in L_I ties a category to what people call one kind of
image, and on MNIST a category often ends up as a slant of two digits. ``invariance`` adds to the D phase, on the real
batch, that Q gives an image and the same image turned, scaled or shifted a little the same category, and uses the
categories about as often as the prior of c does: each view's answers, moved towards the prior's frequencies in the
batch, are the targets of the other's (Caron et al. 2020, SwAV, where the frequencies are met exactly). A batch seldom
has as many images of one kind as of another, so to meet them answers are moved that Q is sure of; on MNIST that kept
kinds mixed on some seeds (bench/NOTES.md, with what else was tried). The continuous codes have no part in it. A learnt
prior (:mod:`fastinfogan.prior`) follows the answers.

Where a head has settled it mostly stays, and whether it settles well is chance: with two kinds in one category and a
third in two the term is higher, but no small step lowers it. So Q's head can have ``rivals`` on the same trunk, which
start elsewhere and learn as it does. Several times the one whose term is lowest becomes Q, and the worse half of the
others variants of it that differ by the large step: two categories merged that warps take for each other, and one
split that may hold two kinds (Ueda et al. 2000, SMEM, for mixtures). Where another head becomes Q its values get the
names that G has learnt, as far as both agree. No label is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.networks import Block, Blocks, Discriminator, Generator
from fastinfogan.ops import head_loss
from fastinfogan.ops.head_loss import HeadLoss
from fastinfogan.optimiser import adam_for
from fastinfogan.precision import Precision
from fastinfogan.prior import LearnedPrior

SHARPNESS = 0.2  # of the targets: below 1 they are surer than Q is, and so lead it
PULL = 0.9  # of equal shares on the targets: 0 is none, 1 allows no others
# Under a learnt prior. Sharper, it ends more unequal than the classes are; pulled more, Q's answers hardly differ from
# it, and it stays where it is (bench/NOTES.md).
PRIOR_SHARPNESS, PRIOR_PULL = 0.5, 0.5
# Of the iterations, after which the best head is Q's; but for the last, variants of it take the worse ones' places.
ROUNDS = (0.15, 0.25, 0.35, 0.45, 0.55)
CLEARLY = 0.97  # times the term of Q's own head: above it another is not worth what G has to learn anew
APART = 1.0  # of a value's weights' spread, how far from them both halves of it start
LATELY = 50  # iterations over which a head's standing is averaged
Average = Callable[[list[torch.Tensor]], None]


@dataclass(frozen=True)
class Objective:
    """The switches and weights of one run.

    categorical_weight, continuous_weight: lambda of L_I for each kind of code.
    trunk_mi: the trunk that D and Q share gets the gradient of L_I.
    generator_mi: G gets the gradient of L_I; without it this is a plain GAN that Q observes.
    fixed_std: Q's Gaussians have std 1 instead of a learnt one.
    q_share: share of ``categorical_weight`` with which Q and the trunk learn; G always gets all of it. With
        ``invariance`` it can be less, down to 0, where real images alone decide what a category is, and rivals are not
        held to the categories that G draws for Q's head.
    saturating: G minimises log(1 - D), as Eq. 1 has it, instead of -log D.
    invariance: weight of the cross-entropy between Q's categories on real images and on their warps, all of them in
        about equal use; needs ``trunk_mi``; 0 is the paper's objective.
    """

    categorical_weight: float = 1.0
    continuous_weight: float = 1.0
    trunk_mi: bool = True
    generator_mi: bool = True
    fixed_std: bool = False
    q_share: float = 1.0
    saturating: bool = False
    invariance: float = 0.0

    def code_weights(self, spec: LatentSpec, device: torch.device, share: float = 1.0) -> torch.Tensor:
        """float32 ``[n_codes]`` in the order of ``spec.names``; ``share`` of the categorical ones."""
        weights = [share * self.categorical_weight] * len(spec.categorical) + [self.continuous_weight] * len(
            spec.continuous
        )
        return torch.tensor(weights, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Descent:
    """How a phase's optimiser moves: Adam's learning rate and betas; the rate may be a scalar tensor on the device.

    copies: bfloat16 copies of weights that the networks compute with (:mod:`fastinfogan.matrices`); CPU only.
    average: where several processes train together, replaces tensors by their means over all processes, in place.
    """

    learning_rate: float | torch.Tensor
    betas: tuple[float, float]
    copies: Mapping[nn.Parameter, torch.Tensor] | None = None
    average: Average | None = None


class Phase:
    """A loss, the parameters that it moves, and their optimiser."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        discriminator: Discriminator,
        spec: LatentSpec,
        objective: Objective,
        descent: Descent,
        precision: Precision,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.discriminator = discriminator
        self.spec = spec
        self.objective = objective
        self.precision = precision
        self.scaler = scaler
        self.average = descent.average
        self.optimiser = adam_for(
            parameters, precision.device, lr=descent.learning_rate, betas=descent.betas, copies=descent.copies
        )
        self.code_weights = objective.code_weights(spec, precision.device)
        self.one = torch.ones((), device=precision.device)

    def loss_scale(self) -> torch.Tensor | None:
        """What float16 gradients are multiplied by, read on the device; None in the other formats."""
        return self.scaler.scale(self.one) if self.scaler.is_enabled() else None

    def descend(self, outputs: list[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """One optimiser step from the gradients that the loss op has already computed at the networks' ``outputs``."""
        self.optimiser.zero_grad(set_to_none=True)
        reached = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in reached], [g for _, g in reached])
        if self.average:
            self.average(self.optimiser.gradients())
        self.scaler.step(self.optimiser)


class DiscriminatorPhase(Phase):
    """D learns to tell real from generated; with ``trunk_mi``, Q and the trunk learn to read the code as well."""

    def __init__(
        self,
        discriminator: Discriminator,
        spec: LatentSpec,
        objective: Objective,
        descent: Descent,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        prior: LearnedPrior | None = None,
    ) -> None:
        """``prior``: the generator's, where it is to follow the categories of the real images."""
        self.prior = prior
        parameters = [*discriminator.trunk.parameters(), *discriminator.adversarial_head.parameters()]
        if objective.trunk_mi:
            parameters += discriminator.recognition_head.parameters()
        if objective.invariance:
            parameters += discriminator.rivals.parameters()
        super().__init__(parameters, discriminator, spec, objective, descent, precision, scaler)
        self.let_learn(discriminator.recognition_heads if objective.invariance else [discriminator.recognition_head])

    def let_learn(self, heads: list[Blocks]) -> None:
        """Let ``heads``, Q's and maybe its rivals, and no others learn from now on, each with its share of a weight."""
        self.heads = heads
        objective, device = self.objective, self.precision.device
        self.code_weights = objective.code_weights(self.spec, device, objective.q_share) / len(heads)

    def update(
        self, images: torch.Tensor, fakes: torch.Tensor, latents: Latents, warped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One step on real ``images`` and detached ``fakes``, and on ``warped`` real ones for the invariance term.

        Returns head_loss's loss, real term and fake term, and behind them the term in nats where there is one.
        """
        discriminator = self.discriminator
        kinds = [images.to(fakes.dtype), fakes] + ([] if warped is None else [warped.to(fakes.dtype)])
        with self.precision.autocast():
            # One pass through the layers for all kinds of image; batch norm sees each kind alone.
            features = discriminator.features(torch.cat(kinds), groups=len(kinds))
            logits = discriminator.adversarial(features[: 2 * len(fakes)])
            seen, n_seen = (features[len(fakes) :], 1) if warped is None else (features, 3)
            recognitions = [head(seen, n_seen) for head in self.heads] if self.objective.trunk_mi else []
        real_logits, fake_logits = logits.detach().chunk(2)
        answers = [recognition.detach().chunk(n_seen) for recognition in recognitions]
        # On fakes: alone, or between the real ones and the warps.
        losses = [self._head_loss(real_logits, fake_logits, latents, of_head[n_seen // 2]) for of_head in answers]
        loss = losses[0] if losses else self._head_loss(real_logits, fake_logits, latents, None)
        statistics, outputs, gradients = loss.statistics[:3], [logits, *recognitions], [torch.cat(loss.gradients[:2])]
        gradients += [of_head.gradients[2] for of_head in losses]
        if warped is not None:
            terms, *on_real = self._agreement(answers, latents)
            for index, (before, behind) in enumerate(zip(*on_real, strict=True), start=1):
                gradients[index] = torch.cat([before, gradients[index], behind])
            statistics = torch.cat([statistics, terms[:1]])
        self.descend(outputs, gradients)
        return statistics

    def _head_loss(
        self, real_logits: torch.Tensor, fake_logits: torch.Tensor, latents: Latents, recognition: torch.Tensor | None
    ) -> HeadLoss:
        """D's loss, and that of one head of Q on the generated images."""
        return head_loss(
            self.spec,
            fake_logits,
            real_logits=real_logits,
            recognition=recognition,
            categories=latents.categories,
            continuous=latents.continuous,
            code_weights=self.code_weights,
            fixed_std=self.objective.fixed_std,
            loss_scale=self.loss_scale(),
        )

    def _agreement(
        self, answers: list[tuple[torch.Tensor, ...]], latents: Latents
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The invariance term of each head, and its gradients on the real images and their warps.

        answers: per head, on real images, on those generated of ``latents``, and on warps. How the heads stand, what
        they read in generated images, and a learnt prior follow.
        """
        on_images, on_fakes, on_warped = (torch.stack(views) for views in zip(*answers, strict=True))
        weight = self.objective.invariance / len(self.heads)
        found = invariance(self.spec, on_images, on_warped, weight, self.loss_scale(), self.average, self.prior)
        if len(self.heads) > 1 and self.spec.categorical:
            of_late = [found[0].clone(), self._readings(on_fakes, latents), self._confusions(on_images, on_warped)]
            if self.average:
                self.average(of_late)
            for kept, now in zip(self._of_late(), of_late, strict=True):
                kept.lerp_(now, 1 / LATELY)
        if self.prior is not None:
            self.prior.follow(on_images[0], self.average)
        return found

    def _readings(self, on_fakes: torch.Tensor, latents: Latents) -> torch.Tensor:
        """``[n_heads, k, k]`` over all categorical values: how often G was given one and heads answered the other."""
        columns = [self.spec.one_hot_columns(code) for code in range(len(self.spec.categorical))]
        given = torch.cat([latents.z[:, of_code] for of_code in columns], 1).float()
        return given.T @ self._probabilities(on_fakes) / len(given)

    def _confusions(self, on_images: torch.Tensor, on_warped: torch.Tensor) -> torch.Tensor:
        """``[n_heads, k, k]``: how often heads gave an image the one value and its warp the other."""
        return self._probabilities(on_images).mT @ self._probabilities(on_warped) / on_images.shape[1]

    def _probabilities(self, answers: torch.Tensor) -> torch.Tensor:
        """``[n_heads, n, k]`` over the values of all categorical codes, from heads' outputs."""
        columns = map(self.spec.logit_columns, range(len(self.spec.categorical)))
        return torch.cat([answers[..., of_code].float().softmax(-1) for of_code in columns], -1)

    def _of_late(self) -> list[torch.Tensor]:
        discriminator = self.discriminator
        return [discriminator.standing, discriminator.readings, discriminator.confusions]

    @torch.no_grad()
    def choose_head(self) -> tuple[int, list[float]]:
        """Make Q's head the one that stands best, if it stands clearly better, and Q's the rival that this one was.

        With a head go its statistics and its optimiser's moments. Waits for the device. Returns which head it was, 0
        for Q's own, and how each of them stood, in nats.
        """
        standing: list[float] = self.discriminator.standing.tolist()
        best = standing.index(min(standing))
        if standing[best] >= CLEARLY * standing[0]:
            return 0, standing
        for own, taken in zip(self._state(0), self._state(best), strict=True):
            before = own.clone()
            own.copy_(taken)
            taken.copy_(before)
        self._rename()
        return best, standing

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
        for tensor in self._learnt(cast(Block, self.heads[0][-1]).linear):
            if tensor.dim():  # not Adam's count of steps
                tensor.copy_(tensor[outputs])

    @torch.no_grad()
    def vary_heads(self, seed: int) -> None:
        """Make the worse half of the heads, never Q's, variants of Q's, each another one.

        ``seed`` draws what is random in them. Waits for the device.
        """
        standing: list[float] = self.discriminator.standing.tolist()
        worst_first = sorted(range(1, len(self.heads)), key=lambda index: -standing[index])
        generator = torch.Generator().manual_seed(seed)
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

    def _state(self, index: int) -> list[torch.Tensor]:
        """All that makes the head of that number what it is and become what it will."""
        head = self.heads[index]
        return [*(kept[index] for kept in self._of_late()), *head.buffers(), *self._learnt(head)]

    def _learnt(self, module: nn.Module) -> list[torch.Tensor]:
        """The parameters of ``module``, and what the optimiser keeps of them."""
        moments = [self.optimiser.state.get(parameter, {}) for parameter in module.parameters()]
        return [*module.parameters(), *(value for state in moments for value in state.values())]


def invariance(
    spec: LatentSpec,
    one: torch.Tensor,
    other: torch.Tensor,
    weight: float,
    loss_scale: torch.Tensor | None = None,
    average: Average | None = None,
    prior: LearnedPrior | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How well the categories of Q's outputs ``[n_heads, n, spec.head_dim]`` on two views of the same images agree.

    With p, q the softmaxes of the two and a, b their :func:`leaning` answers, the mean over rows of
    (-sum b log p - sum a log q) / 2, summed over the codes: float32 ``[n_heads]``, nats. With it the gradients of
    ``weight * loss_scale`` times it with respect to ``one`` and ``other``, in their dtype; a and b are constants, so
    that d / d logits of p = (p - b) / 2n. ``average`` lets several processes lean over all their rows. The answers lean
    towards equal shares, or where a ``prior`` is learnt, towards it.
    """
    gradients = [torch.zeros_like(outputs, dtype=torch.float32) for outputs in (one, other)]
    n_heads, n, _ = one.shape
    total = gradients[0].new_zeros(n_heads)
    scale = weight / (2 * n) * (1.0 if loss_scale is None else loss_scale)
    for code in range(len(spec.categorical)):
        columns = spec.logit_columns(code)
        logits = [outputs[..., columns].float() for outputs in (one, other)]
        if prior is None:
            targets = [leaning(own / SHARPNESS, PULL, average=average) for own in logits][::-1]
        else:
            shares = prior.probabilities()[code]
            targets = [leaning(own / PRIOR_SHARPNESS, PRIOR_PULL, shares, average) for own in logits][::-1]
        for own, target, gradient in zip(logits, targets, gradients, strict=True):
            log_probability = torch.log_softmax(own, -1)
            total -= (target * log_probability).sum((1, 2)) / (2 * n)
            gradient[..., columns] = (log_probability.exp() - target) * scale
    return total, gradients[0].to(one.dtype), gradients[1].to(other.dtype)


def leaning(
    scores: torch.Tensor,
    pull: float,
    shares: torch.Tensor | None = None,
    average: Average | None = None,
    rounds: int = 4,
) -> torch.Tensor:
    """Distributions over categories, near the softmax of ``scores`` ``[..., n, k]`` and leaning towards using them over
    the n rows in ``shares`` ``[k]``, equal ones where none are given; with a ``pull`` of 1 they meet them.

    Source: Cuturi 2013 and Caron et al. 2020, section 3.1, for exact shares; Chizat et al. 2018, Scaling algorithms for
    unbalanced transport problems, for those that lean.

    1. The answers are exp(s_ij + v_j - r_i) with scores s, and r such that rows sum to 1.
       Columns sum to n p_j, for n rows and shares p, where v_j = ln(n p_j) - ln sum over i of exp(s_ij - r_i).
    2. Columns that may differ, at the cost of rho times their KL divergence from n p_j where the answers' entropy
       counts 1, have rho / (1 + rho) = ``pull`` times that. So v_j is bounded by how far a category is from its share:
       it moves rows that hesitate and none that Q is sure of, as exact shares do at any price.
    3. The sum in it is the answers' column over exp(v_j); what all columns have in common, ln n, is nothing to a row.
       All in logarithms, so that a category that nothing chooses has a finite v_j too.
    """
    moved = torch.zeros_like(scores[..., :1, :])
    log_shares = moved if shares is None else shares.clamp_min(1e-12).log()
    for _ in range(rounds):
        moved = pull * (log_shares + moved - _log_shares(torch.log_softmax(scores + moved, -1), average))
    return torch.softmax(scores + moved, -1)


def _log_shares(scores: torch.Tensor, average: Average | None) -> torch.Tensor:
    """ln of the columns' sums of exp(``scores``), or, over several processes, of the means of those."""
    shares = torch.logsumexp(scores, -2, keepdim=True)
    if average:
        shares.exp_()
        average([shares])
        shares.log_()
    return shares


class GeneratorPhase(Phase):
    """G learns to pass for real and to make its code readable; without ``trunk_mi``, Q's head learns here."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        spec: LatentSpec,
        objective: Objective,
        descent: Descent,
        precision: Precision,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.prior = generator.prior
        parameters = list(generator.parameters())
        self.frozen = list(discriminator.parameters())
        if not objective.trunk_mi:
            parameters += discriminator.recognition_head.parameters()
            self.frozen = [*discriminator.trunk.parameters(), *discriminator.adversarial_head.parameters()]
        super().__init__(parameters, discriminator, spec, objective, descent, precision, scaler)

    def update(self, fakes: torch.Tensor, latents: Latents) -> torch.Tensor:
        """One step through D and Q on ``fakes`` that carry G's graph.

        Returns head_loss's statistics; where the prior is learnt, with its H(c) in the information and behind it all,
        as the D phase has left it.
        """
        discriminator = self.discriminator
        with _passed_through(self.frozen), self.precision.autocast():
            features = discriminator.features(fakes)
            fake_logits = discriminator.adversarial(features)
            recognition = discriminator.recognition(features if self.objective.generator_mi else features.detach())
        loss = head_loss(
            self.spec,
            fake_logits.detach(),
            recognition=recognition.detach(),
            categories=latents.categories,
            continuous=latents.continuous,
            code_weights=self.code_weights,
            saturating=self.objective.saturating,
            fixed_std=self.objective.fixed_std,
            loss_scale=self.loss_scale(),
        )
        self.descend([fake_logits, recognition], loss.gradients[1:])
        if self.prior is None:
            return loss.statistics
        n_codes = len(self.spec.names)
        rest, information = loss.statistics.split([len(loss.statistics) - n_codes, n_codes])
        return torch.cat([rest, self.prior.corrected(information), self.prior.entropies()])


@contextmanager
def _passed_through(parameters: list[nn.Parameter]) -> Iterator[None]:
    """A forward pass through parameters that the phase does not move: their gradients are not even computed."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
