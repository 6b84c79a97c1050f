"""How a speedrun's networks are judged, the same for every contestant and apart from its training.

The last 10,000 of MNIST's training images are held out: no contestant trains on them, and they decide when a run has
arrived. Which value of c1 is which digit is fixed on the other 50,000 by optimal assignment. The test images are
counted beside and decide nothing. Q is in eval mode, with batch-norm statistics estimated anew on 10,000 training
images for all alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastinfogan import data
from fastinfogan.config import TrainConfig
from fastinfogan.data import Decoded
from fastinfogan.metrics.batchnorm import recalibrated
from fastinfogan.metrics.clustering import clustering
from fastinfogan.metrics.evaluation import INFORMATION_SAMPLES
from fastinfogan.metrics.images import image_batches
from fastinfogan.metrics.information import information_bound
from fastinfogan.metrics.subject import CALIBRATION_IMAGES, Labelled, predict
from fastinfogan.networks import Discriminator, Generator


@dataclass(frozen=True)
class Verdict:
    """mi_c1: nats, on generated images.

    The errors are shares of the held-out, the 50,000 and the test images whose value of c1 is matched to another digit.
    """

    mi_c1: float
    error: float
    training_error: float
    test_error: float


class Judge:
    """Judges the networks of a run; the labels of ``training``, which no contestant sees, fix the map."""

    def __init__(self, config: TrainConfig, training: Decoded, held_out: Decoded, images: int | None) -> None:
        """``images`` cuts every split and the generated sample to so many: for a run that is not to be quoted."""
        tables = config.network_tables
        test = data.open_split(config.dataset, config.data, "test", tables.image, tables=config.tables)
        assert isinstance(test, Decoded)
        self.config = config
        self.training, self.held_out, self.test = (_labelled(split, images) for split in (training, held_out, test))
        self.samples = images or INFORMATION_SAMPLES

    def __call__(self, generator: Generator, discriminator: Discriminator) -> Verdict:
        """The networks come back as they were. Waits for the device."""
        config = self.config
        information = information_bound(
            generator, discriminator, config.spec, seed=config.seed, fixed_std=config.fixed_std, samples=self.samples
        )
        device = next(discriminator.parameters()).device
        pixels = self.training.pixels[:CALIBRATION_IMAGES]
        image_range = config.network_tables.image_range
        judge = recalibrated(discriminator, image_batches(pixels, image_range, device))
        training, held_out, test = (
            (predict(judge, config.spec, split.pixels, image_range)[:, 0], split.labels)
            for split in (self.training, self.held_out, self.test)
        )
        k = config.spec.categorical[0]
        found = clustering(training, held_out, k)
        return Verdict(
            information[config.spec.names[0]], found.error, found.training_error, clustering(training, test, k).error
        )


def _labelled(split: Decoded, images: int | None) -> Labelled:
    assert split.labels is not None
    return Labelled(split.pixels[:images].contiguous(), split.labels[:images])
