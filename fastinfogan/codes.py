"""What the generator is fed: the noise z and the latent code c, and where each of their columns lies.

One immutable :class:`LatentSpec` is shared by the sampler, the networks, the objective and the metrics, so that no
two of them can disagree about a column. Source: Chen et al. 2016, section 5 (the code as independent factors) and
appendix C (the codes of each experiment).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from fastinfogan.errors import UserError

Prior = Literal["uniform", "normal"]


class Latents(NamedTuple):
    """One batch of latents: the generator's input and the targets of Q that lie in it.

    z: ``[batch, spec.dim]``, the generator's input, in the dtype that it was asked for.
    categories: ``int64 [batch, n_categorical]``, the index that is hot in each categorical code.
    continuous: ``float32 [batch, n_continuous]``, the values in z, rounded as z is.
    """

    z: torch.Tensor
    categories: torch.Tensor
    continuous: torch.Tensor


@dataclass(frozen=True)
class Categorical:
    """One categorical code of ``k`` values, equally likely unless their prior is learnt; entropy at most ln k nats."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 2:
            raise UserError(f"a categorical code needs at least 2 values, got {self.k}: write cat:2 or more")


@dataclass(frozen=True)
class Uniform:
    """``n`` independent codes on U(-1, 1); entropy ln 2 nats each."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"uniform:{self.n} holds no code: write uniform:1 or more, or leave it out")


@dataclass(frozen=True)
class Gaussian:
    """``n`` independent codes on N(0, 1); entropy ln(2 pi e) / 2 nats each."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"gaussian:{self.n} holds no code: write gaussian:1 or more, or leave it out")


Code = Categorical | Uniform | Gaussian

MOST = 1 << 16  # columns of one part: what claims more is a mistake, or a file that is made to fill the memory
UNIFORM_ENTROPY = math.log(2.0)
GAUSSIAN_ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e)


@dataclass(frozen=True)
class LatentSpec:
    """The layout of the latents: ``noise`` columns of z, then the codes.

    Columns of the generator's input:  ``[noise | one-hot of code 1 | ... | one-hot of code n | continuous]``.
    Columns of the recognition output: ``[logits of code 1 | ... | logits of code n | means | log-stds]``.
    Continuous values keep the order of ``codes``; a ``Uniform(2)`` counts as two of them.

    Raises:
        UserError: a negative ``noise``, an unknown prior, ``learn_prior`` without a categorical code, or a spec with no
            column at all.
    """

    noise: int = 62
    codes: tuple[Code, ...] = (Categorical(10), Uniform(2))
    noise_prior: Prior = "uniform"
    learn_prior: bool = False
    """The categories' frequencies are learnt with the generator (:mod:`fastinfogan.prior`) instead of being equal."""

    # Derived once, and as plain attributes: torch.compile traces those and not a cached_property.
    categorical: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """K of each categorical code, in order."""
    continuous: tuple[Prior, ...] = field(init=False, repr=False, compare=False)
    """The prior of each continuous value, in order."""
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """c1, c2, ...: the paper's numbering, categorical codes first, then each continuous value."""
    entropies: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """H(c) in nats of each of ``names``: the ceiling of its bound. A learnt prior has its own, which is not higher."""
    dim: int = field(init=False, repr=False, compare=False)
    """Columns of the generator's input."""
    head_dim: int = field(init=False, repr=False, compare=False)
    """Columns of the recognition head's output."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= MOST:
            raise UserError(f"noise must be a number of columns, 0 to {MOST:,}, got {self.noise}")
        if self.noise_prior not in ("uniform", "normal"):
            raise UserError(f"noise_prior must be uniform or normal, got {self.noise_prior!r}")
        if self.noise == 0 and not self.codes:
            raise UserError("a generator needs an input: give it noise columns, codes, or both")
        categorical = tuple(code.k for code in self.codes if isinstance(code, Categorical))
        if self.learn_prior and not categorical:
            raise UserError("there is no categorical code whose prior could be learnt: add cat:K, or learn no prior")
        continuous: list[Prior] = []
        for code in self.codes:
            if not isinstance(code, Categorical):
                continuous += ["uniform" if isinstance(code, Uniform) else "normal"] * code.n
        n_codes = len(categorical) + len(continuous)
        derived = {
            "codes": tuple(self.codes),
            "categorical": categorical,
            "continuous": tuple(continuous),
            "names": tuple(f"c{i + 1}" for i in range(n_codes)),
            "entropies": tuple(math.log(k) for k in categorical)
            + tuple(UNIFORM_ENTROPY if prior == "uniform" else GAUSSIAN_ENTROPY for prior in continuous),
            "dim": self.noise + sum(categorical) + len(continuous),
            "head_dim": sum(categorical) + 2 * len(continuous),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def one_hot_columns(self, code: int) -> slice:
        """Columns of categorical code number ``code`` (from 0) in the generator's input."""
        start = self.noise + sum(self.categorical[:code])
        return slice(start, start + self.categorical[code])

    @property
    def continuous_columns(self) -> slice:
        """Columns of the continuous values in the generator's input."""
        return slice(self.dim - len(self.continuous), self.dim)

    def logit_columns(self, code: int) -> slice:
        """Columns of categorical code number ``code`` (from 0) in the recognition head's output."""
        start = sum(self.categorical[:code])
        return slice(start, start + self.categorical[code])

    @property
    def mean_columns(self) -> slice:
        """Columns of the continuous values' means in the recognition head's output."""
        start = sum(self.categorical)
        return slice(start, start + len(self.continuous))

    @property
    def log_std_columns(self) -> slice:
        """Columns of the continuous values' log-stds in the recognition head's output."""
        return slice(self.head_dim - len(self.continuous), self.head_dim)


_KINDS: dict[str, type[Categorical] | type[Uniform] | type[Gaussian]] = {
    "cat": Categorical,
    "uniform": Uniform,
    "gaussian": Gaussian,
}


def parse_code(text: str) -> Code:
    """``"cat:10"`` -> Categorical(10); ``"uniform:2"``, ``"gaussian:1"`` likewise: codes as flags write them.

    Raises:
        UserError: anything else.
    """
    kind, _, number = text.partition(":")
    if kind not in _KINDS or not number.isdecimal():
        raise UserError(f"cannot read the code {text!r}: write cat:K, uniform:N or gaussian:N, for example cat:10")
    if int(number) > MOST:
        raise UserError(f"the code {text} is too large: at most {MOST:,} columns can be had")
    return _KINDS[kind](int(number))
