"""The head loss: terms, information and gradients against the reference in fp64, over layouts, strides and extremes."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from fastinfogan.kernels import head_loss as module
from fastinfogan.kernels.head_loss import head_loss
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.ops import LOG_STD_MIN
from tests.interpreted.agreement import DTYPES, examples, rounding, unaligned
from tests.strategies import specs

reference = importlib.import_module("fastinfogan.ops.head_loss")._reference

MNIST = LatentSpec()
MIXED = LatentSpec(0, (Categorical(3), Uniform(3), Categorical(17), Categorical(2), Gaussian(1)))
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Batch:
    """Arguments of one call; ``size`` is that of the logits."""

    spec: LatentSpec
    n_fake: int
    n_real: int | None = None
    codes: bool = True
    dtype: torch.dtype = torch.float32
    size: float = 3.0
    weight: float | None = 1.0
    scale: float | None = None
    saturating: bool = False
    fixed_std: bool = False
    strided: bool = False
    ends: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def logits(*shape: int) -> torch.Tensor:
            values = (self.size * torch.randn(*shape, generator=generator)).to(self.dtype)
            return unaligned(values) if self.strided else values

        spec, n = self.spec, self.n_fake
        column = (lambda rows: logits(rows, 2)[:, 1]) if self.strided else logits
        self.fake = column(n)
        self.real = None if self.n_real is None else column(self.n_real)
        self.recognition = logits(n, spec.head_dim) if self.codes else None
        self.categories = self.continuous = None
        if self.codes:
            drawn = [torch.randint(0, k, (n,), generator=generator) for k in spec.categorical]
            if self.ends:
                drawn = [torch.where(c * 2 < k, 0, k - 1) for c, k in zip(drawn, spec.categorical, strict=True)]
            self.categories = torch.stack(drawn, 1) if drawn else torch.empty(n, 0, dtype=torch.int64)
            self.continuous = 2 * torch.rand(n, len(spec.continuous), generator=generator) - 1
            if self.strided:
                self.categories, self.continuous = unaligned(self.categories), unaligned(self.continuous)
        self.weights = None
        if self.weight is not None:
            self.weights = self.weight * torch.rand(len(spec.names), generator=generator)
            if self.strided:
                self.weights = torch.stack([self.weights, 100.0 + self.weights], 1)[:, 0]

    def call(self, function: object, precision: torch.dtype | None = None) -> Results:
        """``function`` on these arguments, converted to ``precision`` first if one is given."""

        def cast(values: torch.Tensor | None) -> torch.Tensor | None:
            return values if precision is None or values is None else values.to(precision)

        return function(  # type: ignore[operator, no-any-return]
            cast(self.fake),
            cast(self.real),
            cast(self.recognition),
            self.categories,
            cast(self.continuous),
            self.weights,
            None if self.scale is None else torch.tensor(self.scale),
            self.spec.categorical,
            self.spec.entropies,
            self.saturating,
            self.fixed_std,
        )

    def in_plain_pytorch(self) -> list[torch.Tensor]:
        """The gradients as autograd has them when loss and logits are kept in ``dtype``: the error one may make."""
        fake = self.fake.detach().requires_grad_()
        real = None if self.real is None else self.real.detach().requires_grad_()
        if real is None:
            loss = F.softplus(fake).mean().neg() if self.saturating else F.softplus(-fake).mean()
        else:
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        q = None
        if self.recognition is not None and self.categories is not None and self.continuous is not None:
            q = self.recognition.detach().requires_grad_()
            weights = torch.ones(len(self.spec.names)) if self.weights is None else self.weights
            for i in range(len(self.spec.categorical)):
                columns = q[:, self.spec.logit_columns(i)]
                loss = loss + weights[i].to(self.dtype) * F.cross_entropy(columns, self.categories[:, i])
            mean = q[:, self.spec.mean_columns]
            log_std = q[:, self.spec.log_std_columns].clamp(min=LOG_STD_MIN)
            if self.fixed_std:
                log_std = torch.zeros_like(log_std)
            likelihood = ((self.continuous.to(self.dtype) - mean) * torch.exp(-log_std)) ** 2 / 2 + log_std
            loss = loss + (weights[len(self.spec.categorical) :].to(self.dtype) * likelihood.mean(0)).sum()
        (loss * (self.scale or 1.0)).backward()
        empty = torch.empty(0)
        return [empty if t is None or t.grad is None else t.grad for t in (real, fake, q)]


def assert_agrees(batch: Batch) -> None:
    actual, exact = batch.call(head_loss), batch.call(reference, torch.float64)
    shaped = batch.call(reference)
    for a, e in zip(actual, shaped, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
    statistics = exact[0]
    largest = float(statistics.abs().max())
    torch.testing.assert_close(actual[0].double(), statistics, rtol=1e-5, atol=1e-6 * max(1.0, largest))
    low = batch.dtype != torch.float32
    own = batch.in_plain_pytorch() if low else [torch.empty(0)] * 3
    # One row's share of the loss: gradients that cancel to nothing may differ by fp32's rounding of this.
    rows = max(1, min(batch.n_fake, batch.n_real or batch.n_fake))
    share = (batch.scale or 1.0) * max(1.0, batch.weight or 1.0) / rows
    for a, e, plain in zip(actual[1:], exact[1:], own, strict=True):
        allowed = 2e-5 * e.abs() + 2e-6 * share
        if low and e.numel():
            allowed = allowed + 2 * (plain.double() - e).abs().max().nan_to_num(posinf=0.0) + rounding(a)
            allowed = allowed + torch.finfo(batch.dtype).eps / 2 * e.abs() + torch.finfo(batch.dtype).smallest_normal
        finite = e.to(batch.dtype).isfinite()
        off = ((a.double() - e).abs() / allowed)[finite]
        assert bool((off <= 1).all()), f"off by {float(off.max())} times what is allowed"


@examples(70)
@given(
    spec=specs(),
    n=st.sampled_from([1, 2, 7, 16, 33, 64, 128]),
    n_real=st.sampled_from([None, None, 1, 64, 100]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([0.0, 1.0, 3.0, 30.0]),
    weight=st.sampled_from([None, 0.0, 1.0, 50.0]),
    scale=st.sampled_from([None, 1.0, 1024.0]),
    saturating=st.booleans(),
    fixed_std=st.booleans(),
    strided=st.booleans(),
    ends=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_agrees_over_layouts_dtypes_weights_and_strides(spec: LatentSpec, n: int, **rest: object) -> None:
    # A tile holds 2,048 logits: no more than about 12 programs.
    n = min(n, 24_576 // (64 * max(1, len(spec.categorical))))
    assert_agrees(Batch(spec, n, **rest))  # type: ignore[arg-type]


@examples(12)
@given(
    spec=specs(max_codes=3, max_continuous=4), n=st.sampled_from([5, 64]), real=st.booleans(), seed=st.integers(0, 99)
)
def test_agrees_for_logits_of_ten_thousand(spec: LatentSpec, n: int, real: bool, seed: int) -> None:
    assert_agrees(Batch(spec, n, n if real else None, size=1e4, fixed_std=True, seed=seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "n_real"), [(0, None), (0, 0), (3, 0), (513, None), (900, 70), (70, 900), (4096, None)])
def test_agrees_at_every_batch_size(n: int, n_real: int | None, dtype: torch.dtype) -> None:
    assert_agrees(Batch(MNIST, n, n_real, dtype=dtype))


def test_agrees_where_a_program_takes_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PROGRAMS", 3)
    assert_agrees(Batch(MIXED, 700, 300))


@pytest.mark.parametrize("n", [1024, 1500, 5000])
def test_adversarial_terms_alone_agree(n: int) -> None:
    assert_agrees(Batch(MNIST, n, n // 2, codes=False))


@pytest.mark.parametrize("n", [64, 1000])
def test_same_bits_on_every_run_and_the_counter_is_left_at_zero(n: int) -> None:
    batch = Batch(MIXED, n, n)
    first, second = batch.call(head_loss), batch.call(head_loss)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(counters.any() for counters, _ in module._arrivals.values())


def test_the_counters_of_a_device_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(MIXED, 1000, 1000)
    batch.call(head_loss)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: pytest.fail("made anew"))
    batch.call(head_loss)


def test_log_std_below_its_bound_is_pushed_up_but_never_down() -> None:
    spec = LatentSpec(0, (Uniform(2),))
    recognition = torch.tensor([[0.0, 0.0, -3.0, -3.0]])
    continuous = torch.tensor([[0.0, 0.9]])
    arguments = (torch.zeros(1), None, recognition, torch.empty(1, 0, dtype=torch.int64), continuous, None, None)
    *_, gradient = head_loss(*arguments, (), spec.entropies, False, False)
    distance = 0.9 * math.exp(-LOG_STD_MIN)
    torch.testing.assert_close(gradient[0, 2:], torch.tensor([0.0, 1 - distance**2]))


@pytest.mark.parametrize("wrong", [-1, 10, 11, 15, 16, 1 << 32])
def test_a_category_out_of_range_is_a_nan_in_its_term_and_teaches_nothing(wrong: int) -> None:
    batch = Batch(MNIST, 5)
    assert batch.categories is not None
    expected = batch.call(reference)
    batch.categories[2, 0] = wrong
    statistics, _, fake, recognition = batch.call(head_loss)
    assert statistics.isnan().nonzero().flatten().tolist() == [0, 3, 6]
    torch.testing.assert_close(fake, expected[2])
    assert not recognition[2, :10].any()
    expected[3][2, :10] = 0
    torch.testing.assert_close(recognition, expected[3])
