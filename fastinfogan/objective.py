"""What is minimised, by whom: the D phase and the G/Q phase of InfoGAN as objects.

Chen et al. 2016, Eq. 6: min over G and Q, max over D, of V(D, G) - lambda L_I(G, Q). Each phase owns the parameters
it moves and touches no others. Q is learnt once per iteration, and the switch ``trunk_mi`` says where: in the D phase
on the generated images, with the trunk, as the official code does; or in the G/Q phase on a trunk that stays as it is,
as most ports do. In both, G gets the gradient of L_I through the trunk. ``generator_mi=False`` is the plain GAN of
Figure 1: Q watches, on features that it cannot change.

One term is not the paper's and is off unless asked for. Nothing in L_I ties a category to what people call one kind of
image, and on MNIST a category often ends up as a slant of two digits. ``consistency`` adds to the D phase, on the real
batch, KL(Q(c|x) || Q(c|warp(x))) of the categorical codes, with no gradient through the first: a category may not
change when an image is turned, scaled or shifted a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastinfogan.codes import Latents, LatentSpec
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.ops import head_loss
from fastinfogan.precision import Precision


@dataclass(frozen=True)
class Objective:
    """The switches and weights of one run.

    categorical_weight, continuous_weight: lambda of L_I for each kind of code.
    trunk_mi: the trunk that D and Q share gets the gradient of L_I.
    generator_mi: G gets the gradient of L_I; without it this is a plain GAN that Q observes.
    fixed_std: Q's Gaussians have std 1 instead of a learnt one.
    saturating: G minimises log(1 - D), as Eq. 1 has it, instead of -log D.
    consistency: weight of KL(Q(c|x) || Q(c|warp(x))) on real images; needs ``trunk_mi``; 0 is the paper's objective.
    """

    categorical_weight: float = 1.0
    continuous_weight: float = 1.0
    trunk_mi: bool = True
    generator_mi: bool = True
    fixed_std: bool = False
    saturating: bool = False
    consistency: float = 0.0

    def code_weights(self, spec: LatentSpec, device: torch.device) -> torch.Tensor:
        """float32 ``[n_codes]`` in the order of ``spec.names``."""
        weights = [self.categorical_weight] * len(spec.categorical) + [self.continuous_weight] * len(spec.continuous)
        return torch.tensor(weights, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Descent:
    """How a phase's optimiser moves: Adam's learning rate and betas."""

    learning_rate: float
    betas: tuple[float, float]


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
        self.optimiser = torch.optim.Adam(parameters, lr=descent.learning_rate, betas=descent.betas, fused=True)
        self.code_weights = objective.code_weights(spec, precision.device)
        self.one = torch.ones((), device=precision.device)

    def loss_scale(self) -> torch.Tensor | None:
        """What float16 gradients are multiplied by, read on the device; None in the other formats."""
        return self.scaler.scale(self.one) if self.scaler.is_enabled() else None

    def descend(self, outputs: list[torch.Tensor], gradients: tuple[torch.Tensor, ...]) -> None:
        """One optimiser step from the gradients that the loss op has already computed at the networks' ``outputs``."""
        self.optimiser.zero_grad(set_to_none=True)
        reached = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in reached], [g for _, g in reached])
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
    ) -> None:
        parameters = [*discriminator.trunk.parameters(), *discriminator.adversarial_head.parameters()]
        if objective.trunk_mi:
            parameters += discriminator.recognition_head.parameters()
        super().__init__(parameters, discriminator, spec, objective, descent, precision, scaler)

    def update(
        self, images: torch.Tensor, fakes: torch.Tensor, latents: Latents, warped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One step on real ``images`` and detached ``fakes``, and on ``warped`` real ones for the consistency term.

        Returns head_loss's loss, real term and fake term, and behind them the KL in nats where there is one.
        """
        discriminator = self.discriminator
        with self.precision.autocast():
            real_features = discriminator.features(images)
            real_logits = discriminator.adversarial(real_features)
            features = discriminator.features(fakes)
            outputs = [real_logits, discriminator.adversarial(features)]
            if self.objective.trunk_mi:
                outputs.append(discriminator.recognition(features))
        loss = head_loss(
            self.spec,
            outputs[1].detach(),
            real_logits=real_logits.detach(),
            recognition=outputs[2].detach() if self.objective.trunk_mi else None,
            categories=latents.categories,
            continuous=latents.continuous,
            code_weights=self.code_weights,
            fixed_std=self.objective.fixed_std,
            loss_scale=self.loss_scale(),
        )
        gradients = loss.gradients[: len(outputs)]
        if warped is None:
            self.descend(outputs, gradients)
            return loss.statistics[:3]
        with self.precision.autocast():
            with torch.no_grad():
                target = discriminator.recognition(real_features)
            outputs.append(discriminator.recognition(discriminator.features(warped)))
        divergence, gradient = consistency(self.spec, target, outputs[-1].detach(), self.objective.consistency)
        scale = self.loss_scale()
        gradient = gradient if scale is None else gradient * scale
        self.descend(outputs, (*gradients, gradient.to(outputs[-1].dtype)))
        return torch.cat([loss.statistics[:3], divergence])


def consistency(
    spec: LatentSpec, target: torch.Tensor, recognition: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(target || recognition) of the categorical codes of two Q outputs ``[n, spec.head_dim]``: mean over rows, sum
    over codes, float32 ``[1]`` in nats; and ``weight`` times its gradient with respect to ``recognition``, float32.

    With p and q the softmaxes, d KL(p || q) / d logits of q = q - p; the continuous codes' columns get none.
    """
    gradient = torch.zeros_like(recognition, dtype=torch.float32)
    divergence = gradient.new_zeros(1)
    for code in range(len(spec.categorical)):
        columns = spec.logit_columns(code)
        p, q = (torch.log_softmax(outputs[:, columns].float(), 1) for outputs in (target, recognition))
        divergence += (p.exp() * (p - q)).sum() / len(q)
        gradient[:, columns] = (q.exp() - p.exp()) * (weight / len(q))
    return divergence, gradient


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
        parameters = list(generator.parameters())
        self.frozen = list(discriminator.parameters())
        if not objective.trunk_mi:
            parameters += discriminator.recognition_head.parameters()
            self.frozen = [*discriminator.trunk.parameters(), *discriminator.adversarial_head.parameters()]
        super().__init__(parameters, discriminator, spec, objective, descent, precision, scaler)

    def update(self, fakes: torch.Tensor, latents: Latents) -> torch.Tensor:
        """One step through D and Q on ``fakes`` that carry G's graph; returns head_loss's statistics."""
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
        return loss.statistics


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
