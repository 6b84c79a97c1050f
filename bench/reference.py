"""The opponent: InfoGAN as the popular PyTorch ports train it, readable and honest, and a tuned form of the same.

Same tables, same hyperparameters, same initial weights as fastinfogan. What it does differently is what those ports do:
latents drawn with numpy and copied over every step, one loss function per term, all of D's gradients computed in the
G phase and thrown away, an unfused Adam, two ``.item()`` a step for logging. ``tuned`` adds what stock PyTorch has
switches for: channels-last, fused Adam, torch.compile, and autocast where it is asked for. Its code stays that of the
ports, D's unused gradients included: freezing D in the G phase made the same networks 1.02 to 1.11 times as fast
(without torch.compile, batch 64, one thread).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fastinfogan import LatentSpec
from fastinfogan.networks import Tables, build


class Reference:
    """Both networks and one :meth:`step` of two phases; ``last`` holds the two logged losses."""

    def __init__(
        self,
        tables: Tables,
        spec: LatentSpec,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        tuned: bool = False,
        lr_d: float = 2e-4,
        lr_g: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ) -> None:
        self.spec, self.device, self.autocast = spec, device, autocast
        generator, discriminator = build(tables, spec, seed=seed)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        if tuned:
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.memory_format = torch.channels_last if tuned else torch.contiguous_format
        # The official code's split: Q and the trunk learn with D.
        self.d_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=lr_d, betas=betas, fused=tuned)
        self.g_optimiser = torch.optim.Adam(self.generator.parameters(), lr=lr_g, betas=betas, fused=tuned)
        self.generate = torch.compile(self.generator) if tuned else self.generator
        self.discriminate = torch.compile(self.discriminator) if tuned else self.discriminator
        self.random = np.random.default_rng(seed)
        self.last = (0.0, 0.0)

    def latents(self, batch: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """z, the categories of each code and the continuous values, drawn on the host."""
        noise = self.random.uniform(-1, 1, (batch, self.spec.noise)).astype(np.float32)
        categories = [self.random.integers(0, k, batch) for k in self.spec.categorical]
        one_hots = [np.eye(k, dtype=np.float32)[c] for k, c in zip(self.spec.categorical, categories, strict=True)]
        continuous = self.random.uniform(-1, 1, (batch, len(self.spec.continuous))).astype(np.float32)
        z = torch.from_numpy(np.concatenate([noise, *one_hots, continuous], 1)).to(self.device)
        return (
            z,
            [torch.from_numpy(c).to(self.device) for c in categories],
            torch.from_numpy(continuous).to(self.device),
        )

    def information_loss(
        self, q: torch.Tensor, categories: list[torch.Tensor], continuous: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropies and the Gaussian NLL with std 1, as the official code has them."""
        loss = q.new_zeros(())
        for code, target in enumerate(categories):
            loss = loss + F.cross_entropy(q[:, self.spec.logit_columns(code)], target)
        if continuous.shape[1]:
            mean = q[:, self.spec.mean_columns]
            loss = loss + F.gaussian_nll_loss(mean, continuous, torch.ones_like(mean)) * continuous.shape[1]
        return loss

    def step(self, images: torch.Tensor) -> None:
        """One iteration on a normalised float batch ``[n, c, h, w]`` that lies on the device."""
        images = images.contiguous(memory_format=self.memory_format)
        z, categories, continuous = self.latents(len(images))
        with self._autocast():
            fakes = self.generate(z)
        d_loss = self.discriminator_phase(images, fakes, categories, continuous)
        g_loss = self.generator_phase(fakes, categories, continuous)
        self.last = (d_loss.item(), g_loss.item())

    def discriminator_phase(
        self, images: torch.Tensor, fakes: torch.Tensor, categories: list[torch.Tensor], continuous: torch.Tensor
    ) -> torch.Tensor:
        """One step of D and Q; returns D's loss."""
        real, fake = torch.ones(len(images), device=self.device), torch.zeros(len(images), device=self.device)
        with self._autocast():
            real_logits, _ = self.discriminate(images)
            fake_logits, q = self.discriminate(fakes.detach())
            d_loss = F.binary_cross_entropy_with_logits(real_logits.float(), real)
            d_loss = d_loss + F.binary_cross_entropy_with_logits(fake_logits.float(), fake)
            d_total = d_loss + self.information_loss(q.float(), categories, continuous)
        self.d_optimiser.zero_grad()
        d_total.backward()
        self.d_optimiser.step()
        return d_loss

    def generator_phase(
        self, fakes: torch.Tensor, categories: list[torch.Tensor], continuous: torch.Tensor
    ) -> torch.Tensor:
        """One step of G; returns its adversarial loss."""
        real = torch.ones(len(fakes), device=self.device)
        with self._autocast():
            logits, q = self.discriminate(fakes)
            g_loss = F.binary_cross_entropy_with_logits(logits.float(), real)
            g_total = g_loss + self.information_loss(q.float(), categories, continuous)
        self.g_optimiser.zero_grad()
        g_total.backward()
        self.g_optimiser.step()
        return g_loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
