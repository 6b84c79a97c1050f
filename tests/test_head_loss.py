"""The reference of the head loss against torch.distributions, autograd and known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal
from torch.distributions import Categorical as CategoricalDistribution

from fastinfogan import Categorical, Gaussian, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.ops import LOG_STD_MIN, HeadLoss, head_loss, pack_codes, sample_latents, traversal
from fastinfogan.ops.backend import available
from tests.strategies import specs

SPEC = LatentSpec(2, (Categorical(4), Uniform(1), Categorical(3), Gaussian(1)))


def batch(spec: LatentSpec, rows: int, dtype: torch.dtype = torch.float64, seed: int = 0, size: float = 1.0):  # type: ignore[no-untyped-def]
    """Random arguments of head_loss for both phases; log-stds within the bound, where the loss is smooth."""
    generator = torch.Generator().manual_seed(seed)
    latents = sample_latents(spec, rows, seed=seed, step=0)
    recognition = size * torch.randn(rows, spec.head_dim, generator=generator, dtype=torch.float64)
    recognition[:, spec.log_std_columns] = recognition[:, spec.log_std_columns].abs() * 0.3 + LOG_STD_MIN + 0.05
    return {
        "fake_logits": (size * torch.randn(rows, generator=generator, dtype=torch.float64)).to(dtype),
        "real_logits": (size * torch.randn(rows, generator=generator, dtype=torch.float64)).to(dtype),
        "recognition": recognition.to(dtype),
        "categories": latents.categories,
        "continuous": latents.continuous.to(dtype),
        "code_weights": torch.linspace(0.5, 2.0, len(spec.names), dtype=torch.float64),
    }


def expected_code_terms(spec: LatentSpec, arguments: dict, fixed_std: bool = False) -> list[torch.Tensor]:
    """-E[log Q] of each code, from torch.distributions."""
    q, terms = arguments["recognition"], []
    for i in range(len(spec.categorical)):
        distribution = CategoricalDistribution(logits=q[:, spec.logit_columns(i)])
        terms.append(-distribution.log_prob(arguments["categories"][:, i]).mean())
    std = torch.ones_like(q[:, spec.log_std_columns]) if fixed_std else q[:, spec.log_std_columns].exp()
    log_density = Normal(q[:, spec.mean_columns], std).log_prob(arguments["continuous"])
    return terms + list(-log_density.mean(0))


@pytest.mark.parametrize("fixed_std", [False, True])
@given(spec=specs(max_codes=4, max_k=9, max_noise=3), rows=st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_terms_are_those_of_torch_distributions(fixed_std: bool, spec: LatentSpec, rows: int) -> None:
    arguments = batch(spec, rows)
    loss = head_loss(spec, **arguments, fixed_std=fixed_std)
    real = -Bernoulli(logits=arguments["real_logits"]).log_prob(torch.ones(rows, dtype=torch.float64)).mean()
    fake = -Bernoulli(logits=arguments["fake_logits"]).log_prob(torch.zeros(rows, dtype=torch.float64)).mean()
    codes = expected_code_terms(spec, arguments, fixed_std)
    torch.testing.assert_close(loss.terms, torch.stack([real, fake, *codes]))
    weighted = sum((w * term for w, term in zip(arguments["code_weights"], codes, strict=True)), torch.zeros(()))
    torch.testing.assert_close(loss.loss, real + fake + weighted)
    torch.testing.assert_close(
        loss.information, torch.tensor(spec.entropies, dtype=torch.float64) - loss.terms[2:], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("saturating", [False, True])
def test_g_phase_minimises_minus_log_d_or_equation_1(saturating: bool) -> None:
    logits = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64)
    probability = torch.sigmoid(logits)
    expected = torch.log1p(-probability).mean() if saturating else -torch.log(probability).mean()
    loss = head_loss(SPEC, logits, saturating=saturating)
    torch.testing.assert_close(loss.loss, expected)
    assert loss.terms[0] == 0
    assert loss.information.numel() == 0


@pytest.mark.parametrize("phase", ["d", "g", "g saturating", "g fixed_std", "d without codes"])
def test_fp64_gradcheck(phase: str) -> None:
    arguments = batch(SPEC, 3)
    for name in ("fake_logits", "real_logits", "recognition"):
        arguments[name].requires_grad_(True)
    if phase.startswith("g"):
        del arguments["real_logits"]
    if phase == "d without codes":
        for name in ("recognition", "categories", "continuous"):
            del arguments[name]
    leaves = [name for name in ("fake_logits", "real_logits", "recognition") if name in arguments]
    flags = {"saturating": phase == "g saturating", "fixed_std": phase == "g fixed_std"}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return head_loss(SPEC, **{**arguments, **dict(zip(leaves, values, strict=True))}, **flags).loss

    assert torch.autograd.gradcheck(loss, [arguments[name] for name in leaves])


@given(spec=specs(max_codes=4, max_k=9, max_noise=3), rows=st.integers(0, 6), scale=st.sampled_from([None, 1024.0]))
@settings(deadline=None, max_examples=25)
def test_stored_gradients_are_autograds(spec: LatentSpec, rows: int, scale: float | None) -> None:
    arguments = batch(spec, rows)
    leaves = [arguments[name].requires_grad_(True) for name in ("real_logits", "fake_logits", "recognition")]
    loss = head_loss(spec, **arguments, loss_scale=None if scale is None else torch.tensor(scale))
    loss.loss.backward()
    for leaf, stored in zip(leaves, loss.gradients, strict=True):
        assert torch.equal(leaf.grad, stored)
    unscaled = head_loss(spec, **arguments)
    torch.testing.assert_close(loss.gradients[2], unscaled.gradients[2] * (scale or 1.0))
    assert torch.equal(loss.loss, unscaled.loss)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_ten_thousand_stay_finite_and_exact(size: float, dtype: torch.dtype) -> None:
    spec = LatentSpec(0, (Categorical(3), Uniform(1)))
    recognition = torch.tensor([[size, 0.0, 0.0, 0.5, 1e4]]).to(dtype)
    loss = head_loss(
        spec,
        torch.tensor([size]).to(dtype),
        real_logits=torch.tensor([size]).to(dtype),
        recognition=recognition,
        categories=torch.tensor([[0]]),
        continuous=torch.tensor([[0.25]]),
    )
    stored = float(torch.tensor(size).to(dtype))
    assert loss.terms[0].item() == max(-stored, 0.0)
    assert loss.terms[1].item() == max(stored, 0.0)
    assert loss.terms[2].item() == pytest.approx(
        max(-stored, math.log(3) if size == 0 else 0.0) + (math.log(2) if size < 0 else 0.0)
    )
    assert all(torch.isfinite(gradient).all() for gradient in loss.gradients)


def exact_posterior(information: float, kind: str) -> HeadLoss:
    """The loss of a Q that knows the code as well as ``information`` says: 0 not at all, 1 exactly."""
    rows = 4096
    spec = LatentSpec(0, (Categorical(10),) if kind == "categorical" else (Uniform(1),))
    latents = sample_latents(spec, rows, seed=1, step=0)
    if kind == "categorical":
        # x shows the category with probability `information`, else nothing; Q is the exact posterior.
        shown = torch.arange(rows) < information * rows
        recognition = torch.where(shown[:, None], 60.0 * latents.z, torch.zeros(()))
    else:
        # x = sign bits of c: Q's mean is the code rounded to the cells of a grid, its std the bound.
        cells = 2.0 ** (1 + round(10 * information))
        mean = (torch.floor((latents.continuous + 1) / 2 * cells) + 0.5) / cells * 2 - 1
        recognition = torch.cat([mean, torch.full_like(mean, -10.0)], 1)
    return head_loss(
        spec,
        torch.zeros(rows),
        recognition=recognition,
        categories=latents.categories,
        continuous=latents.continuous,
    )


@pytest.mark.parametrize(("kind", "entropy"), [("categorical", math.log(10)), ("uniform", math.log(2))])
def test_the_bound_never_exceeds_the_entropy_and_reaches_it_in_the_limit(kind: str, entropy: float) -> None:
    bounds = [exact_posterior(share, kind).information.item() for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(bound <= entropy + 1e-6 for bound in bounds)
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(entropy, abs=1e-5)
    if kind == "categorical":
        assert bounds[0] == pytest.approx(0.0, abs=1e-6)
        assert bounds[2] == pytest.approx(entropy / 2, rel=1e-5)


def test_a_log_std_without_bound_cannot_run_away() -> None:
    spec = LatentSpec(0, (Uniform(1),))
    for log_std in (-1.0, -10.0, -1e4):
        loss = head_loss(
            spec,
            torch.zeros(1),
            recognition=torch.tensor([[0.25, log_std]]),
            categories=torch.zeros(1, 0, dtype=torch.int64),
            continuous=torch.tensor([[0.25]]),
        )
        assert loss.terms[2].item() == pytest.approx(0.0, abs=1e-6)
        # Descending would lower it further: no gradient.
        assert loss.gradients[2][0, 1].item() == 0.0


def test_a_log_std_below_the_bound_is_led_back_when_the_mean_is_wrong() -> None:
    spec = LatentSpec(0, (Uniform(1),))
    loss = head_loss(
        spec,
        torch.zeros(1),
        recognition=torch.tensor([[-1.0, -5.0]]),
        categories=torch.zeros(1, 0, dtype=torch.int64),
        continuous=torch.tensor([[1.0]]),
    )
    assert loss.gradients[2][0, 1].item() < 0


def test_fixed_std_ignores_the_log_std_columns() -> None:
    arguments = batch(SPEC, 4)
    other = dict(arguments, recognition=arguments["recognition"].clone())
    other["recognition"][:, SPEC.log_std_columns] += 3.0
    one, two = (head_loss(SPEC, **a, fixed_std=True) for a in (arguments, other))
    assert torch.equal(one.statistics, two.statistics)
    assert not one.gradients[2][:, SPEC.log_std_columns].any()


def test_a_weight_of_zero_stops_the_gradient_and_not_the_reading() -> None:
    arguments = batch(SPEC, 4)
    arguments["code_weights"] = torch.zeros(len(SPEC.names))
    loss = head_loss(SPEC, **arguments)
    assert not loss.gradients[2].any()
    assert (loss.terms[2:] > 0).all()
    torch.testing.assert_close(loss.loss, loss.terms[:2].sum())


def test_an_empty_batch_has_no_loss_and_no_nan() -> None:
    loss = head_loss(SPEC, **batch(SPEC, 0))
    assert loss.loss.item() == 0.0
    assert loss.gradients[2].shape == (0, SPEC.head_dim)


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, none beside the next in memory."""
    return torch.stack([tensor, torch.zeros_like(tensor) - 7], -1)[..., 0]


@pytest.mark.parametrize("backend", [name for name in ("native", "reference") if name in available("cpu")])
def test_strided_input_gives_the_same_bits(backend: str) -> None:
    arguments = batch(SPEC, 8, torch.float32)
    strided = {name: apart(tensor) for name, tensor in arguments.items()}
    one, two = (head_loss(SPEC, **of, backend=backend) for of in (arguments, strided))
    assert torch.equal(one.statistics, two.statistics)
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, two.gradients, strict=True))
    noise = torch.randn(8, SPEC.noise)
    parts = (noise, arguments["categories"], arguments["continuous"])
    packed = [pack_codes(SPEC, *of, backend=backend) for of in (parts, tuple(map(apart, parts)))]
    assert torch.equal(*packed)
    values = torch.tensor([0.0, 2.0, 1.0])
    swept = [
        traversal(SPEC, *of, code=code, values=value, backend=backend)
        for of, value in ((parts, values), (tuple(map(apart, parts)), apart(values)))
        for code in (0, 2)
    ]
    assert torch.equal(swept[0], swept[2]) and torch.equal(swept[1], swept[3])


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("codes", [False, True])
def test_opcheck(real: bool, codes: bool) -> None:
    a = batch(SPEC, 4, torch.float32)
    a["fake_logits"].requires_grad_(True)
    torch.library.opcheck(
        torch.ops.fastinfogan.head_loss,
        (
            a["fake_logits"],
            a["real_logits"].requires_grad_(True) if real else None,
            a["recognition"].requires_grad_(True) if codes else None,
            a["categories"] if codes else None,
            a["continuous"] if codes else None,
            a["code_weights"] if codes else None,
            None,
            SPEC.categorical,
            SPEC.entropies,
            False,
            False,
            "reference",
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recognition": torch.zeros(4, 5)}, r"recognition of shape \(4, 11\), got \(4, 5\)"),
        ({"categories": None}, r"needs categories of shape \(4, 2\)"),
        ({"categories": torch.zeros(4, 2)}, r"int64 indices, got torch.float32"),
        ({"continuous": torch.zeros(4, 2, dtype=torch.int64)}, "floating point continuous"),
        ({"fake_logits": torch.zeros(4, 1)}, r"fake_logits of shape"),
        ({"real_logits": torch.zeros(4, 1)}, r"real_logits of shape"),
        ({"code_weights": torch.zeros(3)}, r"code_weights of shape \(4,\), got \(3,\)"),
        ({"real_logits": torch.zeros(4, device="meta")}, "real_logits on meta and works on cpu"),
        ({"loss_scale": torch.ones(1)}, r"loss_scale of shape \(\), got \(1,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_loss(SPEC, **{**batch(SPEC, 4, torch.float32), **change})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_differentiable_once_and_says_so(dtype: torch.dtype) -> None:
    arguments = batch(SPEC, 4, dtype)
    logits = arguments["fake_logits"].requires_grad_(True)
    loss = head_loss(SPEC, **arguments).loss
    with pytest.raises(UserError, match="differentiable once, not twice: leave out create_graph=True"):
        torch.autograd.grad(loss, logits, create_graph=True)
    (gradient,) = torch.autograd.grad(head_loss(SPEC, **arguments).loss, logits)
    assert gradient.abs().sum() > 0


def test_an_outer_factor_beyond_float16_reaches_the_gradients_unrounded() -> None:
    logits = torch.full((128,), 2.0, dtype=torch.float16, requires_grad=True)
    (head_loss(SPEC, logits).loss * 65536.0).backward()
    expected = -65536.0 / 128 / (1 + math.exp(2.0))
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad.float().mean().item() == pytest.approx(expected, rel=2e-3)


def test_forward_derivatives_are_refused_and_not_lost() -> None:
    arguments = batch(SPEC, 4, torch.float32)
    logits = arguments.pop("fake_logits").detach()
    with pytest.raises(UserError, match="no forward-mode derivatives: use backward"):
        torch.func.jvp(lambda x: head_loss(SPEC, x, **arguments).loss, (logits,), (torch.ones_like(logits),))


def test_only_the_loss_asks_for_a_backward_pass() -> None:
    arguments = batch(SPEC, 4, torch.float32)
    arguments["fake_logits"].requires_grad_(True)
    loss = head_loss(SPEC, **arguments)
    assert loss.loss.requires_grad
    assert not any(tensor.requires_grad for tensor in (loss.statistics, loss.terms, loss.information))
