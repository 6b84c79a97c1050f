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
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from tqdm import tqdm

from fastinfogan import capture, checkpoint, figures
from fastinfogan.casts import autocast
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.codes import Latents
from fastinfogan.config import TrainConfig
from fastinfogan.data.batches import ResidentBatches, StreamBatches
from fastinfogan.distributed import ALONE, LostProcess, Ranks, synchronise_norms
from fastinfogan.errors import UserError
from fastinfogan.evaluations import Evaluations
from fastinfogan.matrices import use_matrices
from fastinfogan.networks import Discriminator, Generator, build
from fastinfogan.objective import Descent, DiscriminatorPhase, GeneratorPhase
from fastinfogan.ops import native
from fastinfogan.ops.philox import as_word64
from fastinfogan.optimiser import rate_dtype
from fastinfogan.precision import Precision
from fastinfogan.prior import draw_latents
from fastinfogan.rivals import ROUNDS
from fastinfogan.run_directory import RunDirectory
from fastinfogan.run_metrics import Metrics
from fastinfogan.warp import random_affine

Batches = ResidentBatches | StreamBatches
STRETCH = 25  # iterations of a GPU between two looks at what its host has to do
# D's loss in nats below which G learns next to nothing; of the claims' runs those that made images stayed above 0.2
WON = 0.1


@dataclass(frozen=True)
class Stopped:
    """Why a run ended: after ``step`` iterations, by ``signal`` or, with None, because it was done."""

    step: int
    signal: int | None


class Trainer:
    """Both networks, both phases and their state, at ``self.step`` iterations done.

    ``step`` is the host's count of them and ``clock`` the device's, which the iterations read and move on themselves.
    """

    def __init__(
        self, config: TrainConfig, batches: Batches, run: RunDirectory, precision: Precision, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.batches = batches
        self.run_directory = run
        self.precision = precision
        self.ranks = ranks
        self.spec = config.spec
        self.step = 0
        device = precision.device
        self.clock = as_word64(0, device)
        self._clock_shows = 0
        self._readings_won = 0  # by D, one after the other
        self._rounds = [round(share * config.iterations) for share in ROUNDS]
        self._retired = False  # Q's rivals
        self.graph: capture.Graph | None = None
        self._say: Callable[[str], None] = tqdm.write
        generator, discriminator = build(config.network_tables, self.spec, seed=config.seed)
        # The convolutions of every backend are fastest, and batches arrive, in this layout.
        self.generator = generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ranks.take_from_first([*self.generator.state_dict().values(), *self.discriminator.state_dict().values()])
        if ranks.world > 1 and config.sync_batch_norm:
            synchronise_norms(self.generator)
            synchronise_norms(self.discriminator)
        copies = None
        if config.compile:
            self._compile()
        else:
            copies = use_matrices((self.generator, self.discriminator), precision)
            if copies is not None:
                native.keep_freed_memory()
        self.seed = as_word64(config.seed, device)
        self.scaler = precision.gradient_scaler()
        betas = (config.beta1, config.beta2)
        self.base_rates = torch.tensor([config.lr_d, config.lr_g], dtype=rate_dtype(device), device=device)
        self.rates = self.base_rates.clone()
        d_descent, g_descent = (
            Descent(rate, betas, copies, ranks.average_together if ranks.world > 1 else None)
            for rate in (self.rates.unbind() if config.decay else (config.lr_d, config.lr_g))
        )
        self.discriminator_phase = DiscriminatorPhase(
            self.discriminator, self.spec, config.objective, d_descent, precision, self.scaler, self.generator.prior
        )
        self.generator_phase = GeneratorPhase(
            self.generator, self.discriminator, self.spec, config.objective, g_descent, precision, self.scaler
        )
        names = ["loss/d", "loss/d_real", "loss/d_fake", *(["loss/invariance"] if config.invariance else [])]
        names += ["loss/g", "loss/g_real", "loss/g_fake"]
        names += [f"loss/{name}" for name in self.spec.names] + [f"mi/{name}" for name in self.spec.names]
        if config.learn_prior:
            names += [f"entropy/{name}" for name in self.spec.names[: len(self.spec.categorical)]]
        self.metrics = Metrics(names, device, ranks)
        self.evaluations = Evaluations(config, run)
        self.capture_in(None if capture.obstacle(config.capture, precision) else capture.CudaGraph(device))

    def _compile(self) -> None:
        """Compile what the phases call, but for rivals, which are computed together; parameters keep their names."""
        # Dynamo counts the graphs of a line of code, and all layers of all parts are the same lines.
        torch._dynamo.config.recompile_limit = 64
        discriminator = self.discriminator
        for part in (
            self.generator, discriminator.trunk, discriminator.adversarial_head, *discriminator.recognition_heads,
        ):  # fmt: skip
            part.compile(dynamic=False)

    def capture_in(self, graph: capture.Graph | None) -> None:
        """Have the coming iterations captured in ``graph``; without one they run op by op.

        What was captured is given back at once, and with it its memory.
        """
        if self.graph is not None:
            self.graph.release()
        self.graph = graph
        self._run = capture.Replayed(self._iterate, self.batches.static, graph, lambda line: self._say(line))

    def close(self) -> None:
        """Give the captured graph back: processes do not part before every graph that NCCL takes part in is gone."""
        self.capture_in(None)

    def iteration(self, step: int) -> None:
        """One batch through both phases: the launch of a graph, where one is captured."""
        if self.config.rivals and not self._retired:
            self._attend_to_rivals(step)
        self.batches.prepare(step)
        if step != self._clock_shows:
            self.clock.fill_(step)
        self._run()
        self._clock_shows = step + 1

    def _attend_to_rivals(self, step: int) -> None:
        """Before the iteration ``step``: where it is time, choose among the heads, and vary or retire the others."""
        if step not in self._rounds:
            return
        self._require_finite()  # of heads that are not numbers none is the best
        phase = self.discriminator_phase
        chosen, lacking = phase.rivalry.choose()
        if chosen and self.ranks.first:
            self._say(
                f"Q takes the head of rival {chosen}: of all that its values can tell it lacks {lacking[chosen]:.3f} "
                f"nats, Q's own head {lacking[0]:.3f}"
            )
        if step < self._rounds[-1]:
            phase.rivalry.vary(self.config.seed ^ step)
        else:
            self._retire_rivals()
            self.capture_in(self.graph)

    def _retire_rivals(self) -> None:
        """Let Q's head learn alone from now on, in runs that go on with this one's checkpoints too."""
        self._retired = True
        self.discriminator_phase.rivalry.retire()
        self.discriminator_phase.let_learn([self.discriminator.recognition_head])

    def _iterate(self) -> None:
        """The device's part of an iteration: nothing in it depends on a value that the host holds."""
        if self.config.decay:
            falling = self.config.decay * self.config.iterations
            left = (self.config.iterations - self.clock) / falling
            torch.mul(self.base_rates, left.clamp(max=1.0), out=self.rates)
        images = self.batches.images(self.clock)
        latents = self.draw(self.clock)
        with autocast(self.precision, self.generator):
            fakes = self.generator(latents.z)
        warped = self.warp(images, self.clock) if self.config.invariance else None
        d_statistics = self.discriminator_phase.update(images, fakes.detach(), latents, warped)
        g_statistics = self.generator_phase.update(fakes, latents)
        self.scaler.update()
        self.metrics.add(self.clock, torch.cat([d_statistics, g_statistics]))
        self.clock += 1

    def draw(self, step: int | torch.Tensor) -> Latents:
        """This process's latents of ``step``: a pure function of the seed, the step and a prior that is learnt."""
        plan = self.batches.plan
        return draw_latents(
            self.spec,
            plan.batch,
            self.generator.prior,
            seed=self.seed,
            step=step,
            row_offset=plan.first_row,
            device=self.precision.device,
        )

    def warp(self, images: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The real images of ``step``, each warped a little: a pure function of the seed and the step."""
        return random_affine(images, seed=self.seed, step=step, row_offset=self.batches.plan.first_row)

    def train(self, say: Callable[[str], None] = tqdm.write) -> Stopped:
        """Iterate from ``self.step`` to ``config.iterations``, or until SIGINT or SIGTERM; the end is always saved.

        A signal to one process ends all of them, after the same iteration; that nobody reads the output any more (of
        ``train | head``) counts as SIGPIPE.

        Raises:
            UserError: a loss or a weight that is not finite, a disk that is full, or another process that is gone.
        """
        config = self.config
        # None: only where a terminal shows it.
        disable = None if self.ranks.first else True
        bar = tqdm(total=config.iterations, initial=self.step, unit="it", disable=disable, dynamic_ncols=True)
        began, counted = time.perf_counter(), self.step
        saved = self.step
        stopped = False
        with self._telling_of_lost_processes(), _signals() as caught, bar:

            def tell(line: str) -> None:
                try:
                    say(line)
                except BrokenPipeError:
                    caught.append(signal.SIGPIPE)

            self._say = tell
            while self.step < config.iterations and not (stopped := self.ranks.any(bool(caught))):
                bar.update(self.advance())
                if self.step % config.log_every == 0 or self.step == config.iterations:
                    values = self._read_metrics()
                    rate = (self.step - counted) * config.batch / (time.perf_counter() - began)
                    began, counted = time.perf_counter(), self.step
                    with self._writing():
                        self.run_directory.log(self.step, {**values, "images_per_second": rate})
                        self.evaluations.log_finished(tell)
                    if self.ranks.first:
                        tell(self._line(values, rate))
                        self._watch_the_game(values, tell)
                if self.step % config.figure_every == 0:
                    self.draw_figures(f"{self.step:08d}")
                if self.step % config.save_every == 0:
                    self.save()
                    saved = self.step
                if config.evaluate_every and self.step % config.evaluate_every == 0 and self.ranks.first:
                    with self._writing():
                        self.evaluations.start(self.step, *self.alone(), tell, lambda: bool(caught))
            if saved != self.step:
                self.save()
            with self._writing():
                self.evaluations.finish(tell)
            stopped = stopped or self.ranks.any(bool(caught))  # in the last iteration, or while it was saved
        return Stopped(self.step, (caught or [signal.SIGTERM])[0] if stopped else None)

    def advance(self) -> int:
        """Iterate until there is something to do between two iterations; returns how many they were."""
        config = self.config
        intervals = [config.log_every, config.figure_every, config.save_every]
        intervals += [config.evaluate_every] if config.evaluate_every else []
        stretch = STRETCH if self.precision.device.type == "cuda" else 1
        count = min(stretch, config.iterations - self.step, *(every - self.step % every for every in intervals))
        for _ in range(count):
            self.iteration(self.step)
            self.step += 1
        return count

    @contextmanager
    def _telling_of_lost_processes(self) -> Iterator[None]:
        """Where another process is gone, this one's state is between two steps, and only a checkpoint can go on."""
        try:
            yield
        except LostProcess as error:
            remedy = f"resume it on any number of processes with --resume {self.run_directory.path}"
            raise LostProcess(f"{error} after step {self.step}: {self._advice(remedy, 'start again')}") from None

    def _read_metrics(self) -> dict[str, float]:
        """Means since the last reading. Waits for the device."""
        self._require_finite()
        values = self.metrics.read()
        del values["loss/g_real"]  # the G phase has no real rows
        values["mi/total"] = math.fsum(values[f"mi/{name}"] for name in self.spec.names)
        return values

    def _watch_the_game(self, values: dict[str, float], say: Callable[[str], None]) -> None:
        """Warn once, at the second reading in a row at which D has won: such runs do not recover."""
        loss = values["loss/d_real"] + values["loss/d_fake"]
        self._readings_won = self._readings_won + 1 if loss < WON else 0
        if self._readings_won == 2:
            remedy = "a lower --lr-d" if self.config.spectral_norm else "--spectral-norm"
            say(
                f"D tells real images from generated ones nearly without fail ({loss:.2f} nats, 1.39 is chance), and G "
                f"learns little from that: where the figures show no images, start again with {remedy}"
            )

    def _line(self, values: dict[str, float], rate: float) -> str:
        information = "  ".join(
            f"{name} {values[f'mi/{name}']:.2f}/{values.get(f'entropy/{name}', entropy):.2f}"
            for name, entropy in zip(self.spec.names, self.spec.entropies, strict=True)
        )
        d_loss = values["loss/d_real"] + values["loss/d_fake"]
        return (
            f"{self.step:>7}/{self.config.iterations}  D {d_loss:.3f}  G {values['loss/g_fake']:.3f}  "
            f"MI {information} nats  {rate:,.0f} images/s"
        )

    def draw_figures(self, label: str) -> None:
        """Sample grid and one traversal per code, into the run's figures/; the first process does it."""
        if not self.ranks.first:
            return
        image_range = self.config.network_tables.image_range
        with self._writing():
            figures.save_figures(
                self.generator, self.spec, image_range, self.config.seed, self.run_directory.figures, label
            )

    def save(self) -> None:
        """A checkpoint of this step, written by the first process; all must call. Waits for the device.

        Raises:
            UserError: something is not finite (a bad state must not push out the last good checkpoint), or the disk
                cannot take it.
        """
        self._require_finite()
        self.metrics.share()
        if not self.ranks.first:
            return
        state = self.state()
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise self._not_finite(f"{name} is not finite after step {self.step}")
        checkpoint.save(self.run_directory.path, self.step, self.config, state, self.config.keep)

    def _require_finite(self) -> None:
        if (bad := self.metrics.first_not_finite()) is not None:
            name, step = bad
            raise self._not_finite(f"{name} became not finite at step {step}")

    def _not_finite(self, what: str) -> UserError:
        remedy = "with a lower --lr-d or --lr-g"
        if self.precision.dtype != torch.float32:
            remedy += ", or without --amp"
        return UserError(f"{what}: {self._advice(f'resume from it {remedy}', f'start again {remedy}')}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What cannot be written is told with the checkpoint to go on from."""
        try:
            yield
        except OSError as error:
            folder = self.run_directory.path
            advice = self._advice(
                f"free some space and resume with --resume {folder}", "free some space and start again"
            )
            raise UserError(
                f"could not write to {folder} at step {self.step} ({error.strerror or error}): {advice}"
            ) from None

    def _advice(self, resume: str, restart: str) -> str:
        """The last good checkpoint and how to ``resume`` it, or how to ``restart`` where there is none."""
        try:
            last = checkpoint.load(self.run_directory.path).path
        except UserError:
            return f"there is no checkpoint yet; {restart}"
        return f"the last good checkpoint is {last}; {resume}"

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

    def alone(self) -> tuple[Generator, Discriminator]:
        """Both networks as one process has them, for it to evaluate while the others are elsewhere."""
        if self.ranks.world == 1:
            return self.generator, self.discriminator
        networks = build(self.config.network_tables, self.spec, seed=self.config.seed)
        for network, trained in zip(networks, (self.generator, self.discriminator), strict=True):
            network.load_state_dict(trained.state_dict())
            network.to(self.precision.device)
        return networks

    def restore(self, saved: Checkpoint) -> None:
        """Go on from ``saved``; what was captured is captured anew, as the optimisers' state lies elsewhere.

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
        if self.config.rivals and (self.discriminator_phase.rivalry.retired or self.step > self._rounds[-1]):
            self._retire_rivals()
        self.capture_in(self.graph)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, so that the iteration ends and is saved; a second one acts at once.

    Where another process is lost, torchrun ends this one as well, and has to wait until it has told why.
    """
    caught: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        caught.append(number)
        restore()
        with suppress(OSError, RuntimeError):  # Ctrl-C has ended the reader as well, or it came while stderr is written
            print("stopping after this iteration, then saving; once more to stop at once", file=sys.stderr)

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    except LostProcess:
        before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        restore()
