"""How well a categorical code, read off real images, agrees with their labels (paper, section 7.2).

A code's values have no names, so they are matched to labels one to one. The matching is fixed on the training split;
the test split is then only counted. Several codes are judged together as one code whose values are their combinations:
still one to one, so of more combinations than labels all but as many count as errors. NMI and ARI need no matching and
do not punish a label that has several combinations as such; NMI grows with the number of values by chance, ARI does
not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

UNMATCHED = -1
MOST_CONFUSED = 1000  # values up to which the confusion matrix is worth keeping


@dataclass(frozen=True)
class Clustering:
    """Agreement of one code with the labels of the test split.

    error: share of test images whose code value is matched to another label, or to none.
    nmi, ari: normalised mutual information (arithmetic mean) and adjusted Rand index; neither needs the matching.
    training_error: the same error on the split that fixed the matching.
    matching: the label of each code value, -1 where no training image of the value has a label that is left for it.
    confusion: counts, rows labels, columns code values, on the test split; empty where there are over 1,000 values.
    """

    error: float
    nmi: float
    ari: float
    training_error: float
    matching: list[int]
    confusion: list[list[int]]


def match_to_labels(categories: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The one-to-one map from k code values to labels that agrees most often: int64 ``[k]``, -1 for no label.

    A value has a label only where an image has both: what is left over could be matched any way.
    """
    counts = contingency(categories, labels, k)
    label, value = linear_sum_assignment(counts, maximize=True)
    matching = np.full(k, UNMATCHED, dtype=np.int64)
    agreed = counts[label, value] > 0
    matching[value[agreed]] = label[agreed]
    return matching


def contingency(categories: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Counts ``[n_labels, k]`` of each label with each code value."""
    counts = np.zeros((int(labels.max()) + 1, k), dtype=np.int64)
    np.add.at(counts, (labels, categories), 1)
    return counts


def clustering(train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], k: int) -> Clustering:
    """Judge one code of ``k`` values; each split is ``(categories int64 [n], labels int64 [n])``."""
    (train_categories, train_labels), (test_categories, test_labels) = (
        tuple(part.cpu().numpy() for part in split) for split in (train, test)
    )
    matching = match_to_labels(train_categories, train_labels, k)
    return Clustering(
        error=float(np.mean(matching[test_categories] != test_labels)),
        nmi=float(normalized_mutual_info_score(test_labels, test_categories)),
        ari=float(adjusted_rand_score(test_labels, test_categories)),
        training_error=float(np.mean(matching[train_categories] != train_labels)),
        matching=matching.tolist(),
        confusion=contingency(test_categories, test_labels, k).tolist() if k <= MOST_CONFUSED else [],
    )


def joint(train: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Several codes as one: categories int64 ``[n, n_codes]`` of either split as int64 ``[n]``, and how many values.

    Only combinations that occur are counted. One that occurs in the test split alone has no label in the matching,
    which is fixed on the training split.
    """
    combinations, index = torch.cat([train, test]).unique(dim=0, return_inverse=True)
    return index[: len(train)], index[len(train) :], len(combinations)
