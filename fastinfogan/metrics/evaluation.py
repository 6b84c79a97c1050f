"""One trained pair of networks, judged: the table that ``evaluate`` prints and that a run ends with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fastinfogan import data
from fastinfogan.config import TrainConfig
from fastinfogan.errors import UserError
from fastinfogan.files import write_whole
from fastinfogan.metrics import traversal
from fastinfogan.metrics.clustering import Clustering, clustering, joint
from fastinfogan.metrics.disentanglement import FIT_IMAGES, TEST_IMAGES, VOTES, Disentanglement, disentanglement
from fastinfogan.metrics.distance import NEAREST
from fastinfogan.metrics.features import FeatureNetwork, feature_network
from fastinfogan.metrics.images import generated
from fastinfogan.metrics.information import information_bound
from fastinfogan.metrics.probe import DRAWS, LABELS, Probe, probe, representations
from fastinfogan.metrics.representation import represent, varying
from fastinfogan.metrics.sample_quality import SAMPLES, SampleQuality, sample_quality
from fastinfogan.metrics.strokes import Strokes, stroke_correlations
from fastinfogan.metrics.subject import CALIBRATION_IMAGES, Subject, predict
from fastinfogan.metrics.traversal import FactorReader, TraversalTruth, traversal_truth
from fastinfogan.networks import Discriminator, Generator

INFORMATION_SAMPLES = 10_000
STROKE_SAMPLES = 5_000
LEAST_DISENTANGLED = 1_000  # images of either part: with few to a value of a factor all scores fall to chance
PROBE_IMAGES = 20_000
JOINT = "joint"  # all categorical codes as one

Group = Literal["information", "clustering", "samples", "disentanglement", "traversal", "strokes", "probe"]
ALL: tuple[Group, ...] = get_args(Group)
QUICK: tuple[Group, ...] = ("information", "clustering")


# Counted up where the metrics say something else of the same run. 2: what is judged is in random order, and diversity
# that of 500 such images of a value.
METRICS = 2


@dataclass(frozen=True)
class Evaluation:
    """information: nats per code and total; the rest by group, None (or empty) where it was not asked for.

    entropies: H(c) of each code. frequencies: of each value of a categorical code, where the prior is learnt.

    clusterings: per categorical code, and "joint" of all together where there are several. missing: why a group was
    left out.
    """

    step: int
    information: dict[str, float]
    entropies: dict[str, float]
    clusterings: dict[str, Clustering]
    samples: SampleQuality | None = None
    disentanglement: Disentanglement | None = None
    traversal: TraversalTruth | None = None
    strokes: Strokes | None = None
    probe: Probe | None = None
    missing: dict[str, str] = field(default_factory=dict)
    frequencies: dict[str, list[float]] = field(default_factory=dict)

    @property
    def information_shares(self) -> dict[str, float]:
        """The bound of each code as a share of its entropy H(c), at most 1."""
        if not self.information:
            return {}
        # A learnt prior may come to know one value only, of which there is nothing to tell.
        return {name: self.information[name] / h if h else math.nan for name, h in self.entropies.items()}

    def write(self, path: Path) -> None:
        """As JSON: everything that the table leaves out, and the table, which has the protocol.

        Raises:
            UserError: the file cannot be written.
        """
        content = {"metrics": METRICS} | asdict(self)
        content |= {"information_shares": self.information_shares, "table": self.table().splitlines()}
        try:
            write_whole(path, f"{json.dumps(_finite(content), indent=2)}\n".encode())
        except OSError as error:
            raise UserError(
                f"cannot write the evaluation {path} ({error.strerror}): make its folder writable, or free some space, "
                f"and evaluate again"
            ) from None

    def publish(self, path: Path) -> None:
        """Write it to ``path`` and print the table.

        Raises:
            UserError: the file cannot be written; the table is printed all the same.
        """
        try:
            self.write(path)
        finally:  # what cannot be written is still shown, and what cannot be shown (a closed pipe) is still written
            print(self.table())

    def table(self) -> str:
        """The figures and the protocol behind them, as text."""
        lines = [f"after {self.step} iterations"]
        if self.information:
            lines.append("mutual information bound, nats (share of H(c)):")
            for name, share in self.information_shares.items():
                lines.append(f"  {name:<6}{self.information[name]:7.3f} of {self.entropies[name]:.3f}  ({share:6.1%})")
            lines.append(
                f"  total {self.information['total']:7.3f}   on {INFORMATION_SAMPLES:,} generated images; D and Q have"
            )
            lines.append("  the batch-norm statistics of the first quarter of them")
        lines += self._frequency_lines()
        if self.clusterings:
            lines.append("argmax Q(c|x) on the real images of the test split:")
            for name, found in self.clusterings.items():
                lines.append(f"  {name:<6}error {found.error:6.2%}   NMI {found.nmi:.3f}   ARI {found.ari:.3f}")
            if JOINT in self.clusterings:
                values = len(self.clusterings[JOINT].matching)
                lines.append(f"  joint: the {values:,} combinations of all codes as the values of one; of so many NMI")
                lines.append("  is above 0 by chance, ARI is not")
            lines.append("  values matched to labels one to one on the training split; batch-norm statistics of")
            lines.append(f"  {CALIBRATION_IMAGES:,} training images; test labels chose nothing; one seed")
        for group in (self.samples, self.disentanglement, self.traversal, self.strokes, self.probe):
            lines += group.lines() if group else []
        lines += [f"{group} not measured: {reason}" for group, reason in self.missing.items()]
        return "\n".join(lines)

    def _frequency_lines(self) -> list[str]:
        """What the learnt prior has found, above the labels that the values are matched to where there are labels."""
        lines = ["learnt frequencies of the values, %:"] if self.frequencies else []
        for name, shares in self.frequencies.items():
            lines.append(f"  {name:<6}" + "".join(f"{100 * share:6.1f}" for share in shares))
            if name in self.clusterings:
                labels = ("-" if label < 0 else str(label) for label in self.clusterings[name].matching)
                lines.append("  label " + "".join(f"{label:>6}" for label in labels))
        return lines


def evaluate(
    config: TrainConfig,
    generator: Generator,
    discriminator: Discriminator,
    step: int,
    groups: tuple[Group, ...] = QUICK,
    *,
    insist: bool = False,
    features: FeatureNetwork | None = None,
) -> Evaluation:
    """Judge the networks of ``config`` after ``step`` iterations; labels and factors are used here only.

    A group that this data set or code cannot have is left out: silently where it belongs to the quick ones, else with
    the reason in ``missing``. ``features``: what samples are judged by, in place of the set's own.

    Raises:
        UserError: the data set is not where ``config.data`` says, or, with ``insist``, a group that cannot be measured.
    """
    subject = Subject(config, generator, discriminator, features)
    lacks = {group: reason for group in groups if (reason := lacking(subject, group))}
    for group, reason in lacks.items():
        if insist:
            raise UserError(f"{group} cannot be measured: {reason}; leave it out of --groups, or give --all instead")
    found: dict[str, Any] = {"information": {}, "clusterings": {}}
    for group in ALL:
        if group in groups and group not in lacks:
            found["clusterings" if group == "clustering" else group] = _MEASURES[group](subject)
    missing = {str(group): reason for group, reason in lacks.items() if group not in QUICK}
    names = config.spec.names
    entropies, frequencies = dict(zip(names, config.spec.entropies, strict=True)), {}
    if (prior := generator.prior) is not None:
        entropies |= zip(names, prior.entropies().tolist(), strict=False)
        frequencies = {
            name: probabilities.tolist() for name, probabilities in zip(names, prior.probabilities(), strict=False)
        }
    return Evaluation(step=step, entropies=entropies, missing=missing, frequencies=frequencies, **found)


def lacking(subject: Subject, group: Group) -> str | None:
    """Why ``group`` cannot be measured on this subject, or None where it can."""
    config, spec = subject.config, subject.config.spec
    if group in ("clustering", "probe") and config.dataset not in data.FIXED:
        return f"{config.dataset} has no classes"
    if group == "clustering" and not spec.categorical:
        return "the run has no categorical code"
    if group == "probe" and not spec.names:
        return "the run has no code"
    # Fewer have no neighbour of the stated rank; of one alone there is no covariance.
    if group == "samples" and (images := min(len(part.pixels) for part in subject.real)) <= NEAREST:
        return f"either part of the images needs {NEAREST + 1} or more, and one has {images}"
    if group == "strokes" and config.dataset != "mnist":
        return f"slant and width of strokes are asked of MNIST only, not of {config.dataset}"
    if group in ("strokes", "traversal") and not spec.continuous:
        return "the run has no continuous code"
    if group in ("disentanglement", "traversal"):
        parts = [part.factors for part in subject.real if part.factors is not None]
        least = 2 if group == "disentanglement" else 1
        if len(parts) < 2 or len(varying(*parts)) < least:
            return f"{config.dataset} comes without true factors"
        if group == "disentanglement" and len(spec.names) < 2:
            return "a gap between codes needs two codes or more"
        images = min(len(part.pixels) for part in subject.real)
        if group == "disentanglement" and images < LEAST_DISENTANGLED:
            return f"either part of the images needs {LEAST_DISENTANGLED:,} or more, and one has {images:,}"
    return None


def _information(subject: Subject) -> dict[str, float]:
    config = subject.config
    return information_bound(
        subject.generator, subject.discriminator, config.spec, seed=config.seed, fixed_std=config.fixed_std,
        samples=INFORMATION_SAMPLES,
    )  # fmt: skip


def _clusterings(subject: Subject) -> dict[str, Clustering]:
    spec = subject.config.spec
    train, test = subject.real
    on_train, on_test = (predict(subject.judge, spec, split.pixels, subject.image_range) for split in (train, test))
    found = {
        spec.names[code]: clustering((on_train[:, code], train.labels), (on_test[:, code], test.labels), k)
        for code, k in enumerate(spec.categorical)
    }
    if len(spec.categorical) > 1:
        train_values, test_values, k = joint(on_train, on_test)
        found[JOINT] = clustering((train_values, train.labels), (test_values, test.labels), k)
    return found


def _samples(subject: Subject) -> SampleQuality:
    config, spec = subject.config, subject.config.spec
    network = subject.features or feature_network(config.dataset, config.data, subject.device)
    train, test = subject.real
    n = min(SAMPLES, len(train.pixels), len(test.pixels))
    real, training = test.some(n), train.some(n)
    made = generated(subject.generator, spec, n, seed=config.seed, image_range=subject.image_range)
    return sample_quality(
        network,
        real=real.pixels,
        training=training.pixels,
        generated=made.pixels,
        real_values=predict(subject.judge, spec, real.pixels, subject.image_range),
        generated_values=made.categories,
        names=spec.names[: len(spec.categorical)],
        seen=subject.test_split is None,
        seed=config.seed,
    )


def _disentanglement(subject: Subject) -> Disentanglement:
    pairs = []
    for split, limit in zip(subject.real, (FIT_IMAGES, TEST_IMAGES), strict=True):
        part = split.some(limit)
        assert part.factors is not None
        codes = represent(subject.judge, subject.config.spec, part.pixels, subject.image_range)
        pairs.append((codes, part.factors))
    return disentanglement(pairs[0], pairs[1], seed=subject.config.seed % 2**32, votes=VOTES)


def _traversal(subject: Subject) -> TraversalTruth:
    config = subject.config
    train, test = (split.some(traversal.FIT_IMAGES) for split in subject.real)
    assert train.factors is not None and test.factors is not None
    reader = FactorReader(train.pixels, train.factors, epochs=traversal.EPOCHS, seed=0, device=subject.device)
    return traversal_truth(
        reader,
        reader.quality(test.pixels, test.factors),
        subject.generator,
        config.spec,
        subject.image_range,
        seed=config.seed,
        fit_images=len(train.pixels),
    )


def _strokes(subject: Subject) -> Strokes:
    spec = subject.config.spec
    made = generated(subject.generator, spec, STROKE_SAMPLES, seed=subject.config.seed, image_range=subject.image_range)
    return stroke_correlations(made, spec.names[len(spec.categorical) :])


def _probe(subject: Subject) -> Probe:
    train, test = subject.real[0].some(PROBE_IMAGES), subject.real[1]
    tables = representations(subject.judge, subject.config.spec, train.pixels, test.pixels, subject.image_range)
    return probe(
        tables, train.labels.numpy(), test.labels.numpy(), seed=subject.config.seed, labels=LABELS, draws=DRAWS
    )


_MEASURES: dict[Group, Callable[[Subject], Any]] = {
    "information": _information,
    "clustering": _clusterings,
    "samples": _samples,
    "disentanglement": _disentanglement,
    "traversal": _traversal,
    "strokes": _strokes,
    "probe": _probe,
}


def _finite(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
