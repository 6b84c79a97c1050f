"""What Q has learned without labels, measured by how far a few labels go: a linear probe on its features.

The same probe is given raw pixels and their principal components, because digits are nearly linear in their pixels
already: features are worth what they add to that. Every representation is centred and scaled by one number to rows of
length 1 on average, so that one strength of regularisation means the same to all; columns are not scaled one by one,
which would blow up the least components and the pixels of the border. Means, scales and components come from training
images without labels; the test labels are counted and choose nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from fastinfogan.codes import LatentSpec
from fastinfogan.metrics.images import Range, image_batches
from fastinfogan.metrics.representation import represent
from fastinfogan.networks import Discriminator

LABELS = (10, 100, 1000)
DRAWS = 5
COMPONENTS = 50
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C of the logistic regression: smaller is more regularised
FOLDS = 3

Table = npt.NDArray[np.float64]
Truth = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """errors: of each representation, by number of labels, the share of test images named wrongly in each draw."""

    errors: dict[str, dict[int, list[float]]]
    dimensions: dict[str, int]
    test_images: int
    train_images: int

    def lines(self) -> list[str]:
        """Mean and standard deviation of the errors, and the protocol, as lines of a table."""
        numbers = list(next(iter(self.errors.values())))
        shown = ["linear probe, test error, mean ± standard deviation over draws of the labels:"]
        shown.append(f"  {'labels':<22}" + "".join(f"{number:>18,}" for number in numbers))
        for name, found in self.errors.items():
            cells = (f"{np.mean(one):.2%} ± {np.std(one, ddof=1):.2%}" for one in found.values())
            shown.append(f"  {f'{name} ({self.dimensions[name]})':<22}" + "".join(f"{cell:>18}" for cell in cells))
        draws = len(next(iter(next(iter(self.errors.values())).values())))
        shown.append(
            f"  {draws} draws, equally many labels per class; regularisation by cross-validation on the labelled"
        )
        shown.append(f"  training images alone (C = 1 with one label per class); {self.test_images:,} test images;")
        shown.append(f"  labels, means and components from {self.train_images:,} training images")
        return shown


def representations(
    discriminator: Discriminator, spec: LatentSpec, train: torch.Tensor, test: torch.Tensor, image_range: Range
) -> dict[str, tuple[Table, Table]]:
    """Of training and test images uint8 ``[n, h, w, c]``: Q's trunk features, its codes, pixels and their components.

    ``discriminator`` in eval mode.
    """
    device = next(discriminator.parameters()).device

    @torch.inference_mode()
    def trunk(pixels: torch.Tensor) -> Table:
        parts = [discriminator.features(images).cpu() for images in image_batches(pixels, image_range, device)]
        return torch.cat(parts).double().numpy()

    def codes(pixels: torch.Tensor) -> Table:
        return represent(discriminator, spec, pixels, image_range).table

    def raw(pixels: torch.Tensor) -> Table:
        return pixels.flatten(1).double().numpy() / 255

    components = min(COMPONENTS, len(train), train[0].numel())
    pca = PCA(components, random_state=0, svd_solver="randomized").fit(raw(train))
    readers: dict[str, Callable[[torch.Tensor], Table]] = {
        "Q's trunk": trunk,
        "Q's codes": codes,
        "pixels": raw,
        "PCA": lambda pixels: pca.transform(raw(pixels)),
    }
    found = {}
    for name, read in readers.items():
        of_train, of_test = read(train), read(test)
        centre = of_train.mean(0)
        length = np.sqrt(np.square(of_train - centre).sum(1).mean())
        if length <= 1e-6 * np.sqrt(np.square(of_train).sum(1).mean()):
            length = np.inf  # the same of every image, but for rounding: it tells nothing
        found[name] = ((of_train - centre) / length, (of_test - centre) / length)
    return found


def probe(
    tables: dict[str, tuple[Table, Table]],
    train_labels: Truth,
    test_labels: Truth,
    *,
    seed: int,
    labels: tuple[int, ...],
    draws: int,
) -> Probe:
    """The errors of a logistic regression on each representation; all see the same labelled images."""
    errors: dict[str, dict[int, list[float]]] = {name: {number: [] for number in labels} for name in tables}
    for draw in range(draws):
        for number in labels:
            chosen = balanced(train_labels, number, np.random.default_rng([seed, draw, number]))
            for name, (train, test) in tables.items():
                predicted = _fitted(train[chosen], train_labels[chosen]).predict(test)
                errors[name][number].append(float(np.mean(predicted != test_labels)))
    dimensions = {name: train.shape[1] for name, (train, _) in tables.items()}
    return Probe(errors, dimensions, len(test_labels), len(train_labels))


def balanced(labels: Truth, number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """``number`` indices with equally many, at least one, of each class; all of a class that has too few."""
    classes = np.unique(labels)
    each = max(1, number // len(classes))
    picked = [rng.permutation(np.flatnonzero(labels == one))[:each] for one in classes]
    return np.concatenate(picked)


def _fitted(table: Table, labels: Truth) -> LogisticRegression | GridSearchCV:
    """A logistic regression whose C does best in cross-validation on these rows; C = 1 where a class has one row."""
    model = LogisticRegression(max_iter=300)
    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    with warnings.catch_warnings():
        # What is not converged after 300 steps is nearly separable, and early stopping only regularises it more.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if fewest < 2:
            return model.fit(table, labels)
        folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=0)
        return GridSearchCV(model, {"C": STRENGTHS}, cv=folds).fit(table, labels)
