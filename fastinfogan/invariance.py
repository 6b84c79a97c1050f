"""The invariance term: categories that real images and their small warps share, all of them in use.

It is not the paper's, and is off unless asked for. Nothing in L_I ties a category to what people call one kind of
image, and on MNIST a category often ends up as a slant of two digits. The term asks that Q gives an image and the same
image turned, scaled or shifted a little (:mod:`fastinfogan.warp`) the same category, and uses the categories about as
often as the prior of c does: each view's answers, moved towards the prior's frequencies in the batch, are the targets
of the other's (Caron et al. 2020, SwAV, where the frequencies are met exactly). A batch seldom has as many images of
one kind as of another, so to meet them answers are moved that Q is sure of; on MNIST that kept kinds mixed on some
seeds (bench/NOTES.md, with what else was tried). The continuous codes have no part in it.
"""

from __future__ import annotations

import torch

from fastinfogan.codes import LatentSpec
from fastinfogan.distributed import Average
from fastinfogan.prior import LearnedPrior

TEMPERATURE = 0.2  # of the targets: below 1 they are surer than Q is, and so lead it
PULL = 0.9  # of equal shares on the targets: 0 is none, 1 allows no others
# Under a learnt prior. Sharper, it ends more unequal than the classes are; pulled more, Q's answers hardly differ from
# it, and it stays where it is (bench/NOTES.md).
PRIOR_TEMPERATURE, PRIOR_PULL = 0.5, 0.5


def invariance(
    spec: LatentSpec,
    one: torch.Tensor,
    other: torch.Tensor,
    weight: float,
    loss_scale: torch.Tensor | None = None,
    average: Average | None = None,
    prior: LearnedPrior | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How well the categories of Q's outputs ``[n_heads, n, spec.head_dim]`` on two views of the same images agree.

    With p, q the softmaxes of the two and a, b their :func:`leaning` answers, the mean over rows of
    (-sum b log p - sum a log q) / 2, summed over the codes: float32 ``[n_heads]``, nats. With it the gradients of
    ``weight * loss_scale`` times it with respect to ``one`` and ``other``, in their dtype; a and b are constants, so
    that d / d logits of p = (p - b) / 2n. ``average`` lets several processes lean over all their rows. The answers lean
    towards equal shares, or where a ``prior`` is learnt, towards it.
    """
    both = torch.stack([one, other]).float()
    _, n_heads, n, _ = both.shape
    gradients, total = torch.zeros_like(both), both.new_zeros(n_heads)
    scale = weight / (2 * n) * (1.0 if loss_scale is None else loss_scale)
    for code in range(len(spec.categorical)):
        columns = spec.logit_columns(code)
        logits = both[..., columns]
        if prior is None:
            answers = leaning(logits / TEMPERATURE, PULL, average=average)
        else:
            shares = prior.probabilities()[code]
            answers = leaning(logits / PRIOR_TEMPERATURE, PRIOR_PULL, shares, average)
        targets = answers.flip(0)
        log_probability = torch.log_softmax(logits, -1)
        total -= (targets * log_probability).sum((0, 2, 3)) / (2 * n)
        gradients[..., columns] = (log_probability.exp() - targets) * scale
    of_one, of_other = gradients.to(one.dtype).unbind()
    return total, of_one, of_other


def leaning(
    scores: torch.Tensor,
    pull: float,
    shares: torch.Tensor | None = None,
    average: Average | None = None,
    rounds: int = 4,
) -> torch.Tensor:
    """Distributions over categories, near the softmax of ``scores`` ``[..., n, k]`` and leaning towards using them over
    the n rows in ``shares`` ``[k]``, equal ones where none are given; with a ``pull`` of 1 they meet them.

    Source: Cuturi 2013 and Caron et al. 2020, section 3.1, for exact shares; Chizat et al. 2018, Scaling algorithms for
    unbalanced transport problems, for those that lean.

    1. The answers are exp(s_ij + v_j - r_i) with scores s, and r such that rows sum to 1.
       Columns sum to n p_j, for n rows and shares p, where v_j = ln(n p_j) - ln sum over i of exp(s_ij - r_i).
    2. Columns that may differ, at the cost of rho times their KL divergence from n p_j where the answers' entropy
       counts 1, have rho / (1 + rho) = ``pull`` times that. So v_j is bounded by how far a category is from its share:
       it moves rows that hesitate and none that Q is sure of, as exact shares do at any price.
    3. The sum in it is the answers' column over exp(v_j); what all columns have in common, ln n, is nothing to a row.
       All in logarithms, so that a category that nothing chooses has a finite v_j too.
    """
    moved = torch.zeros_like(scores[..., :1, :])
    log_shares = moved if shares is None else shares.clamp_min(1e-12).log()
    for _ in range(rounds):
        moved = pull * (log_shares + moved - _log_shares(torch.log_softmax(scores + moved, -1), average))
    return torch.softmax(scores + moved, -1)


def _log_shares(scores: torch.Tensor, average: Average | None) -> torch.Tensor:
    """ln of the columns' sums of exp(``scores``), or, over several processes, of the means of those."""
    shares = torch.logsumexp(scores, -2, keepdim=True)
    if average:
        shares.exp_()
        average([shares])
        shares.clamp_min_(torch.finfo(shares.dtype).tiny).log_()
    return shares
