"""Hypothesis strategies that several test files share: latent layouts of every shape."""

from __future__ import annotations

from hypothesis import strategies as st

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.codes import Code


def specs(max_codes: int = 12, max_k: int = 64, max_continuous: int = 8, max_noise: int = 256) -> st.SearchStrategy:
    """LatentSpecs with up to ``max_codes`` categorical codes in any mix with continuous ones, at least one column."""
    categorical = st.lists(st.integers(2, max_k).map(Categorical), max_size=max_codes)
    continuous = st.lists(
        st.sampled_from([Uniform(1), Gaussian(1), Uniform(2), Gaussian(2)]), max_size=max_continuous // 2
    )
    codes: st.SearchStrategy[tuple[Code, ...]] = st.tuples(categorical, continuous).flatmap(
        lambda both: st.permutations([*both[0], *both[1]]).map(tuple)
    )
    return st.builds(
        lambda noise, codes, prior: LatentSpec(noise if codes else max(noise, 1), codes, prior),
        st.integers(0, max_noise),
        codes,
        st.sampled_from(["uniform", "normal"]),
    )
