"""The CPU's layers: convolutions as products, norm with activation, Adam, and the networks made of them."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastinfogan import Categorical, LatentSpec, Uniform
from fastinfogan.errors import UserError
from fastinfogan.matrices import use_matrices
from fastinfogan.networks import TABLES, build
from fastinfogan.ops import native, native_layers
from fastinfogan.ops.adam import adam
from fastinfogan.ops.convolve import convolve, convolve_transposed
from fastinfogan.ops.fc import fc
from fastinfogan.ops.norm_act import norm_act
from fastinfogan.optimiser import RefreshingAdam
from fastinfogan.precision import Precision

NATIVE = pytest.mark.skipif(not native.available(), reason=str(native.why_not))
ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available(),
    reason="this torch has not both libraries",
)
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _the_same_values_every_time() -> None:
    torch.manual_seed(0)


quick = settings(deadline=None, max_examples=25)


def assert_as_accurate(
    found: torch.Tensor, stock: torch.Tensor, exact: torch.Tensor, terms: int, scale: float = 0.0, given: float = 0.0
) -> None:
    """``found`` errs at most twice as far from ``exact`` as PyTorch's own ``stock`` does in the same precision.

    One rounding of the largest value, or of ``scale``, the largest of what cancels in it, and in fp32 one per doubling
    of the number of summed terms, is always allowed; so is what follows from the rounding of an intermediate result
    that the op's contract gives in fp32, ``given``.
    """
    assert found.dtype == stock.dtype and found.shape == exact.shape
    if not exact.numel():
        return
    unit = torch.finfo(found.dtype).eps * max(scale, exact.abs().max().item())
    roundings = max(1, terms).bit_length() if found.dtype == torch.float32 else 1
    allowed = 2 * (stock.double() - exact).abs().max().item() + unit * roundings / 2 + given
    assert (found.double() - exact).abs().max().item() <= allowed


def what_cancels(a: torch.Tensor, b: torch.Tensor) -> float:
    """How large the sums in ``a @ b`` are on the way: those of as many terms with random signs.

    The value that is left can be much smaller, and by chance stock's error of a single one is nearly 0.
    """
    return (a.double().square() @ b.double().square()).max().sqrt().item() if a.numel() and b.numel() else 0.0


@st.composite
def convolutions(draw: Any) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Images, in any memory order, a matrix, a stride and a padding."""
    stride = draw(st.sampled_from([1, 2]))
    before = draw(st.integers(0, 4 - stride))
    n, inputs, outputs = draw(st.integers(0, 5)), draw(st.sampled_from([1, 2, 3, 16, 33])), draw(st.integers(1, 20))
    height, width = (stride * draw(st.integers(2, 7)) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(DTYPES)
    images = torch.randn(n, inputs, height, width, generator=generator).to(dtype)
    order = draw(st.sampled_from(["contiguous", "channels-last", "sliced"]))
    if order == "channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif order == "sliced":
        images = torch.cat([images, images], 1)[:, inputs:]
    return images, torch.randn(outputs, 16 * inputs, generator=generator).to(dtype), stride, before


def results(images: torch.Tensor, matrix: torch.Tensor, stride: int, before: int, backend: str) -> list[torch.Tensor]:
    """The convolution, its transpose back to the images' shape, and the gradients of a weighted sum of the first."""
    images, matrix = images.detach().requires_grad_(), matrix.detach().requires_grad_()
    small = convolve(images, matrix, stride=stride, before=before, backend=backend)
    weights = torch.linspace(-1, 1, small.numel()).view(small.shape).to(small.dtype)
    gradients = torch.autograd.grad((small * weights).sum(), (images, matrix)) if small.numel() else ()
    large = convolve_transposed(small.detach(), matrix, stride=stride, before=before, backend=backend)
    return [small.detach(), large.detach(), *gradients]


@NATIVE
@quick
@given(convolutions())
def test_convolutions_as_products_err_no_more_than_twice_as_the_librarys(case: Any) -> None:
    images, matrix, stride, before = case
    found = results(images, matrix, stride, before, "native")
    stock = results(images, matrix, stride, before, "reference")
    exact = results(images.double(), matrix.double(), stride, before, "reference")
    terms = 16 * max(images.shape[1], matrix.shape[0]) + images.shape[0] * images.shape[2] * images.shape[3]
    # The transpose is applied to each one's own small image: compare what it makes of the exact one's rounding.
    for mine, library, truth in zip(found, stock, exact, strict=True):
        assert_as_accurate(mine, library, truth, terms)


@NATIVE
@pytest.mark.parametrize("batch", [1, 513])
def test_chunks_of_patches_do_not_change_a_convolution(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(batch, 8, 12, 12, generator=torch.Generator().manual_seed(batch))
    matrix = torch.randn(6, 128, generator=torch.Generator().manual_seed(1))
    whole = results(images, matrix, 2, 1, "native")
    monkeypatch.setattr(native_layers, "_PATCHES_AT_A_TIME", 100_000)
    for one, other in zip(whole, results(images, matrix, 2, 1, "native"), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_a_convolution_is_conv2d_and_its_transpose_conv_transpose2d() -> None:
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(
        convolve(images, matrix, stride=2, before=1),
        F.conv2d(images, weight, stride=2, padding=1),
        atol=1e-4,
        rtol=1e-4,
    )
    small = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(
        convolve_transposed(small, matrix, stride=2, before=1),
        F.conv_transpose2d(small, weight, stride=2, padding=1),
        atol=1e-4,
        rtol=1e-4,
    )
    uneven = convolve(images, matrix, stride=1, before=1)
    torch.testing.assert_close(uneven, F.conv2d(F.pad(images, (1, 2, 1, 2)), weight), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("stride", "before"), [(1, 1), (1, 2), (2, 1), (2, 0)])
def test_gradients_of_convolutions_are_those_of_finite_differences(stride: int, before: int) -> None:
    images = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    small = torch.randn(1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, m: convolve(i, m, stride=stride, before=before), (images, matrix))
    assert torch.autograd.gradcheck(
        lambda i, m: convolve_transposed(i, m, stride=stride, before=before), (small, matrix)
    )


def test_convolutions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"sides it divides and a matrix \[out, 48\], got \(1, 3, 5, 4\)"):
        convolve(torch.zeros(1, 3, 5, 4), torch.zeros(2, 48), stride=2, before=1)
    with pytest.raises(UserError, match=r"matrix \[3, 16 \* out\], got \(2, 48\)"):
        convolve_transposed(torch.zeros(1, 3, 4, 4), torch.zeros(2, 48), stride=2, before=1)
    with pytest.raises(UserError, match="at 3 with 1"):
        convolve(torch.zeros(1, 3, 6, 6), torch.zeros(2, 48), stride=3, before=1)


# ------------------------------------------------------------------------------------------------------- fc


@NATIVE
@quick
@given(st.integers(0, 1100), st.integers(0, 70), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_transposed_rows_are_the_same_values_in_another_order(rows: int, columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, columns).to(dtype)
    assert torch.equal(native_layers._transposed(x), x.t())
    assert torch.equal(native_layers._transposed(x[::2, 1:]), x[::2, 1:].t())


@NATIVE
@quick
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40), DTYPES)
def test_fc_errs_no_more_than_twice_as_the_library(n: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    def results(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (rows, matrix)]
        products = fc(*leaves, backend=backend)
        return [products.detach(), *torch.autograd.grad(products, leaves, gradient.to(dtype))]

    rows, matrix, gradient = (torch.randn(*s).to(dtype) for s in ((n, inputs), (outputs, inputs), (n, outputs)))
    exact = results("reference", torch.float64)
    scales = what_cancels(rows, matrix.t()), what_cancels(gradient, matrix), what_cancels(gradient.t(), rows)
    both = zip(results("native", dtype), results("reference", dtype), exact, scales, strict=True)
    for mine, library, truth, scale in both:
        assert_as_accurate(mine, library, truth, max(n, inputs, outputs), scale)


@ONEDNN
@NATIVE
@quick
@given(st.integers(0, 200), st.sampled_from([0, 1, 17, 512, 6272]), st.integers(0, 70), st.booleans(), st.booleans())
def test_either_library_multiplies_float32(n: int, inner: int, outputs: int, turned: bool, given_out: bool) -> None:
    a = torch.randn(inner, n).t() if turned else torch.randn(n, inner)
    b = torch.randn(outputs, inner).t() if turned else torch.randn(inner, outputs)
    for by_onednn in (False, True):
        out = torch.full((n, outputs), torch.nan) if given_out else None
        with patch.object(native_layers, "_ONEDNN_IN_FLOAT32", by_onednn):
            found = native_layers._product(a, b, out)
        assert out is None or found.data_ptr() == out.data_ptr()
        assert_as_accurate(found, a @ b, a.double() @ b.double(), inner, what_cancels(a, b))


@ONEDNN
@NATIVE
def test_float32_goes_to_onednn_where_mkl_would_not_use_the_processor() -> None:
    def products(by_onednn: bool, dtype: torch.dtype) -> list[str]:
        rows, matrix = torch.randn(4, 8).to(dtype).requires_grad_(), torch.randn(3, 8).to(dtype).requires_grad_()
        with patch.object(native_layers, "_ONEDNN_IN_FLOAT32", by_onednn), torch.profiler.profile() as profile:
            fc(rows, matrix, backend="native").sum().backward()
        ours = {"aten::mm": "mkl", "mkldnn::_linear_pointwise": "onednn"}
        return [ours[event.name] for event in profile.events() if event.name in ours]

    assert products(True, torch.float32) == ["onednn"] * 3  # forward, and towards the rows and the weights
    assert products(False, torch.float32) == ["mkl"] * 3
    assert products(True, torch.bfloat16) == ["mkl"] * 3  # whose product of bfloat16 is oneDNN's anyway


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not say whose processor it has")
@NATIVE
def test_the_makers_name_is_the_systems() -> None:
    assert native_layers._C.processor_is_intel() == ("GenuineIntel" in Path("/proc/cpuinfo").read_text())


def test_gradients_of_fc_are_those_of_finite_differences_and_misfits_are_refused() -> None:
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (2, 3))]
    assert torch.autograd.gradcheck(fc, leaves)
    with pytest.raises(UserError, match=r"rows \[n, in\] and weights \[out, in\], got \(4, 3\), \(3, 2\)"):
        fc(torch.zeros(4, 3), torch.zeros(3, 2))


# ------------------------------------------------------------------------------------------------- norm_act


@st.composite
def norms(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float, int, torch.Tensor]:
    groups, rows, columns = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([2, 3, 64, 65, 200])),
        draw(st.integers(1, 40)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shift = draw(st.sampled_from([0.0, 1.0, 100.0]))
    dtype = draw(DTYPES)
    if dtype == torch.float16:
        shift = min(shift, 1.0)
    x = (torch.randn(groups * rows, columns, generator=generator) + shift).to(dtype)
    gain = torch.randn(columns, generator=generator) if draw(st.booleans()) else None
    dy = torch.randn(groups * rows, columns, generator=generator).to(dtype)
    if draw(st.booleans()):  # rows that are not neighbours in memory
        x = torch.cat([x, x], 1)[:, :columns]
    return x, torch.randn(columns, generator=generator), gain, draw(st.sampled_from([0.0, 0.1, 1.0])), groups, dy


def normalised(case: Any, backend: str, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """y, mean, variance, and the gradients of x, bias and gain."""
    x, bias, gain, slope, groups, dy = case
    if dtype is not None:
        x, bias, gain, dy = (None if t is None else t.to(dtype) for t in (x, bias, gain, dy))
    leaves = [t.detach().requires_grad_() for t in (x, bias, gain) if t is not None]
    y, mean, variance = norm_act(*leaves, slope=slope, groups=groups, backend=backend)
    gradients = torch.autograd.grad(y, leaves, dy)
    return [y.detach(), mean, variance, *gradients]


@NATIVE
@quick
@given(norms())
def test_norm_act_errs_no_more_than_twice_as_the_reference(case: Any) -> None:
    found, stock = normalised(case, "native"), normalised(case, "reference")
    exact = normalised(case, "reference", torch.float64)
    x = case[0]
    # An activation's kink: where z is within rounding of 0, either side's gradient is right.
    with torch.no_grad():
        z, *_ = norm_act(
            *(t.double() for t in case[:3] if t is not None), slope=1.0, groups=case[4], backend="reference"
        )
    if case[3] != 1.0 and bool((z.abs() < 1e-5 * (1 + z.abs().max())).any()):
        found, stock, exact = found[:3], stock[:3], exact[:3]
    # dx is the difference of terms as large as dy * gain / std; gain's and bias's gradients are sums over rows.
    deviation = exact[2].min().sqrt().item() if exact[2].numel() else 1.0
    largest = case[5].abs().max().item() * (1.0 if case[2] is None else case[2].abs().max().item() / (deviation + 3e-3))
    scales = [0.0, x.abs().max().item(), 0.0, largest, float(x.shape[0]), float(x.shape[0])]
    # The mean is rounded to fp32, which displaces every normalised value alike.
    displaced = 0.0 if case[2] is None else 2**-24 * x.abs().max().item() / (deviation + 3e-3)
    stretch = 0.0 if case[2] is None else case[2].abs().max().item()
    given = [stretch * displaced, 0.0, 0.0, largest * displaced, 0.0, case[5].abs().sum(0).max().item() * displaced]
    for mine, reference, truth, scale, extra in zip(found, stock, exact, scales, given, strict=False):
        assert_as_accurate(mine, reference, truth, 4 * x.shape[0], scale, extra)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_act_is_batch_norm_and_leaky_relu_per_group(backend: str) -> None:
    norm = nn.BatchNorm1d(7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 50, 7) * (0.5 + torch.rand(7)) + torch.randn(7)
    y, mean, variance = norm_act(x.flatten(0, 1), norm.bias, norm.weight, slope=0.1, groups=3, backend=backend)
    expected = torch.cat([F.leaky_relu(norm(part), 0.1) for part in x])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(variance, x.var(1, correction=0))


@pytest.mark.parametrize("with_gain", [True, False])
def test_gradients_of_norm_act_are_those_of_finite_differences(with_gain: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(10, 3, dtype=torch.float64, generator=generator), torch.randn(3, dtype=torch.float64)]
    leaves += [torch.randn(3, dtype=torch.float64)] if with_gain else []
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: norm_act(*t, slope=0.3, groups=2)[0], leaves)


def test_norm_act_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"\[groups \* n, 3\] for 2 groups, got \(5, 3\)"):
        norm_act(torch.zeros(5, 3), torch.zeros(3), slope=0.0, groups=2)
    with pytest.raises(UserError, match="at least 2 rows in each of 2 groups, got 2"):
        norm_act(torch.zeros(2, 3), torch.zeros(3), torch.ones(3), slope=0.0, groups=2)
    for gain in (torch.ones(1), torch.ones(2), torch.ones(1, 3)):
        with pytest.raises(UserError, match=r"norm_act expected gain of shape \(3,\), got"):
            norm_act(torch.zeros(4, 3), torch.zeros(3), gain, slope=0.0)
    with pytest.raises(UserError, match=r"norm_act expected bias of shape \(0,\), got \(3, 0\)"):
        norm_act(torch.zeros(4, 3), torch.zeros(3, 0), slope=0.0)
    with pytest.raises(UserError, match="norm_act got bias on meta and works on cpu"):
        norm_act(torch.zeros(4, 3), torch.zeros(3, device="meta"), slope=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layers_are_whole_torch_ops(backend: str) -> None:
    ops = torch.ops.fastinfogan
    images, matrix = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(5, 48, requires_grad=True)
    images = images.contiguous(memory_format=torch.channels_last)
    rows, weights = torch.randn(7, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    torch.library.opcheck(ops.fc.default, (rows, weights, backend))
    torch.library.opcheck(ops.fc_gradient.default, (torch.randn(7, 5), rows.detach(), backend))
    torch.library.opcheck(ops.convolve.default, (images, matrix, 2, 1, backend))
    small = torch.randn(2, 5, 2, 2, requires_grad=True)
    torch.library.opcheck(ops.convolve_transposed.default, (small, matrix, 2, 1, backend))
    torch.library.opcheck(ops.convolve_gradient.default, (images.detach(), small.detach(), 2, 1, backend))
    bias, gain = torch.randn(3), torch.randn(3, requires_grad=True)
    for x in (torch.randn(6, 3, requires_grad=True), torch.randn(3, 6).t().requires_grad_()):
        for scale in (gain, None):
            torch.library.opcheck(ops.norm_act.default, (x, bias, scale, 0.1, 2, 1e-5, backend))
        for scale in (gain.detach(), None):
            y, mean, variance = ops.norm_act(x.detach(), bias, scale, 0.1, 2, 1e-5, backend)
            of_norm = (y, x.detach(), bias, scale, mean, variance, 0.1, 2, 1e-5, backend)
            torch.library.opcheck(ops.norm_act_backward.default, of_norm)
    weights, gradients, firsts, seconds = ([torch.ones(3), torch.ones(2)] for _ in range(4))
    copies, steps = [torch.ones(3).bfloat16(), torch.empty(0).bfloat16()], [torch.zeros(()), torch.zeros(())]
    state = (weights, gradients, firsts, seconds, copies, steps)
    torch.library.opcheck(ops.adam.default, (*state, torch.tensor(0.1).double(), 0.5, 0.9, 1e-8, backend))


@NATIVE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_are_summed_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_layers, "_PATCHES_AT_A_TIME", 20_000)
    reference = importlib.import_module("fastinfogan.ops.convolve")._gradient_reference
    generator = torch.Generator().manual_seed(0)
    large, small = (torch.rand(256, c, s, s, generator=generator).to(dtype) for c, s in ((3, 12), (8, 6)))
    exact = reference(large.double(), small.double(), 2, 1)
    stock, found = reference(large, small, 2, 1), native_layers.convolve_gradient(large, small, 2, 1)
    assert (found.double() - exact).norm() <= 2 * (stock.double() - exact).norm()


@NATIVE
def test_instruction_sets_and_numbers_of_threads_agree_bit_for_bit() -> None:
    _C = native._C
    images = torch.randn(70, 16, 8, 8)
    x, bias, gain = torch.randn(4096, 32), torch.randn(32), torch.randn(32)
    outcomes = []
    best, threads = _C.isa(), torch.get_num_threads()
    try:
        for isa in _C.isas:
            for n in (1, 2):
                _C.use_isa(isa)
                torch.set_num_threads(n)
                _, _, patches = next(native_layers._patches(images, 2, 1))
                y, mean, variance = native_layers.norm_act(x, bias, gain, 0.1, 2, 1e-5)
                backward = native_layers.norm_act_backward(y, x, bias, gain, mean, variance, 0.1, 2, 1e-5)
                turned = native_layers._transposed(images.flatten(1).bfloat16())
                # images of 16 channels as places with the values of 16 taps of one channel: what fold adds up
                up = native_layers.convolve_transposed(images, torch.eye(16), 2, 1)
                weights = [torch.ones(9000), torch.ones(9000)]
                gradients = [x.flatten()[:9000].clone(), x.flatten()[:9000].bfloat16()]
                moments = [[torch.full((9000,), 0.5) for _ in weights] for _ in range(2)]
                copies, steps = (
                    [torch.empty(9000, dtype=torch.bfloat16) for _ in weights],
                    [torch.zeros(()) for _ in weights],
                )
                adam(
                    weights,
                    gradients,
                    *moments,
                    copies,
                    steps,
                    learning_rate=1e-2,
                    betas=(0.5, 0.999),
                    backend="native",
                )
                outcomes.append(
                    [patches.clone(), turned, y, mean, variance, *backward, up, *weights, *copies, *moments[0]]
                )
    finally:
        _C.use_isa(best)
        torch.set_num_threads(threads)
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome, outcomes[0], strict=True))


# ----------------------------------------------------------------------------------------------------- Adam


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
def test_adam_is_torchs_and_its_copies_are_the_weights_rounded(backend: str, gradient_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1,), (3, 5), (100, 333), (8192,), (8193,)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    stock = [nn.Parameter(weight.double()) for weight in weights]
    optimiser = torch.optim.Adam(stock, lr=1e-2, betas=(0.5, 0.999))
    firsts, seconds = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    copies = [torch.empty(weight.shape if i % 2 else 0, dtype=torch.bfloat16) for i, weight in enumerate(weights)]
    steps = [torch.zeros(()) for _ in weights]
    for _ in range(5):
        gradients = [torch.randn(shape, generator=generator).to(gradient_dtype) for shape in shapes]
        for parameter, gradient in zip(stock, gradients, strict=True):
            parameter.grad = gradient.double()
        optimiser.step()
        adam(
            weights, gradients, firsts, seconds, copies, steps, learning_rate=1e-2, betas=(0.5, 0.999), backend=backend
        )
    assert [step.item() for step in steps] == [5] * len(weights)
    for weight, parameter, made in zip(weights, stock, copies, strict=True):
        torch.testing.assert_close(weight, parameter.detach().float(), atol=1e-6, rtol=1e-6)
        assert not made.numel() or torch.equal(made, weight.to(torch.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_corrects_each_weight_by_the_steps_that_it_has_done(backend: str) -> None:
    weights, gradients = [torch.zeros(3), torch.zeros(4)], [torch.ones(3), torch.ones(4)]
    moments = [[torch.ones(3), torch.zeros(4)] for _ in range(2)]
    copies, steps = [torch.empty(0, dtype=torch.bfloat16)] * 2, [torch.tensor(5000.0), torch.tensor(0.0)]
    adam(weights, gradients, *moments, copies, steps, learning_rate=1e-3, betas=(0.5, 0.999), backend=backend)
    assert [step.item() for step in steps] == [5001, 1]
    # A gradient that has always been 1 moves any weight by the learning rate.
    torch.testing.assert_close(torch.cat(weights), torch.full((7,), -1e-3), atol=0, rtol=1e-2)


def adam_arguments() -> dict[str, Any]:
    return {
        "weights": [torch.zeros(3, 4)],
        "gradients": [torch.ones(3, 4)],
        "first_moments": [torch.zeros(3, 4)],
        "second_moments": [torch.zeros(3, 4)],
        "copies": [torch.empty(0, dtype=torch.bfloat16)],
        "steps": [torch.zeros(())],
        "learning_rate": 1e-3,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": torch.tensor(1e-3)}, "learning rate in float64, got a torch.float32 tensor"),
        ({"weights": [torch.zeros(3, 4, dtype=torch.float64)]}, "expected float32 weights"),
        ({"steps": [torch.zeros((), dtype=torch.int64)]}, "expected float32 weights, moments and steps"),
        ({"steps": [torch.zeros(0)]}, r"one step, got \(3, 4\), \(3, 4\) and 0"),
        ({"second_moments": [torch.zeros(2, 4)]}, r"moments \(3, 4\) as its weight and one step, got"),
        ({"steps": []}, "1 weights and lists of 1, 1, 1, 1, 0"),
        ({"gradients": [torch.ones(3, 3)]}, "expected 12 elements as in the weight, got a gradient of 9"),
        ({"copies": [torch.empty(5, dtype=torch.bfloat16)]}, "a copy of 5"),
        ({"gradients": [torch.ones(4, 3).t()]}, r"a gradient of strides \(1, 3\)"),
        ({"first_moments": [torch.zeros(4, 3).t()]}, r"moments of strides \(1, 3\) and \(4, 1\)"),
        ({"copies": [torch.zeros(4, 3).bfloat16().t()]}, r"a copy of strides \(1, 3\) do not lie as"),
        ({"copies": [torch.zeros(3, 4)]}, "copies in bfloat16, got torch.float32 and torch.float32"),
        ({"copies": [torch.zeros(3, 4, dtype=torch.uint8)]}, "copies in bfloat16, got torch.float32 and torch.uint8"),
        ({"gradients": [torch.ones(3, 4).double()]}, "expected gradients in float32, bfloat16 or float16"),
        ({"gradients": [torch.ones(3, 4, device="meta")]}, "adam got a gradient on meta and works on cpu"),
        ({"copies": [torch.ones(3, 4, device="meta").bfloat16()]}, "adam got a copy on meta and works on cpu"),
        (
            {name: [torch.zeros(3, 8)[:, ::2]] for name in ("weights", "gradients", "first_moments", "second_moments")},
            r"a weight of strides \(8, 2\) is neither contiguous nor",
        ),
    ],
)
def test_adam_names_what_it_cannot_walk_through(wrong: dict[str, Any], message: str) -> None:
    arguments = adam_arguments() | wrong
    with pytest.raises(UserError, match=message):
        adam(**arguments, betas=(0.5, 0.999))
    assert not arguments["weights"][0].any()


@pytest.mark.parametrize("copies", [True, False])
def test_the_refreshing_optimiser_moves_weights_in_any_memory_order_as_torchs(copies: bool) -> None:
    weight = nn.Parameter(torch.randn(6, 5, 4, 4).contiguous(memory_format=torch.channels_last))
    stock = nn.Parameter(weight.detach().clone())
    copy_of = {weight: torch.empty(6, 80, dtype=torch.bfloat16).requires_grad_()} if copies else {}
    mine = RefreshingAdam([weight], lr=1e-2, betas=(0.5, 0.999), copies=copy_of)
    theirs = torch.optim.Adam([stock], lr=1e-2, betas=(0.5, 0.999))
    for _ in range(3):
        gradient = torch.randn(6, 5, 4, 4).to(torch.bfloat16).float()
        stock.grad = gradient
        if copies:
            copy_of[weight].grad = gradient.permute(0, 2, 3, 1).flatten(1).to(torch.bfloat16)
        else:
            weight.grad = gradient  # contiguous: another order than the weight's
        assert len(mine.gradients()) == 1
        mine.step()
        theirs.step()
    torch.testing.assert_close(weight, stock, atol=1e-6, rtol=1e-6)
    if copies:
        assert torch.equal(copy_of[weight].detach(), weight.detach().permute(0, 2, 3, 1).flatten(1).to(torch.bfloat16))
    mine.zero_grad()
    assert mine.gradients() == []


# ------------------------------------------------------------------------------------- networks as matrices

SPEC = LatentSpec(6, (Categorical(4), Uniform(2)))


NETWORKS = {**TABLES, "spectral norm": replace(TABLES["dsprites"], spectral=True)}


def pair(name: str, dtype: torch.dtype) -> tuple[list[nn.Module], list[nn.Module], Any]:
    """Stock networks and the same as matrices, with weights large enough for every unit to be awake."""
    stock = list(build(NETWORKS[name], SPEC, seed=1))
    for network in stock:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for parameter in network.parameters():
            with torch.no_grad():
                parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    mine = copy.deepcopy(stock)
    return stock, mine, use_matrices(mine, Precision(CPU, dtype, "a test"))


def play(networks: list[nn.Module], z: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of G, and of D and Q on two groups; the gradients of a loss of them are left at the weights."""
    generator, discriminator = networks
    images = generator(z)
    features = discriminator.features(torch.cat([images, 0.5 * images]), groups=2)  # type: ignore[operator]
    outputs = [images, discriminator.adversarial(features), discriminator.recognition(features, groups=2)]  # type: ignore[operator]
    sum((output.float() ** 2).sum() for output in outputs[1:]).backward()  # type: ignore[union-attr]
    return [output.detach().float() for output in outputs]


@NATIVE
@pytest.mark.parametrize("name", NETWORKS)
def test_matrices_compute_what_the_modules_compute(name: str) -> None:
    stock, mine, copies = pair(name, torch.float32)
    assert copies == {}
    exact = [copy.deepcopy(network).double() for network in stock]
    z = torch.randn(16, SPEC.dim, generator=torch.Generator().manual_seed(0))
    outputs = [play(networks, z.to(next(networks[0].parameters()).dtype)) for networks in (mine, stock, exact)]
    for found, library, truth in zip(*outputs, strict=True):
        assert_as_accurate(found, library, truth.double(), 1 << 16)
    for trio in zip(*([p for n in networks for p in n.parameters()] for networks in (mine, stock, exact)), strict=True):
        found, library, truth = (parameter.grad for parameter in trio)
        assert found.stride() == trio[0].stride() or found.is_contiguous()
        # Where a value is within rounding of an activation's kink, either implementation may fall on either side of it.
        for gradient in (found, library):
            assert (gradient.double() - truth).norm() <= 0.02 * truth.norm()
    for mine_buffer, stock_buffer in zip(
        *([b for n in networks for b in n.buffers()] for networks in (mine, stock)), strict=True
    ):
        torch.testing.assert_close(mine_buffer, stock_buffer, atol=1e-4, rtol=1e-4)


@NATIVE
def test_in_bfloat16_matrices_err_no_more_than_twice_as_autocast() -> None:
    stock, mine, copies = pair("mnist", torch.bfloat16)
    z = torch.randn(64, SPEC.dim, generator=torch.Generator().manual_seed(0))
    double = [copy.deepcopy(network).double() for network in stock]
    exact = play(double, z.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, library = (play(networks, z) for networks in (mine, stock))
    for one, other, truth in zip(found, library, exact, strict=True):
        error, stock_error = ((value - truth).square().mean().sqrt().item() for value in (one, other))
        assert error <= 2 * stock_error
    weights = [p for network in mine for p in network.parameters() if p in copies]
    assert weights and all(weight.grad is None and copies[weight].grad is not None for weight in weights)
    theirs, truths = ([p.grad for n in networks for p in n.parameters() if p.dim() > 1] for networks in (stock, double))
    for weight, library, truth in zip(weights, theirs, truths, strict=True):
        found, library, truth = (
            (g if g.dim() == 2 else g.permute(0, 2, 3, 1).flatten(1)).double()
            for g in (copies[weight].grad, library, truth)
        )
        assert (found - truth).norm() <= 2 * (library - truth).norm()


@NATIVE
def test_copies_follow_weights_that_are_written_by_hand_and_stay_with_frozen_ones() -> None:
    _, (generator, _), copies = pair("mnist", torch.bfloat16)
    z = torch.randn(4, SPEC.dim)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        generator.eval()
        before = generator(z)
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
        assert not torch.equal(generator(z), before)
    for weight, matrix in copies.items():
        if weight in set(generator.parameters()):
            flat = weight.detach() if weight.dim() == 2 else weight.detach().permute(0, 2, 3, 1).flatten(1)
            assert torch.equal(matrix.detach(), flat.to(torch.bfloat16))
            weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator(z.requires_grad_()).sum().backward() is None
    assert all(matrix.grad is None for matrix in copies.values())


@NATIVE
def test_a_copy_of_a_network_has_a_life_of_its_own() -> None:
    _, (generator, _), _ = pair("mnist", torch.bfloat16)
    other = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert generator.eval()(torch.randn(2, SPEC.dim)).float().std() > 0
        assert other.eval()(torch.randn(2, SPEC.dim)).float().std() == 0


def test_without_a_cpu_or_the_extension_the_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = list(build(TABLES["mnist"], SPEC, seed=0))
    assert use_matrices(networks, Precision(torch.device("cuda"), torch.bfloat16, "a test")) is None
    monkeypatch.setenv("FASTINFOGAN_BACKEND", "reference")
    assert use_matrices(networks, Precision(CPU, torch.bfloat16, "a test")) is None
    assert all(getattr(module, "engine", None) is None for network in networks for module in network.modules())


@pytest.mark.parametrize(
    "op",
    [
        lambda x, w: fc(x, w[:, :, 0, 0]),
        lambda x, w: norm_act(x, w[0, :, 0, 0], w[1, :, 0, 0], slope=0.1)[0],
        lambda x, w: convolve(
            x[:, :, None, None].expand(-1, -1, 4, 4), w.permute(0, 2, 3, 1).flatten(1), stride=2, before=1
        ),
        lambda x, w: convolve_transposed(x[:, :, None, None], w.permute(1, 2, 3, 0).flatten(1), stride=2, before=1),
    ],
    ids=["fc", "norm_act", "convolve", "convolve_transposed"],
)
def test_layers_are_differentiable_once_and_say_so(op: Any) -> None:
    x, w = torch.randn(6, 5).requires_grad_(), torch.randn(8, 5, 4, 4).requires_grad_()
    with pytest.raises(UserError, match="differentiable once"):
        torch.autograd.grad(op(x, w).square().sum(), w, create_graph=True)
    (gradient,) = torch.autograd.grad(op(x, w).square().sum(), w)
    assert gradient.abs().sum() > 0
