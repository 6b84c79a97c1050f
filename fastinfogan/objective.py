"""What is minimised, by whom: the D phase and the G/Q phase of InfoGAN as objects.

Chen et al. 2016, Eq. 6: min over G and Q, max over D, of V(D, G) - lambda L_I(G, Q). Each phase owns the parameters
it moves and touches no others. Q is learnt once per iteration, and the switch ``trunk_mi`` says where: in the D phase
on the generated images, with the trunk, as the official code does; or in the G/Q phase on a trunk that stays as it is,
as most ports do. In both, G gets the gradient of L_I through the trunk. ``generator_mi=False`` is the plain GAN of
Figure 1: Q watches, on features that it cannot change.

One term is not the paper's and is off unless asked for: ``invariance`` (:mod:`fastinfogan.invariance`) joins the D
phase and ties the categories to real images. Q's head can then have ``rivals`` (:mod:`fastinfogan.rivals`), which learn
beside it. A learnt prior (:mod:`fastinfogan.prior`) follows the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastinfogan.casts import autocast
from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.distributed import Average
from fastinfogan.heads import answers
from fastinfogan.invariance import invariance
from fastinfogan.networks import Blocks, Discriminator, Generator
from fastinfogan.ops import head_loss
from fastinfogan.ops.head_loss import HeadLoss
from fastinfogan.optimiser import adam_for
from fastinfogan.precision import Precision
from fastinfogan.prior import LearnedPrior
from fastinfogan.rivals import Rivalry


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
        self.rivalry = Rivalry(discriminator, spec, self.optimiser)
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

        Returns float32 ``[3]``: head_loss's loss, real term and fake term; with ``warped`` ``[4]``, the invariance term
        in nats last.
        """
        discriminator = self.discriminator
        kinds = [images.to(fakes.dtype), fakes] + ([] if warped is None else [warped.to(fakes.dtype)])
        parts = [discriminator.trunk, discriminator.adversarial_head, *(self.heads if self.objective.trunk_mi else [])]
        with autocast(self.precision, *parts):
            # One pass through the layers for all kinds of image; batch norm sees each kind alone.
            features = discriminator.features(torch.cat(kinds), groups=len(kinds))
            logits = discriminator.adversarial(features[: 2 * len(fakes)])
            seen, n_seen = (features[len(fakes) :], 1) if warped is None else (features, 3)
            recognitions = answers(self.heads, seen, n_seen) if self.objective.trunk_mi else None
        if recognitions is None:
            loss = self._head_loss(logits, latents, None)
            self.descend([logits], [torch.cat(loss.gradients[:2])])
            return loss.statistics[:3]
        of_heads = recognitions.detach().unflatten(1, (n_seen, -1)).unbind(1)
        on_fakes = of_heads[n_seen // 2]  # alone, or between the real ones and the warps
        loss = self._head_loss(logits, latents, on_fakes[0])
        statistics, gradient = loss.statistics[:3], loss.gradients[2][None]
        if len(on_fakes) > 1:
            gradient = torch.cat([gradient, self._gradients_of_rivals(latents, on_fakes[1:])])
        if warped is not None:
            terms, before, behind = self._agreement(of_heads, latents)
            gradient = torch.cat([before, gradient, behind], 1)
            statistics = torch.cat([statistics, terms[:1]])
        self.descend([logits, recognitions], [torch.cat(loss.gradients[:2]), gradient])
        return statistics

    def _head_loss(self, logits: torch.Tensor, latents: Latents, recognition: torch.Tensor | None) -> HeadLoss:
        """D's loss, and that of Q's head on the generated images; ``logits`` on real images, then on those."""
        real_logits, fake_logits = logits.detach().chunk(2)
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

    def _gradients_of_rivals(self, latents: Latents, on_fakes: torch.Tensor) -> torch.Tensor:
        """Of the rivals' losses on generated images, with respect to their outputs ``on_fakes``
        ``[n_rivals, n, head_dim]``: as the rows of one batch, whose mean they are times their number.
        """
        n_rivals = len(on_fakes)
        recognition = on_fakes.flatten(0, 1)
        loss = head_loss(
            self.spec,
            recognition.new_zeros(len(recognition)),
            recognition=recognition,
            categories=latents.categories.repeat(n_rivals, 1),
            continuous=latents.continuous.repeat(n_rivals, 1),
            code_weights=self.code_weights * n_rivals,
            fixed_std=self.objective.fixed_std,
            loss_scale=self.loss_scale(),
        )
        return loss.gradients[2].view(on_fakes.shape)

    def _agreement(
        self, of_heads: tuple[torch.Tensor, ...], latents: Latents
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The invariance term of each head, and its gradients on the real images and their warps.

        of_heads: their answers ``[n_heads, n, head_dim]`` on real images, on those generated of ``latents``, and on
        warps. What is known of the heads, and a learnt prior, follow.
        """
        on_images, on_fakes, on_warped = of_heads
        weight = self.objective.invariance / len(self.heads)
        found = invariance(self.spec, on_images, on_warped, weight, self.loss_scale(), self.average, self.prior)
        if len(self.heads) > 1 and self.spec.categorical:
            self.rivalry.follow(found[0], (on_images, on_fakes, on_warped), latents, self.average)
        if self.prior is not None:
            self.prior.follow(on_images[0], self.average)
        return found


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
        self.code_weights = objective.code_weights(spec, precision.device)

    def update(self, fakes: torch.Tensor, latents: Latents) -> torch.Tensor:
        """One step through D and Q on ``fakes`` that carry G's graph.

        Returns head_loss's statistics, float32 ``[3 + 2 * n_codes]``. With a learnt prior the information counts the
        prior's own H(c), and these entropies, ``[n_categorical]``, as the D phase left them, follow at the end.
        """
        discriminator = self.discriminator
        parts = (discriminator.trunk, discriminator.adversarial_head, discriminator.recognition_head)
        with _passed_through(self.frozen), autocast(self.precision, *parts):
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
