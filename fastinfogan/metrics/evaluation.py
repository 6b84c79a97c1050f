"""One trained pair of networks, judged: the table that ``evaluate`` prints and that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from fastinfogan import data
from fastinfogan.codes import LatentSpec
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.metrics.batchnorm import recalibrated
from fastinfogan.metrics.clustering import Clustering, clustering
from fastinfogan.metrics.information import information_bound
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.ops import image_batch, recognize

INFORMATION_SAMPLES = 10_000
CALIBRATION_IMAGES = 10_000
_BATCH = 500


class Labelled(NamedTuple):
    """pixels: uint8 ``[n, h, w, c]``; labels: int64 ``[n]``."""

    pixels: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """information: nats per code and total. clusterings: per categorical code, where the images have labels."""

    step: int
    information: dict[str, float]
    entropies: dict[str, float]
    clusterings: dict[str, Clustering]

    def write(self, path: Path) -> None:
        """As JSON, with everything that the table leaves out.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write the evaluation {path} ({error.strerror}): make its folder writable"
            ) from None

    def table(self) -> str:
        """The figures and the protocol behind them, as text."""
        lines = [f"after {self.step} iterations", "mutual information bound, nats (share of H(c)):"]
        for name, entropy in self.entropies.items():
            bound = self.information[name]
            lines.append(f"  {name:<6}{bound:7.3f} of {entropy:.3f}  ({bound / entropy:6.1%})")
        lines.append(f"  total {self.information['total']:7.3f}   on {INFORMATION_SAMPLES:,} generated images")
        if self.clusterings:
            lines.append("argmax Q(c|x) on the real images of the test split:")
            for name, found in self.clusterings.items():
                lines.append(f"  {name:<6}error {found.error:6.2%}   NMI {found.nmi:.3f}   ARI {found.ari:.3f}")
            lines.append("  values matched to labels one to one on the training split; batch-norm statistics of")
            lines.append(f"  {CALIBRATION_IMAGES:,} training images; test labels chose nothing; one seed")
        return "\n".join(lines)


def evaluate(config: TrainConfig, generator: Generator, discriminator: Discriminator, step: int) -> Evaluation:
    """Judge the networks of ``config`` after ``step`` iterations; labels, where there are any, are used here only.

    Raises:
        UserError: the data set is not where ``config.data`` says.
    """
    spec, image_range = config.spec, config.network_tables.image_range
    information = information_bound(
        generator, discriminator, spec, seed=config.seed, fixed_std=config.fixed_std, samples=INFORMATION_SAMPLES
    )
    clusterings: dict[str, Clustering] = {}
    if spec.categorical and config.dataset in data.FIXED:
        train, test = (_labelled(config, split) for split in ("train", "test"))
        judge = recalibrated(discriminator, _batches(train, image_range, discriminator, CALIBRATION_IMAGES))
        on_train, on_test = (predict(judge, spec, split, image_range) for split in (train, test))
        for code, k in enumerate(spec.categorical):
            clusterings[spec.names[code]] = clustering(
                (on_train[:, code], train.labels), (on_test[:, code], test.labels), k
            )
    return Evaluation(step, information, dict(zip(spec.names, spec.entropies, strict=True)), clusterings)


def _labelled(config: TrainConfig, split: Literal["train", "test"]) -> Labelled:
    opened = data.open_split(config.dataset, config.data, split, config.network_tables.image, tables=config.tables)
    assert isinstance(opened, data.Decoded) and opened.labels is not None
    return Labelled(opened.pixels, opened.labels)


@torch.inference_mode()
def predict(
    discriminator: Discriminator, spec: LatentSpec, split: Labelled, image_range: tuple[float, float]
) -> torch.Tensor:
    """The most likely value of every categorical code of every image: int64 ``[n, n_categorical]`` on the CPU."""
    batches = _batches(split, image_range, discriminator, len(split.pixels))
    parts = [
        recognize(spec, discriminator.recognition(discriminator.features(images))).categories for images in batches
    ]
    return torch.cat(parts).cpu()


def _batches(
    split: Labelled, image_range: tuple[float, float], discriminator: Discriminator, limit: int
) -> Iterator[torch.Tensor]:
    device = next(discriminator.parameters()).device
    low, high = image_range
    for start in range(0, min(limit, len(split.pixels)), _BATCH):
        pixels = split.pixels[start : min(start + _BATCH, limit)].to(device)
        yield image_batch(pixels, torch.arange(len(pixels), device=device), low=low, high=high)
