"""Six published scores of how well codes stand for factors one to one: MIG, DCI, SAP, FactorVAE, BetaVAE, modularity.

All are computed from two tables, the codes that Q reads off real images and the true factors of those images, so that
images are encoded once. Written out here because the library at hand (disent) needs torchvision and lightning to
import, takes every column for a code, and can fix a factor only in sets that it renders itself.

Where factors are drawn at random rather than from a grid, "the same value" means one of 20 bins. MIG's published 20
bins merge values of a factor that has more: on dSprites' 32 positions and 40 angles even a perfect code reaches 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from fastinfogan.data.split import Factors
from fastinfogan.metrics.representation import (
    BINS,
    Floats,
    Indices,
    Representation,
    angle,
    factor_levels,
    r2,
    targets,
    unrolled,
    varying,
)

FIT_IMAGES, TEST_IMAGES = 10_000, 10_000
VOTES, VOTE_IMAGES = (10_000, 5_000), 64  # disentanglement_lib's, for training and for test
AT_A_TIME = 10_000_000  # values of codes
FOREST_TREES, FOREST_DEPTHS = 20, (2, 4, 8, 12)

Forest = Any  # a random forest of scikit-learn, which comes without types
Judged = tuple[Representation, Factors]  # codes of some images, and the factors of the same images


@dataclass(frozen=True)
class Disentanglement:
    """Each score is 1 for a code that is the factors, one each; names of codes and factors label ``information``.

    mig: gap between the two most informative codes of a factor, in shares of its entropy (Chen et al. 2018).
    dci_*: disentanglement, completeness and informativeness (Eastwood and Williams 2018).
    sap: gap between the two best predictors of a factor (Kumar et al. 2018).
    factor_vae, beta_vae: share of right votes on which factor was held fixed (Kim and Mnih 2018, Higgins et al. 2017).
    modularity: Ridgeway and Mozer 2018, Eq. 2. modularity_chance: that of the same codes of other images, which is far
    from 0 where factors differ in how many values they take, as then an estimate of information does in its error.
    information: mutual information of each code (row) with each factor (column) in nats.
    """

    codes: tuple[str, ...]
    factors: tuple[str, ...]
    mig: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    sap: float
    factor_vae: float
    beta_vae: float
    modularity: float
    modularity_chance: float
    information: list[list[float]]
    fit_images: int
    test_images: int
    votes: tuple[int, int]

    def lines(self) -> list[str]:
        """The scores and their protocol, as lines of a table."""
        scores = {
            "MIG": self.mig, "SAP": self.sap, "FactorVAE": self.factor_vae, "BetaVAE": self.beta_vae,
            "DCI-D": self.dci_disentanglement, "DCI-C": self.dci_completeness, "DCI-I": self.dci_informativeness,
            "modularity": self.modularity,
        }  # fmt: skip
        shown = [f"{name} {value:.3f}" for name, value in scores.items()]
        shown[-1] += f" (by chance {self.modularity_chance:.3f})"
        fitted, judged = self.votes
        return [
            f"disentanglement of {', '.join(self.codes)} against {', '.join(self.factors)}:",
            "  " + "   ".join(shown[:4]),
            "  " + "   ".join(shown[4:]),
            f"  predictors fitted on {self.fit_images:,} training images, scores on {self.test_images:,} others;",
            f"  FactorVAE and BetaVAE: {fitted:,} / {judged:,} votes of {VOTE_IMAGES} images or pairs, BetaVAE's",
            f"  standardised; codes, and factors of many values, in {BINS} bins; DCI: forests of {FOREST_TREES} trees,",
            "  depth chosen on training images; by chance: the codes of other images;",
            "  batch-norm statistics of up to 10,000 training images; one seed",
        ]


def disentanglement(
    train: Judged,
    test: Judged,
    *,
    seed: int,
    votes: tuple[int, int],
) -> Disentanglement:
    """All scores of codes against the factors that vary; every predictor is fitted on ``train`` and judged on ``test``.

    A factor counts if it varies in both. Needs at least two codes and two such factors: with one of either a gap or an
    entropy has no meaning.
    """
    (train_codes, train_factors), (test_codes, test_factors) = train, test
    columns = varying(train_factors, test_factors)
    rng = np.random.default_rng(seed)
    train_levels, test_levels = (_levels(factors, columns) for factors in (train_factors, test_factors))
    information = mutual_information(test_codes, test_levels)
    others = np.random.default_rng([seed, 1]).permutation(len(test_codes))
    by_chance = mutual_information(test_codes, [factor[others] for factor in test_levels])
    d, c, i = dci(train, test, columns, seed)
    return Disentanglement(
        codes=test_codes.names,
        factors=tuple(test_factors.names[column] for column in columns),
        mig=mig(information, test_levels),
        dci_disentanglement=d,
        dci_completeness=c,
        dci_informativeness=i,
        sap=float(np.mean(_gaps(predictability(train, test, columns, seed)))),
        factor_vae=factor_vae((train_codes, train_levels), (test_codes, test_levels), votes, rng),
        beta_vae=beta_vae((train_codes, train_levels), (test_codes, test_levels), votes, rng),
        modularity=modularity(information),
        modularity_chance=modularity(by_chance),
        information=information.tolist(),
        fit_images=len(train_codes),
        test_images=len(test_codes),
        votes=votes,
    )


def _levels(factors: Factors, columns: tuple[int, ...]) -> list[Indices]:
    return [factor_levels(factors.values[:, column].double().numpy(), factors.kinds[column]) for column in columns]


def mutual_information(codes: Representation, levels: list[Indices]) -> Floats:
    """I(code; factor) in nats between discretised codes (rows) and factors (columns)."""
    of_codes = [codes.levels(code) for code in range(len(codes.names))]
    return np.array([[mutual_info_score(factor, code) for factor in levels] for code in of_codes])


def mig(information: Floats, levels: list[Indices]) -> float:
    """Chen et al. 2018, Eq. 6: mean over factors of (largest - second largest information) / H(factor)."""
    entropies = np.array([mutual_info_score(factor, factor) for factor in levels])
    return float(np.mean(_gaps(information) / entropies))


def modularity(information: Floats) -> float:
    """Ridgeway and Mozer 2018, Eq. 2: 1 where each code informs about one factor only; a code of none counts 0."""
    squared = np.square(information)
    largest = squared.max(1)
    # An estimate from a finite sample is never exactly 0: a code that knows nothing is judged by its error.
    rest = (squared.sum(1) - largest) / np.maximum(largest, 1e-12) / (information.shape[1] - 1)
    return float(np.mean(np.where(largest > 1e-12, 1 - rest, 0.0)))


def _gaps(scores: Floats) -> Floats:
    """Of each factor (column) the largest less the second largest score of a code (row)."""
    ranked = np.sort(scores, 0)[::-1]
    return ranked[0] - ranked[1]


def predictability(train: Judged, test: Judged, columns: tuple[int, ...], seed: int) -> Floats:
    """Kumar et al. 2018, section 3: how well each code alone (row) predicts each factor (column), linearly.

    R2 of continuous factors, of circular ones along the circle cut open where that is best on the training
    images; accuracy of a linear support vector machine (C = 0.01, balanced classes) for categorical ones.
    """
    (train_codes, train_factors), (test_codes, test_factors) = train, test
    scores = np.zeros((len(train_codes.names), len(columns)))
    for row, (fitted, judged) in enumerate(zip(train_codes.columns, test_codes.columns, strict=True)):
        for place, column in enumerate(columns):
            if train_factors.kinds[column] == "categorical":
                machine = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
                machine.fit(fitted, targets(train_factors, column)[:, 0])
                scores[row, place] = np.mean(machine.predict(judged) == targets(test_factors, column)[:, 0])
                continue
            known, asked = (_lines(factors, column) for factors in (train_factors, test_factors))
            tried = [LinearRegression().fit(fitted, line) for line in known]
            best = int(np.argmax([model.score(fitted, line) for model, line in zip(tried, known, strict=True)]))
            # A code that predicts worse than the mean predicts nothing.
            scores[row, place] = max(0.0, tried[best].score(judged, asked[best]))
    return scores


def _lines(factors: Factors, column: int) -> list[Floats]:
    """A factor as values on a line: its own, or of a circular one the circle cut open at each of its cuts."""
    if factors.kinds[column] == "circular":
        return unrolled(angle(factors, column))
    return [targets(factors, column)[:, 0]]


def dci(train: Judged, test: Judged, columns: tuple[int, ...], seed: int) -> tuple[float, float, float]:
    """Eastwood and Williams 2018, section 2, with random forests: disentanglement, completeness, informativeness.

    A code's importance is that of its columns together; a circular factor is predicted as cosine and sine. A forest's
    depth is the one of (2, 4, 8, 12) that does best on the last third of the training images. Informativeness is the
    mean R2 (accuracy for categorical factors) on the test images.
    """
    (train_codes, train_factors), (test_codes, test_factors) = train, test
    importance = np.zeros((len(train_codes.names), len(columns)))
    predicted = []
    for place, column in enumerate(columns):
        forest = _forest(train_codes.table, train_factors, column, seed)
        np.add.at(importance[:, place], train_codes.owners, forest.feature_importances_)
        predicted.append(_quality(forest, test_codes.table, targets(test_factors, column)))
    return *entropic_scores(importance), float(np.mean(predicted))


def entropic_scores(importance: Floats) -> tuple[float, float]:
    """Disentanglement and completeness of an importance matrix, codes in rows and factors in columns.

    Of each code (factor) 1 - the entropy of its importances in units of the largest possible; weighted by the share of
    importance that the code (factor) has.
    """

    def score(rows: Floats) -> float:
        shares = rows / np.maximum(rows.sum(1, keepdims=True), 1e-12)
        entropies = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1) / np.log(rows.shape[1])
        return float(((1 - entropies) * rows.sum(1)).sum() / max(rows.sum(), 1e-12))

    return score(importance), score(importance.T)


def _forest(table: Floats, factors: Factors, column: int, seed: int) -> Forest:
    """A forest that predicts one factor from the codes, as deep as does best on the last third of the images."""
    wanted = targets(factors, column)
    kind = RandomForestClassifier if factors.kinds[column] == "categorical" else RandomForestRegressor

    def grown(depth: int, rows: slice) -> Forest:
        # Every split may use every code: left to a random choice of them, importance leaks to codes that know nothing.
        forest = kind(FOREST_TREES, max_depth=depth, max_features=None, random_state=seed, n_jobs=-1)
        return forest.fit(table[rows], wanted[rows, 0] if wanted.shape[1] == 1 else wanted[rows])

    kept = slice(0, len(table) * 2 // 3)
    held_out = slice(kept.stop, None)
    tried = {depth: _quality(grown(depth, kept), table[held_out], wanted[held_out]) for depth in FOREST_DEPTHS}
    return grown(max(tried, key=lambda depth: tried[depth]), slice(None))


def _quality(forest: Forest, table: Floats, wanted: Floats) -> float:
    """R2 of a regressor, accuracy of a classifier."""
    found = forest.predict(table).reshape(len(wanted), -1)
    return float(np.mean(found == wanted)) if isinstance(forest, RandomForestClassifier) else r2(found, wanted)


Levels = tuple[Representation, list[Indices]]


def factor_vae(train: Levels, test: Levels, votes: tuple[int, int], rng: np.random.Generator) -> float:
    """Kim and Mnih 2018, section 4: the code that varies least names the factor that is held fixed.

    One vote: 64 images that share the value of one factor; each code's variance over them, divided by its variance
    over all images, is least for one code. The majority of the training votes says which factor a code stands for;
    the score is the share of test votes that agree. A posterior's variance is the sum over its columns, which for
    one-hots is Gini's. A code that never varies has no vote.
    """
    n_codes, n_factors = len(train[0].names), len(train[1])
    counts = np.zeros((n_codes, n_factors))
    np.add.at(counts, _least_varying(*train, votes[0], rng), 1)
    named = counts.argmax(1)
    code, factor = _least_varying(*test, votes[1], rng)
    return float(np.mean(named[code] == factor))


def _least_varying(
    codes: Representation, levels: list[Indices], votes: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """For each vote the code of least relative variance, and the factor that was held fixed."""
    factor = rng.integers(len(levels), size=votes)
    images = _sharing(levels, factor, VOTE_IMAGES, rng)
    relative = np.full((votes, len(codes.names)), np.inf)
    for place, columns in enumerate(codes.columns):
        overall = columns.var(0, ddof=1).sum()
        if overall > 1e-12 * np.square(columns).sum(1).mean():  # whatever its unit
            relative[:, place] = _in_parts(lambda of: of.var(1, ddof=1).sum(1), columns, images) / overall
    return relative.argmin(1), factor


def _in_parts(measure: Callable[[Floats], Floats], columns: Floats, images: Indices) -> Floats:
    """``measure``, row by row, of ``columns[images]``, which is gigabytes where a code has a thousand values."""
    parts = 1 + images.size * columns.shape[1] // AT_A_TIME
    return np.concatenate([measure(columns[rows]) for rows in np.array_split(images, parts)])


def _sharing(levels: list[Indices], factor: Indices, n: int, rng: np.random.Generator) -> Indices:
    """Per vote ``n`` images, drawn with replacement, that share the value of the vote's factor: ``[votes, n]``.

    A value of one image alone has no vote while others have more: nothing at all varies within it.
    """
    found = np.empty((len(factor), n), dtype=np.int64)
    for place, values in enumerate(levels):
        votes = np.flatnonzero(factor == place)
        order = np.argsort(values, kind="stable")
        shared = np.flatnonzero(np.bincount(values)[values] > 1)
        drawn_from = shared if len(shared) else np.arange(len(values))
        chosen = values[drawn_from[rng.integers(len(drawn_from), size=len(votes))]]
        start, stop = (np.searchsorted(values[order], chosen, side) for side in ("left", "right"))
        found[votes] = order[
            start[:, None] + np.floor(rng.random((len(votes), n)) * (stop - start)[:, None]).astype(int)
        ]
    return found


def beta_vae(train: Levels, test: Levels, votes: tuple[int, int], rng: np.random.Generator) -> float:
    """Higgins et al. 2017, section 3: how much each code differs within pairs tells which factor the pairs share.

    One vote: the mean over 64 pairs of images that share the value of one factor of |difference| of each code (of a
    posterior: total variation). A linear classifier fitted on the training votes names the factor of the test votes.
    """
    (train_x, train_y), (test_x, test_y) = (
        _differences(*of, n, rng) for of, n in zip((train, test), votes, strict=True)
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=100.0, max_iter=1000))
    return float(classifier.fit(train_x, train_y).score(test_x, test_y))


def _differences(
    codes: Representation, levels: list[Indices], votes: int, rng: np.random.Generator
) -> tuple[Floats, Indices]:
    factor = rng.integers(len(levels), size=votes)
    # Each pair shares a value of its own: a vote of one value for all pairs would be FactorVAE's.
    pairs = _sharing(levels, np.repeat(factor, VOTE_IMAGES), 2, rng)
    table = np.empty((votes, len(codes.names)))
    for place, columns in enumerate(codes.columns):
        apart = _in_parts(lambda of: np.abs(of[:, 0] - of[:, 1]).sum(1), columns, pairs)
        apart *= 0.5 if columns.shape[1] > 1 else 1.0
        table[:, place] = apart.reshape(votes, VOTE_IMAGES).mean(1)
    return table, factor
