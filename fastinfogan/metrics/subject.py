"""What is judged, and on which images: a run's two networks and two disjoint parts of its data set.

Sets that come in two splits are judged on them. Renders and most folders have none: a fifth of their images, chosen
once for all runs, stands for the test split, and nothing that reads labels or factors is fitted on it. The GAN has seen
those images, without their factors, and what is compared with them says so (:attr:`Subject.test_split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from fastinfogan import data
from fastinfogan.codes import LatentSpec
from fastinfogan.config import TrainConfig
from fastinfogan.data import shards
from fastinfogan.data.decode import decode_all
from fastinfogan.data.split import Decoded, Encoded, Factors, Split
from fastinfogan.metrics.batchnorm import recalibrated
from fastinfogan.metrics.features import FeatureNetwork
from fastinfogan.metrics.images import image_batches
from fastinfogan.networks import Discriminator, Generator
from fastinfogan.ops import recognize

CALIBRATION_IMAGES = 10_000
MOST_IMAGES = 50_000  # of either part of a set without splits: dSprites whole would take 3 GB
_WITH_SPLITS = (*data.FIXED, "celeba", "folder")  # the last one where it has subfolders train and test


class Labelled(NamedTuple):
    """pixels: uint8 ``[n, h, w, c]``; labels: int64 ``[n]``, empty where there are none; factors: a row per image."""

    pixels: torch.Tensor
    labels: torch.Tensor
    factors: Factors | None = None

    def rows(self, index: torch.Tensor) -> Labelled:
        """The images ``index`` int64 ``[m]`` of it."""
        labels = self.labels[index] if len(self.labels) else self.labels
        factors = None if self.factors is None else self.factors.rows(index)
        return Labelled(self.pixels[index], labels, factors)

    def some(self, n: int) -> Labelled:
        """``n`` images of it, or all where there are no more, in random order: the same ones every time."""
        chosen = np.random.default_rng(0).permutation(len(self.pixels))[:n]
        return self.rows(torch.from_numpy(chosen))


@dataclass(frozen=True)
class Subject:
    """A run's networks; the images that judge them are opened when first asked for.

    features: what samples are judged by, in place of the set's own.
    """

    config: TrainConfig
    generator: Generator
    discriminator: Discriminator
    features: FeatureNetwork | None = None

    @property
    def image_range(self) -> tuple[float, float]:
        return self.config.network_tables.image_range

    @property
    def device(self) -> torch.device:
        return next(self.discriminator.parameters()).device

    @cached_property
    def test_split(self) -> Decoded | Encoded | None:
        """The set's own test images, which nothing was trained on; None where it has none.

        Raises:
            UserError: the data set is not where ``config.data`` says.
        """
        name, root = self.config.dataset, self.config.data
        if name not in _WITH_SPLITS:
            return None
        alone = shards.are_there(name, root, "train") != shards.are_there(name, root, "test")
        if name == "folder" and alone and not (root / "test").is_dir():
            return None  # files beside shards are those that the shards were written from
        train, test = self._train_split, self._open("test")
        alike = isinstance(train, Encoded) and isinstance(test, Encoded) and train.fingerprint == test.fingerprint
        return None if alike else test

    @cached_property
    def _train_split(self) -> Decoded | Encoded:
        return self._open("train")

    @cached_property
    def real(self) -> tuple[Labelled, Labelled]:
        """The training and the test images.

        Raises:
            UserError: the data set is not where ``config.data`` says.
        """
        whole = self._decoded(self._train_split)
        if self.test_split is not None:
            return whole, self._decoded(self.test_split)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(whole.pixels)))
        fifth = len(order) // 5
        return whole.rows(order[fifth:][:MOST_IMAGES]), whole.rows(order[:fifth][:MOST_IMAGES])

    @cached_property
    def judge(self) -> Discriminator:
        """D and Q in eval mode, their batch-norm statistics those of 10,000 training images."""
        # At random: a folder's files come class by class, and batches of one class each have other statistics.
        pixels = self.real[0].some(CALIBRATION_IMAGES).pixels
        return recalibrated(self.discriminator, image_batches(pixels, self.image_range, self.device))

    def _open(self, split: Split) -> Decoded | Encoded:
        config = self.config
        image = config.network_tables.image
        return data.open_split(config.dataset, config.data, split, image, gray=config.gray, tables=config.tables)

    def _decoded(self, opened: Decoded | Encoded) -> Labelled:
        if isinstance(opened, Encoded):
            image = self.config.network_tables.image
            opened = decode_all(opened, image, self.device, reject_limit=self.config.reject_limit)
        assert isinstance(opened, Decoded)
        labels = torch.empty(0, dtype=torch.int64) if opened.labels is None else opened.labels
        return Labelled(opened.pixels, labels, opened.factors)


@torch.inference_mode()
def predict(
    discriminator: Discriminator, spec: LatentSpec, pixels: torch.Tensor, image_range: tuple[float, float]
) -> torch.Tensor:
    """The likeliest value of every categorical code of images uint8 ``[n, h, w, c]``.

    Returns int64 ``[n, n_categorical]`` on the CPU.
    """
    device = next(discriminator.parameters()).device
    parts = [
        recognize(spec, discriminator.recognition(discriminator.features(images))).categories
        for images in image_batches(pixels, image_range, device)
    ]
    return torch.cat(parts).cpu()
