"""The CPU's layers: convolutions and fc as products, norm with activation; accurate, bit for bit on any threads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import BACKENDS, NATIVE, assert_as_accurate, what_cancels
from torch import nn
from torch.nn import functional as F

from fastinfogan.errors import UserError
from fastinfogan.ops import native, native_layers
from fastinfogan.ops.adam import adam
from fastinfogan.ops.convolve import convolve, convolve_transposed
from fastinfogan.ops.fc import fc
from fastinfogan.ops.norm_act import norm_act

ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available(),
    reason="this torch has not both libraries",
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("seeded")
quick = settings(deadline=None, max_examples=25)


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
@pytest.mark.parametrize("batch", [7, 513])
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


LAYERS = {
    "fc": lambda x, w, backend: fc(x.flatten(1), w, backend=backend),
    "convolve": lambda x, w, backend: convolve(x, w, stride=2, before=1, backend=backend),
    "convolve_transposed": lambda x, w, backend: convolve_transposed(x, w, stride=2, before=1, backend=backend),
    "norm_act": lambda x, w, backend: norm_act(x.flatten(1), w.flatten()[:128], slope=0.1, backend=backend)[0],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("op", LAYERS.values(), ids=list(LAYERS))
def test_autocast_ends_at_an_op(
    op: Any, dtype: torch.dtype, mkl: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it multiplies by would else come in bfloat16, half as long as the C++ that reads on from there expects."""
    if mkl:
        monkeypatch.setattr(native_layers, "_ONEDNN_IN_FLOAT32", False)

    def computed(autocast: bool) -> list[torch.Tensor]:
        x, w = (tensor.clone().requires_grad_() for tensor in (images, weights))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = op(x, w, backend)
            return [y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y))]

    images, weights = torch.randn(2, 8, 4, 4).to(dtype), torch.randn(8, 128).to(dtype)
    for found, expected in zip(computed(True), computed(False), strict=True):
        assert found.dtype == dtype and torch.equal(found, expected)


@pytest.mark.parametrize("op", LAYERS.values(), ids=list(LAYERS))
def test_forward_derivatives_of_layers_are_refused_and_not_lost(op: Any) -> None:
    images, weights = torch.randn(2, 8, 4, 4), torch.randn(8, 128)
    with pytest.raises(UserError, match="no forward-mode derivatives: use backward"):
        torch.func.jvp(lambda x: op(x, weights, None), (images,), (torch.ones_like(images),))
