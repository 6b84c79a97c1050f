"""The training loop: Algorithm 1 with one generator forward per iteration, and what surrounds it.

The images that G makes serve both phases: G does not move in between, so the second forward that most
implementations do would give the same images again. Metrics are summed on the device and read at the logging interval
only; nothing else in an iteration waits for it.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fastinfogan import checkpoint, figures
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.codes import Latents
from fastinfogan.config import TrainConfig
from fastinfogan.data.batches import ResidentBatches, StreamBatches
from fastinfogan.errors import UserError
from fastinfogan.networks import build
from fastinfogan.objective import Descent, DiscriminatorPhase, GeneratorPhase
from fastinfogan.ops import sample_latents
from fastinfogan.ops.philox import as_word64
from fastinfogan.precision import Precision
from fastinfogan.run_directory import RunDirectory
from fastinfogan.warp import random_affine

Batches = ResidentBatches | StreamBatches
SUMS = ("loss/d", "loss/g")  # of the other losses


@dataclass(frozen=True)
class Stopped:
    """Why a run ended: after ``step`` iterations, by ``signal`` or, with None, because it was done."""

    step: int
    signal: int | None


class Trainer:
    """Both networks, both phases and their state, at ``self.step`` iterations done."""

    def __init__(self, config: TrainConfig, batches: Batches, run: RunDirectory, precision: Precision) -> None:
        self.config = config
        self.batches = batches
        self.run_directory = run
        self.precision = precision
        self.spec = config.spec
        self.step = 0
        device = precision.device
        generator, discriminator = build(config.network_tables, self.spec, seed=config.seed)
        # The convolutions of every backend are fastest, and batches arrive, in this layout.
        self.generator = generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.seed = as_word64(config.seed, device)
        self.scaler = precision.gradient_scaler()
        betas = (config.beta1, config.beta2)
        self.discriminator_phase = DiscriminatorPhase(
            self.discriminator, self.spec, config.objective, Descent(config.lr_d, betas), precision, self.scaler
        )
        self.generator_phase = GeneratorPhase(
            self.generator, self.discriminator, self.spec, config.objective, Descent(config.lr_g, betas), precision,
            self.scaler,
        )  # fmt: skip
        names = ["loss/d", "loss/d_real", "loss/d_fake", *(["loss/consistency"] if config.consistency else [])]
        names += ["loss/g", "loss/g_real", "loss/g_fake"]
        names += [f"loss/{name}" for name in self.spec.names] + [f"mi/{name}" for name in self.spec.names]
        self.metrics = Metrics(names, device)

    def iteration(self, step: int) -> None:
        """One batch through both phases."""
        images = self.batches.at(step)
        latents = self.draw(step)
        with self.precision.autocast():
            fakes = self.generator(latents.z)
        warped = self.warp(images, step) if self.config.consistency else None
        d_statistics = self.discriminator_phase.update(images, fakes.detach(), latents, warped)
        g_statistics = self.generator_phase.update(fakes, latents)
        self.scaler.update()
        self.metrics.add(step, torch.cat([d_statistics, g_statistics]))

    def draw(self, step: int) -> Latents:
        """The latents of ``step``: a pure function of the seed and the step."""
        return sample_latents(
            self.spec, self.config.batch, seed=self.seed, step=step, device=self.precision.device, dtype=torch.float32
        )

    def warp(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """The real images of ``step``, each warped a little: a pure function of the seed and the step."""
        return random_affine(images, seed=self.seed, step=as_word64(step, self.precision.device))

    def train(self, say: Callable[[str], None] = tqdm.write) -> Stopped:
        """Iterate from ``self.step`` to ``config.iterations``, or until SIGINT or SIGTERM; the end is always saved.

        Raises:
            UserError: a loss or a weight that is not finite, or a disk that is full.
        """
        config = self.config
        bar = tqdm(total=config.iterations, initial=self.step, unit="it", disable=None, dynamic_ncols=True)
        began, counted = time.perf_counter(), self.step
        saved = self.step
        with _signals() as caught, bar:
            while self.step < config.iterations and not caught:
                self.iteration(self.step)
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.iterations:
                    values = self._read_metrics()
                    rate = (self.step - counted) * config.batch / (time.perf_counter() - began)
                    began, counted = time.perf_counter(), self.step
                    with self._writing():
                        self.run_directory.log(self.step, {**values, "images_per_second": rate})
                    say(self._line(values, rate))
                if self.step % config.figure_every == 0:
                    self.draw_figures(f"{self.step:08d}")
                if self.step % config.save_every == 0:
                    self.save()
                    saved = self.step
            if saved != self.step:
                self.save()
        return Stopped(self.step, caught[0] if caught and self.step < config.iterations else None)

    def _read_metrics(self) -> dict[str, float]:
        """Means since the last reading. Waits for the device."""
        self._require_finite()
        values = self.metrics.read()
        del values["loss/g_real"]  # the G phase has no real rows
        values["mi/total"] = math.fsum(values[f"mi/{name}"] for name in self.spec.names)
        return values

    def _line(self, values: dict[str, float], rate: float) -> str:
        information = "  ".join(
            f"{name} {values[f'mi/{name}']:.2f}/{entropy:.2f}"
            for name, entropy in zip(self.spec.names, self.spec.entropies, strict=True)
        )
        d_loss = values["loss/d_real"] + values["loss/d_fake"]
        return (
            f"{self.step:>7}/{self.config.iterations}  D {d_loss:.3f}  G {values['loss/g_fake']:.3f}  "
            f"MI {information} nats  {rate:,.0f} images/s"
        )

    def draw_figures(self, label: str) -> None:
        """Sample grid and one traversal per code, into the run's figures/."""
        image_range = self.config.network_tables.image_range
        with self._writing():
            figures.save_figures(
                self.generator, self.spec, image_range, self.config.seed, self.run_directory.figures, label
            )

    def save(self) -> None:
        """A checkpoint of this step. Waits for the device.

        Raises:
            UserError: something is not finite (a bad state must not push out the last good checkpoint), or the disk
                cannot take it.
        """
        self._require_finite()
        state = self.state()
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{name} is not finite after step {self.step}: {self._advice()}")
        checkpoint.save(self.run_directory.path, self.step, self.config, state, self.config.keep)

    def _require_finite(self) -> None:
        if (bad := self.metrics.first_not_finite()) is not None:
            name, step = bad
            raise UserError(f"{name} became not finite at step {step}: {self._advice()}")

    def _advice(self) -> str:
        remedy = "with a lower --lr-d or --lr-g, or without --amp"
        last = self._last_good()
        return f"the last good checkpoint is {last}; resume from it {remedy}" if last else (
            f"there is no checkpoint yet; start again {remedy}"
        )  # fmt: skip

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What cannot be written is told with the checkpoint to go on from."""
        try:
            yield
        except OSError as error:
            folder, last = self.run_directory.path, self._last_good()
            raise UserError(
                f"could not write to {folder} at step {self.step} ({error.strerror or error}); "
                f"{f'the last good checkpoint is {last}' if last else 'there is no checkpoint yet'}: free some space "
                f"and resume with --resume {folder}"
            ) from None

    def _last_good(self) -> Path | None:
        try:
            return checkpoint.load(self.run_directory.path).path
        except UserError:
            return None

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors that the next iteration depends on, by dotted name."""
        parts = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimiser": checkpoint.optimiser_tensors(self.discriminator_phase.optimiser),
            "generator_optimiser": checkpoint.optimiser_tensors(self.generator_phase.optimiser),
            "metrics": self.metrics.state(),
            "scaler": {name: torch.tensor(value) for name, value in self.scaler.state_dict().items()},
        }
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, saved: Checkpoint) -> None:
        """Go on from ``saved``.

        Raises:
            UserError: it is of another architecture.
        """
        saved.restore("generator", self.generator)
        saved.restore("discriminator", self.discriminator)
        checkpoint.restore_optimiser(self.discriminator_phase.optimiser, saved.part("discriminator_optimiser"))
        checkpoint.restore_optimiser(self.generator_phase.optimiser, saved.part("generator_optimiser"))
        self.metrics.restore(saved.part("metrics"))
        if self.scaler.is_enabled() and (scaler := saved.part("scaler")):
            self.scaler.load_state_dict({name: value.item() for name, value in scaler.items()})
        self.step = saved.step


class Metrics:
    """Sums of the statistics of every iteration, on the device, with the first step at which each was not finite."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.first_bad = torch.zeros(len(names), dtype=torch.int64, device=device)

    def add(self, step: int, statistics: torch.Tensor) -> None:
        """``statistics``: one value per name."""
        self.sums += statistics
        self.count += 1
        newly_bad = ~torch.isfinite(statistics) & (self.first_bad == 0)
        self.first_bad.masked_fill_(newly_bad, step + 1)

    def first_not_finite(self) -> tuple[str, int] | None:
        """The name and step (counted from 1) of the earliest value that was not finite. Waits for the device.

        A term is named rather than the sum that it is part of.
        """
        steps = self.first_bad.tolist()
        bad = [(step, name in SUMS, index) for index, (name, step) in enumerate(zip(self.names, steps, strict=True))]
        step, _, index = min((one for one in bad if one[0]), default=(0, False, 0))
        return (self.names[index], step) if step else None

    def read(self) -> dict[str, float]:
        """Means since the last reading, which start anew. Waits for the device."""
        means = (self.sums / self.count).tolist()
        self.sums.zero_()
        self.count.zero_()
        return dict(zip(self.names, means, strict=True))

    def state(self) -> dict[str, torch.Tensor]:
        return {"sums": self.sums, "count": self.count}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        if tensors["sums"].shape == self.sums.shape:  # else another objective is resumed: its means start here
            self.sums.copy_(tensors["sums"])
            self.count.copy_(tensors["count"])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, so that the iteration ends and is saved; a second one acts at once."""
    caught: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        caught.append(number)
        restore()
        print("stopping after this iteration, then saving; once more to stop at once", file=sys.stderr)

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
